/* A load that knows what it used: holds memory, burns processor time, and tells both.
 *
 *   load DIR MIB MILLIS
 *
 * Holds MIB of touched memory from its begin on. Burns MILLIS of processor time at once,
 * and again at each SIGUSR1. At SIGTERM it writes DIR/INSTANCE.used: processor time as
 * getrusage tells it, bytes held, these times how long (CLOCK_BOOTTIME, nanoseconds), for how
 * long at most, and how long it took until they were there.
 * INSTANCE is what /run/appshot-instance/name says. After each burn it makes
 * DIR/INSTANCE.burnt-COUNT. Bytes held times nanoseconds are summed up by the megabyte.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static long long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static long long used(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000000LL + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1000LL;
}

static void burn(long millis)
{
    volatile unsigned long x = 0;
    for (long long end = used() + millis * 1000000LL; used() < end;)
        for (int i = 0; i < 200000; i++)
            x += i;
}

static const char *instance(void)
{
    static char name[256];
    FILE *f = fopen("/run/appshot-instance/name", "r");
    if (!f || !fgets(name, sizeof name, f))
        exit(3);
    fclose(f);
    name[strcspn(name, "\n")] = 0;
    return name;
}

static FILE *file(const char *dir, const char *what)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.%s", dir, instance(), what);
    FILE *f = fopen(path, "w");
    if (!f)
        exit(4);
    return f;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    size_t bytes = strtoul(argv[2], 0, 10) << 20;
    long millis = strtol(argv[3], 0, 10);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, 0);

    long long began = now();
    char *held = bytes ? mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : 0;
    /* Since when each megabyte is there, all together. */
    __int128 since = 0;
    for (size_t at = 0; at < bytes; at += 4096) {
        held[at] = (char)(at >> 12) | 1;
        if ((at & ((1 << 20) - 1)) == 0)
            since += now();
    }
    long long touched = now();
    for (int count = 1, signal = SIGUSR1; signal == SIGUSR1; count++) {
        char what[32];
        burn(millis);
        snprintf(what, sizeof what, "burnt-%d", count);
        fclose(file(argv[1], what));
        sigwait(&set, &signal);
    }
    FILE *f = file(argv[1], "used");
    /* Decimal, in two halves: 128 bits have no format. */
    long long end = now();
    unsigned __int128 held_for = (unsigned __int128)((__int128)(bytes >> 20) * end - since) << 20;
    unsigned long long ten18 = 1000000000000000000ULL;
    fprintf(f, "%lld %zu %llu%018llu %lld %lld\n", used(), bytes, (unsigned long long)(held_for / ten18),
            (unsigned long long)(held_for % ten18), end - began, touched - began);
    fclose(f);
    return 0;
}
