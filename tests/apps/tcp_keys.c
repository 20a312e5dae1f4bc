/* A listening TCP socket with keys that its connections are to be signed by (TCP_MD5SIG). */
#include "tcp_pair.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct sockaddr_in6 address;
    socklen_t len = tcp_loopback(TCP_V4, &address);
    int listener = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    struct tcp_md5sig key = {.tcpm_keylen = 3, .tcpm_key = "key"};
    tcp_loopback(TCP_V4, (struct sockaddr_in6 *)&key.tcpm_addr);
    if (setsockopt(listener, IPPROTO_TCP, TCP_MD5SIG, &key, sizeof key))
        SKIP("TCP_MD5SIG: %s", strerror(errno));
    MUST(bind(listener, (struct sockaddr *)&address, len));
    MUST(listen(listener, 3));
    MUST(getsockname(listener, (struct sockaddr *)&address, &len));
    check_freeze_here();
    /* Who has no key gets no answer. */
    int stranger = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    CHECK_EQ("connect", -1, connect(stranger, (struct sockaddr *)&address, len));
    for (int i = 0; i < 200; i++)
        check_pause();
    CHECK_EQ("accept", -1, accept(listener, NULL, NULL));
    CHECK_EQ("errno", EAGAIN, errno);
    return 0;
}
