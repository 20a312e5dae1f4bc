/* POSIX timers: ids with gaps, who is told and how, value, time left, interval. */
#include "check.h"

enum { TIMERS = 7 };

/* The kernel's ids, which the C library hides behind pointers. */
static int id[TIMERS];
static volatile int got[TIMERS], wrong_thread;
static pid_t listener;

static void on_signal(int sig, siginfo_t *info, void *context)
{
    (void)context;
    int i = info->si_value.sival_int;
    if (i < 0 || i >= TIMERS || info->si_code != SI_TIMER)
        FAIL("signal %d, expected a timer's, got code %d value %d", sig, info->si_code, i);
    if (i == 3 && check_tid() != listener)
        wrong_thread = check_tid();
    got[i]++;
}

static void make(int i, int notify, int sig, clockid_t clock)
{
    struct sigevent event = {.sigev_notify = notify, .sigev_signo = sig, .sigev_value.sival_int = i};
    if (notify == SIGEV_THREAD_ID)
        event._sigev_un._tid = listener;
    MUST(syscall(SYS_timer_create, clock, &event, &id[i]));
}

static void arm(int i, long seconds, long interval)
{
    struct itimerspec t = {.it_value = {seconds, 0}, .it_interval = {interval, 0}};
    MUST(syscall(SYS_timer_settime, id[i], 0, &t, NULL));
}

static void verify(int i, double seconds, long interval, double passed)
{
    struct itimerspec t;
    MUST(syscall(SYS_timer_gettime, id[i], &t));
    double left = t.it_value.tv_sec + t.it_value.tv_nsec / 1e9;
    double expected = seconds ? seconds - passed : 0;
    CHECK(left > expected - 0.7 && left < expected + 0.7, "timer %d, expected %.2f s left, got %.2f",
          i, expected, left);
    CHECK_EQ("interval", interval, t.it_interval.tv_sec);
}

static void *listen(void *arg)
{
    __atomic_store_n(&listener, check_tid(), __ATOMIC_SEQ_CST);
    while (!__atomic_load_n((int *)arg, __ATOMIC_SEQ_CST))
        check_pause();
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    for (int sig = SIGRTMIN; sig < SIGRTMIN + TIMERS; sig++)
        MUST(sigaction(sig, &action, NULL));
    int stop = 0;
    pthread_t thread = check_thread(listen, &stop);
    while (!__atomic_load_n(&listener, __ATOMIC_SEQ_CST))
        check_pause();
    make(0, SIGEV_SIGNAL, SIGRTMIN, CLOCK_MONOTONIC);
    make(1, SIGEV_SIGNAL, SIGRTMIN + 1, CLOCK_MONOTONIC);
    make(2, SIGEV_NONE, 0, CLOCK_MONOTONIC);
    make(3, SIGEV_THREAD_ID, SIGRTMIN + 3, CLOCK_MONOTONIC);
    make(4, SIGEV_SIGNAL, SIGRTMIN + 4, CLOCK_REALTIME);
    make(5, SIGEV_SIGNAL, SIGRTMIN + 5, CLOCK_BOOTTIME);
    make(6, SIGEV_SIGNAL, SIGRTMIN + 6, CLOCK_PROCESS_CPUTIME_ID);
    /* Gaps in the ids. */
    MUST(syscall(SYS_timer_delete, id[0]));
    MUST(syscall(SYS_timer_delete, id[5]));
    int64_t start = check_now_ms();
    arm(1, 1000, 60);
    arm(2, 2000, 0);
    arm(3, 3000, 0);
    arm(4, 4000, 5);
    check_freeze_here();
    double passed = (check_now_ms() - start) / 1e3;
    verify(1, 1000, 60, passed);
    verify(2, 2000, 0, passed);
    verify(3, 3000, 0, passed);
    verify(4, 4000, 5, passed);
    verify(6, 0, 0, 0);
    struct itimerspec unused;
    CHECK_EQ("a deleted timer", -1, syscall(SYS_timer_gettime, id[0], &unused));
    CHECK_EQ("a deleted timer", -1, syscall(SYS_timer_gettime, id[5], &unused));
    for (int i = 0; i < TIMERS; i++)
        CHECK_EQ("signals before any timer is due", 0, got[i]);
    /* All still tell the one they should. */
    int old[TIMERS];
    memcpy(old, id, sizeof id);
    struct itimerspec soon = {.it_value = {0, 5000000}};
    for (int i = 1; i < TIMERS; i++)
        if (i != 5 && i != 6)
            MUST(syscall(SYS_timer_settime, id[i], 0, &soon, NULL));
    while (!got[1] || !got[3] || !got[4])
        check_pause();
    CHECK_EQ("thread that took a THREAD_ID signal", 0, wrong_thread);
    /* A new timer gets an id of its own. */
    make(5, SIGEV_SIGNAL, SIGRTMIN + 5, CLOCK_MONOTONIC);
    for (int i = 1; i < TIMERS; i++)
        CHECK(i == 5 || old[i] != id[5], "id of a new timer, expected a free one, got timer %d's", i);
    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    MUST0(pthread_join(thread, NULL));
    return 0;
}
