/* A signal that tells of a file (O_ASYNC, F_SETSIG): which, to whom, and of which descriptor. */
#include "check.h"

static volatile sig_atomic_t told_fd = -1;

static void told(int sig, siginfo_t *info, void *context)
{
    (void)sig, (void)context;
    told_fd = info->si_fd;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int ends[2], far = 40;
    MUST(pipe(ends));
    struct sigaction action = {.sa_sigaction = told, .sa_flags = SA_SIGINFO};
    MUST(sigaction(SIGRTMIN + 4, &action, NULL));
    MUST(dup2(ends[0], far));
    MUST(close(ends[0]));
    MUST(fcntl(far, F_SETOWN, getpid()));
    MUST(fcntl(far, F_SETSIG, SIGRTMIN + 4));
    MUST(fcntl(far, F_SETFL, O_ASYNC | O_NONBLOCK));
    check_freeze_here();
    CHECK_EQ("told so far", -1, told_fd);
    CHECK_EQ("write", 1, MUST(write(ends[1], "x", 1)));
    while (told_fd < 0)
        check_pause();
    CHECK_EQ("descriptor that is told of", far, told_fd);
    CHECK_EQ("owner", getpid(), MUST(fcntl(far, F_GETOWN)));
    CHECK_EQ("flags", O_ASYNC | O_NONBLOCK, MUST(fcntl(far, F_GETFL)));
    return 0;
}
