/* A subreaper still adopts orphans after restore, and has those of before. */
#include "check.h"
#include <sys/prctl.h>

/* A child whose own child outlives it and ends with this code. */
static pid_t leave_orphan(int code, int wait_for_go)
{
    int pipe_fd[2];
    pid_t orphan;
    MUST(pipe(pipe_fd));
    pid_t child = CHECK_FORK({
        (void)CHECK_FORK({
            pid_t own = getpid();
            close(pipe_fd[0]);
            MUST(write(pipe_fd[1], &own, sizeof own));
            close(pipe_fd[1]);
            if (wait_for_go)
                check_wait();
            _exit(code);
        });
    });
    close(pipe_fd[1]);
    CHECK_EQ("read", sizeof orphan, MUST(read(pipe_fd[0], &orphan, sizeof orphan)));
    char more;
    CHECK_EQ("end, as all others have closed it", 0, MUST(read(pipe_fd[0], &more, 1)));
    close(pipe_fd[0]);
    check_child_ok(child);
    return orphan;
}

static void adopted(pid_t orphan, int code)
{
    int status;
    CHECK_EQ("wait for an orphan", orphan, MUST(waitpid(orphan, &status, 0)));
    CHECK(WIFEXITED(status), "orphan, expected an exit, got %#x", status);
    CHECK_EQ("exit code of an orphan", code, WEXITSTATUS(status));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int is = 0;
    MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
    pid_t early = leave_orphan(31, 1);
    check_freeze_here();
    MUST(prctl(PR_GET_CHILD_SUBREAPER, &is));
    CHECK_EQ("subreaper", 1, is);
    adopted(early, 31);
    adopted(leave_orphan(32, 0), 32);
    return 0;
}
