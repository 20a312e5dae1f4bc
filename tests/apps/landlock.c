/* What a program has forbidden itself (Landlock): nobody can take it back. */
#include "check.h"
#include <sys/prctl.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    /* May not make directories, anywhere. */
    uint64_t handled = 1 << 7;
    int rules = syscall(444, &handled, sizeof handled, 0);
    if (rules < 0)
        SKIP("Landlock");
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    MUST(syscall(446, rules, 0));
    MUST(close(rules));
    check_freeze_here();
    CHECK_EQ("mkdir", -1, mkdir(check_path("forbidden"), 0755));
    CHECK_EQ("errno", EACCES, errno);
    return 0;
}
