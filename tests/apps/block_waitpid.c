/* Blocked in waitpid. */
#include "check.h"

static pid_t child;

static void feed(void)
{
    MUST(kill(child, SIGTERM));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int status = 0;
    child = CHECK_FORK(for (;;) pause());
    check_feed(SYS_wait4, feed);
    CHECK_BLOCKS(child, syscall(SYS_wait4, child, &status, 0, NULL));
    CHECK_EQ("status", SIGTERM, status);
    return 0;
}
