/* Blocked in pause. */
#include "check.h"

static int calls;
static pthread_t main_thread;

static void handler(int sig)
{
    calls += sig == SIGUSR1;
}

static void feed(void)
{
    MUST0(pthread_kill(main_thread, SIGUSR1));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    main_thread = pthread_self();
    MUST(signal(SIGUSR1, handler) == SIG_ERR ? -1 : 0);
    check_feed(SYS_pause, feed);
    CHECK_BLOCKS(-1, syscall(SYS_pause));
    CHECK_EQ("calls of the handler", 1, calls);
    return 0;
}
