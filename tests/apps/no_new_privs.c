/* no_new_privs cannot be lost. */
#include "check.h"
#include <sys/prctl.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    check_freeze_here();
    CHECK_EQ("no_new_privs", 1, prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    return 0;
}
