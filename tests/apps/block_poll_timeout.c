/* Blocked in poll with a time-out that runs out after restore. */
#include "check.h"
#include <poll.h>

static int64_t start;

static void *waiter(void *arg)
{
    (void)arg;
    while (check_now_ms() < start + (check_sits_in(getpid(), SYS_poll) ? 1000 : 3000))
        check_pause();
    check_freeze_here();
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int fds[2];
    MUST(pipe(fds));
    struct pollfd p = {.fd = fds[0], .events = POLLIN};
    start = check_now_ms();
    check_watch(start + 3000);
    pthread_t thread = check_thread(waiter, NULL);
    CHECK_EQ("poll", 0, syscall(SYS_poll, &p, 1, 3000));
    check_due("poll for 3000 ms", 0, check_now_ms());
    MUST0(pthread_join(thread, NULL));
    return 0;
}
