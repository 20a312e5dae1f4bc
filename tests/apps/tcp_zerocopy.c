/* A TCP connection inside the app that may lend its memory to the kernel: what it is told of that is counted. */
#include "tcp_pair.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct tcp_pair pair;
    MUST(tcp_connect_pair(TCP_V4, &pair) - 1);
    int on = 1;
    MUST(setsockopt(pair.client, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on));
    check_freeze_here();
    tcp_stream("on", pair.client, pair.server, 1000, 1);
    return 0;
}
