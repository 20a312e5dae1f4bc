/* Blocked in select with and without a time-out. */
#include "check.h"
#include <sys/select.h>

static int fds[2];

static void feed(void)
{
    CHECK_EQ("write", 1, write(fds[1], "x", 1));
}

static void *timed(void *arg)
{
    struct timeval t = {3, 0};
    int64_t start = check_now_ms();
    check_watch(start + 3000);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(*(int *)arg, &set);
    CHECK_EQ("select with a time-out", 0, syscall(SYS_select, *(int *)arg + 1, &set, NULL, NULL, &t));
    check_due("select for 3000 ms", 0, check_now_ms());
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int quiet[2];
    MUST(pipe(fds));
    MUST(pipe(quiet));
    pthread_t thread = check_thread(timed, &quiet[0]);
    int64_t start = check_now_ms();
    while (check_now_ms() < start + 1000)
        check_pause();
    fd_set set;
    FD_ZERO(&set);
    FD_SET(fds[0], &set);
    check_feed(SYS_select, feed);
    CHECK_BLOCKS(1, syscall(SYS_select, fds[0] + 1, &set, NULL, NULL, NULL));
    CHECK(FD_ISSET(fds[0], &set), "set, expected the descriptor");
    MUST0(pthread_join(thread, NULL));
    return 0;
}
