/* Blocked in clock_nanosleep until an absolute monotonic time. */
#include "check.h"

static int64_t start;

static void *waiter(void *arg)
{
    (void)arg;
    while (check_now_ms() < start + (check_sits_in(getpid(), SYS_clock_nanosleep) ? 1000 : 3000))
        check_pause();
    check_freeze_here();
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct timespec t;
    MUST(clock_gettime(CLOCK_MONOTONIC, &t));
    t.tv_sec += 3;
    start = check_now_ms();
    check_watch(start + 3000);
    pthread_t thread = check_thread(waiter, NULL);
    CHECK_EQ("clock_nanosleep", 0, syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL));
    check_due("until 3000 ms later", 0, check_now_ms());
    MUST0(pthread_join(thread, NULL));
    return 0;
}
