/* A TCP connection inside the app whose segments are signed (TCP_MD5SIG): its keys cannot be read. */
#include "tcp_pair.h"

static void sign(int fd)
{
    struct tcp_md5sig key = {.tcpm_keylen = 3, .tcpm_key = "key"};
    tcp_loopback(TCP_V4, (struct sockaddr_in6 *)&key.tcpm_addr);
    if (setsockopt(fd, IPPROTO_TCP, TCP_MD5SIG, &key, sizeof key))
        SKIP("TCP_MD5SIG: %s", strerror(errno));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct tcp_pair pair;
    struct sockaddr_in6 address;
    socklen_t len = tcp_loopback(TCP_V4, &address);
    pair.listener = MUST(socket(AF_INET, SOCK_STREAM, 0));
    pair.client = MUST(socket(AF_INET, SOCK_STREAM, 0));
    sign(pair.listener);
    sign(pair.client);
    MUST(bind(pair.listener, (struct sockaddr *)&address, len));
    MUST(listen(pair.listener, 3));
    MUST(getsockname(pair.listener, (struct sockaddr *)&address, &len));
    MUST(connect(pair.client, (struct sockaddr *)&address, len));
    pair.server = MUST(accept(pair.listener, NULL, NULL));
    check_freeze_here();
    tcp_stream("on", pair.client, pair.server, 1000, 1);
    return 0;
}
