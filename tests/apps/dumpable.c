/* The dumpable flag: a child keeps the other value. */
#include "check.h"
#include <sys/prctl.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    MUST(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
    pid_t pid = CHECK_FORK({
        check_wait();
        CHECK_EQ("dumpable of the child", 1, prctl(PR_GET_DUMPABLE));
    });
    MUST(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
    check_freeze_here();
    CHECK_EQ("dumpable", 0, prctl(PR_GET_DUMPABLE));
    check_child_ok(pid);
    return 0;
}
