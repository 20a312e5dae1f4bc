/* Blocked in epoll_wait, which the kernel never restarts by itself. */
#include "check.h"
#include <sys/epoll.h>

static int fds[2];

static void feed(void)
{
    CHECK_EQ("write", 1, write(fds[1], "x", 1));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    MUST(pipe(fds));
    int ep = MUST(epoll_create1(0));
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = 99};
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, fds[0], &e));
    e.data.u64 = 0;
    check_feed(SYS_epoll_wait, feed);
    CHECK_BLOCKS(1, syscall(SYS_epoll_wait, ep, &e, 1, -1));
    CHECK_EQ("data", 99, e.data.u64);
    return 0;
}
