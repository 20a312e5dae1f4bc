/* Does to itself what it is told, by files, and tells whether all is as in the
   beginning: memory of every kind, mappings, descriptors, threads. */
#include "check.h"
#include <dirent.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/sem.h>
#include <sys/socket.h>

#define SMALL (64 << 10)
#define LARGE (4 << 20)
static unsigned char initialised[SMALL] = {1};
static unsigned char empty[SMALL];
static unsigned char *heap, *mapped;
/* A file, mapped: the first half written to; and not at all. */
static unsigned char *filed, *bare, *content;
static char maps[64 << 10], descriptors[4096];
static volatile unsigned long ticks;
static int file, pipes[2];

static unsigned char pattern(size_t at) { return (unsigned char)(at / 4096 * 7 + at % 251); }

static void fill(unsigned char *bytes, size_t len)
{
    for (size_t at = 0; at < len; at++)
        bytes[at] = pattern(at);
}

static int is_filled(const unsigned char *bytes, size_t len)
{
    for (size_t at = 0; at < len; at++)
        if (bytes[at] != pattern(at))
            return 0;
    return 1;
}

static int is_zero(const unsigned char *bytes, size_t len)
{
    for (size_t at = 0; at < len; at++)
        if (bytes[at])
            return 0;
    return 1;
}

static void read_maps(char *into)
{
    int fd = open("/proc/self/maps", O_RDONLY);
    size_t have = 0;
    ssize_t got;
    while ((got = read(fd, into + have, sizeof maps - have - 1)) > 0)
        have += got;
    into[have] = 0;
    close(fd);
}

static void list_descriptors(char *into)
{
    *into = 0;
    for (int fd = 0; fd < 64; fd++) {
        char path[64], link[256] = "";
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (readlink(path, link, sizeof link - 1) > 0)
            sprintf(into + strlen(into), "%d %d %d\n", fd, fcntl(fd, F_GETFL), fcntl(fd, F_GETFD));
    }
}

static void *tick(void *unused)
{
    for (;;) {
        ticks++;
        usleep(3000);
    }
    return unused;
}

static void *wait_for_ever(void *unused)
{
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t never = PTHREAD_COND_INITIALIZER;
    pthread_mutex_lock(&mutex);
    for (;;)
        pthread_cond_wait(&never, &mutex);
    return unused;
}

/* Memory that was given back, and that the kernel has not taken yet. */
static int may_vanish(void)
{
    char line[512];
    unsigned long any = 0, kilobytes;
    FILE *smaps = fopen("/proc/self/smaps", "r");
    while (fgets(line, sizeof line, smaps))
        if (sscanf(line, "LazyFree: %lu kB", &kilobytes) == 1)
            any += kilobytes;
    fclose(smaps);
    return any != 0;
}

static const char *verify(unsigned char *stack)
{
    static char now[sizeof maps];
    char open_now[sizeof descriptors];
    if (!is_filled(initialised, SMALL)) return "initialised data";
    if (!is_zero(empty, SMALL)) return "empty data";
    if (!is_filled(stack, SMALL)) return "the stack";
    if (!is_filled(heap, LARGE)) return "the heap";
    if (!is_filled(mapped, LARGE / 2)) return "the first half of the mapping";
    if (!is_zero(mapped + LARGE / 2, LARGE / 2)) return "the second half of the mapping";
    if (!is_filled(filed, SMALL / 2)) return "the first half of the mapped file";
    if (memcmp(filed + SMALL / 2, content + SMALL / 2, SMALL / 2)) return "the second half of the mapped file";
    if (memcmp(bare, content, SMALL)) return "the file that is only read";
    if (may_vanish()) return "memory that may vanish";
    read_maps(now);
    if (strcmp(now, maps)) return "mappings";
    list_descriptors(open_now);
    if (strcmp(open_now, descriptors)) return "descriptors";
    if (lseek(file, 0, SEEK_CUR) != 10) return "the offset of the file";
    unsigned long before = ticks;
    for (int i = 0; i < 1000 && ticks < before + 3; i++)
        usleep(1000);
    if (ticks < before + 3) return "the thread";
    return "ok";
}

static const char *act(char what, unsigned char *stack)
{
    pthread_t thread;
    switch (what) {
    case 'v': return verify(stack);
    case 'm': /* memory of every kind, in part */
        for (size_t at = 0; at < LARGE; at += 9000)
            heap[at]++, mapped[at]++;
        for (size_t at = 0; at < SMALL; at += 5000)
            initialised[at]++, empty[at]++, stack[at]++;
        break;
    case 'd': /* thrown away, and some of it used again */
        madvise(mapped, LARGE, MADV_DONTNEED);
        ticks += mapped[8192];
        mapped[40960] = 9;
        break;
    case 'z': madvise(mapped, LARGE / 2, MADV_FREE); break;
    case 'b': /* the same of a mapped file */
        madvise(filed, SMALL, MADV_DONTNEED);
        ticks += filed[4096];
        filed[5 * 4096] = 9, filed[12 * 4096] = 9;
        break;
    case 'e': /* a page of its own where there was none, behind its back */
        mprotect(bare, SMALL, PROT_READ | PROT_WRITE);
        bare[4096]++;
        mprotect(bare, SMALL, PROT_READ);
        break;
    case 'o': /* opened, moved, flagged */
        lseek(file, 77, SEEK_SET);
        fcntl(pipes[0], F_SETFL, O_NONBLOCK);
        fcntl(pipes[1], F_SETFD, FD_CLOEXEC);
        dup(file), open("/etc/passwd", O_RDONLY), eventfd(7, 0), epoll_create1(0);
        socket(AF_INET, SOCK_STREAM, 0);
        break;
    case 'n': /* mapped */
        memset(mmap(0, SMALL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 5, SMALL);
        memset(sbrk(SMALL), 6, SMALL);
        mmap(0, 4096, PROT_READ, MAP_PRIVATE, file, 0);
        break;
    case 'p': mprotect(mapped + 8192, 8192, PROT_READ); break;
    case 'f':
        if (!fork())
            for (;;)
                pause();
        break;
    case 't': pthread_create(&thread, 0, wait_for_ever, 0); break;
    case 's': signal(SIGUSR1, SIG_IGN); break;
    case 'c': chdir("/tmp"); break;
    case 'u': munmap(mapped + 4096, 4096); break;
    case 'w': write(pipes[1], "x", 1); break;
    case 'a': madvise(mapped, LARGE, MADV_DONTFORK); break;
    case 'h': madvise(mapped, LARGE, MADV_HUGEPAGE); break;
    case 'l': mlock(mapped, 4096); break;
    case 'r': /* the same mapping to look at, and another one */
        mmap(mapped, LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        break;
    case 'g': MUST(unshare(CLONE_NEWUTS)); break;
    case 'q': MUST(mount("none", "/", 0, MS_REC | MS_SHARED, 0)); break;
    case 'i': /* what is there without a descriptor */
        MUST(mq_close(MUST(mq_open("/undone", O_CREAT | O_RDWR, 0600, NULL))));
        break;
    case 'k': MUST(semget(IPC_PRIVATE, 1, 0600)); break;
    case 'x': dup2(0, file); break;
    }
    return "done";
}

int main(int argc, char **argv)
{
    static char ask[512], answer[512], partial[512];
    unsigned char stack[SMALL];
    pthread_t thread;
    char what;
    if (argc < 3) return 2;
    snprintf(ask, sizeof ask, "%s-ask", argv[2]);
    snprintf(answer, sizeof answer, "%s-answer", argv[2]);
    snprintf(partial, sizeof partial, "%s-partial", argv[2]);
    heap = malloc(LARGE);
    mapped = mmap(0, LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill(initialised, SMALL), fill(stack, SMALL), fill(heap, LARGE), fill(mapped, LARGE / 2);
    int own = MUST(open("/proc/self/exe", O_RDONLY));
    filed = mmap(0, SMALL, PROT_READ | PROT_WRITE, MAP_PRIVATE, own, 0);
    bare = mmap(0, SMALL, PROT_READ, MAP_PRIVATE, own, 0);
    content = malloc(SMALL);
    memcpy(content, bare, SMALL), fill(filed, SMALL / 2);
    close(own);
    file = MUST(open("/etc/services", O_RDONLY));
    MUST(lseek(file, 10, SEEK_SET));
    MUST(pipe(pipes));
    pthread_create(&thread, 0, tick, 0);
    pthread_create(&thread, 0, wait_for_ever, 0);
    usleep(20000);
    list_descriptors(descriptors);
    read_maps(maps);
    close(MUST(open(argv[1], O_CREAT | O_WRONLY, 0600)));
    for (;;) {
        usleep(2000);
        int fd = open(ask, O_RDONLY);
        if (fd < 0) continue;
        ssize_t got = read(fd, &what, 1);
        close(fd);
        if (got != 1) continue;
        unlink(ask);
        const char *told = act(what, stack);
        fd = open(partial, O_CREAT | O_WRONLY | O_TRUNC, 0600);
        if (fd < 0 || write(fd, told, strlen(told)) < 0) return 3;
        close(fd);
        rename(partial, answer);
    }
}
