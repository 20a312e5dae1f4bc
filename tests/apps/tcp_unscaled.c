/* A TCP connection inside the app whose windows are told as they are: scaling was off when it was made. */
#include "tcp_pair.h"
#include <net/if.h>

static void scaling(const char *value)
{
    int fd = open("/proc/sys/net/ipv4/tcp_window_scaling", O_WRONLY);
    if (fd < 0 || write(fd, value, 1) != 1)
        SKIP("to turn window scaling off: %s", strerror(errno));
    close(fd);
}

/* `tcpi_snd_wnd`, which older headers have no name for. */
static unsigned peers_window(int fd)
{
    unsigned info[60] = {0};
    socklen_t len = sizeof info;
    MUST(getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &len));
    if (len < 232)
        SKIP("tcpi_snd_wnd (Linux 5.4), got %u bytes", len);
    return info[228 / 4];
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    /* Of nobody else. */
    struct if_nameindex *devices = if_nameindex();
    if (!devices || devices[0].if_index == 0 || devices[1].if_index != 0)
        SKIP("a network of its own, with a loopback device only");
    if_freenameindex(devices);
    struct tcp_pair pair;
    scaling("0");
    MUST(tcp_connect_pair(TCP_V4, &pair) - 1);
    scaling("1");
    struct tcp_seen seen[2] = {tcp_look(pair.client), tcp_look(pair.server)};
    CHECK_EQ("scaling", 0, seen[0].options & TCPI_OPT_WSCALE);
    check_freeze_here();
    tcp_same("client", &seen[0], pair.client);
    tcp_same("server", &seen[1], pair.server);
    tcp_stream("there", pair.client, pair.server, 1 << 16, 1);
    tcp_stream("back", pair.server, pair.client, 1 << 16, 2);
    tcp_settled(pair.client);
    unsigned windows[2] = {peers_window(pair.client), peers_window(pair.server)};
    CHECK(windows[0] > 16000, "the server's window, expected more than 16000, got %u", windows[0]);
    CHECK(windows[1] > 16000, "the client's window, expected more than 16000, got %u", windows[1]);
    return 0;
}
