/* signalfd: its mask, and signals pending behind it. */
#include "check.h"
#include <sys/signalfd.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR1);
    sigaddset(&mask, SIGRTMIN + 1);
    MUST(sigprocmask(SIG_BLOCK, &mask, NULL));
    int fd = MUST(signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC));
    MUST(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = 4242}));
    check_freeze_here();
    struct signalfd_siginfo info;
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(fd, F_GETFD));
    CHECK_EQ("read", sizeof info, read(fd, &info, sizeof info));
    CHECK_EQ("signal", SIGRTMIN + 1, info.ssi_signo);
    CHECK_EQ("value", 4242, info.ssi_int);
    CHECK_EQ("second read", -1, read(fd, &info, sizeof info));
    CHECK_EQ("errno", EAGAIN, errno);
    MUST(kill(getpid(), SIGUSR1));
    CHECK_EQ("read", sizeof info, read(fd, &info, sizeof info));
    CHECK_EQ("signal", SIGUSR1, info.ssi_signo);
    return 0;
}
