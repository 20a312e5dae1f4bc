/* TCP connections inside the app whose queues are full: what does not fit into the one waits in the other, an end behind it. */
#include "tcp_pair.h"

enum { FIN_WAIT1 = 4 };

static struct tcp_pair pairs[3];
static size_t sent[3][2];

static int end(int pair, int which)
{
    return which ? pairs[pair].server : pairs[pair].client;
}

static uint64_t seed(int pair, int which)
{
    return 10 * pair + which;
}

/* Until nothing more is taken for a while. */
static void fill(int pair, int which)
{
    static unsigned char bytes[10007];
    for (int waited = 0; waited < 50;) {
        for (size_t i = 0; i < sizeof bytes; i++)
            bytes[i] = check_byte(seed(pair, which), sent[pair][which] + i);
        ssize_t n = send(end(pair, which), bytes, sizeof bytes, MSG_DONTWAIT);
        CHECK(n > 0 || errno == EAGAIN, "send, expected to fill up, got %s", strerror(errno));
        sent[pair][which] += n > 0 ? n : 0;
        waited = n > 0 ? 0 : waited + 1;
        if (n < 0)
            check_pause();
    }
}

/* All of it is in one queue or the other; the kernel moves it on when there is room. */
static void is_whole(int pair, int which)
{
    struct tcp_seen from = tcp_look(end(pair, which)), to = tcp_look(end(pair, !which));
    int end = from.state == FIN_WAIT1;
    CHECK_EQ("received and not", (int)sent[pair][which], to.received + from.unsent - end);
    CHECK(from.unsent > 0, "what is unsent, expected some");
}

static void drain(int pair, int which)
{
    static unsigned char bytes[1 << 16];
    size_t came = 0;
    while (came < sent[pair][!which]) {
        ssize_t n = MUST(read(end(pair, which), bytes, sizeof bytes));
        CHECK(n > 0, "all that was sent, expected %zu, got %zu", sent[pair][!which], came);
        for (ssize_t i = 0; i < n; i++)
            CHECK_EQ("byte", check_byte(seed(pair, !which), came + i), bytes[i]);
        came += n;
    }
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    for (int pair = 0; pair < 3; pair++)
        MUST(tcp_connect_pair(TCP_V4, &pairs[pair]) - 1);
    int small = 5000;
    MUST(setsockopt(pairs[1].server, SOL_SOCKET, SO_RCVBUF, &small, sizeof small));
    MUST(setsockopt(pairs[1].client, SOL_SOCKET, SO_SNDBUF, &small, sizeof small));
    /* Both ways, and one way with the end behind it. */
    fill(0, 0);
    fill(0, 1);
    fill(1, 0);
    fill(2, 1);
    MUST(shutdown(pairs[2].server, SHUT_WR));
    check_freeze_here();
    is_whole(0, 0);
    is_whole(0, 1);
    is_whole(1, 0);
    is_whole(2, 1);
    CHECK_EQ("state", FIN_WAIT1, tcp_look(pairs[2].server).state);
    char byte;
    drain(1, 1);
    drain(2, 0);
    CHECK_EQ("the end", 0, MUST(read(pairs[2].client, &byte, 1)));
    drain(0, 0);
    drain(0, 1);
    /* The second has a window of two kilobytes: that takes a while. */
    tcp_stream("on", pairs[0].client, pairs[0].server, 300000, 99);
    tcp_stream("on, slowly", pairs[1].client, pairs[1].server, 20000, 99);
    return 0;
}
