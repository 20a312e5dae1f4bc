/* A child that was stopped by SIGSTOP is stopped after restore, and continues; its parent is told of it once, before or after. */
#include "check.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    volatile int *count = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pid_t pid = CHECK_FORK({
        while (!check_go() || *count < 10) {
            ++*count;
            check_pause();
        }
    });
    while (!*count)
        check_pause();
    int status;
    MUST(kill(pid, SIGSTOP));
    CHECK_EQ("waitpid", pid, MUST(waitpid(pid, &status, WUNTRACED)));
    CHECK(WIFSTOPPED(status), "child, expected stopped, got %#x", status);
    int at = *count;
    pid_t untold = CHECK_FORK(raise(SIGSTOP));
    siginfo_t info;
    MUST(waitid(P_PID, untold, &info, WSTOPPED | WNOWAIT));
    check_freeze_here();
    CHECK_EQ("waitpid of one it was told of", 0, MUST(waitpid(pid, &status, WUNTRACED | WNOHANG)));
    CHECK_EQ("waitpid of one it was not told of", untold, MUST(waitpid(untold, &status, WUNTRACED | WNOHANG)));
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP, "child, expected stopped, got %#x", status);
    CHECK_EQ("waitpid of the same again", 0, MUST(waitpid(untold, &status, WUNTRACED | WNOHANG)));
    MUST(kill(untold, SIGCONT));
    check_child_ok(untold);
    for (int i = 0; i < 50; i++)
        check_pause();
    CHECK_EQ("count of a stopped child", at, *count);
    *count = 0;
    MUST(kill(pid, SIGCONT));
    check_child_ok(pid);
    return 0;
}
