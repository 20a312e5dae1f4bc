/* The three interval timers keep the time they have left. */
#include "check.h"
#include <sys/time.h>

static volatile int alarms;

static void on_alarm(int sig)
{
    (void)sig;
    alarms++;
}

static void arm(int which, long value, long interval)
{
    struct itimerval t = {.it_value = {value, 0}, .it_interval = {interval, 500000}};
    MUST(setitimer(which, &t, NULL));
}

static void verify(int which, long value, long interval, double used)
{
    struct itimerval t;
    MUST(getitimer(which, &t));
    double left = t.it_value.tv_sec + t.it_value.tv_usec / 1e6;
    CHECK(left > value - used - 0.7 && left < value - used + 0.7,
          "timer %d, expected %.2f s left, got %.2f", which, value - used, left);
    CHECK_EQ("interval, seconds", interval, t.it_interval.tv_sec);
    CHECK_EQ("interval, microseconds", 500000, t.it_interval.tv_usec);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int64_t start = check_now_ms();
    arm(ITIMER_REAL, 1000, 17);
    arm(ITIMER_VIRTUAL, 2000, 27);
    arm(ITIMER_PROF, 3000, 37);
    check_freeze_here();
    verify(ITIMER_REAL, 1000, 17, (check_now_ms() - start) / 1e3);
    verify(ITIMER_VIRTUAL, 2000, 27, 0);
    verify(ITIMER_PROF, 3000, 37, 0);
    MUST(signal(SIGALRM, on_alarm) == SIG_ERR ? -1 : 0);
    struct itimerval soon = {.it_value = {0, 10000}, .it_interval = {0, 10000}};
    MUST(setitimer(ITIMER_REAL, &soon, NULL));
    while (alarms < 3)
        check_pause();
    return 0;
}
