/* A TCP server that waits in epoll_wait(2), and clients of it in other processes of the app. */
#include "tcp_pair.h"
#include <sys/epoll.h>

enum { CLIENTS = 3, ROUNDS = 20 };

static struct sockaddr_in6 address;

static void client(int number)
{
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect(fd, (struct sockaddr *)&address, sizeof(struct sockaddr_in)));
    for (int round = 0; round < ROUNDS; round++) {
        char asked[16], got[16] = "";
        snprintf(asked, sizeof asked, "%d of %d", round, number);
        MUST(write(fd, asked, strlen(asked)));
        /* What the first asks before the freeze is answered after it. */
        CHECK_EQ("answer", (ssize_t)strlen(asked), MUST(read(fd, got, sizeof got)));
        CHECK(!strcmp(asked, got), "answer, expected %s, got %s", asked, got);
        if (round == 0 && number > 0)
            check_wait();
    }
    MUST(close(fd));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int listener = MUST(socket(AF_INET, SOCK_STREAM, 0));
    socklen_t len = tcp_loopback(TCP_V4, &address);
    MUST(bind(listener, (struct sockaddr *)&address, len));
    MUST(listen(listener, CLIENTS));
    MUST(getsockname(listener, (struct sockaddr *)&address, &len));
    pid_t children[CLIENTS];
    for (int i = 0; i < CLIENTS; i++)
        children[i] = CHECK_FORK(close(listener); client(i));
    int watch = MUST(epoll_create1(EPOLL_CLOEXEC)), left = CLIENTS, asked = 0, ready = 0, held = -1;
    for (int i = 0; i < CLIENTS; i++) {
        int fd = MUST(accept(listener, NULL, NULL));
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (i ? EPOLLET : 0), .data.fd = fd};
        MUST(epoll_ctl(watch, EPOLL_CTL_ADD, fd, &event));
    }
    while (left) {
        struct epoll_event event;
        int n = epoll_wait(watch, &event, 1, 1);
        CHECK(n >= 0 || errno == EINTR, "epoll_wait, expected success, got %s", strerror(errno));
        /* Each has asked, one is not answered and two wait. */
        if (!ready && asked == CLIENTS)
            ready = 1, check_ready();
        if (held >= 0 && check_go()) {
            MUST(write(held, "0 of 0", 6));
            held = -1;
        }
        if (n <= 0)
            continue;
        char got[16];
        ssize_t bytes = MUST(read(event.data.fd, got, sizeof got));
        if (bytes == 0) {
            MUST(close(event.data.fd));
            left--;
            continue;
        }
        asked++;
        if (asked <= CLIENTS && bytes == 6 && !memcmp(got, "0 of 0", 6))
            held = event.data.fd;
        else
            MUST(write(event.data.fd, got, bytes));
    }
    for (int i = 0; i < CLIENTS; i++)
        check_child_ok(children[i]);
    return 0;
}
