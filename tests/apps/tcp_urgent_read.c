/* A TCP connection inside the app whose urgent byte was received before what is in front of it, and more behind it. */
#include "tcp_pair.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct tcp_pair pair;
    MUST(tcp_connect_pair(TCP_V4, &pair) - 1);
    CHECK_EQ("send", 3, MUST(send(pair.client, "ab!", 3, MSG_OOB)));
    CHECK_EQ("write", 4, MUST(write(pair.client, "more", 4)));
    tcp_settled(pair.client);
    struct pollfd urgent = {.fd = pair.server, .events = POLLPRI};
    CHECK_EQ("poll", 1, MUST(poll(&urgent, 1, 5000)));
    char buf[8];
    CHECK_EQ("receive what is urgent", 1, MUST(recv(pair.server, buf, sizeof buf, MSG_OOB)));
    CHECK_EQ("poll", 0, MUST(poll(&urgent, 1, 0)));
    int waiting;
    MUST(ioctl(pair.server, FIONREAD, &waiting));
    CHECK_EQ("up to the mark", 2, waiting);
    check_freeze_here();
    CHECK_EQ("read", 2, MUST(read(pair.server, buf, sizeof buf)));
    CHECK(!memcmp(buf, "ab", 2), "what is before the mark, expected the same");
    CHECK_EQ("read", 4, MUST(read(pair.server, buf, sizeof buf)));
    CHECK(!memcmp(buf, "more", 4), "what is behind the mark, expected the same");
    return 0;
}
