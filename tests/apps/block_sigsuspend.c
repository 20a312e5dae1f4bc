/* Blocked in sigsuspend: only the signal ends it, and the old mask comes back. */
#include "check.h"

static int calls;
static pthread_t main_thread;

static void handler(int sig)
{
    calls += sig == SIGUSR1;
}

static void feed(void)
{
    CHECK_EQ("calls of the handler before the signal", 0, calls);
    MUST0(pthread_kill(main_thread, SIGUSR1));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    sigset_t block, none, now;
    main_thread = pthread_self();
    MUST(signal(SIGUSR1, handler) == SIG_ERR ? -1 : 0);
    sigemptyset(&none);
    sigemptyset(&block);
    sigaddset(&block, SIGUSR1);
    MUST(sigprocmask(SIG_SETMASK, &block, NULL));
    check_feed(SYS_rt_sigsuspend, feed);
    CHECK_BLOCKS(-1, sigsuspend(&none)); /* -1 with EINTR is its only end */
    CHECK_EQ("calls of the handler", 1, calls);
    MUST(sigprocmask(SIG_SETMASK, NULL, &now));
    CHECK(sigismember(&now, SIGUSR1), "mask after sigsuspend, expected the one before");
    return 0;
}
