/* Options of both ends of a TCP connection inside the app, whatever can be set, with bytes unread and unsent. */
#include "tcp_pair.h"

enum { VALUES = 4, ENDS = 2 };

static const struct option {
    const char *name;
    int level, number;
    int passing; /* not shown afterwards */
} options[] = {
#define OPTION(level, name) {#name, level, name, 0}
    OPTION(SOL_SOCKET, SO_REUSEADDR), OPTION(SOL_SOCKET, SO_REUSEPORT), OPTION(SOL_SOCKET, SO_KEEPALIVE),
    OPTION(SOL_SOCKET, SO_BROADCAST), OPTION(SOL_SOCKET, SO_OOBINLINE), OPTION(SOL_SOCKET, SO_DONTROUTE),
    OPTION(SOL_SOCKET, SO_PRIORITY), OPTION(SOL_SOCKET, SO_MARK), OPTION(SOL_SOCKET, SO_RCVLOWAT),
    OPTION(SOL_SOCKET, SO_TIMESTAMP), OPTION(SOL_SOCKET, SO_TIMESTAMPING), OPTION(SOL_SOCKET, SO_BUSY_POLL),
    OPTION(SOL_SOCKET, SO_NO_CHECK), OPTION(SOL_SOCKET, SO_PASSSEC), OPTION(SOL_SOCKET, SO_RXQ_OVFL),
    OPTION(SOL_SOCKET, SO_SELECT_ERR_QUEUE), {"SO_PREFER_BUSY_POLL", SOL_SOCKET, 69, 0},
    {"SO_RCVMARK", SOL_SOCKET, 75, 0}, {"SO_RCVPRIORITY", SOL_SOCKET, 82, 0}, OPTION(IPPROTO_IP, IP_TOS),
    OPTION(IPPROTO_IP, IP_TTL), OPTION(IPPROTO_IP, IP_RECVERR), OPTION(IPPROTO_IP, IP_PKTINFO),
    OPTION(IPPROTO_IP, IP_RECVTTL), OPTION(IPPROTO_IP, IP_RECVTOS), OPTION(IPPROTO_IP, IP_MTU_DISCOVER),
    OPTION(IPPROTO_IP, IP_FREEBIND), OPTION(IPPROTO_IP, IP_TRANSPARENT), OPTION(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT),
    OPTION(IPPROTO_IP, IP_RECVOPTS), OPTION(IPPROTO_IP, IP_RETOPTS), OPTION(IPPROTO_IP, IP_PASSSEC),
    OPTION(IPPROTO_IP, IP_RECVORIGDSTADDR), OPTION(IPPROTO_IP, IP_MINTTL), OPTION(IPPROTO_IP, IP_CHECKSUM),
    OPTION(IPPROTO_IP, IP_MULTICAST_ALL), {"IP_RECVERR_RFC4884", IPPROTO_IP, 26, 0},
    OPTION(IPPROTO_IPV6, IPV6_RECVERR), OPTION(IPPROTO_IPV6, IPV6_RECVPKTINFO), OPTION(IPPROTO_IPV6, IPV6_UNICAST_HOPS),
    OPTION(IPPROTO_IPV6, IPV6_TCLASS), OPTION(IPPROTO_IPV6, IPV6_MULTICAST_LOOP),
    OPTION(IPPROTO_IPV6, IPV6_MTU_DISCOVER), OPTION(IPPROTO_IPV6, IPV6_RECVHOPLIMIT),
    OPTION(IPPROTO_IPV6, IPV6_RECVHOPOPTS), OPTION(IPPROTO_IPV6, IPV6_RECVRTHDR), OPTION(IPPROTO_IPV6, IPV6_RECVDSTOPTS),
    OPTION(IPPROTO_IPV6, IPV6_RECVPATHMTU), OPTION(IPPROTO_IPV6, IPV6_DONTFRAG), OPTION(IPPROTO_IPV6, IPV6_RECVTCLASS),
    {"IPV6_FLOWINFO_SEND", IPPROTO_IPV6, 33, 0}, {"IPV6_AUTOFLOWLABEL", IPPROTO_IPV6, 70, 0},
    {"IPV6_MINHOPCOUNT", IPPROTO_IPV6, 73, 0}, {"IPV6_RECVORIGDSTADDR", IPPROTO_IPV6, 74, 0},
    {"IPV6_TRANSPARENT", IPPROTO_IPV6, 75, 0}, {"IPV6_FREEBIND", IPPROTO_IPV6, 78, 0},
    OPTION(IPPROTO_TCP, TCP_NODELAY), OPTION(IPPROTO_TCP, TCP_CORK), OPTION(IPPROTO_TCP, TCP_LINGER2),
    OPTION(IPPROTO_TCP, TCP_NOTSENT_LOWAT), {"TCP_INQ", IPPROTO_TCP, 36, 0}, OPTION(IPPROTO_TCP, TCP_KEEPIDLE),
    OPTION(IPPROTO_TCP, TCP_KEEPINTVL), OPTION(IPPROTO_TCP, TCP_KEEPCNT), OPTION(IPPROTO_TCP, TCP_SYNCNT),
    OPTION(IPPROTO_TCP, TCP_DEFER_ACCEPT),
    OPTION(IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS), OPTION(IPPROTO_TCP, TCP_SAVE_SYN),
    {"TCP_FASTOPEN_CONNECT", IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1},
    {"TCP_FASTOPEN_NO_COOKIE", IPPROTO_TCP, 34, 0},
};
enum { OPTIONS = sizeof options / sizeof *options };

static int had[TCP_KINDS][ENDS][OPTIONS];
static struct tcp_pair pairs[TCP_KINDS];
static size_t sent[TCP_KINDS];

static int get(int fd, const struct option *o)
{
    int value = 0;
    socklen_t len = sizeof value;
    return getsockopt(fd, o->level, o->number, &value, &len) ? -1 : value;
}

/* To another value than it has, if any does. */
static int differs(int fd, const struct option *o)
{
    static const int values[VALUES] = {1, 0, 2, 64};
    /* Not within seconds: what was set before may keep packets from coming, and the connection goes then. */
    int keeps = o->level == IPPROTO_TCP && o->number >= TCP_KEEPIDLE && o->number <= TCP_KEEPCNT;
    int was = get(fd, o);
    for (int i = keeps ? VALUES - 1 : 0; was != -1 && i < VALUES; i++) {
        setsockopt(fd, o->level, o->number, &values[i], sizeof values[i]);
        if (get(fd, o) != was)
            return 1;
    }
    return 0;
}

static int end(int kind, int which)
{
    return which ? pairs[kind].server : pairs[kind].client;
}

/* Until nothing more is taken for a while: some of it has no place at the other end. */
static void fill(int kind)
{
    unsigned char bytes[9973];
    for (int waited = 0; waited < 30;) {
        for (size_t i = 0; i < sizeof bytes; i++)
            bytes[i] = check_byte(kind, sent[kind] + i);
        ssize_t n = send(pairs[kind].client, bytes, sizeof bytes, MSG_DONTWAIT);
        CHECK(n > 0 || errno == EAGAIN, "send, expected to fill up, got %s", strerror(errno));
        sent[kind] += n > 0 ? n : 0;
        waited = n > 0 ? 0 : waited + 1;
        if (n < 0)
            check_pause();
    }
}

static void drain(int kind)
{
    unsigned char bytes[1 << 16];
    for (size_t came = 0; came < sent[kind];) {
        ssize_t n = recv(pairs[kind].server, bytes, sizeof bytes, 0);
        CHECK(n > 0, "all that was sent, expected %zu, got %zu", sent[kind], came);
        for (ssize_t i = 0; i < n; i++)
            CHECK_EQ("byte", check_byte(kind, came + i), bytes[i]);
        came += n;
    }
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int made[TCP_KINDS], set = 0;
    for (int kind = 0; kind < TCP_KINDS; kind++) {
        if (!(made[kind] = tcp_connect_pair(kind, &pairs[kind])))
            continue;
        fill(kind);
        for (int which = 0; which < ENDS; which++)
            for (int o = 0; o < OPTIONS; o++)
                set += differs(end(kind, which), &options[o]);
        /* Longer than nobody reads here. */
        int patience = 1000000;
        MUST(setsockopt(pairs[kind].client, IPPROTO_TCP, TCP_USER_TIMEOUT, &patience, sizeof patience));
        /* Record route: room for four of eight bytes. */
        unsigned char route[12] = {7, 11, 4};
        if (kind == TCP_V4)
            MUST(setsockopt(pairs[kind].client, IPPROTO_IP, IP_OPTIONS, route, sizeof route));
        for (int which = 0; which < ENDS; which++)
            for (int o = 0; o < OPTIONS; o++)
                had[kind][which][o] = get(end(kind, which), &options[o]);
    }
    CHECK(set > 150, "options that can be set, expected more than 150, got %d", set);
    check_freeze_here();
    for (int kind = 0; kind < TCP_KINDS; kind++) {
        for (int which = 0; made[kind] && which < ENDS; which++)
            for (int o = 0; o < OPTIONS; o++)
                if (!options[o].passing)
                    CHECK_EQ(options[o].name, had[kind][which][o], get(end(kind, which), &options[o]));
        if (!made[kind])
            continue;
        if (kind == TCP_V4) {
            unsigned char route[40];
            socklen_t len = sizeof route;
            MUST(getsockopt(pairs[kind].client, IPPROTO_IP, IP_OPTIONS, route, &len));
            CHECK_EQ("IP_OPTIONS", 12, len);
        }
        int none = 0, plenty = 1 << 20;
        for (int which = 0; which < ENDS; which++) {
            MUST(setsockopt(end(kind, which), IPPROTO_TCP, TCP_CORK, &none, sizeof none));
            MUST(setsockopt(end(kind, which), SOL_SOCKET, SO_RCVLOWAT, &none, sizeof none));
            MUST(setsockopt(end(kind, which), IPPROTO_TCP, TCP_NOTSENT_LOWAT, &plenty, sizeof plenty));
        }
        drain(kind);
        tcp_stream("on", pairs[kind].client, pairs[kind].server, 300000, 77);
        tcp_stream("back", pairs[kind].server, pairs[kind].client, 300000, 78);
    }
    return 0;
}
