/* A pidfd for a thread (PIDFD_THREAD), the main one of a child: what is sent through it is
 * for that thread alone. */
#include "check.h"
#include <poll.h>

#define PIDFD_THREAD O_EXCL

static void check_pending(pid_t pid, const char *key, int expected)
{
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    text[check_read_file(path, text, sizeof text - 1)] = 0;
    char *at = strstr(text, key);
    CHECK(at, "%s, expected in status, got none", key);
    CHECK_EQ(key, expected, strtoull(at + strlen(key), NULL, 16) != 0);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    MUST(sigprocmask(SIG_BLOCK, &set, NULL));
    pid_t child = CHECK_FORK(for (;;) pause());
    int thread = syscall(SYS_pidfd_open, child, PIDFD_THREAD), process = MUST(syscall(SYS_pidfd_open, child, 0));
    if (thread < 0)
        SKIP("PIDFD_THREAD (Linux 6.9)");
    check_freeze_here();
    CHECK_EQ("flag of the one", PIDFD_THREAD, MUST(fcntl(thread, F_GETFL)) & PIDFD_THREAD);
    CHECK_EQ("flag of the other", 0, MUST(fcntl(process, F_GETFL)) & PIDFD_THREAD);
    MUST(syscall(SYS_pidfd_send_signal, thread, SIGUSR1, NULL, 0));
    check_pending(child, "SigPnd:", 1);
    check_pending(child, "ShdPnd:", 0);
    MUST(syscall(SYS_pidfd_send_signal, process, SIGUSR1, NULL, 0));
    check_pending(child, "ShdPnd:", 1);
    MUST(kill(child, SIGKILL));
    struct pollfd polled = {thread, POLLIN, 0};
    CHECK_EQ("end that is told", 1, MUST(poll(&polled, 1, 20000)));
    MUST(waitpid(child, NULL, 0));
    return 0;
}
