/* Children that were stopped and continued, of which their parent has not asked yet (WCONTINUED): it is told once, and
 * gets no second SIGCHLD; SIGCONT has come once, or waits. */
#include "check.h"

static volatile sig_atomic_t told, continued;

static void count(int signal)
{
    *(signal == SIGCHLD ? &told : &continued) += 1;
}

static int news(pid_t pid, int options)
{
    siginfo_t info = {0};
    MUST(waitid(P_PID, pid, &info, WSTOPPED | WCONTINUED | WNOHANG | options));
    return info.si_code;
}

static void stop_and_continue(pid_t pid)
{
    siginfo_t info;
    MUST(kill(pid, SIGSTOP));
    MUST(waitid(P_PID, pid, &info, WSTOPPED | WNOWAIT));
    MUST(kill(pid, SIGCONT));
    MUST(waitid(P_PID, pid, &info, WCONTINUED | WNOWAIT));
}

static void stay(volatile int *steps)
{
    while (!steps[3])
        check_pause();
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    volatile int *ready = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    struct sigaction act = {.sa_handler = count, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGCHLD, &act, NULL));
    pid_t handles = CHECK_FORK({
        MUST(sigaction(SIGCONT, &act, NULL));
        ready[0] = 1;
        stay(ready);
        CHECK_EQ("SIGCONT that was handled", 1, continued);
    });
    pid_t blocks = CHECK_FORK({
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGCONT);
        MUST(sigprocmask(SIG_BLOCK, &set, NULL));
        ready[1] = 1;
        stay(ready);
        struct timespec now = {0};
        CHECK_EQ("SIGCONT that waits", SIGCONT, MUST(sigtimedwait(&set, NULL, &now)));
        CHECK_EQ("another", -1, sigtimedwait(&set, NULL, &now));
    });
    pid_t heard = CHECK_FORK({
        ready[2] = 1;
        stay(ready);
    });
    while (!ready[0] || !ready[1] || !ready[2])
        check_pause();
    stop_and_continue(handles);
    stop_and_continue(blocks);
    stop_and_continue(heard);
    CHECK_EQ("news of the last", CLD_CONTINUED, news(heard, 0));
    for (int i = 0; i < 5; i++)
        check_pause();
    int before = told;
    check_freeze_here();
    CHECK_EQ("SIGCHLD", before, told);
    for (int i = 0; i < 2; i++) {
        pid_t pid = i ? blocks : handles;
        CHECK_EQ("news, left there", CLD_CONTINUED, news(pid, WNOWAIT));
        CHECK_EQ("news", CLD_CONTINUED, news(pid, 0));
        CHECK_EQ("news again", 0, news(pid, 0));
    }
    CHECK_EQ("news of who was asked for", 0, news(heard, 0));
    ready[3] = 1;
    check_child_ok(handles);
    check_child_ok(blocks);
    check_child_ok(heard);
    return 0;
}
