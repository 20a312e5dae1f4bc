/* Established TCP connections whose two ends are inside the app, IPv4 and IPv6, options and all. */
#include "tcp_pair.h"

struct option {
    const char *name;
    int level, number, value;
};

static const struct option options[] = {
    {"SO_REUSEADDR", SOL_SOCKET, SO_REUSEADDR, 1},
    {"SO_KEEPALIVE", SOL_SOCKET, SO_KEEPALIVE, 1},
    {"SO_RCVBUF", SOL_SOCKET, SO_RCVBUF, 40000},
    {"SO_PRIORITY", SOL_SOCKET, SO_PRIORITY, 3},
    {"SO_RCVLOWAT", SOL_SOCKET, SO_RCVLOWAT, 2},
    {"TCP_NODELAY", IPPROTO_TCP, TCP_NODELAY, 1},
    {"TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE, 77},
    {"TCP_KEEPINTVL", IPPROTO_TCP, TCP_KEEPINTVL, 11},
    {"TCP_KEEPCNT", IPPROTO_TCP, TCP_KEEPCNT, 4},
    {"TCP_USER_TIMEOUT", IPPROTO_TCP, TCP_USER_TIMEOUT, 12345},
    {"TCP_LINGER2", IPPROTO_TCP, TCP_LINGER2, 7},
    {"TCP_NOTSENT_LOWAT", IPPROTO_TCP, TCP_NOTSENT_LOWAT, 100000},
};
enum { OPTIONS = sizeof options / sizeof *options };

static struct tcp_pair pairs[TCP_KINDS];
static struct tcp_seen seen[TCP_KINDS][2];
static int shown[TCP_KINDS][2][OPTIONS];

static int show(int fd, const struct option *o)
{
    int value = 0;
    socklen_t len = sizeof value;
    MUST(getsockopt(fd, o->level, o->number, &value, &len));
    return value;
}

static void congestion(int fd, const char *expected)
{
    char name[16] = "";
    socklen_t len = sizeof name;
    MUST(getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &len));
    CHECK(!strcmp(name, expected), "TCP_CONGESTION, expected %s, got %s", expected, name);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int made[TCP_KINDS];
    for (int kind = 0; kind < TCP_KINDS; kind++) {
        struct tcp_pair *pair = &pairs[kind];
        if (!(made[kind] = tcp_connect_pair(kind, pair)))
            continue;
        /* The other end has what the kernel gives it. */
        for (int i = 0; i < OPTIONS; i++)
            MUST(setsockopt(pair->client, options[i].level, options[i].number, &options[i].value, sizeof(int)));
        MUST(setsockopt(pair->client, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
        MUST(fcntl(pair->client, F_SETFL, O_NONBLOCK));
        CHECK_EQ("write", 5, MUST(write(pair->client, "early", 5)));
        CHECK_EQ("write", 4, MUST(write(pair->server, "late", 4)));
        tcp_settled(pair->client);
        tcp_settled(pair->server);
        for (int end = 0; end < 2; end++) {
            int fd = end ? pair->server : pair->client;
            seen[kind][end] = tcp_look(fd);
            for (int i = 0; i < OPTIONS; i++)
                shown[kind][end][i] = show(fd, &options[i]);
        }
    }
    check_freeze_here();
    for (int kind = 0; kind < TCP_KINDS; kind++) {
        struct tcp_pair *pair = &pairs[kind];
        if (!made[kind])
            continue;
        tcp_same("client", &seen[kind][0], pair->client);
        tcp_same("server", &seen[kind][1], pair->server);
        for (int end = 0; end < 2; end++)
            for (int i = 0; i < OPTIONS; i++)
                CHECK_EQ(options[i].name, shown[kind][end][i], show(end ? pair->server : pair->client, &options[i]));
        congestion(pair->client, "reno");
        CHECK_EQ("nonblocking", O_NONBLOCK, fcntl(pair->client, F_GETFL) & O_NONBLOCK);
        char buf[8];
        CHECK_EQ("read", 5, MUST(read(pair->server, buf, sizeof buf)));
        CHECK(!memcmp(buf, "early", 5), "what was written early, expected the same");
        CHECK_EQ("read", 4, MUST(read(pair->client, buf, sizeof buf)));
        CHECK(!memcmp(buf, "late", 4), "what was written late, expected the same");
        tcp_stream("there", pair->client, pair->server, 2000000, 1);
        tcp_stream("back", pair->server, pair->client, 2000000, 2);
        /* The listener of the same port goes on, too. */
        struct sockaddr_in6 address;
        socklen_t len = sizeof address;
        MUST(getsockname(pair->listener, (struct sockaddr *)&address, &len));
        int another = MUST(socket(kind == TCP_V6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0));
        MUST(connect(another, (struct sockaddr *)&address, len));
        MUST(close(MUST(accept(pair->listener, NULL, NULL))));
        MUST(close(another));
        MUST(close(pair->client));
        CHECK_EQ("the end", 0, MUST(read(pair->server, buf, sizeof buf)));
        MUST(close(pair->server));
    }
    return 0;
}
