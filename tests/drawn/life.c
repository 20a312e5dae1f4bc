/*
 * A life that was drawn: its processes do what the file `plan` says, in turn, a line
 * each: WORD WHO A B C, where WHO and the numbers are taken modulo whatever there is. What
 * does not apply is passed over, so any line may be left out.
 *
 * Then each process tells all it sees of itself into `before`. After go it tells the
 * same again into `told`, and what comes out of it when it is used up: all that is queued in
 * its descriptors, its signals, its children. Nothing is judged here: whoever runs it
 * compares what one tells that was never ended with what one tells that was restored.
 *
 * Numbers that differ by nature are left out or told as classes: inodes, device numbers,
 * names of files that have none any more, times but for hundreds of seconds.
 */
#include "../apps/check.h"
#include <dirent.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/kcmp.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <termios.h>

enum { OPS = 256, PROCESSES = 12, THREADS = 8, SLOTS = 24, TIMERS = 8, FDS = 256, CLASSES = 512, NUMBERS = 64 };
enum { PAGE = 4096, SLOT = 32 << 20 };
static char *const BASE = (char *)0x100000000000;

struct op {
    char word[16];
    long who, a, b, c;
};
static struct op plan[OPS];
static int ops;

/* What all processes see. `now` tells at once which step is done, and by which process. */
static struct board {
    int now, count, forked, left;
    pid_t ending;
    int alive[PROCESSES];
    pid_t pids[NUMBERS];
    int classes;
    char class[CLASSES][64];
} *board;
static int me;

/* What this process knows of itself. */
static size_t slots[SLOTS];
static timer_t timers[TIMERS];
static int timer_count;
static struct {
    pthread_t thread;
    pid_t tid;
    int kind, fd;
} threads[THREADS];
static int thread_count;
static long handled[65];
static char *grown;
static size_t grown_by;
static pid_t stopped[4];
static int stopped_count;

static const int SIGNALS[] = {SIGUSR1, SIGUSR2, SIGWINCH, SIGURG, 35, 36, 40};
static int signal_of(long n)
{
    return SIGNALS[(unsigned long)n % (sizeof SIGNALS / sizeof *SIGNALS)];
}

static void on_signal(int sig)
{
    __atomic_add_fetch(&handled[sig], 1, __ATOMIC_SEQ_CST);
}

static void futex_wait(int *word, int while_it_is)
{
    syscall(SYS_futex, word, FUTEX_WAIT, while_it_is, NULL, NULL, 0);
}

static int step_now(void)
{
    return board->now / NUMBERS;
}

static void say_step_done(int turn)
{
    __atomic_store_n(&board->now, (step_now() + 1) * NUMBERS + turn, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &board->now, FUTEX_WAKE, PROCESSES, NULL, NULL, 0);
}

/* ---------------------------------------------------------------- choosing */

static int is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

static const char *leads_to(int fd)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return check_link(path);
}

/* The descriptor that many places on of those whose target begins so; -1 where there is none. */
static int pick(long n, const char *prefix)
{
    int found[FDS], count = 0;
    for (int fd = 3; fd < FDS; fd++)
        if (is_open(fd) && !strncmp(leads_to(fd), prefix, strlen(prefix)))
            found[count++] = fd;
    return count ? found[n % count] : -1;
}

/* A file of its own: without a name, or in memory. */
static int pick_file(long n)
{
    int found[FDS], count = 0;
    for (int fd = 3; fd < FDS; fd++) {
        struct stat st;
        if (is_open(fd) && !fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_nlink == 0)
            found[count++] = fd;
    }
    return count ? found[n % count] : -1;
}

/* An area of memory that there is; -1 where there is none. */
static int pick_slot(long n)
{
    int found[SLOTS], count = 0;
    for (int slot = 0; slot < SLOTS; slot++)
        if (slots[slot])
            found[count++] = slot;
    return count ? found[n % count] : -1;
}

/* A part of an area, whole pages. */
static char *part_of(int slot, long b, long c, size_t *len)
{
    size_t pages = slots[slot] / PAGE, first = b % pages;
    *len = (1 + c % (pages - first)) * PAGE;
    return BASE + (size_t)slot * SLOT + first * PAGE;
}

static void patiently(int fd, int nonblocking)
{
    int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, nonblocking ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
}

/* ---------------------------------------------------------------- descriptors */

static void do_pipe(long a, long b, long c)
{
    int fds[2];
    (void)b, (void)c;
    if (pipe2(fds, (a & 1 ? O_NONBLOCK : 0) | (a & 2 ? O_DIRECT : 0) | (a & 4 ? O_CLOEXEC : 0)))
        return;
}

static void do_pair(long a, long b, long c)
{
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    int fds[2];
    (void)c;
    if (socketpair(AF_UNIX, types[a % 3] | (b & 1 ? SOCK_CLOEXEC : 0) | (b & 2 ? SOCK_NONBLOCK : 0), 0, fds))
        return;
}

static void do_eventfd(long a, long b, long c)
{
    (void)c;
    eventfd(a, (b & 1 ? EFD_SEMAPHORE : 0) | (b & 2 ? EFD_NONBLOCK : 0));
}

static void do_timerfd(long a, long b, long c)
{
    static const int clocks[] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME};
    int fd = timerfd_create(clocks[a % 3], TFD_NONBLOCK);
    /* One that has ticked, or one that will not for long. */
    struct itimerspec spec = {{c % 3 ? 0 : 5000, 0}, {b % 4 ? 50 + 100 * (b % 90 + 2) : 0, b % 4 ? 0 : 1}};
    timerfd_settime(fd, 0, &spec, NULL);
    if (b % 4 == 0)
        check_pause();
}

static void do_signalfd(long a, long b, long c)
{
    sigset_t set;
    (void)c;
    sigemptyset(&set);
    sigaddset(&set, signal_of(a));
    sigaddset(&set, signal_of(b));
    signalfd(-1, &set, SFD_NONBLOCK);
}

static void do_epoll(long a, long b, long c)
{
    (void)b, (void)c;
    epoll_create1(a & 1 ? EPOLL_CLOEXEC : 0);
}

static void do_watch(long a, long b, long c)
{
    int ep = pick(a, "anon_inode:[eventpoll]"), fd = 3;
    for (int left = b % 60; fd < FDS && (!is_open(fd) || fd == ep || left-- > 0); fd++)
        ;
    struct epoll_event event = {
        .events = EPOLLIN | (c & 1 ? EPOLLOUT : 0) | (c & 2 ? EPOLLET : 0) | (c & 4 ? EPOLLONESHOT : 0),
        .data.u64 = a * 1000 + b,
    };
    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event);
}

static void do_memfd(long a, long b, long c)
{
    char name[16];
    snprintf(name, sizeof name, "drawn-%ld", a % 4);
    int fd = memfd_create(name, MFD_ALLOW_SEALING | (a & 8 ? MFD_CLOEXEC : 0));
    if (ftruncate(fd, (1 + b % 16) * PAGE))
        return;
    char bytes[PAGE];
    check_fill(bytes, sizeof bytes, a);
    if (pwrite(fd, bytes, sizeof bytes, c % 8 * PAGE) < 0)
        return;
    lseek(fd, c % 5000, SEEK_SET);
}

static void do_file(long a, long b, long c)
{
    char bytes[PAGE];
    int fd;
    if (a & 1) {
        const char *path = check_path("no-name");
        fd = open(path, O_RDWR | O_CREAT | O_EXCL | (a & 2 ? O_APPEND : 0), 0600);
        unlink(path);
    } else {
        fd = open(check_path(""), O_RDWR | O_TMPFILE | (a & 4 ? O_EXCL : 0), 0640);
    }
    check_fill(bytes, sizeof bytes, b);
    for (long at = 0; at < 1 + b % 3; at++)
        if (pwrite(fd, bytes, 1 + c % PAGE, at * 2 * PAGE) < 0)
            return;
    lseek(fd, c % 3000, SEEK_SET);
}

static void do_open(long a, long b, long c)
{
    static const char *const paths[] = {"/etc/passwd", "/dev/null",  "/dev/zero", "/dev/full",
                                        "/usr",        "/proc/self", "/etc",      "/dev/urandom"};
    static const int flags[] = {O_RDONLY, O_RDONLY | O_CLOEXEC, O_PATH, O_RDONLY | O_NONBLOCK};
    int fd = open(paths[a % 8], flags[b % 4]);
    lseek(fd, c % 1000, SEEK_SET);
}

static void do_inotify(long a, long b, long c)
{
    int fd = inotify_init1(IN_NONBLOCK);
    (void)c;
    if (a % 3)
        inotify_add_watch(fd, "/usr", IN_ATTRIB | (a & 4 ? IN_ONESHOT : 0));
    if (b % 3)
        inotify_add_watch(fd, "/etc/passwd", IN_MODIFY | IN_DELETE_SELF);
}

static void do_pidfd(long a, long b, long c)
{
    (void)b, (void)c;
    syscall(SYS_pidfd_open, board->pids[board->alive[a % board->count]], 0);
}

static void do_unix(long a, long b, long c)
{
    int fd = socket(AF_UNIX, a & 1 ? SOCK_DGRAM | SOCK_NONBLOCK : SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_un at = {AF_UNIX, ""};
    (void)c;
    int len = snprintf(at.sun_path + 1, sizeof at.sun_path - 1, "drawn-%ld", b % 8);
    if (bind(fd, (void *)&at, sizeof at.sun_family + 1 + len)) {
        close(fd);
        return;
    }
    listen(fd, 5);
}

static void do_inet(long a, long b, long c)
{
    int six = a & 2, fd = socket(six ? AF_INET6 : AF_INET, (a & 1 ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK, 0);
    struct sockaddr_in4_or_6 {
        union {
            struct sockaddr_in four;
            struct sockaddr_in6 six;
        };
    } at = {0};
    int one = 1;
    if (six) {
        at.six.sin6_family = AF_INET6;
        at.six.sin6_addr = in6addr_loopback;
    } else {
        at.four.sin_family = AF_INET;
        at.four.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    }
    if (c & 1)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (void *)&at, six ? sizeof at.six : sizeof at.four) || (!(a & 1) && b % 4 && listen(fd, 1 + b % 20)))
        close(fd);
}

static void do_connection(long a, long b, long c)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    (void)a, (void)b, (void)c;
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&at, sizeof at) || listen(listener, 1) || getsockname(listener, (void *)&at, &len) ||
        connect(client, (void *)&at, sizeof at) || accept(listener, NULL, NULL) < 0)
        close(client);
    close(listener);
}

static void do_connect(long a, long b, long c)
{
    int fd = pick(a, "socket:"), to = pick(b, "socket:");
    struct sockaddr_storage at;
    socklen_t len = sizeof at, size = sizeof(int);
    int type = 0;
    (void)c;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) || getsockname(to, (void *)&at, &len))
        return;
    /* A TCP connection that is on its way is nothing that stands still. */
    if (type == SOCK_STREAM && at.ss_family != AF_UNIX)
        return;
    patiently(fd, 1);
    if (connect(fd, (void *)&at, len))
        return;
}

static void do_accept(long a, long b, long c)
{
    int fd = pick(a, "socket:");
    (void)b, (void)c;
    patiently(fd, 1);
    accept(fd, NULL, NULL);
}

static void do_pty(long a, long b, long c)
{
    int master = posix_openpt(O_RDWR | O_NOCTTY), slave;
    struct winsize size = {.ws_row = 1 + a % 100, .ws_col = 1 + b % 200};
    struct termios modes;
    grantpt(master);
    unlockpt(master);
    slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    if (slave < 0) {
        close(master);
        return;
    }
    ioctl(slave, TIOCSWINSZ, &size);
    if (c & 1 && !tcgetattr(slave, &modes)) {
        cfmakeraw(&modes);
        tcsetattr(slave, TCSANOW, &modes);
    }
}

static void do_dup(long a, long b, long c)
{
    int fd = pick(a, ""), to = 20 + b % 200;
    if (fd >= 0 && !is_open(to))
        dup3(fd, to, c & 1 ? O_CLOEXEC : 0);
}

static void do_close(long a, long b, long c)
{
    (void)b, (void)c;
    int fd = pick(a, "");
    if (fd >= 0)
        close(fd);
}

static void do_flags(long a, long b, long c)
{
    int fd = pick(a, "");
    (void)c;
    if (b & 1)
        fcntl(fd, F_SETFD, b & 2 ? FD_CLOEXEC : 0);
    else
        fcntl(fd, F_SETFL, (b & 2 ? O_NONBLOCK : 0) | (b & 4 ? O_APPEND : 0));
}

static void do_seek(long a, long b, long c)
{
    (void)c;
    lseek(pick_file(a), b, SEEK_SET);
}

static void do_pipe_size(long a, long b, long c)
{
    (void)c;
    fcntl(pick(a, "pipe:"), F_SETPIPE_SZ, PAGE << b % 6);
}

static void do_write(long a, long b, long c)
{
    static char bytes[20000];
    int fd = pick(a, c % 3 == 0 ? "pipe:" : c % 3 == 1 ? "socket:" : "");
    const char *to = fd < 0 ? "" : leads_to(fd);
    if (fd < 0 || !strncmp(to, "/dev/pts", 8) || !strncmp(to, "anon_inode:[event", 17))
        return;
    int flags = fcntl(fd, F_GETFL);
    patiently(fd, 1);
    check_fill(bytes, sizeof bytes, a + b);
    signal(SIGPIPE, SIG_IGN);
    if (write(fd, bytes, 1 + (b % 5 ? b % 700 : b % 20000)) < 0)
        errno = 0;
    fcntl(fd, F_SETFL, flags);
}

static void do_read(long a, long b, long c)
{
    static char bytes[5000];
    int fd = pick(a, c % 3 == 0 ? "pipe:" : c % 3 == 1 ? "socket:" : "");
    int flags = fcntl(fd, F_GETFL);
    patiently(fd, 1);
    if (read(fd, bytes, 1 + b % sizeof bytes) < 0)
        errno = 0;
    fcntl(fd, F_SETFL, flags);
}

static void do_pass(long a, long b, long c)
{
    int over = pick(a, "socket:"), fd = pick(b, "");
    union {
        char room[CMSG_SPACE(sizeof fd)];
        struct cmsghdr head;
    } control = {0};
    struct iovec bytes = {"passed", 1 + c % 6};
    struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    int family = 0;
    socklen_t len = sizeof family;
    if (fd < 0 || getsockopt(over, SOL_SOCKET, SO_DOMAIN, &family, &len) || family != AF_UNIX)
        return;
    control.head.cmsg_level = SOL_SOCKET;
    control.head.cmsg_type = SCM_RIGHTS;
    control.head.cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
    sendmsg(over, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void do_lock(long a, long b, long c)
{
    int fd = pick_file(a);
    struct flock lock = {.l_type = b & 1 ? F_WRLCK : F_RDLCK, .l_start = c % 100, .l_len = 1 + c % 50};
    switch (b % 3) {
    case 0:
        flock(fd, (c & 1 ? LOCK_EX : LOCK_SH) | LOCK_NB);
        break;
    case 1:
        fcntl(fd, F_OFD_SETLK, &lock);
        break;
    default:
        fcntl(fd, F_SETLK, &lock);
    }
}

static void do_resize(long a, long b, long c)
{
    int fd = pick_file(a);
    if (c % 3 == 0)
        fcntl(fd, F_ADD_SEALS, b & 1 ? F_SEAL_GROW : F_SEAL_SHRINK);
    /* Whole pages: what a mapping has written behind the end of a file in its last one is nobody's. */
    else if (ftruncate(fd, b % 20 * PAGE))
        errno = 0;
}

static void do_option(long a, long b, long c)
{
    static const struct {
        int level, name;
    } options[] = {
        {SOL_SOCKET, SO_KEEPALIVE}, {SOL_SOCKET, SO_SNDBUF},    {SOL_SOCKET, SO_RCVBUF},    {SOL_SOCKET, SO_PRIORITY},
        {SOL_SOCKET, SO_RCVLOWAT},  {SOL_SOCKET, SO_BROADCAST}, {SOL_SOCKET, SO_OOBINLINE}, {SOL_SOCKET, SO_PASSCRED},
        {IPPROTO_IP, IP_TTL},       {IPPROTO_IP, IP_TOS},       {IPPROTO_TCP, TCP_NODELAY}, {IPPROTO_TCP, TCP_KEEPIDLE},
        {IPPROTO_TCP, TCP_CORK},    {SOL_SOCKET, SO_TIMESTAMP}, {IPPROTO_IP, IP_RECVERR},   {IPPROTO_TCP, TCP_USER_TIMEOUT},
    };
    int value = c % 7, at = b % 16;
    if (options[at].name == SO_SNDBUF || options[at].name == SO_RCVBUF)
        value = 8192 << c % 4;
    setsockopt(pick(a, "socket:"), options[at].level, options[at].name, &value, sizeof value);
}

static void do_shutdown(long a, long b, long c)
{
    (void)c;
    shutdown(pick(a, "socket:"), b % 3);
}

/* Who is told of it, and how; some are. */
static void do_owner(long a, long b, long c)
{
    int fd = pick(a, c & 2 ? "pipe:" : "socket:");
    struct f_owner_ex owner = {F_OWNER_PID, board->pids[board->alive[b % board->count]]};
    fcntl(fd, F_SETOWN_EX, &owner);
    fcntl(fd, F_SETSIG, signal_of(b));
    if (c & 1)
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_ASYNC);
}

static void do_send_datagram(long a, long b, long c)
{
    char bytes[600];
    struct sockaddr_storage at;
    socklen_t len = sizeof at, size = sizeof(int);
    int from = pick(a, "socket:"), to = pick(b, "socket:"), type = 0;
    if (getsockopt(from, SOL_SOCKET, SO_TYPE, &type, &size) || type != SOCK_DGRAM || getsockname(to, (void *)&at, &len))
        return;
    check_fill(bytes, sizeof bytes, c);
    sendto(from, bytes, c % sizeof bytes, MSG_DONTWAIT | MSG_NOSIGNAL, (void *)&at, len);
}

/* ---------------------------------------------------------------- memory */

static void do_map(long a, long b, long c)
{
    int slot = a % SLOTS;
    size_t len = b % 9 ? (1 + b % 64) * PAGE : 4 << 20;
    static const int protections[] = {PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE,
                                      PROT_READ | PROT_WRITE | PROT_EXEC};
    int flags = (c & 1 ? MAP_SHARED : MAP_PRIVATE) | (c & 8 ? MAP_NORESERVE : 0);
    if (slots[slot])
        return;
    char *at = mmap(BASE + (size_t)slot * SLOT, len, protections[c / 2 % 5], flags | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (at != MAP_FAILED)
        slots[slot] = len;
}

static void do_map_file(long a, long b, long c)
{
    int slot = a % SLOTS, fd = pick_file(b);
    struct stat st;
    if (slots[slot] || fd < 0 || fstat(fd, &st) || st.st_size < PAGE)
        return;
    size_t len = st.st_size / PAGE * PAGE;
    char *at = mmap(BASE + (size_t)slot * SLOT, len, PROT_READ | (c & 2 ? PROT_WRITE : 0),
                    (c & 1 ? MAP_SHARED : MAP_PRIVATE) | MAP_FIXED_NOREPLACE, fd, 0);
    if (at != MAP_FAILED)
        slots[slot] = len;
}

/* Writes where it may: over /proc, so that what nobody may touch ends nothing. */
static void do_fill(long a, long b, long c)
{
    static char bytes[PAGE];
    int slot = pick_slot(a);
    size_t len;
    if (slot < 0)
        return;
    char *at = part_of(slot, b, c, &len);
    check_fill(bytes, sizeof bytes, a + b + c);
    int pipes[2];
    MUST(pipe(pipes));
    for (size_t off = 0; off < len; off += PAGE)
        /* The kernel says whether it can be written to. */
        if (write(pipes[1], bytes, PAGE) != PAGE || read(pipes[0], at + off, PAGE) != PAGE) {
            close(pipes[0]), close(pipes[1]);
            MUST(pipe(pipes));
        }
    close(pipes[0]), close(pipes[1]);
}

static void do_unmap(long a, long b, long c)
{
    int slot = pick_slot(a);
    size_t len;
    if (slot < 0)
        return;
    char *at = part_of(slot, b, c, &len);
    munmap(at, len);
    if (len == slots[slot])
        slots[slot] = 0;
}

static void do_protect(long a, long b, long c)
{
    int slot = pick_slot(a);
    size_t len;
    if (slot >= 0) {
        char *at = part_of(slot, b, c, &len);
        mprotect(at, len, c % 4 == 0 ? PROT_NONE : c % 4 == 1 ? PROT_READ : PROT_READ | PROT_WRITE);
    }
}

static void do_advise(long a, long b, long c)
{
    static const int advice[] = {MADV_DONTNEED, MADV_HUGEPAGE,  MADV_NOHUGEPAGE, MADV_DONTFORK,   MADV_WIPEONFORK,
                                 MADV_DONTDUMP, MADV_MERGEABLE, MADV_SEQUENTIAL, MADV_RANDOM,     102 /* MADV_GUARD_INSTALL */,
                                 MADV_REMOVE,   MADV_COLD,      MADV_PAGEOUT,    25 /* MADV_COLLAPSE */};
    int slot = pick_slot(a);
    size_t len;
    if (slot >= 0) {
        char *at = part_of(slot, b, c / 16, &len);
        madvise(at, len, advice[c % (sizeof advice / sizeof *advice)]);
    }
}

static void do_move(long a, long b, long c)
{
    int slot = pick_slot(a), to = b % SLOTS;
    if (slot < 0 || slots[to])
        return;
    size_t len = slots[slot], now = c % 3 == 0 ? len : c % 3 == 1 ? len + PAGE * (1 + c % 8) : len;
    char *at = mremap(BASE + (size_t)slot * SLOT, len, now, MREMAP_MAYMOVE | MREMAP_FIXED, BASE + (size_t)to * SLOT);
    if (at != MAP_FAILED)
        slots[to] = now, slots[slot] = 0;
}

/* Its pages go elsewhere; what is left is empty. */
static void do_take_out(long a, long b, long c)
{
    int slot = pick_slot(a), to = b % SLOTS;
    (void)c;
    if (slot < 0 || slots[to])
        return;
    char *at = mremap(BASE + (size_t)slot * SLOT, slots[slot], slots[slot], MREMAP_MAYMOVE | MREMAP_FIXED | 4 /* DONTUNMAP */,
                      BASE + (size_t)to * SLOT);
    if (at != MAP_FAILED)
        slots[to] = slots[slot];
}

static void do_lock_memory(long a, long b, long c)
{
    int slot = pick_slot(a);
    size_t len;
    if (slot >= 0) {
        char *at = part_of(slot, b, c, &len);
        if (len > 64 * PAGE)
            return;
        mlock2(at, len, c & 1 ? MLOCK_ONFAULT : 0);
    }
}

static void do_name_memory(long a, long b, long c)
{
    int slot = pick_slot(a);
    size_t len;
    if (slot >= 0) {
        char *at = part_of(slot, b, c, &len);
        prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, at, len, c & 1 ? "drawn" : "other name");
    }
}

static void do_shm(long a, long b, long c)
{
    int slot = a % SLOTS, id = shmget(0x5ead + b % 3, (1 + b % 3) * PAGE, IPC_CREAT | 0600);
    if (slots[slot] || id < 0)
        return;
    if (shmat(id, BASE + (size_t)slot * SLOT, c & 1 ? SHM_RDONLY : 0) != (void *)-1)
        slots[slot] = (1 + b % 3) * PAGE;
}

static void do_grow(long a, long b, long c)
{
    (void)c;
    char *at = sbrk((1 + a % 20) * PAGE);
    if (at == (void *)-1)
        return;
    if (!grown)
        grown = at;
    grown_by = at + (1 + a % 20) * PAGE - grown;
    check_fill(at, PAGE, b);
}

/* ---------------------------------------------------------------- threads */

/* The call in which a thread of each kind waits. */
static const long CALLS[] = {SYS_futex,      SYS_clock_nanosleep, SYS_read,           SYS_poll,
                             SYS_epoll_wait, SYS_rt_sigsuspend,   SYS_rt_sigtimedwait};

static void *thread_body(void *arg)
{
    __typeof__(&threads[0]) own = arg;
    struct timespec forever = {1000000, 0};
    int word = 0;
    char byte;
    __atomic_store_n(&own->tid, check_tid(), __ATOMIC_SEQ_CST);
    for (;;) {
        struct pollfd one = {own->fd, POLLIN, 0};
        struct epoll_event event;
        sigset_t all;
        sigfillset(&all);
        sigdelset(&all, 64);
        switch (own->kind) {
        case 0:
            futex_wait(&word, 0);
            break;
        case 1:
            nanosleep(&forever, &forever);
            break;
        case 2:
            if (read(own->fd, &byte, 1) < 0)
                break;
            break;
        case 3:
            poll(&one, 1, -1);
            break;
        case 4:
            epoll_wait(own->fd, &event, 1, -1);
            break;
        case 5:
            sigsuspend(&all);
            break;
        default:
            sigemptyset(&all);
            sigaddset(&all, 64);
            sigtimedwait(&all, NULL, &forever);
        }
    }
    return NULL;
}

static void do_thread(long a, long b, long c)
{
    char name[16], path[64];
    sigset_t all, before;
    int fds[2];
    if (thread_count == THREADS)
        return;
    __typeof__(&threads[0]) own = &threads[thread_count];
    own->kind = a % 7, own->tid = 0, own->fd = -1;
    /* What it waits for never comes: it stands where nobody else looks. */
    if (own->kind >= 2 && own->kind <= 4) {
        int made = own->kind == 4 ? (fds[0] = epoll_create1(0)) < 0 : pipe(fds);
        if (made)
            return;
        own->fd = fcntl(fds[0], F_DUPFD, FDS);
        close(fds[0]);
        if (own->kind != 4) {
            if (fcntl(fds[1], F_DUPFD, FDS) < 0)
                own->kind = 0;
            close(fds[1]);
        }
        if (own->fd < 0)
            own->kind = 0;
    }
    /* It inherits this mask: what it may be interrupted by is drawn too. */
    sigfillset(&all);
    sigdelset(&all, c & 1 ? signal_of(b) : 63);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    MUST0(pthread_create(&own->thread, NULL, thread_body, own));
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    thread_count++;
    while (!__atomic_load_n(&own->tid, __ATOMIC_SEQ_CST) || !check_sits_in(own->tid, CALLS[own->kind]))
        check_pause();
    snprintf(name, sizeof name, "drawn %ld", b % 10);
    pthread_setname_np(own->thread, name);
    setpriority(PRIO_PROCESS, own->tid, b % 10);
    snprintf(path, sizeof path, "/proc/%d/timerslack_ns", own->tid);
    int fd = open(path, O_WRONLY);
    if (fd >= 0) {
        if (dprintf(fd, "%ld", 50000 + c % 1000) < 0)
            errno = 0;
        close(fd);
    }
}

/* ---------------------------------------------------------------- processes */

static void do_fork(long a, long b, long c)
{
    (void)a, (void)b, (void)c;
    if (board->count == PROCESSES || board->forked == NUMBERS - 1)
        return;
    int child = ++board->forked, place = board->count++;
    board->alive[place] = child;
    pid_t pid = fork();
    if (pid == 0) {
        me = child;
        thread_count = 0;
        stopped_count = 0;
        memset(handled, 0, sizeof handled);
        return;
    }
    if (pid < 0)
        board->count--;
    board->pids[child] = pid;
}

static void do_end(long a, long b, long c)
{
    (void)a;
    if (me == 0)
        return;
    int place = 0;
    while (board->alive[place] != me)
        place++;
    memmove(&board->alive[place], &board->alive[place + 1], (--board->count - place) * sizeof board->alive[0]);
    int next = step_now() + 1;
    board->ending = getpid();
    say_step_done(board->alive[next < ops ? plan[next].who % board->count : 0]);
    if (c % 4 == 0)
        kill(getpid(), SIGKILL);
    _exit(b % 256);
}

/* A step begins once who has ended in the one before is a zombie, or gone. */
static void wait_for_ending(void)
{
    int fd = board->ending ? syscall(SYS_pidfd_open, board->ending, 0) : -1;
    struct pollfd end = {fd, POLLIN, 0};
    if (fd >= 0) {
        while (poll(&end, 1, -1) < 0)
            ;
        close(fd);
    }
    board->ending = 0;
}

static void do_reap(long a, long b, long c)
{
    (void)a, (void)b, (void)c;
    waitpid(-1, NULL, WNOHANG);
}

static void do_stopped(long a, long b, long c)
{
    (void)a, (void)b, (void)c;
    if (stopped_count == 4)
        return;
    pid_t pid = fork();
    if (pid == 0) {
        raise(SIGSTOP);
        _exit(9);
    }
    siginfo_t info;
    waitid(P_PID, pid, &info, WSTOPPED | (a & 1 ? WNOWAIT : 0));
    stopped[stopped_count++] = pid;
}

static void do_session(long a, long b, long c)
{
    (void)a, (void)b, (void)c;
    setsid();
}

static void do_group(long a, long b, long c)
{
    (void)c;
    if (a & 1)
        setpgid(0, 0);
    else
        setpgid(0, getpgid(board->pids[board->alive[b % board->count]]));
}

static void do_prctl(long a, long b, long c)
{
    char name[16];
    (void)c;
    switch (a % 7) {
    case 0:
        snprintf(name, sizeof name, "life %ld", b % 100);
        prctl(PR_SET_NAME, name);
        break;
    case 1:
        prctl(PR_SET_TIMERSLACK, 50000 + b);
        break;
    case 2:
        prctl(PR_SET_PDEATHSIG, b & 1 ? SIGUSR1 : 0);
        break;
    case 3:
        prctl(PR_SET_CHILD_SUBREAPER, b & 1);
        break;
    case 4:
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        break;
    case 5:
        prctl(PR_CAPBSET_DROP, b % 30);
        break;
    default:
        prctl(PR_SET_THP_DISABLE, b & 1, 0, 0, 0);
    }
}

static void do_schedule(long a, long b, long c)
{
    cpu_set_t set;
    (void)c;
    switch (a % 4) {
    case 0:
        setpriority(PRIO_PROCESS, 0, b % 19);
        break;
    case 1:
        CPU_ZERO(&set);
        CPU_SET(b % 2, &set);
        sched_setaffinity(0, sizeof set, &set);
        break;
    case 2:
        syscall(SYS_ioprio_set, 1, 0, 2 << 13 | b % 8);
        break;
    default:
        sched_setscheduler(0, b & 1 ? SCHED_BATCH : SCHED_OTHER, &(struct sched_param){0});
    }
}

static void do_credentials(long a, long b, long c)
{
    gid_t groups[3] = {b, c, 7};
    switch (a % 3) {
    case 0:
        if (setgroups(b % 4, groups))
            errno = 0;
        break;
    case 1:
        if (setresgid(1000 + b % 9, -1, -1))
            errno = 0;
        break;
    default:
        prctl(PR_SET_SECUREBITS, b % 2 ? 1 << 4 : 1 << 2 /* KEEP_CAPS, NO_SETUID_FIXUP */);
    }
}

/* One that allows everything; for one thread, or for all. */
static void do_filter(long a, long b, long c)
{
    struct sock_filter allow[] = {{BPF_LD | BPF_W | BPF_ABS, 0, 0, (unsigned)(b % 2) * 4}, {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}};
    struct sock_fprog program = {2, allow};
    (void)c;
    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, a & 1 ? SECCOMP_FILTER_FLAG_TSYNC : 0, &program);
}

static void do_thread_setting(long a, long b, long c)
{
    cpu_set_t set;
    if (!thread_count)
        return;
    pid_t tid = threads[a % thread_count].tid;
    switch (b % 4) {
    case 0:
        CPU_ZERO(&set);
        CPU_SET(c % 2, &set);
        sched_setaffinity(tid, sizeof set, &set);
        break;
    case 1:
        syscall(SYS_tgkill, getpid(), tid, signal_of(c));
        break;
    case 2:
        syscall(SYS_ioprio_set, 1, tid, 2 << 13 | c % 8);
        break;
    default:
        sched_setscheduler(tid, c & 1 ? SCHED_BATCH : SCHED_IDLE, &(struct sched_param){0});
    }
}

static void do_limit(long a, long b, long c)
{
    static const int limits[] = {RLIMIT_CORE, RLIMIT_NOFILE, RLIMIT_STACK, RLIMIT_SIGPENDING, RLIMIT_MSGQUEUE, RLIMIT_CPU};
    struct rlimit limit;
    int which = limits[a % 6];
    (void)c;
    getrlimit(which, &limit);
    rlim_t low = which == RLIMIT_NOFILE ? 300 + b % 100 : which == RLIMIT_STACK ? (4 + b % 4) << 20 : 1000 + b;
    if (low <= limit.rlim_max) {
        limit.rlim_cur = low;
        setrlimit(which, &limit);
    }
}

static void do_directory(long a, long b, long c)
{
    static const char *const dirs[] = {"/", "/usr", "/etc", "/proc"};
    (void)c;
    umask(a % 0100);
    if (chdir(dirs[b % 4]))
        errno = 0;
}

/* ---------------------------------------------------------------- signals, times, IPC */

static void do_mask(long a, long b, long c)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal_of(a));
    sigaddset(&set, signal_of(b));
    sigprocmask(c & 1 ? SIG_UNBLOCK : SIG_BLOCK, &set, NULL);
}

static void do_action(long a, long b, long c)
{
    struct sigaction action = {.sa_handler = b % 3 ? on_signal : SIG_IGN,
                               .sa_flags = (c & 1 ? SA_RESTART : 0) | (c & 2 ? SA_ONSTACK : 0) | (c & 4 ? SA_NODEFER : 0)};
    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, signal_of(b));
    sigaction(signal_of(a), &action, NULL);
}

static void do_send(long a, long b, long c)
{
    pid_t pid = board->pids[board->alive[b % board->count]];
    int sig = signal_of(c);
    switch (a % 3) {
    case 0:
        kill(pid, sig);
        break;
    case 1:
        sigqueue(pid, sig, (union sigval){.sival_int = a + b});
        break;
    default:
        syscall(SYS_tgkill, pid, pid, sig);
    }
}

static void do_itimer(long a, long b, long c)
{
    struct itimerval value = {{c & 1 ? 500 : 0, 0}, {50 + 100 * (b % 90 + 2), 0}};
    setitimer(a % 3, &value, NULL);
}

static void do_timer(long a, long b, long c)
{
    static const int clocks[] = {CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME};
    struct sigevent event = {.sigev_notify = c & 1 ? SIGEV_SIGNAL : SIGEV_NONE, .sigev_signo = signal_of(c), .sigev_value.sival_int = b};
    struct itimerspec value = {{c & 2 ? 700 : 0, 0}, {50 + 100 * (b % 90 + 2), 0}};
    if (timer_count == TIMERS || timer_create(clocks[a % 3], &event, &timers[timer_count]))
        return;
    timer_settime(timers[timer_count++], 0, &value, NULL);
}

static void do_stack(long a, long b, long c)
{
    static char room[65536];
    stack_t stack = {.ss_sp = room + 4096 * (a % 8), .ss_size = 16384, .ss_flags = b % 4 ? 0 : SS_DISABLE};
    (void)c;
    sigaltstack(&stack, NULL);
}

static void do_ipc(long a, long b, long c)
{
    struct {
        long type;
        char bytes[64];
    } message = {1 + c % 5, "drawn"};
    struct sembuf change = {b % 3, 1 + c % 4, IPC_NOWAIT | (c & 8 ? SEM_UNDO : 0)};
    if (a & 1)
        msgsnd(msgget(0x5ead + b % 2, IPC_CREAT | 0600), &message, 1 + b % 60, IPC_NOWAIT);
    else
        semop(semget(0x5ead + b % 2, 3, IPC_CREAT | 0600), &change, 1);
}

static const struct {
    const char *word;
    void (*act)(long, long, long);
} WORDS[] = {
    {"pipe", do_pipe},       {"pair", do_pair},         {"eventfd", do_eventfd}, {"timerfd", do_timerfd},
    {"signalfd", do_signalfd}, {"epoll", do_epoll},     {"watch", do_watch},     {"memfd", do_memfd},
    {"file", do_file},       {"open", do_open},         {"inotify", do_inotify}, {"pidfd", do_pidfd},
    {"unix", do_unix},       {"inet", do_inet},         {"connection", do_connection}, {"connect", do_connect},
    {"accept", do_accept},   {"pty", do_pty},           {"dup", do_dup},         {"close", do_close},
    {"flags", do_flags},     {"seek", do_seek},         {"pipe_size", do_pipe_size}, {"write", do_write},
    {"read", do_read},       {"pass", do_pass},         {"lock", do_lock},       {"resize", do_resize},
    {"option", do_option},   {"shutdown", do_shutdown}, {"map", do_map},         {"map_file", do_map_file},
    {"fill", do_fill},       {"unmap", do_unmap},       {"protect", do_protect}, {"advise", do_advise},
    {"move", do_move},       {"mlock", do_lock_memory}, {"name_memory", do_name_memory}, {"shm", do_shm},
    {"grow", do_grow},       {"thread", do_thread},     {"fork", do_fork},       {"end", do_end},
    {"reap", do_reap},       {"stopped", do_stopped},   {"session", do_session}, {"group", do_group},
    {"prctl", do_prctl},     {"schedule", do_schedule}, {"limit", do_limit},     {"directory", do_directory},
    {"mask", do_mask},       {"action", do_action},     {"send", do_send},       {"itimer", do_itimer},
    {"timer", do_timer},     {"stack", do_stack},       {"ipc", do_ipc},
    {"owner", do_owner},     {"send_datagram", do_send_datagram}, {"take_out", do_take_out},
    {"credentials", do_credentials}, {"filter", do_filter}, {"thread_setting", do_thread_setting},
};

static void act(const struct op *op)
{
    for (size_t at = 0; at < sizeof WORDS / sizeof *WORDS; at++)
        if (!strcmp(WORDS[at].word, op->word)) {
            WORDS[at].act(op->a, op->b, op->c);
            return;
        }
    FAIL("a word of the plan, expected one that is known, got %s", op->word);
}

/* ---------------------------------------------------------------- telling */

static char story[1 << 20];
static size_t told;

__attribute__((format(printf, 1, 2))) static void tell(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(story + told, sizeof story - told, fmt, args);
    va_end(args);
    told += n;
    CHECK(told < sizeof story, "what is told, expected less than %zu bytes", sizeof story);
}

static uint64_t mix(uint64_t hash, const void *bytes, size_t len)
{
    for (size_t at = 0; at < len; at++)
        hash = (hash ^ ((const unsigned char *)bytes)[at]) * 0x100000001b3u;
    return hash;
}

/* What is known by a number that the kernel chose: the how manieth of such it is. */
static int class_of(const char *name)
{
    for (int at = 0; at < board->classes; at++)
        if (!strcmp(board->class[at], name))
            return at;
    if (board->classes < CLASSES)
        snprintf(board->class[board->classes++], sizeof board->class[0], "%s", name);
    return board->classes - 1;
}

/* A file's name, without what differs by nature. */
static void tell_name(const char *name)
{
    const char *deleted = strstr(name, " (deleted)"), *colon = strchr(name, ':');
    if (!strncmp(name, "socket:[", 8) || !strncmp(name, "pipe:[", 6))
        tell("%.*s:#%d", (int)(colon - name), name, class_of(name));
    else if (deleted && name[0] == '/' && strncmp(name, "/memfd:", 7) && strncmp(name, "/SYSV", 5) && strncmp(name, "/dev/", 5))
        tell("no name any more");
    else
        tell("%s", name);
}

/* Neighbours that are alike: whether the kernel has them as one depends on what they were before. */
struct area {
    unsigned long start, end, offset;
    char perms[8], flags[128], name[512];
    int is_file;
};

static int goes_on(const struct area *one, const struct area *next)
{
    return one->end == next->start && !strcmp(one->perms, next->perms) && !strcmp(one->flags, next->flags) &&
           !strcmp(one->name, next->name) && (!one->is_file || one->offset + (one->end - one->start) == next->offset);
}

/* The kernel reads it, as if by the program: what cannot be read ends nothing. */
static void tell_area(const struct area *area)
{
    static char page[PAGE];
    static const char zeroes[PAGE];
    int hidden = area->perms[0] != 'r', pipes[2];
    MUST(pipe(pipes));
    if (hidden)
        mprotect((void *)area->start, area->end - area->start, PROT_READ);
    uint64_t hash = 0xcbf29ce484222325u;
    long unreadable = 0, zero = 0;
    for (unsigned long addr = area->start; addr < area->end; addr += PAGE) {
        if (write(pipes[1], (void *)addr, PAGE) != PAGE || read(pipes[0], page, PAGE) != PAGE)
            unreadable++, hash = mix(hash, "?", 1);
        else if (!memcmp(page, zeroes, PAGE))
            zero++, hash = mix(hash, "0", 1);
        else
            hash = mix(hash, page, PAGE);
    }
    if (hidden)
        mprotect((void *)area->start, area->end - area->start,
                 (area->perms[1] == 'w' ? PROT_WRITE : 0) | (area->perms[2] == 'x' ? PROT_EXEC : 0));
    close(pipes[0]);
    close(pipes[1]);
    tell("map %lx-%lx %s %lx %016lx unreadable %ld zero %ld ", area->start, area->end, area->perms, area->is_file ? area->offset : 0,
         hash, unreadable, zero);
    tell_name(area->name);
    tell(" %s\n", area->flags);
}

static void tell_memory(void)
{
    FILE *smaps = fopen("/proc/self/smaps", "re");
    char line[1024];
    struct area now = {0}, before = {0};
    while (fgets(line, sizeof line, smaps)) {
        long inode;
        int at = 0;
        struct area next = {0};
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "%lx-%lx %7s %lx %*s %ld %n", &next.start, &next.end, next.perms, &next.offset, &inode, &at) >= 5) {
            snprintf(next.name, sizeof next.name, "%s", line + at);
            next.is_file = inode != 0;
            now = next;
        } else if (!strncmp(line, "VmFlags:", 8)) {
            /* Written since the kernel was asked; memory that comes when touched; once writable, so
             * reckoned with; near to where somebody was kept from touching. */
            for (int n = 0; n < 4; n++) {
                static const char *const own[] = {" sd", " um", " ac", " gu"};
                char *flag = strstr(line, own[n]);
                if (flag)
                    memmove(flag, flag + 3, strlen(flag + 3) + 1);
            }
            snprintf(now.flags, sizeof now.flags, "%.120s", line + 8);
            if ((char *)now.start < BASE || (char *)now.start >= BASE + (size_t)SLOTS * SLOT)
                continue;
            if (before.end && goes_on(&before, &now)) {
                before.end = now.end;
                continue;
            }
            if (before.end)
                tell_area(&before);
            before = now;
        }
    }
    if (before.end)
        tell_area(&before);
    fclose(smaps);
    if (grown)
        tell("grown %zx %016lx\n", grown_by, mix(0xcbf29ce484222325u, grown, grown_by));
}

static void tell_status(const char *path)
{
    static const char *const kept[] = {"Name:",   "Umask:",  "Tgid:",   "Pid:",     "PPid:",        "Uid:",    "Gid:",         "Groups:",
                                       "Threads:", "SigPnd:", "ShdPnd:", "SigBlk:", "SigIgn:",      "SigCgt:", "Cap",          "NoNew",   "Seccomp",
                                       "Speculation", "Cpus_allowed:", "Mems_allowed:", "THP_enabled:", "CoreDumping:"};
    FILE *status = fopen(path, "re");
    char line[512];
    while (status && fgets(line, sizeof line, status))
        for (size_t at = 0; at < sizeof kept / sizeof *kept; at++)
            if (!strncmp(line, kept[at], strlen(kept[at])))
                tell("  %s", line);
    if (status)
        fclose(status);
}

static void tell_threads(void)
{
    for (int at = -1; at < thread_count; at++) {
        pid_t tid = at < 0 ? getpid() : threads[at].tid;
        char path[64], slack[32] = "";
        struct {
            uint32_t size, policy;
            uint64_t flags;
            int32_t nice;
            uint32_t priority;
            uint64_t runtime, deadline, period;
        } attr = {.size = 48};
        tell("thread %d\n", tid);
        /* One that was let go a moment ago has yet to go back to where it was. */
        while (at >= 0 && !check_sits_in(tid, CALLS[threads[at].kind]) && !check_sits_in(tid, SYS_restart_syscall))
            check_pause();
        snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
        tell_status(path);
        syscall(SYS_sched_getattr, tid, &attr, sizeof attr, 0);
        snprintf(path, sizeof path, "/proc/%d/timerslack_ns", tid);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
            slack[read(fd, slack, sizeof slack - 1)] = 0;
            close(fd);
        }
        tell("  policy %u flags %lx nice %d priority %u ioprio %ld slack %s\n", attr.policy, attr.flags, attr.nice, attr.priority,
             syscall(SYS_ioprio_get, 1, tid), slack);
    }
}

static int same_file(pid_t one, int fd, pid_t other, int than)
{
    return syscall(SYS_kcmp, one, other, KCMP_FILE, fd, than) == 0;
}

static void tell_options(int fd)
{
    static const int options[][2] = {
        {SOL_SOCKET, SO_KEEPALIVE}, {SOL_SOCKET, SO_SNDBUF},    {SOL_SOCKET, SO_RCVBUF},    {SOL_SOCKET, SO_PRIORITY},
        {SOL_SOCKET, SO_RCVLOWAT},  {SOL_SOCKET, SO_BROADCAST}, {SOL_SOCKET, SO_OOBINLINE}, {SOL_SOCKET, SO_PASSCRED},
        {SOL_SOCKET, SO_REUSEADDR}, {SOL_SOCKET, SO_TYPE},      {SOL_SOCKET, SO_DOMAIN},    {SOL_SOCKET, SO_ACCEPTCONN},
        {IPPROTO_IP, IP_TTL},       {IPPROTO_IP, IP_TOS},       {IPPROTO_TCP, TCP_NODELAY}, {IPPROTO_TCP, TCP_KEEPIDLE},
        {IPPROTO_TCP, TCP_CORK},    {SOL_SOCKET, SO_TIMESTAMP}, {IPPROTO_IP, IP_RECVERR},   {IPPROTO_TCP, TCP_USER_TIMEOUT},
    };
    struct sockaddr_storage at;
    for (size_t n = 0; n < sizeof options / sizeof *options; n++) {
        int value = 0;
        socklen_t len = sizeof value;
        int failed = getsockopt(fd, options[n][0], options[n][1], &value, &len);
        tell(" %d", failed ? -errno : value);
    }
    for (int peer = 0; peer < 2; peer++) {
        memset(&at, 0, sizeof at);
        socklen_t len = sizeof at;
        if (peer ? getpeername(fd, (void *)&at, &len) : getsockname(fd, (void *)&at, &len))
            tell(" %s %d", peer ? "peer" : "name", errno);
        else
            tell(" %s %016lx", peer ? "peer" : "name", mix(0xcbf29ce484222325u, &at, len));
    }
    int waiting = -1;
    ioctl(fd, FIONREAD, &waiting);
    tell(" waiting %d", waiting);
}

static int by_text(const void *one, const void *other)
{
    return strcmp(one, other);
}

/* Its lines, sorted: what an epoll watches is listed in the order of addresses in the kernel. */
static void tell_info(int fd)
{
    static const char *const left_out[] = {"mnt_id:",    "ino:",     "eventfd-id:",   "it_value:",
                                           "tty-index:", "scm_fds:", "settime flags:"};
    static char lines[128][256];
    char path[64], line[512];
    int count = 0;
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    FILE *info = fopen(path, "re");
    while (info && fgets(line, sizeof line, info) && count < 128) {
        size_t at = 0;
        while (at < sizeof left_out / sizeof *left_out && strncmp(line, left_out[at], strlen(left_out[at])))
            at++;
        if (at < sizeof left_out / sizeof *left_out)
            continue;
        /* Locks and watches tell of devices and inodes. */
        char kind[16], mode[16], from[32], to[32], *inode = strstr(line, " ino:"), *mask = strstr(line, "mask:");
        if (sscanf(line, "lock: %*d: %15s %*s %15s %*d %*s %31s %31s", kind, mode, from, to) == 4)
            snprintf(line, sizeof line, "lock %s %s %s-%s\n", kind, mode, from, to);
        else if (inode && mask)
            memmove(inode, mask, strlen(mask) + 1);
        else if (inode)
            strcpy(inode, "\n");
        snprintf(lines[count++], sizeof lines[0], "%.255s", line);
    }
    if (info)
        fclose(info);
    qsort(lines, count, sizeof lines[0], by_text);
    for (int at = 0; at < count; at++)
        tell("  %s", lines[at]);
}

static void tell_descriptors(void)
{
    pid_t pid = getpid();
    for (int fd = 3; fd < FDS; fd++) {
        struct stat st;
        if (!is_open(fd))
            continue;
        fstat(fd, &st);
        const char *to = leads_to(fd);
        struct f_owner_ex owner = {0};
        fcntl(fd, F_GETOWN_EX, &owner);
        tell("fd %d flags %x %x told %d %d by %d ", fd, fcntl(fd, F_GETFD), fcntl(fd, F_GETFL), owner.type, owner.pid, fcntl(fd, F_GETSIG));
        tell_name(to);
        for (int than = 3; than < fd; than++)
            if (is_open(than) && same_file(pid, fd, pid, than)) {
                tell(" same as %d", than);
                break;
            }
        for (int at = 0; board->alive[at] != me; at++)
            for (int than = 3; than < FDS; than++)
                if (same_file(pid, fd, board->pids[board->alive[at]], than)) {
                    tell(" same as %d of %d", than, board->pids[board->alive[at]]);
                    break;
                }
        if (S_ISFIFO(st.st_mode)) {
            int waiting = -1;
            ioctl(fd, FIONREAD, &waiting);
            tell(" size %d waiting %d", fcntl(fd, F_GETPIPE_SZ), waiting);
        }
        if (S_ISSOCK(st.st_mode))
            tell_options(fd);
        if (S_ISREG(st.st_mode) && st.st_nlink == 0) {
            static char bytes[PAGE];
            uint64_t hash = 0xcbf29ce484222325u;
            for (off_t at = 0; at < st.st_size; at += PAGE) {
                ssize_t n = pread(fd, bytes, PAGE, at);
                hash = mix(hash, bytes, n < 0 ? 0 : n);
            }
            tell(" %ld bytes %016lx mode %o seals %d", st.st_size, hash, st.st_mode, fcntl(fd, F_GET_SEALS));
        }
        struct itimerspec timer;
        if (!strncmp(to, "anon_inode:[timerfd]", 20) && !timerfd_gettime(fd, &timer))
            tell(" left %ld of %ld", timer.it_value.tv_sec / 100, timer.it_interval.tv_sec);
        struct termios modes;
        struct winsize size;
        if (!strncmp(to, "/dev/pt", 7) && !tcgetattr(fd, &modes) && !ioctl(fd, TIOCGWINSZ, &size))
            tell(" modes %x %x %x %x size %dx%d", modes.c_iflag, modes.c_oflag, modes.c_cflag, modes.c_lflag, size.ws_row, size.ws_col);
        tell("\n");
        tell_info(fd);
    }
}

static void tell_times(void)
{
    for (int which = 0; which < 3; which++) {
        struct itimerval value;
        getitimer(which, &value);
        tell("itimer %d left %ld of %ld\n", which, value.it_value.tv_sec / 100, value.it_interval.tv_sec);
    }
    for (int at = 0; at < timer_count; at++) {
        struct itimerspec value;
        if (timer_gettime(timers[at], &value))
            tell("timer %d none\n", at);
        else
            tell("timer %d left %ld of %ld overrun %d\n", at, value.it_value.tv_sec / 100, value.it_interval.tv_sec,
                 timer_getoverrun(timers[at]));
    }
}

/* Who has ended cannot be who used a set last: nobody is there to do it again. */
static pid_t if_alive(pid_t pid)
{
    for (int at = 0; at < board->count; at++)
        if (board->pids[board->alive[at]] == pid)
            return pid;
    return 0;
}

static void tell_ipc(void)
{
    for (int at = 0; at < 3; at++) {
        int shm = shmget(0x5ead + at, 0, 0), sem = semget(0x5ead + at, 0, 0), msg = msgget(0x5ead + at, 0);
        struct shmid_ds shared;
        struct msqid_ds queue;
        unsigned short values[3];
        if (shm >= 0 && !shmctl(shm, IPC_STAT, &shared))
            tell("shm %d of %zu\n", shm, shared.shm_segsz);
        if (sem >= 0 && semctl(sem, 0, GETALL, values) >= 0)
            tell("sem %d: %u %u %u last %d\n", sem, values[0], values[1], values[2], if_alive(semctl(sem, 0, GETPID)));
        if (msg >= 0 && !msgctl(msg, IPC_STAT, &queue))
            tell("msg %d: %lu of %lu bytes\n", msg, queue.msg_qnum, queue.__msg_cbytes);
    }
}

static void observe(void)
{
    char dir[512] = "";
    stack_t stack;
    struct rlimit limit;
    int death = 0, reaper = 0;
    pid_t pid = getpid();
    /* What is told is not to tell of itself: not the last that was seen of children, say. */
    if (me == 0)
        board->classes = 0;
    tell("process %d parent %d group %d session %d in %s root %d\n", pid, getppid(), getpgrp(), getsid(0),
         getcwd(dir, sizeof dir) ? dir : "?", access("/", X_OK));
    prctl(PR_GET_PDEATHSIG, &death);
    prctl(PR_GET_CHILD_SUBREAPER, &reaper);
    sigaltstack(NULL, &stack);
    tell("death %d reaper %d dumpable %d securebits %d stack %p %zu %d\n", death, reaper, prctl(PR_GET_DUMPABLE),
         prctl(PR_GET_SECUREBITS), stack.ss_sp, stack.ss_size, stack.ss_flags);
    for (int which = 0; which < RLIM_NLIMITS; which++) {
        getrlimit(which, &limit);
        tell(" %ld:%ld", (long)limit.rlim_cur, (long)limit.rlim_max);
    }
    tell(" are limits\n");
    for (int sig = 1; sig < 65; sig++) {
        struct sigaction action;
        if (!sigaction(sig, NULL, &action) && (action.sa_handler != SIG_DFL || handled[sig]))
            tell("signal %d handler %d flags %x mask %lx handled %ld\n", sig, action.sa_handler == on_signal, action.sa_flags,
                 *(long *)&action.sa_mask, handled[sig]);
    }
    for (int at = 0; at < stopped_count; at++) {
        siginfo_t info = {0};
        waitid(P_PID, stopped[at], &info, WSTOPPED | WNOHANG | WNOWAIT);
        tell("stopped %d: %d %d\n", stopped[at], info.si_pid, info.si_status);
    }
    siginfo_t ended = {0};
    waitid(P_ALL, 0, &ended, WEXITED | WNOHANG | WNOWAIT);
    tell("ended %d: %d %d\n", ended.si_pid != 0, ended.si_code, ended.si_status);
    tell_threads();
    tell_memory();
    tell_descriptors();
    tell_times();
    tell_ipc();
}

static int is_tcp(int fd)
{
    int value;
    socklen_t len = sizeof value;
    return !getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &value, &len);
}

/* A terminal hands on what is written in its own time, in pieces as it likes; TCP does, too. */
static void use_stream_up(int fd)
{
    static char bytes[PAGE];
    int off = 0, on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_CORK, &off, sizeof off);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    uint64_t hash = 0xcbf29ce484222325u;
    long all = 0;
    ssize_t n;
    for (int patience = 0; patience < 4; patience++)
        while ((n = read(fd, bytes, sizeof bytes)) > 0 ? 1 : (check_pause(), 0)) {
            hash = mix(hash, bytes, n);
            all += n;
            patience = 0;
        }
    tell("fd %d gives %ld %016lx then %zd\n", fd, all, hash, n);
    tell("fd %d takes %zd\n", fd, write(fd, "w", 1));
}

/* Everything that comes out of a descriptor, and what it was sent with. */
static void use_up(int fd)
{
    static char bytes[70000];
    union {
        char room[CMSG_SPACE(sizeof(int) * 4)];
        struct cmsghdr head;
    } control;
    const char *to = leads_to(fd);
    int is_socket = !strncmp(to, "socket:", 7);
    if (!is_socket && strncmp(to, "pipe:", 5) && strncmp(to, "anon_inode:", 11) && strncmp(to, "/dev/pt", 7))
        return;
    patiently(fd, 1);
    if (!strncmp(to, "/dev/pt", 7) || is_tcp(fd)) {
        use_stream_up(fd);
        return;
    }
    for (int n = 0; n < 64; n++) {
        struct iovec part = {bytes, sizeof bytes};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        ssize_t len = is_socket ? recvmsg(fd, &message, MSG_DONTWAIT) : read(fd, bytes, sizeof bytes);
        tell("fd %d gives %zd %d", fd, len, len < 0 ? errno : 0);
        if (len > 0 && strncmp(to, "anon_inode:inotify", 18) && strncmp(to, "anon_inode:[signalfd]", 21))
            tell(" %016lx", mix(0xcbf29ce484222325u, bytes, len));
        for (struct cmsghdr *head = len >= 0 && is_socket ? CMSG_FIRSTHDR(&message) : NULL; head; head = CMSG_NXTHDR(&message, head)) {
            tell(" beside it %d", head->cmsg_type);
            if (head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
                int passed;
                memcpy(&passed, CMSG_DATA(head), sizeof passed);
                tell(" a descriptor: ");
                tell_name(leads_to(passed));
                close(passed);
            }
        }
        tell("\n");
        if (len <= 0)
            break;
    }
    ssize_t len = is_socket ? send(fd, "w", 1, MSG_DONTWAIT | MSG_NOSIGNAL) : strncmp(to, "anon_inode:", 11) ? write(fd, "w", 1) : -1;
    tell("fd %d takes %zd %d\n", fd, len, len < 0 ? errno : 0);
}

static void use_all_up(void)
{
    struct epoll_event events[64];
    sigset_t all;
    siginfo_t info;
    int status;
    tell("process %d uses up\n", getpid());
    signal(SIGPIPE, SIG_IGN);
    for (int fd = 3; fd < FDS; fd++)
        if (is_open(fd) && !strcmp(leads_to(fd), "anon_inode:[eventpoll]")) {
            int n = epoll_wait(fd, events, 64, 0);
            uint64_t sum = 0;
            for (int at = 0; at < n; at++)
                sum += mix(events[at].data.u64 + 1, &events[at].events, sizeof events[at].events);
            tell("epoll %d has %d: %lx\n", fd, n, sum);
        }
    for (int fd = 3; fd < FDS; fd++)
        if (is_open(fd))
            use_up(fd);
    sigfillset(&all);
    sigdelset(&all, SIGCHLD);
    while (sigtimedwait(&all, &info, &(struct timespec){0, 0}) > 0)
        tell("signal %d code %d from %d value %d\n", info.si_signo, info.si_code, info.si_pid, info.si_value.sival_int);
    for (int at = 0; at < stopped_count; at++)
        kill(stopped[at], SIGKILL);
    for (int at = 0; at < stopped_count; at++)
        tell("stopped %d ends %d %x\n", stopped[at], waitpid(stopped[at], &status, 0) == stopped[at], status);
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        tell("child %d ended %x\n", pid, status);
    for (int at = 0; at < 3; at++) {
        struct {
            long type;
            char bytes[64];
        } message;
        ssize_t len;
        while ((len = msgrcv(msgget(0x5ead + at, 0), &message, sizeof message.bytes, 0, IPC_NOWAIT)) >= 0)
            tell("message %ld of %zd\n", message.type, len);
    }
}

static void write_down(const char *name)
{
    int fd = MUST(open(check_path(name), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
    for (size_t at = 0; at < told;)
        at += MUST(write(fd, story + at, told - at));
    close(fd);
    told = 0;
}

/* After the plan: everybody in turn, once a round. */
static void round_step(int round)
{
    switch (round) {
    case 0:
        /* Signals that were sent come, to whichever thread takes them in its time. */
        for (int n = 0; n < 5; n++)
            check_pause();
        break;
    case 1:
        observe();
        write_down("before");
        break;
    case 2:
        if (me == 0)
            check_freeze_here();
        observe();
        write_down("told");
        break;
    case 3:
        use_all_up();
        write_down("told");
    }
}

static void live(void)
{
    enum { ROUNDS = 4 };
    for (int now; (now = __atomic_load_n(&board->now, __ATOMIC_SEQ_CST)) / NUMBERS < ops + ROUNDS * board->count;) {
        int at = now / NUMBERS, before = me;
        if (now % NUMBERS != me) {
            futex_wait(&board->now, now);
            continue;
        }
        wait_for_ending();
        if (at < ops)
            act(&plan[at]);
        else
            round_step((at - ops) / board->count);
        if (me != before)
            continue; /* a child, just forked */
        int next = at + 1;
        say_step_done(board->alive[next < ops ? plan[next].who % board->count : (next - ops) % board->count]);
    }
    __atomic_add_fetch(&board->left, 1, __ATOMIC_SEQ_CST);
    if (me != 0)
        _exit(0);
    while (__atomic_load_n(&board->left, __ATOMIC_SEQ_CST) < board->count)
        check_pause();
    _exit(0);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    FILE *file = fopen(check_path("plan"), "re");
    CHECK(file, "the plan, expected a file");
    while (ops < OPS && fscanf(file, "%15s %ld %ld %ld %ld", plan[ops].word, &plan[ops].who, &plan[ops].a, &plan[ops].b, &plan[ops].c) == 5)
        ops++;
    fclose(file);
    board = MUST(mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    board->count = 1;
    board->pids[0] = getpid();
    /* A group that is orphaned with a stopped member is told so. */
    signal(SIGHUP, SIG_IGN);
    for (size_t at = 0; at < sizeof SIGNALS / sizeof *SIGNALS; at++)
        sigaction(SIGNALS[at], &(struct sigaction){.sa_handler = on_signal, .sa_flags = SA_RESTART}, NULL);
    live();
}
