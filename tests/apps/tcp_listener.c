/* Listening TCP sockets, IPv4 and IPv6: address, options, and they accept. */
#include "check.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#ifndef PROTOCOL
#define PROTOCOL IPPROTO_TCP
#define HAS_ALL
#endif

struct option {
    const char *name;
    int level, number, value;
};

static const struct option options[] = {
    {"SO_REUSEADDR", SOL_SOCKET, SO_REUSEADDR, 1},
    {"SO_KEEPALIVE", SOL_SOCKET, SO_KEEPALIVE, 1},
    {"SO_RCVBUF", SOL_SOCKET, SO_RCVBUF, 40000},
    {"SO_SNDBUF", SOL_SOCKET, SO_SNDBUF, 50000},
    {"SO_PRIORITY", SOL_SOCKET, SO_PRIORITY, 3},
    {"TCP_NODELAY", IPPROTO_TCP, TCP_NODELAY, 1},
    {"TCP_DEFER_ACCEPT", IPPROTO_TCP, TCP_DEFER_ACCEPT, 3},
    {"TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE, 77},
    {"TCP_KEEPINTVL", IPPROTO_TCP, TCP_KEEPINTVL, 11},
    {"TCP_KEEPCNT", IPPROTO_TCP, TCP_KEEPCNT, 4},
    {"TCP_MAXSEG", IPPROTO_TCP, TCP_MAXSEG, 1000},
    {"TCP_FASTOPEN", IPPROTO_TCP, TCP_FASTOPEN, 5},
#ifdef HAS_ALL /* Multipath TCP does not. */
    {"TCP_USER_TIMEOUT", IPPROTO_TCP, TCP_USER_TIMEOUT, 12345},
    {"TCP_SYNCNT", IPPROTO_TCP, TCP_SYNCNT, 3},
#endif
};
enum { OPTIONS = sizeof options / sizeof *options };

static int shown[2][OPTIONS];
static struct sockaddr_in6 bound[2];

/* What the kernel shows, which may be another value than was set. */
static int show(int fd, const struct option *o)
{
    int value = 0;
    socklen_t len = sizeof value;
    MUST(getsockopt(fd, o->level, o->number, &value, &len));
    return value;
}

static int make(int v6)
{
    struct sockaddr_in a4 = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 a6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, PROTOCOL), one = 1;
    if (fd < 0 && !v6 && PROTOCOL != IPPROTO_TCP)
        SKIP("Multipath TCP (net.mptcp.enabled)");
    if (fd < 0 && v6)
        return -1;
    MUST(fd);
    if (v6)
        MUST(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one));
    for (int i = 0; i < OPTIONS; i++) {
        int set = setsockopt(fd, options[i].level, options[i].number, &options[i].value, sizeof(int));
        if (set < 0 && errno == ENOPROTOOPT && PROTOCOL != IPPROTO_TCP)
            SKIP("option %d of level %d for this protocol", options[i].number, options[i].level);
        MUST(set);
    }
    MUST(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
    struct linger linger = {1, 9};
    MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
    if (v6 ? bind(fd, (struct sockaddr *)&a6, sizeof a6) : bind(fd, (struct sockaddr *)&a4, sizeof a4)) {
        close(fd);
        return -1; /* no IPv6 on this machine */
    }
    MUST(listen(fd, 13));
    socklen_t len = sizeof bound[v6];
    MUST(getsockname(fd, (struct sockaddr *)&bound[v6], &len));
    for (int i = 0; i < OPTIONS; i++)
        shown[v6][i] = show(fd, &options[i]);
    return fd;
}

static void verify(int v6, int fd)
{
    struct sockaddr_in6 now = {0};
    socklen_t len = sizeof now;
    MUST(getsockname(fd, (struct sockaddr *)&now, &len));
    CHECK(!memcmp(&now, &bound[v6], len), "address, expected the same");
    for (int i = 0; i < OPTIONS; i++)
        CHECK_EQ(options[i].name, shown[v6][i], show(fd, &options[i]));
    char congestion[16] = "";
    len = sizeof congestion;
    MUST(getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, congestion, &len));
    CHECK(!strcmp(congestion, "reno"), "TCP_CONGESTION, expected reno, got %s", congestion);
    struct linger linger;
    len = sizeof linger;
    MUST(getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &len));
    CHECK_EQ("SO_LINGER", 9, linger.l_onoff ? linger.l_linger : -1);
    CHECK_EQ("nonblocking", O_NONBLOCK, fcntl(fd, F_GETFL) & O_NONBLOCK);
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(fd, F_GETFD));
    const struct option protocol = {"", SOL_SOCKET, SO_PROTOCOL, 0};
    CHECK_EQ("SO_PROTOCOL", PROTOCOL, show(fd, &protocol));
    const struct option listening = {"", SOL_SOCKET, SO_ACCEPTCONN, 0};
    CHECK_EQ("SO_ACCEPTCONN", 1, show(fd, &listening));
    struct tcp_info info;
    len = sizeof info;
    MUST(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len));
    CHECK_EQ("backlog", 13, info.tcpi_sacked); /* of a listener: its backlog */
}

static void accepts(int v6, int fd)
{
    int client = MUST(socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM, PROTOCOL)), server;
    MUST(connect(client, (struct sockaddr *)&bound[v6], v6 ? sizeof bound[v6] : sizeof(struct sockaddr_in)));
    CHECK_EQ("write", 5, write(client, "hello", 5)); /* TCP_DEFER_ACCEPT waits for data */
    while ((server = accept(fd, NULL, NULL)) < 0) {
        CHECK_EQ("errno of accept", EAGAIN, errno);
        check_pause();
    }
    char buf[8];
    CHECK_EQ("read", 5, read(server, buf, sizeof buf));
    close(server);
    close(client);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int v4 = make(0), v6 = make(1);
    check_freeze_here();
    verify(0, v4);
    accepts(0, v4);
    if (v6 >= 0) {
        verify(1, v6);
        const struct option only = {"", IPPROTO_IPV6, IPV6_V6ONLY, 0};
        CHECK_EQ("IPV6_V6ONLY", 1, show(v6, &only));
        accepts(1, v6);
    }
    return 0;
}
