/* A child that was stopped is stopped after restore, and continues; its parent is told of it once, before or after, and
 * by which signal (SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU). */
#include "check.h"

/* In a group of its own, which is not orphaned; with a thread. */
static void stop_by(int signal)
{
    MUST(setpgid(0, 0));
    pthread_t thread;
    void *idle(void *);
    CHECK_EQ("pthread_create", 0, pthread_create(&thread, NULL, idle, NULL));
    raise(signal);
}

void *idle(void *unused)
{
    for (;;)
        pause();
    return unused;
}

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
    static const int signals[] = {SIGTSTP, SIGTTIN, SIGTTOU};
    pid_t by[3];
    for (int i = 0; i < 3; i++) {
        by[i] = CHECK_FORK(stop_by(signals[i]));
        MUST(waitid(P_PID, by[i], &info, WSTOPPED | WNOWAIT));
        CHECK_EQ("signal", signals[i], info.si_status);
    }
    /* Another one waits. */
    MUST(kill(by[0], SIGTSTP));
    check_freeze_here();
    for (int i = 0; i < 3; i++) {
        MUST(waitid(P_PID, by[i], &info, WSTOPPED | WNOWAIT | WNOHANG));
        CHECK_EQ("signal, left there", signals[i], info.si_status);
        CHECK_EQ("waitpid of one stopped by the terminal", by[i], MUST(waitpid(by[i], &status, WUNTRACED | WNOHANG)));
        CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == signals[i], "child, expected stopped by %d, got %#x",
              signals[i], status);
        CHECK_EQ("waitpid of it again", 0, MUST(waitpid(by[i], &status, WUNTRACED | WNOHANG)));
        MUST(kill(by[i], SIGCONT));
        check_child_ok(by[i]);
    }
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
