/* Blocked in futex waits with a relative and with an absolute time-out. */
#include "check.h"
#include <linux/futex.h>

static uint32_t words[2];
static int64_t start;

static void expect(const char *what, long result)
{
    int error = errno;
    int64_t now = check_now_ms();
    CHECK_EQ(what, -1, result);
    CHECK_EQ(what, ETIMEDOUT, error);
    check_due(what, 0, now);
}

static void *absolute(void *arg)
{
    struct timespec *until = arg;
    expect("FUTEX_WAIT_BITSET", syscall(SYS_futex, &words[1], FUTEX_WAIT_BITSET_PRIVATE, 0, until, NULL,
                                        FUTEX_BITSET_MATCH_ANY));
    return NULL;
}

static void *waiter(void *arg)
{
    (void)arg;
    while (check_now_ms() < start + (check_sits_in(getpid(), SYS_futex) ? 1000 : 3000))
        check_pause();
    check_freeze_here();
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct timespec relative = {3, 0}, until;
    start = check_now_ms();
    check_watch(start + 3000);
    MUST(clock_gettime(CLOCK_MONOTONIC, &until));
    until.tv_sec += 3;
    pthread_t a = check_thread(absolute, &until), b = check_thread(waiter, NULL);
    expect("FUTEX_WAIT", syscall(SYS_futex, &words[0], FUTEX_WAIT_PRIVATE, 0, &relative));
    MUST0(pthread_join(a, NULL));
    MUST0(pthread_join(b, NULL));
    return 0;
}
