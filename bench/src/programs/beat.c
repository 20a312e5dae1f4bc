/*
 * A program, or a library to preload, that beats: every 100 us it counts one
 * up in a shared file and notes the longest pause it has seen. Slots 1..N
 * belong to further threads or processes, which count slowly.
 *
 * As a program:  beat FILE NONCE threads|processes N
 * As a library:  LD_PRELOAD with BENCH_BEAT=FILE in the environment
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { SLOTS = 128, PAGE = 4096, BEAT_NS = 100000, SLOW_NS = 20000000 };

struct shared {
    volatile uint64_t nonce;     /* written with every beat, from private memory */
    volatile uint64_t gap_ns;    /* longest pause; the harness sets it to zero */
    volatile uint64_t count[SLOTS];
};

static struct shared *shared;
static uint64_t nonce;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void pause_ns(long ns)
{
    struct timespec t = { 0, ns };
    nanosleep(&t, NULL);
}

static void *beat(void *unused)
{
    uint64_t count = 0, last = now_ns();
    for (;;) {
        pause_ns(BEAT_NS);
        uint64_t now = now_ns();
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
    if (path && open_shared(path) == 0)
        pthread_create(&thread, NULL, beat, NULL);
}
#else
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
    if (argc != 5 || open_shared(argv[1]))
        return 2;
    nonce = strtoull(argv[2], NULL, 10);
    uintptr_t n = strtoul(argv[4], NULL, 10);
    if (n > SLOTS)
        return 2;
    if (strcmp(argv[3], "threads") ? more_processes(n) : more_threads(n))
        return 3;
    beat(NULL);
}
#endif
