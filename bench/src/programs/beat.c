/*
 * A program, or a library to preload, that beats: every 100 us it counts one
 * up in a shared file and notes the longest pause it has seen. Slots 1..N
 * belong to further threads or processes, which count slowly.
 *
 * As a program:  beat FILE NONCE threads|processes|fine|spin N [MEGABYTES]
 *   fine   beats as often as the kernel lets it
 *   spin   never sleeps, and notes when it first ran since it was asked
 * As a library:  LD_PRELOAD with BENCH_BEAT=FILE in the environment, or with
 *                BENCH_UID=UID, for a server that does not want to be root
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { SLOTS = 256, PAGE = 4096, BEAT_NS = 100000, FINE_NS = 1000, SLOW_NS = 20000000 };

struct shared {
    volatile uint64_t nonce;     /* written with every beat, from private memory */
    volatile uint64_t gap_ns;    /* longest pause; the harness sets it to zero */
    volatile uint64_t first_ns;  /* CLOCK_REALTIME, which no namespace shifts; zero asks for it */
    volatile uint64_t count[SLOTS];
};

static struct shared *shared;
static uint64_t nonce;
static long beat_ns = BEAT_NS;

static uint64_t now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void pause_ns(long ns)
{
    struct timespec t = { 0, ns };
    nanosleep(&t, NULL);
}

static void *beat(void *unused)
{
    uint64_t count = 0, last = now_ns(CLOCK_MONOTONIC);
    for (;;) {
        pause_ns(beat_ns);
        uint64_t now = now_ns(CLOCK_MONOTONIC);
        if (now > last && now - last > shared->gap_ns)
            shared->gap_ns = now - last;
        last = now;
        shared->nonce = nonce;
        shared->count[0] = ++count;
    }
    return unused;
}

static void *tick(void *slot)
{
    uint64_t count = 0;
    for (;;) {
        pause_ns(SLOW_NS);
        shared->count[(uintptr_t)slot] = ++count;
    }
    return slot;
}

static int open_shared(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -1;
    shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return shared == MAP_FAILED ? -1 : 0;
}

#ifdef PRELOADED
__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("BENCH_BEAT");
    pthread_t thread;
    sigset_t all, before;
    if (!path || open_shared(path))
        return;
    /* The server's signals are for the server's own threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_create(&thread, NULL, beat, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static uid_t told(long syscall_number)
{
    const char *uid = getenv("BENCH_UID");
    return uid ? (uid_t)strtoul(uid, NULL, 10) : (uid_t)syscall(syscall_number);
}

uid_t getuid(void)
{
    return told(SYS_getuid);
}

uid_t geteuid(void)
{
    return told(SYS_geteuid);
}
#else
static void spin(void)
{
    for (uint64_t count = 1;; count++) {
        if (!shared->first_ns) {
            shared->first_ns = now_ns(CLOCK_REALTIME);
            shared->nonce = nonce;
        }
        shared->count[0] = count;
    }
}

/* Memory that does not compress, is not zero, and is the same in no two pages. */
static int fill(size_t megabytes)
{
    uint64_t *memory = mmap(NULL, megabytes << 20, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -1;
    uint64_t state = 88172645463325252u;
    for (size_t word = 0; word < (megabytes << 20) / sizeof *memory; word++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        memory[word] = state;
    }
    return 0;
}

static int more_threads(uintptr_t n)
{
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 * 1024);
    for (uintptr_t slot = 1; slot < n; slot++) {
        pthread_t thread;
        if (pthread_create(&thread, &small, tick, (void *)slot))
            return -1;
    }
    return 0;
}

static int more_processes(uintptr_t n)
{
    for (uintptr_t slot = 1; slot < n; slot++) {
        pid_t child = fork();
        if (child < 0)
            return -1;
        if (child == 0)
            tick((void *)slot);
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 5 || argc > 6 || open_shared(argv[1]))
        return 2;
    nonce = strtoull(argv[2], NULL, 10);
    uintptr_t n = strtoul(argv[4], NULL, 10);
    if (n > SLOTS)
        return 2;
    if (argc == 6 && fill(strtoul(argv[5], NULL, 10)))
        return 3;
    if (strcmp(argv[3], "spin") == 0)
        spin();
    if (strcmp(argv[3], "fine") == 0) {
        beat_ns = FINE_NS;
        prctl(PR_SET_TIMERSLACK, 1);
    }
    if (strcmp(argv[3], "processes") ? more_threads(n) : more_processes(n))
        return 3;
    beat(NULL);
}
#endif
