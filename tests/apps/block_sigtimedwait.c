/* Blocked in sigtimedwait with a time-out far away. */
#include "check.h"

static void feed(void)
{
    MUST(sigqueue(getpid(), SIGRTMIN + 4, (union sigval){.sival_int = 314}));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    sigset_t set;
    siginfo_t info;
    struct timespec far = {1000, 0};
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 4);
    MUST(sigprocmask(SIG_BLOCK, &set, NULL)); /* inherited by the feeder */
    check_feed(SYS_rt_sigtimedwait, feed);
    CHECK_BLOCKS(SIGRTMIN + 4, syscall(SYS_rt_sigtimedwait, &set, &info, &far, 8));
    CHECK_EQ("value", 314, info.si_value.sival_int);
    return 0;
}
