/* Children that ended before the snapshot and are reaped after it, also of another user. */
#include "check.h"

static int events;

static void on_child(int sig)
{
    (void)sig;
    events++;
}

static void ended(pid_t pid)
{
    siginfo_t info;
    MUST(waitid(P_PID, pid, &info, WEXITED | WNOWAIT));
}

static void reap_of(uid_t user, pid_t pid, int code, int status)
{
    siginfo_t info;
    MUST(waitid(P_PID, pid, &info, WEXITED | WNOWAIT));
    CHECK_EQ("si_code", code, info.si_code);
    CHECK_EQ("si_status", status, info.si_status);
    CHECK_EQ("si_pid", pid, info.si_pid);
    CHECK_EQ("si_uid", user, info.si_uid);
    int raw;
    CHECK_EQ("waitpid", pid, MUST(waitpid(pid, &raw, WNOHANG)));
    CHECK_EQ("wait status", code == CLD_EXITED ? status << 8 : status, raw);
}

static void reap(pid_t pid, int code, int status)
{
    reap_of(getuid(), pid, code, status);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct sigaction action = {.sa_handler = on_child, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGCHLD, &action, NULL));
    pid_t exited = CHECK_FORK(_exit(42));
    pid_t killed = CHECK_FORK(for (;;) pause());
    pid_t zero = CHECK_FORK(_exit(0));
    /* A zombie in a group of its own, which a living brother shares. */
    pid_t leader = CHECK_FORK({
        setpgid(0, 0);
        _exit(7);
    });
    uid_t user = getuid() ? getuid() : 4321;
    pid_t another = CHECK_FORK({
        MUST(setresuid(user, user, user));
        _exit(8);
    });
    MUST(kill(killed, SIGKILL));
    ended(exited);
    ended(killed);
    ended(zero);
    ended(leader);
    ended(another);
    int before = events;
    check_freeze_here();
    CHECK_EQ("SIGCHLD made by a restore", before, events);
    reap(exited, CLD_EXITED, 42);
    reap(killed, CLD_KILLED, SIGKILL);
    reap(zero, CLD_EXITED, 0);
    reap(leader, CLD_EXITED, 7);
    reap_of(user, another, CLD_EXITED, 8);
    CHECK_EQ("a further child", -1, waitpid(-1, NULL, WNOHANG));
    CHECK_EQ("errno", ECHILD, errno);
    return 0;
}
