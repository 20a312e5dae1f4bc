/*
 * The same steps as a restore, a clone, a standstill or a revert, and nothing
 * else: how fast the kernel lets anybody be. One byte on stdin starts each, one
 * byte on stdout says that all is prepared.
 *
 *   floor first FILE                  a forked process waits at a pipe; woken, it
 *                                     notes the time in the shared FILE
 *   floor reply PORT IMAGE BYTES      the same; it maps IMAGE, touches BYTES of it,
 *                                     every second page by writing, and answers at PORT
 *   floor tasks threads|processes N FILE   the same; it makes N tasks, and the last
 *                                     one that runs notes the time
 *   floor fork PORT MEGABYTES         a process with so much memory forks; the child
 *                                     answers at PORT
 *   floor herd N MEGABYTES            N such children, each in namespaces of its own with
 *                                     four more threads, until the next byte
 *   floor stop PID                    stops every thread of PID, looks for written
 *                                     pages in its memory, lets it go
 *   floor revert KIBIBYTES            copies so much back into another process, page
 *                                     by page; prints the nanoseconds
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, HUGE = 2 << 20, THREADS_MAX = 1024, IOV = 256, FIRST = 2 };

/* <linux/fs.h> of Linux 6.7; older headers do not have it. */
struct page_region { uint64_t start, end, categories; };
struct pm_scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN_PAGES _IOWR('f', 16, struct pm_scan_arg)
#define PAGE_IS_ARMED 1u
#define PAGE_IS_WRITTEN 2u

static uint64_t now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void *map(size_t bytes, int flags, int fd)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (at == MAP_FAILED)
        die("mmap");
    return at;
}

static volatile uint64_t *shared(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        die(path);
    return map(PAGE, MAP_SHARED, fd);
}

static void ready(void)
{
    if (write(1, "r", 1) != 1)
        die("stdout");
}

/* False when nobody wants anything any more. */
static int wanted(int fd)
{
    char byte;
    return read(fd, &byte, 1) == 1;
}

/* Forks a child that dies with us; true in it, once it was woken. */
static int woken(void)
{
    int pipes[2];
    if (pipe2(pipes, O_CLOEXEC))
        die("pipe");
    pid_t child = fork();
    if (child < 0)
        die("fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(pipes[1]);
        if (!wanted(pipes[0]))
            _exit(0);
        return 1;
    }
    ready();
    if (wanted(0) && write(pipes[1], "g", 1) != 1)
        die("pipe");
    /* The end of stdin ends both. */
    while (wanted(0))
        ;
    return 0;
}

static void answer(int port)
{
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 16))
        die("listen");
    for (;;) {
        char question[512];
        int peer = accept(listener, NULL, NULL);
        if (peer >= 0 && read(peer, question, sizeof question) > 0 && write(peer, "+PONG\r\n", 7) != 7)
            perror("answer");
        close(peer);
    }
}

static void touch_image(const char *path, size_t bytes)
{
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &info))
        die(path);
    size_t pages = (size_t)info.st_size / PAGE, touched = bytes / PAGE;
    if (!pages || !touched)
        return;
    volatile char *image = map(pages * PAGE, MAP_PRIVATE, fd);
    madvise((void *)image, pages * PAGE, MADV_RANDOM);
    for (size_t i = 0; i < touched; i++) {
        volatile char *page = image + (i * pages / touched) * PAGE;
        if (i % 2)
            page[0] = 1;
        else
            (void)page[0];
    }
}

static volatile uint64_t *first_word;
static int tasks_left;

static void *task(void *unused)
{
    if (__atomic_sub_fetch(&tasks_left, 1, __ATOMIC_SEQ_CST) == 0)
        *first_word = now_ns(CLOCK_REALTIME);
    for (;;)
        pause();
    return unused;
}

static void make_threads(int n)
{
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 * 1024);
    tasks_left = n;
    for (int i = 0; i < n; i++) {
        pthread_t thread;
        if (pthread_create(&thread, &small, task, NULL))
            die("thread");
    }
}

static void make_processes(int n)
{
    int *left = map(PAGE, MAP_SHARED | MAP_ANONYMOUS, -1);
    *left = n;
    for (int i = 0; i < n; i++) {
        pid_t child = fork();
        if (child < 0)
            die("fork");
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (__atomic_sub_fetch(left, 1, __ATOMIC_SEQ_CST) == 0)
                *first_word = now_ns(CLOCK_REALTIME);
            for (;;)
                pause();
        }
    }
}

/* As a template has it. */
static void hold(size_t megabytes)
{
    size_t bytes = megabytes << 20;
    char *memory = map(bytes + HUGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    memory += HUGE - (uintptr_t)memory % HUGE;
    madvise(memory, bytes, MADV_HUGEPAGE);
    memset(memory, 1, bytes);
}

static int herd(int n, size_t megabytes)
{
    enum { OWN = CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNS | CLONE_NEWNET };
    pid_t *children = calloc((size_t)n, sizeof *children);
    int up[2];
    if (!children || pipe2(up, O_CLOEXEC))
        die("pipe");
    hold(megabytes);
    ready();
    while (wanted(0)) {
        for (int i = 0; i < n; i++) {
            children[i] = (pid_t)syscall(SYS_clone, OWN | SIGCHLD, 0, NULL, NULL, 0);
            if (children[i] < 0)
                die("clone");
            if (children[i] == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                first_word = map(PAGE, MAP_SHARED | MAP_ANONYMOUS, -1);
                make_threads(4);
                if (write(up[1], "u", 1) != 1)
                    die("pipe");
                for (;;)
                    pause();
            }
        }
        for (int i = 0; i < n; i++)
            wanted(up[0]);
        ready();
        int more = wanted(0);
        for (int i = 0; i < n; i++)
            kill(children[i], SIGKILL);
        for (int i = 0; i < n; i++)
            waitpid(children[i], NULL, 0);
        if (!more)
            break;
        ready();
    }
    return 0;
}

static int fork_template(int port, size_t megabytes)
{
    hold(megabytes);
    ready();
    while (wanted(0)) {
        pid_t child = fork();
        if (child < 0)
            die("fork");
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            answer(port);
        }
        /* The next byte says that it is no longer needed. */
        int more = wanted(0);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        if (!more)
            break;
        ready();
    }
    return 0;
}

static int threads_of(int pid, int *tids)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *dir = opendir(path);
    int n = 0;
    for (struct dirent *entry; dir && n < THREADS_MAX && (entry = readdir(dir));)
        if (entry->d_name[0] != '.')
            tids[n++] = atoi(entry->d_name);
    if (dir)
        closedir(dir);
    return n;
}

/* Every writable mapping: what a final stop has to look through. */
static int mappings_of(int pid, struct page_region *regions, int max)
{
    char path[64], line[512], mode[5];
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *maps = fopen(path, "r");
    int n = 0;
    while (maps && n < max && fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx %4s", &regions[n].start, &regions[n].end, mode) == 3 && mode[1] == 'w')
            n++;
    if (maps)
        fclose(maps);
    return n;
}

static void scan(int pagemap, struct page_region region)
{
    struct page_region found[64];
    struct pm_scan_arg arg = {
        .size = sizeof arg, .start = region.start, .end = region.end,
        .vec = (uintptr_t)found, .vec_len = 64,
        /* No page was armed, so the whole range is walked and nothing is told. */
        .category_mask = PAGE_IS_ARMED | PAGE_IS_WRITTEN, .return_mask = PAGE_IS_WRITTEN,
    };
    ioctl(pagemap, SCAN_PAGES, &arg);
}

static int stop(int pid)
{
    static struct page_region regions[1024];
    int tids[THREADS_MAX], n = threads_of(pid, tids), mappings = mappings_of(pid, regions, 1024);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/pagemap", pid);
    int pagemap = open(path, O_RDONLY | O_CLOEXEC);
    for (int i = 0; i < n; i++)
        if (ptrace(PTRACE_SEIZE, tids[i], 0, 0))
            die("seize");
    for (int i = 0; i < n; i++)
        ptrace(PTRACE_INTERRUPT, tids[i], 0, 0);
    for (int i = 0; i < n; i++)
        waitpid(tids[i], NULL, __WALL);
    for (int i = 0; i < mappings; i++)
        scan(pagemap, regions[i]);
    for (int i = 0; i < n; i++)
        ptrace(PTRACE_DETACH, tids[i], 0, 0);
    return 0;
}

static int revert(size_t kibibytes)
{
    size_t pages = (kibibytes << 10) / PAGE;
    /* Every fourth page: what a request writes does not lie in one piece. */
    char *memory = map(pages * 4 * PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    memset(memory, 1, pages * 4 * PAGE);
    pid_t child = fork();
    if (child < 0)
        die("fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        memset(memory, 2, pages * 4 * PAGE);
        ready();
        for (;;)
            pause();
    }
    while (wanted(0)) {
        uint64_t begin = now_ns(CLOCK_MONOTONIC);
        for (size_t done = 0; done < pages; done += IOV) {
            struct iovec pieces[IOV];
            size_t n = pages - done < IOV ? pages - done : IOV;
            for (size_t i = 0; i < n; i++)
                pieces[i] = (struct iovec){ memory + (done + i) * 4 * PAGE, PAGE };
            if (process_vm_writev(child, pieces, n, pieces, n, 0) < 0)
                die("process_vm_writev");
        }
        printf("%lu\n", now_ns(CLOCK_MONOTONIC) - begin);
        fflush(stdout);
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    return 0;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (argc == 3 && !strcmp(what, "stop"))
        return stop(atoi(argv[2]));
    if (argc == 3 && !strcmp(what, "revert"))
        return revert(strtoul(argv[2], NULL, 10));
    if (argc == 4 && !strcmp(what, "herd"))
        return herd(atoi(argv[2]), strtoul(argv[3], NULL, 10));
    if (argc == 4 && !strcmp(what, "fork"))
        return fork_template(atoi(argv[2]), strtoul(argv[3], NULL, 10));
    int first = argc == 3 && !strcmp(what, "first");
    int reply = argc == 5 && !strcmp(what, "reply");
    int tasks = argc == 5 && !strcmp(what, "tasks");
    if (first || tasks)
        first_word = shared(argv[argc - 1]) + FIRST;
    if (!first && !reply && !tasks)
        return 2;
    if (!woken())
        return 0;
    if (first)
        *first_word = now_ns(CLOCK_REALTIME);
    if (reply) {
        touch_image(argv[3], strtoul(argv[4], NULL, 10));
        answer(atoi(argv[2]));
    }
    if (tasks && !strcmp(argv[2], "threads"))
        make_threads(atoi(argv[3]));
    else if (tasks)
        make_processes(atoi(argv[3]));
    for (;;)
        pause();
}
