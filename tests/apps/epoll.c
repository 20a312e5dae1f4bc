/* epoll: level, edge, one-shot, exclusive, nested, duplicated and closed descriptors. */
#include "check.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

static int ep;

static int object(void)
{
    return MUST(eventfd(0, EFD_NONBLOCK));
}

static void watch(int epfd, int fd, uint32_t events, uint64_t data)
{
    struct epoll_event e = {.events = events, .data.u64 = data};
    MUST(epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &e));
}

static void poke(int fd)
{
    uint64_t one = 1;
    CHECK_EQ("poke", 8, write(fd, &one, 8));
}

/* Is there an event with this data now? Its bits. */
static uint32_t event(uint64_t data)
{
    struct epoll_event events[16];
    uint32_t found = 0;
    int n = MUST(epoll_wait(ep, events, 16, 0));
    for (int i = 0; i < n; i++)
        if (events[i].data.u64 == data)
            found |= events[i].events;
    return found;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    ep = MUST(epoll_create1(EPOLL_CLOEXEC));
    int level = object(), edge = object(), once = object(), exclusive = object(), removed = object();
    int inner_object = object(), inner = MUST(epoll_create1(0)), original = object();
    watch(ep, level, EPOLLIN, 0x1111111111111111);
    watch(ep, edge, EPOLLIN | EPOLLET, 0x2222222222222222);
    watch(ep, once, EPOLLIN | EPOLLONESHOT, 0x3333333333333333);
    watch(ep, exclusive, EPOLLIN | EPOLLEXCLUSIVE, 0x4444444444444444);
    watch(inner, inner_object, EPOLLIN, 5);
    watch(ep, inner, EPOLLIN, 0x5555555555555555);
    watch(ep, removed, EPOLLIN, 6);
    MUST(epoll_ctl(ep, EPOLL_CTL_DEL, removed, NULL));
    /* The watch is of the description: it outlives the number it was made with. */
    int moved = MUST(dup(original));
    watch(ep, original, EPOLLIN, 0x7777777777777777);
    close(original);
    poke(once);
    CHECK_EQ("one-shot event", EPOLLIN, event(0x3333333333333333));
    poke(level);
    check_freeze_here();
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(ep, F_GETFD));
    CHECK_EQ("level", EPOLLIN, event(0x1111111111111111));
    CHECK_EQ("level, again", EPOLLIN, event(0x1111111111111111));
    CHECK_EQ("a spent one-shot", 0, event(0x3333333333333333));
    struct epoll_event again = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 33};
    MUST(epoll_ctl(ep, EPOLL_CTL_MOD, once, &again));
    CHECK_EQ("a re-armed one-shot", EPOLLIN, event(33));
    CHECK_EQ("it is spent again", 0, event(33));
    poke(edge);
    CHECK_EQ("edge", EPOLLIN, event(0x2222222222222222));
    CHECK_EQ("edge, without a new one", 0, event(0x2222222222222222));
    poke(edge);
    CHECK_EQ("second edge", EPOLLIN, event(0x2222222222222222));
    poke(exclusive);
    CHECK_EQ("exclusive", EPOLLIN, event(0x4444444444444444));
    CHECK_EQ("modifying an exclusive watch", -1, epoll_ctl(ep, EPOLL_CTL_MOD, exclusive, &again));
    CHECK_EQ("errno", EINVAL, errno);
    poke(inner_object);
    CHECK_EQ("nested", EPOLLIN, event(0x5555555555555555));
    poke(removed);
    CHECK_EQ("removed", 0, event(6));
    poke(moved);
    CHECK_EQ("watched through a closed number", EPOLLIN, event(0x7777777777777777));
    CHECK_EQ("adding a watched descriptor", -1, epoll_ctl(ep, EPOLL_CTL_ADD, level, &again));
    CHECK_EQ("errno", EEXIST, errno);
    return 0;
}
