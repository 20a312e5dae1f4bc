/* Blocked in pselect, whose mask pointer is passed in a structure. */
#include "check.h"
#include <sys/select.h>

static int fds[2];

static void feed(void)
{
    CHECK_EQ("write", 1, write(fds[1], "x", 1));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    MUST(pipe(fds));
    sigset_t mask, after;
    sigfillset(&mask);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(fds[0], &set);
    check_feed(SYS_pselect6, feed);
    CHECK_BLOCKS(1, pselect(fds[0] + 1, &set, NULL, NULL, NULL, &mask));
    MUST(sigprocmask(SIG_SETMASK, NULL, &after));
    CHECK(!sigismember(&after, SIGUSR1), "mask after pselect, expected the one before");
    return 0;
}
