/* Blocked in recv; a second thread in recvmsg with a receive time-out set. */
#include "check.h"
#include <sys/socket.h>

static int plain[2], timed[2];

static void feed(void)
{
    CHECK_EQ("send", 3, send(plain[1], "abc", 3, 0));
    CHECK_EQ("send", 2, send(timed[1], "de", 2, 0));
}

static void *second(void *arg)
{
    char buf[8];
    struct iovec v = {buf, sizeof buf};
    struct msghdr message = {.msg_iov = &v, .msg_iovlen = 1};
    *(pid_t *)arg = check_tid();
    ssize_t n = recvmsg(timed[0], &message, 0);
    CHECK(n == 2, "recvmsg with SO_RCVTIMEO, expected 2, got %zd (%s)", n, strerror(errno));
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char buf[8];
    struct timeval far = {1000, 0};
    pid_t tid = 0;
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, plain));
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, timed));
    MUST(setsockopt(timed[0], SOL_SOCKET, SO_RCVTIMEO, &far, sizeof far));
    pthread_t thread = check_thread(second, &tid);
    while (!__atomic_load_n(&tid, __ATOMIC_SEQ_CST) || !check_sits_in(tid, SYS_recvmsg))
        check_pause();
    check_feed(SYS_recvfrom, feed);
    CHECK_BLOCKS(3, recv(plain[0], buf, sizeof buf, 0));
    MUST0(pthread_join(thread, NULL));
    return 0;
}
