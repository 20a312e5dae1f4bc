/* One epoll for parent and child, over objects that both have. */
#include "check.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int ep = MUST(epoll_create1(0)), a = MUST(eventfd(0, 0)), b = MUST(eventfd(0, 0));
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = 1}, got;
    uint64_t one = 1;
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, a, &e));
    pid_t pid = CHECK_FORK({
        CHECK_EQ("event in the child", 1, MUST(epoll_wait(ep, &got, 1, 20000)));
        CHECK_EQ("data", 1, got.data.u32);
        CHECK_EQ("read", 8, read(a, &one, 8));
        e.data.u32 = 2;
        MUST(epoll_ctl(ep, EPOLL_CTL_ADD, b, &e));
        one = 1;
        CHECK_EQ("write", 8, write(b, &one, 8));
    });
    check_freeze_here();
    CHECK_EQ("write", 8, write(a, &one, 8));
    check_child_ok(pid);
    CHECK_EQ("event added by the child", 1, MUST(epoll_wait(ep, &got, 1, 0)));
    CHECK_EQ("data", 2, got.data.u32);
    return 0;
}
