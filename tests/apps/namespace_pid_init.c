/* A child with a child that is the first of a PID namespace (as a shell of unshare -p). */
#include "check.h"
#include <sched.h>

int main(int argc, char **argv)
{
    int ready[2];
    char byte;
    check_start(argc, argv);
    MUST(pipe(ready));
    pid_t pid = MUST(fork());
    if (pid == 0) {
        if (unshare(CLONE_NEWPID))
            SKIP("PID namespaces");
        pid_t init = MUST(fork());
        if (init == 0) {
            CHECK_EQ("pid", 1, getpid());
            CHECK_EQ("write", 1, MUST(write(ready[1], "x", 1)));
            check_wait();
            CHECK_EQ("pid", 1, getpid());
            _exit(0);
        }
        check_child_ok(init);
        _exit(0);
    }
    MUST(close(ready[1]));
    if (read(ready[0], &byte, 1) != 1)
        SKIP("PID namespaces");
    check_freeze_here();
    check_child_ok(pid);
    return 0;
}
