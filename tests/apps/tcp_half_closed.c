/* TCP connections inside the app of which one side, or both, was ended. */
#include "tcp_pair.h"

enum { FIN_WAIT2 = 5, CLOSE_WAIT = 8 };

static short events(int fd)
{
    struct pollfd polled = {.fd = fd, .events = POLLIN | POLLRDHUP};
    MUST(poll(&polled, 1, 0));
    return polled.revents;
}

static void is_read(int fd, const char *expected)
{
    char buf[16] = "";
    CHECK_EQ("read", (ssize_t)strlen(expected), MUST(read(fd, buf, sizeof buf - 1)));
    CHECK(!strcmp(buf, expected), "read, expected %s, got %s", expected, buf);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    /* Ended with something unread before it, after all was read, and not to be received any more. */
    struct tcp_pair unread, read_up, deaf;
    struct tcp_seen seen[4];
    for (int i = 0; i < 3; i++)
        MUST(tcp_connect_pair(TCP_V4, (struct tcp_pair *[]){&unread, &read_up, &deaf}[i]) - 1);
    MUST(write(unread.client, "question", 8));
    MUST(shutdown(unread.client, SHUT_WR));
    MUST(write(read_up.server, "question", 8));
    MUST(shutdown(read_up.server, SHUT_WR));
    is_read(read_up.client, "question");
    char buf[8];
    CHECK_EQ("the end", 0, MUST(read(read_up.client, buf, sizeof buf)));
    MUST(write(read_up.client, "answer", 6));
    MUST(shutdown(deaf.server, SHUT_RD));
    const int ends[4] = {unread.client, unread.server, read_up.server, read_up.client};
    for (int i = 0; i < 4; i++) {
        tcp_settled(ends[i]);
        seen[i] = tcp_look(ends[i]);
        CHECK_EQ("state", i % 2 ? CLOSE_WAIT : FIN_WAIT2, seen[i].state);
    }
    check_freeze_here();
    for (int i = 0; i < 4; i++) {
        /* What has come may be acknowledged late. */
        tcp_settled(ends[i]);
        tcp_same("an end", &seen[i], ends[i]);
    }
    CHECK_EQ("events", POLLIN | POLLRDHUP, events(unread.server));
    CHECK_EQ("events", 0, events(unread.client));
    is_read(unread.server, "question");
    CHECK_EQ("the end", 0, MUST(read(unread.server, buf, sizeof buf)));
    MUST(write(unread.server, "answer", 6));
    is_read(unread.client, "answer");
    MUST(close(unread.server));
    CHECK_EQ("the end", 0, MUST(read(unread.client, buf, sizeof buf)));
    signal(SIGPIPE, SIG_IGN);
    CHECK_EQ("write after the end", -1, write(read_up.server, "x", 1));
    CHECK_EQ("errno", EPIPE, errno);
    is_read(read_up.server, "answer");
    MUST(shutdown(read_up.client, SHUT_WR));
    CHECK_EQ("the end", 0, MUST(read(read_up.server, buf, sizeof buf)));
    CHECK_EQ("events", POLLIN | POLLRDHUP, events(deaf.server));
    CHECK_EQ("events", 0, events(deaf.client));
    MUST(write(deaf.server, "heard", 5));
    is_read(deaf.client, "heard");
    return 0;
}
