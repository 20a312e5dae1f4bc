/* All resource limits, also those so tight that they hinder a careless restorer. */
#include "check.h"
#include <sys/resource.h>

enum { LIMITS = 16 };

static struct rlimit wanted[LIMITS] = {
    [RLIMIT_CPU] = {5000, 6000},
    [RLIMIT_FSIZE] = {8192, 16384},
    [RLIMIT_DATA] = {64 << 20, 128 << 20},
    [RLIMIT_STACK] = {1 << 20, 8 << 20},
    [RLIMIT_CORE] = {0, 4096},
    [RLIMIT_RSS] = {1 << 30, RLIM_INFINITY},
    [RLIMIT_NPROC] = {1000, 1001},
    [RLIMIT_NOFILE] = {10, 40},
    [RLIMIT_MEMLOCK] = {4096, 8192},
    [RLIMIT_AS] = {1ul << 40, 1ul << 41},
    [RLIMIT_LOCKS] = {5, 6},
    [RLIMIT_SIGPENDING] = {700, 800},
    [RLIMIT_MSGQUEUE] = {10000, 20000},
    [RLIMIT_NICE] = {5, 10},
    [RLIMIT_RTPRIO] = {3, 4},
    [RLIMIT_RTTIME] = {1000000, 2000000},
};

/* Only a privileged process raises a hard limit. */
static void clamp(int i)
{
    struct rlimit now;
    MUST(getrlimit(i, &now));
    if (wanted[i].rlim_max > now.rlim_max)
        wanted[i].rlim_max = now.rlim_max;
    if (wanted[i].rlim_cur > wanted[i].rlim_max)
        wanted[i].rlim_cur = wanted[i].rlim_max;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int high = MUST(fcntl(0, F_DUPFD, 100)); /* a number above the later limit */
    for (int i = 0; i < LIMITS; i++)
        clamp(i);
    for (int i = 0; i < LIMITS; i++)
        MUST(setrlimit(i, &wanted[i]));
    check_freeze_here();
    for (int i = 0; i < LIMITS; i++) {
        struct rlimit now;
        char what[32];
        MUST(getrlimit(i, &now));
        snprintf(what, sizeof what, "limit %d, soft", i);
        CHECK_EQ(what, wanted[i].rlim_cur, now.rlim_cur);
        snprintf(what, sizeof what, "limit %d, hard", i);
        CHECK_EQ(what, wanted[i].rlim_max, now.rlim_max);
    }
    MUST(fcntl(high, F_GETFD));
    return 0;
}
