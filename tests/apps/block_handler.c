/* A call interrupted by a handler does what it must: restart with SA_RESTART, EINTR without. */
#include "check.h"

static int fds[2], calls;
static pthread_t main_thread;

static void handler(int sig)
{
    (void)sig;
    __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
}

static void interrupt(void)
{
    MUST0(pthread_kill(main_thread, SIGUSR1)); /* restarts */
    while (!__atomic_load_n(&calls, __ATOMIC_SEQ_CST) || !check_sits_in(getpid(), SYS_read))
        check_pause();
    MUST0(pthread_kill(main_thread, SIGUSR2)); /* ends with EINTR */
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct sigaction restart = {.sa_handler = handler, .sa_flags = SA_RESTART};
    struct sigaction end = {.sa_handler = handler};
    char c;
    main_thread = pthread_self();
    MUST(pipe(fds));
    MUST(sigaction(SIGUSR1, &restart, NULL));
    MUST(sigaction(SIGUSR2, &end, NULL));
    check_feed(SYS_read, interrupt);
    CHECK_BLOCKS(-1, read(fds[0], &c, 1));
    CHECK_EQ("calls of the handlers", 2, calls);
    return 0;
}
