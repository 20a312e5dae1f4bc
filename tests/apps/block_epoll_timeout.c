/* Blocked in epoll_wait with a time-out that runs out after restore. */
#include "check.h"
#include <sys/epoll.h>

static int64_t start;

static void *waiter(void *arg)
{
    (void)arg;
    while (check_now_ms() < start + (check_sits_in(getpid(), SYS_epoll_wait) ? 1000 : 3000))
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
    check_watch(start + 3000);
    pthread_t thread = check_thread(waiter, NULL);
    CHECK_EQ("epoll_wait", 0, syscall(SYS_epoll_wait, ep, &e, 1, 3000));
    check_due("epoll_wait for 3000 ms", 0, check_now_ms());
    MUST0(pthread_join(thread, NULL));
    return 0;
}
