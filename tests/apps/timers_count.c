/* Periodic timers miss nothing and count nothing twice, however often they fall
 * due while the app stands still, and those that have fallen due go on. */
#include "check.h"
#include <sched.h>
#include <sys/time.h>
#include <sys/timerfd.h>

/* Expiries of each timer, overruns included. */
enum { PROCESS, THREAD, FD, COUNTED };
static const char *const names[] = {"timer of the process", "timer of a thread", "timerfd"};
static volatile int64_t counted[COUNTED];
static int64_t start[COUNTED];
static volatile int alarms;

static int64_t now_us(void)
{
    struct timespec t;
    MUST(clock_gettime(CLOCK_MONOTONIC, &t));
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static void on_timer(int sig, siginfo_t *info, void *context)
{
    (void)sig;
    (void)context;
    counted[info->si_value.sival_int] += 1 + info->si_overrun;
}

static void on_alarm(int sig)
{
    (void)sig;
    alarms++;
}

static void make(int which, int notify, int sig)
{
    struct sigaction action = {.sa_sigaction = on_timer, .sa_flags = SA_SIGINFO | SA_RESTART};
    MUST(sigaction(sig, &action, NULL));
    struct sigevent event = {.sigev_notify = notify, .sigev_signo = sig, .sigev_value.sival_int = which};
    event._sigev_un._tid = check_tid();
    timer_t timer;
    MUST(timer_create(CLOCK_MONOTONIC, &event, &timer));
    struct itimerspec t = {{0, 1000000}, {0, 1000000}};
    start[which] = now_us();
    MUST(timer_settime(timer, 0, &t, NULL));
}

static void read_ticks(int fd)
{
    uint64_t ticks;
    if (read(fd, &ticks, 8) == 8)
        counted[FD] += ticks;
}

/* What has fallen due by the clock, give or take what is on its way. */
static void verify(int which, int fd)
{
    int64_t before = (now_us() - start[which]) / 1000;
    if (which == FD)
        read_ticks(fd);
    int64_t got = counted[which];
    int64_t after = (now_us() - start[which]) / 1000;
    CHECK(got >= before - 3 && got <= after + 3, "%s, expected %lld to %lld expiries, got %lld",
          names[which], (long long)before, (long long)after, (long long)got);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    /* Nobody can read the overruns of a signal that waits: it takes each at once,
     * however busy the machine is, up to the stop. */
    struct sched_param first = {1};
    MUST(sched_setscheduler(0, SCHED_FIFO, &first));
    /* Fallen due and not taken: it goes on once it is. */
    sigset_t alarm_only, old;
    sigemptyset(&alarm_only);
    sigaddset(&alarm_only, SIGALRM);
    MUST(sigprocmask(SIG_BLOCK, &alarm_only, &old));
    MUST(signal(SIGALRM, on_alarm) == SIG_ERR ? -1 : 0);
    struct itimerval often = {{0, 5000}, {0, 5000}};
    MUST(setitimer(ITIMER_REAL, &often, NULL));
    sigset_t pending;
    do
        MUST(sigpending(&pending));
    while (!sigismember(&pending, SIGALRM));

    int fd = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
    struct itimerspec t = {{0, 1000000}, {0, 1000000}};
    start[FD] = now_us();
    MUST(timerfd_settime(fd, 0, &t, NULL));
    /* An instant of the day stays that, however long the app is away. */
    int day = MUST(timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK));
    struct timespec wall;
    MUST(clock_gettime(CLOCK_REALTIME, &wall));
    struct itimerspec at = {.it_value = {wall.tv_sec + 3600, wall.tv_nsec}};
    MUST(timerfd_settime(day, TFD_TIMER_ABSTIME, &at, NULL));
    make(PROCESS, SIGEV_SIGNAL, SIGRTMIN);
    make(THREAD, SIGEV_THREAD_ID, SIGRTMIN + 1);
    while (counted[PROCESS] < 20 || counted[THREAD] < 20)
        check_pause();

    check_freeze_here();

    for (int which = 0; which < COUNTED; which++)
        verify(which, fd);
    for (int i = 0; i < 50; i++)
        check_pause();
    for (int which = 0; which < COUNTED; which++)
        verify(which, fd);
    MUST(clock_gettime(CLOCK_REALTIME, &wall));
    struct itimerspec left;
    MUST(timerfd_gettime(day, &left));
    double due = wall.tv_sec + wall.tv_nsec / 1e9 + left.it_value.tv_sec + left.it_value.tv_nsec / 1e9;
    double wanted = at.it_value.tv_sec + at.it_value.tv_nsec / 1e9;
    CHECK(due > wanted - 0.5 && due < wanted + 0.5, "an instant of the day, expected %.2f, got %.2f", wanted,
          due);
    CHECK_EQ("alarms while blocked", 0, alarms);
    MUST(sigprocmask(SIG_SETMASK, &old, NULL));
    while (alarms < 3)
        check_pause();
    return 0;
}
