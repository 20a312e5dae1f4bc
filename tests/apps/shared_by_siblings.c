/* Processes that share one descriptor table while who has made them has one of its own */
#include "check.h"
#include <sched.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    pid_t pids[2];
    for (int i = 0; i < 2; i++) {
        pids[i] = MUST(syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, NULL));
        if (pids[i] == 0) {
            check_wait();
            _exit(0);
        }
    }
    MUST(unshare(CLONE_FILES));
    check_freeze_here();
    for (int i = 0; i < 2; i++)
        check_child_ok(pids[i]);
    return 0;
}
