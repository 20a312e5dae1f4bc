/* Blocked in poll without a time-out. */
#include "check.h"
#include <poll.h>

static int fds[2];

static void feed(void)
{
    CHECK_EQ("write", 1, write(fds[1], "x", 1));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    MUST(pipe(fds));
    struct pollfd p = {.fd = fds[0], .events = POLLIN};
    check_feed(SYS_poll, feed);
    CHECK_BLOCKS(1, syscall(SYS_poll, &p, 1, -1));
    CHECK_EQ("revents", POLLIN, p.revents);
    return 0;
}
