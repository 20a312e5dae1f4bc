/* TCP connections inside a program: made, and shown as the kernel shows them. */
#ifndef TCP_PAIR_H
#define TCP_PAIR_H

#include "check.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* Of what a loopback device has. */
enum tcp_kind { TCP_V4, TCP_V6, TCP_MAPPED, TCP_KINDS };

struct tcp_pair {
    int listener, server, client;
};

CHECK_UNUSED static socklen_t tcp_loopback(enum tcp_kind kind, struct sockaddr_in6 *to)
{
    struct sockaddr_in a4 = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 a6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    memset(to, 0, sizeof *to);
    memcpy(to, kind == TCP_V6 ? (void *)&a6 : (void *)&a4, kind == TCP_V6 ? sizeof a6 : sizeof a4);
    return kind == TCP_V6 ? sizeof a6 : sizeof a4;
}

/* The client of a mapped one is a socket of version 6. False where the machine has no IPv6. */
CHECK_UNUSED static int tcp_connect_pair(enum tcp_kind kind, struct tcp_pair *to)
{
    struct sockaddr_in6 address, mapped = {.sin6_family = AF_INET6};
    socklen_t len = tcp_loopback(kind, &address);
    to->listener = socket(kind == TCP_V6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
    if (to->listener < 0 || bind(to->listener, (struct sockaddr *)&address, len)) {
        CHECK(kind == TCP_V6, "a socket of version 4, expected one, got %s", strerror(errno));
        return 0;
    }
    MUST(listen(to->listener, 3));
    MUST(getsockname(to->listener, (struct sockaddr *)&address, &len));
    to->client = socket(kind == TCP_V4 ? AF_INET : AF_INET6, SOCK_STREAM, 0);
    if (to->client < 0)
        return 0;
    if (kind == TCP_MAPPED) {
        struct sockaddr_in *plain = (struct sockaddr_in *)&address;
        mapped.sin6_port = plain->sin_port;
        mapped.sin6_addr.s6_addr[10] = mapped.sin6_addr.s6_addr[11] = 0xff;
        memcpy(&mapped.sin6_addr.s6_addr[12], &plain->sin_addr, 4);
        address = mapped, len = sizeof mapped;
    }
    MUST(connect(to->client, (struct sockaddr *)&address, len));
    to->server = MUST(accept(to->listener, NULL, NULL));
    return 1;
}

/* What has to be the same afterwards. */
struct tcp_seen {
    struct sockaddr_in6 own, peer;
    int state, options, scales, mss, received, unsent;
};

CHECK_UNUSED static struct tcp_seen tcp_look(int fd)
{
    struct tcp_seen seen;
    struct tcp_info info;
    memset(&seen, 0, sizeof seen);
    socklen_t len = sizeof seen.own;
    MUST(getsockname(fd, (struct sockaddr *)&seen.own, &len));
    len = sizeof seen.peer;
    MUST(getpeername(fd, (struct sockaddr *)&seen.peer, &len));
    len = sizeof info;
    MUST(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len));
    seen.state = info.tcpi_state;
    seen.options = info.tcpi_options;
    seen.scales = info.tcpi_snd_wscale | info.tcpi_rcv_wscale << 4;
    seen.mss = info.tcpi_snd_mss;
    MUST(ioctl(fd, FIONREAD, &seen.received));
    MUST(ioctl(fd, TIOCOUTQ, &seen.unsent));
    return seen;
}

CHECK_UNUSED static void tcp_same(const char *what, const struct tcp_seen *before, int fd)
{
    struct tcp_seen now = tcp_look(fd);
    CHECK(!memcmp(&now.own, &before->own, sizeof now.own), "%s: own address, expected the same", what);
    CHECK(!memcmp(&now.peer, &before->peer, sizeof now.peer), "%s: peer, expected the same", what);
    CHECK_EQ(what, before->state, now.state);
    CHECK_EQ(what, before->options, now.options);
    CHECK_EQ(what, before->scales, now.scales);
    CHECK_EQ(what, before->mss, now.mss);
    CHECK_EQ(what, before->received, now.received);
    CHECK_EQ(what, before->unsent, now.unsent);
}

/* All that was sent is there and acknowledged, so that nothing changes any more. */
CHECK_UNUSED static void tcp_settled(int fd)
{
    for (int unsent = 1; unsent; check_pause())
        MUST(ioctl(fd, TIOCOUTQ, &unsent));
}

/* Bytes in one direction, more than are on their way at a time. */
CHECK_UNUSED static void tcp_stream(const char *what, int from, int to, size_t bytes, uint64_t seed)
{
    static unsigned char out[1 << 16], in[1 << 16];
    size_t sent = 0, came = 0;
    int64_t begin = check_now_ms();
    while (came < bytes) {
        size_t part = bytes - sent < sizeof out ? bytes - sent : sizeof out;
        for (size_t i = 0; i < part; i++)
            out[i] = check_byte(seed, sent + i);
        ssize_t n = part ? send(from, out, part, MSG_DONTWAIT) : 0;
        CHECK(n >= 0 || errno == EAGAIN, "%s: send, expected success, got %s", what, strerror(errno));
        sent += n > 0 ? n : 0;
        n = recv(to, in, sizeof in, MSG_DONTWAIT);
        CHECK(n > 0 || (n < 0 && errno == EAGAIN), "%s: receive, expected data, got %zd", what, n);
        for (ssize_t i = 0; i < n; i++)
            CHECK_EQ(what, check_byte(seed, came + i), in[i]);
        came += n > 0 ? n : 0;
        CHECK(check_now_ms() - begin < 20000, "%s, expected to go through, got %zu bytes", what, came);
    }
}

#endif
