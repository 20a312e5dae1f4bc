/* A child that has ended and left a core file (WCOREDUMP) */
#include "check.h"
#include <sys/resource.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    pid_t pid = CHECK_FORK({
        char *dir = strdup(check_path("."));
        MUST(chdir(dir));
        struct rlimit most;
        MUST(getrlimit(RLIMIT_CORE, &most));
        most.rlim_cur = most.rlim_max;
        MUST(setrlimit(RLIMIT_CORE, &most));
        abort();
    });
    siginfo_t info;
    MUST(waitid(P_PID, pid, &info, WEXITED | WNOWAIT));
    if (info.si_code != CLD_DUMPED)
        SKIP("core files (ulimit -c)");
    check_freeze_here();
    int status;
    CHECK_EQ("waitpid", pid, MUST(waitpid(pid, &status, 0)));
    CHECK(WIFSIGNALED(status) && WCOREDUMP(status), "child, expected to have left a core file, got %#x", status);
    return 0;
}
