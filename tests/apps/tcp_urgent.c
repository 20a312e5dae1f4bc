/* Urgent data of a TCP connection inside the app, which waits to be received. */
#include "tcp_pair.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct tcp_pair pair;
    MUST(tcp_connect_pair(TCP_V4, &pair) - 1);
    CHECK_EQ("send", 3, MUST(send(pair.client, "ab!", 3, MSG_OOB)));
    struct pollfd urgent = {.fd = pair.server, .events = POLLPRI};
    CHECK_EQ("poll", 1, MUST(poll(&urgent, 1, 5000)));
    check_freeze_here();
    char buf[8];
    CHECK_EQ("poll", 1, MUST(poll(&urgent, 1, 0)));
    CHECK_EQ("receive what is urgent", 1, MUST(recv(pair.server, buf, sizeof buf, MSG_OOB)));
    CHECK_EQ("byte", '!', buf[0]);
    CHECK_EQ("read", 2, MUST(read(pair.server, buf, sizeof buf)));
    return 0;
}
