/* A pidfd of a child still means that child. */
#include "check.h"
#include <poll.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

int main(int argc, char **argv)
{
    check_start(argc, argv);
    pid_t pid = CHECK_FORK(for (;;) pause());
    int fd = syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0)
        SKIP("pidfd_open");
    struct pollfd p = {.fd = fd, .events = POLLIN};
    check_freeze_here();
    CHECK_EQ("poll of a living child", 0, poll(&p, 1, 0));
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(fd, F_GETFD));
    MUST(syscall(SYS_pidfd_send_signal, fd, SIGTERM, NULL, 0));
    CHECK_EQ("poll of a dead child", 1, poll(&p, 1, 20000));
    siginfo_t info;
    MUST(waitid(P_PIDFD, fd, &info, WEXITED));
    CHECK_EQ("si_pid", pid, info.si_pid);
    CHECK_EQ("si_status", SIGTERM, info.si_status);
    return 0;
}
