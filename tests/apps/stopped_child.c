/* A child that was stopped by SIGSTOP is stopped after restore, and continues. */
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
    check_freeze_here();
    for (int i = 0; i < 50; i++)
        check_pause();
    CHECK_EQ("count of a stopped child", at, *count);
    *count = 0;
    MUST(kill(pid, SIGCONT));
    check_child_ok(pid);
    return 0;
}
