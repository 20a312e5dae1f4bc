/* Blocked in clock_nanosleep until an absolute monotonic time. */
#include "check.h"

static int64_t start;

static void *waiter(void *arg)
{
    (void)arg;
    while (!check_sits_in(getpid(), SYS_clock_nanosleep) || check_now_ms() < start + 1000)
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
    pthread_t thread = check_thread(waiter, NULL);
    CHECK_EQ("clock_nanosleep", 0, syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL));
    int64_t took = check_now_ms() - start;
    CHECK(took >= 2990 && took < 3700, "until 3000 ms later, got %lld", (long long)took);
    MUST0(pthread_join(thread, NULL));
    return 0;
}
