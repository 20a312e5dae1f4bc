/* Blocked in ppoll with a mask of its own and a time-out far away. */
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
    struct timespec far = {1000, 0};
    sigset_t during, before, after;
    sigfillset(&during);
    sigemptyset(&before);
    sigaddset(&before, SIGUSR2);
    MUST(sigprocmask(SIG_SETMASK, &before, NULL));
    check_feed(SYS_ppoll, feed);
    CHECK_BLOCKS(1, syscall(SYS_ppoll, &p, 1, &far, &during, 8));
    MUST(sigprocmask(SIG_SETMASK, NULL, &after));
    CHECK(!memcmp(&before, &after, 8), "mask after ppoll, expected the one before");
    return 0;
}
