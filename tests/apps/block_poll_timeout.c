/* Blocked in poll with a time-out that runs out after restore. */
#include "check.h"
#include <poll.h>

static int64_t start;

static void *waiter(void *arg)
{
    (void)arg;
    while (!check_sits_in(getpid(), SYS_poll) || check_now_ms() < start + 1000)
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
    pthread_t thread = check_thread(waiter, NULL);
    CHECK_EQ("poll", 0, syscall(SYS_poll, &p, 1, 3000));
    int64_t took = check_now_ms() - start;
    CHECK(took >= 2990 && took < 3700, "poll for 3000 ms, got %lld", (long long)took);
    MUST0(pthread_join(thread, NULL));
    return 0;
}
