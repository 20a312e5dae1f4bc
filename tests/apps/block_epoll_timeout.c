/* Blocked in epoll_wait with a time-out that runs out after restore. */
#include "check.h"
#include <sys/epoll.h>

static int64_t start;

static void *waiter(void *arg)
{
    (void)arg;
    while (!check_sits_in(getpid(), SYS_epoll_wait) || check_now_ms() < start + 1000)
        check_pause();
    check_freeze_here();
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct epoll_event e;
    int ep = MUST(epoll_create1(0));
    start = check_now_ms();
    pthread_t thread = check_thread(waiter, NULL);
    CHECK_EQ("epoll_wait", 0, syscall(SYS_epoll_wait, ep, &e, 1, 3000));
    int64_t took = check_now_ms() - start;
    CHECK(took >= 2990 && took < 3700, "epoll_wait for 3000 ms, got %lld", (long long)took);
    MUST0(pthread_join(thread, NULL));
    return 0;
}
