/* What stands in IPv6 packets before all that a socket sends (hop-by-hop, destination options), and which of the host's
 * addresses it prefers. */
#include "check.h"
#include <arpa/inet.h>
#include <linux/in6.h>
#include <netinet/in.h>
#include <sys/socket.h>

#ifndef IPV6_ADDR_PREFERENCES
#define IPV6_ADDR_PREFERENCES 72
#endif
enum { PREFER_TMP = 1, PREFER_PUBLIC = 2, PREFER_COA = 4 };

static void check_header(int fd, int name, const void *expected, socklen_t len)
{
    char got[256];
    socklen_t got_len = sizeof got;
    MUST(getsockopt(fd, IPPROTO_IPV6, name, got, &got_len));
    CHECK_EQ("length of a header", len, got_len);
    CHECK(!memcmp(got, expected, len), "header %d, expected what was set, got something else", name);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int udp = socket(AF_INET6, SOCK_DGRAM, 0), tcp = socket(AF_INET6, SOCK_STREAM, 0), got = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
    if (udp < 0)
        SKIP("IPv6");
    /* Options that nobody knows are skipped, others are padding; the length is in eights, less one. */
    unsigned char hops[64] = {0, 7, 0x1e, 60}, destination[8] = {0, 0, 1, 4}, before[16] = {0, 1, 1, 12};
    int prefers = PREFER_TMP, on = 1;
    MUST(setsockopt(udp, IPPROTO_IPV6, IPV6_ADDR_PREFERENCES, &prefers, sizeof prefers));
    prefers = PREFER_COA;
    MUST(setsockopt(tcp, IPPROTO_IPV6, IPV6_ADDR_PREFERENCES, &prefers, sizeof prefers));
    if (setsockopt(udp, IPPROTO_IPV6, IPV6_HOPOPTS, hops, sizeof hops))
        SKIP("IPv6 headers (CAP_NET_RAW)");
    MUST(setsockopt(udp, IPPROTO_IPV6, IPV6_DSTOPTS, destination, sizeof destination));
    MUST(setsockopt(tcp, IPPROTO_IPV6, IPV6_RTHDRDSTOPTS, before, sizeof before));
    MUST(setsockopt(got, IPPROTO_IPV6, IPV6_RECVDSTOPTS, &on, sizeof on));
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    socklen_t len = sizeof address;
    MUST(bind(got, (struct sockaddr *)&address, len));
    MUST(getsockname(got, (struct sockaddr *)&address, &len));
    check_freeze_here();
    int is;
    socklen_t is_len = sizeof is;
    MUST(getsockopt(udp, IPPROTO_IPV6, IPV6_ADDR_PREFERENCES, &is, &is_len));
    CHECK_EQ("preference", PREFER_TMP, is & (PREFER_TMP | PREFER_PUBLIC));
    MUST(getsockopt(tcp, IPPROTO_IPV6, IPV6_ADDR_PREFERENCES, &is, &is_len));
    CHECK_EQ("preference of the other", PREFER_COA, is & PREFER_COA);
    check_header(udp, IPV6_HOPOPTS, hops, sizeof hops);
    check_header(udp, IPV6_DSTOPTS, destination, sizeof destination);
    check_header(tcp, IPV6_RTHDRDSTOPTS, before, sizeof before);
    /* And they go with what is sent. */
    CHECK_EQ("sent", 2, MUST(sendto(udp, "hi", 2, 0, (struct sockaddr *)&address, len)));
    char data[8], control[256];
    struct iovec piece = {data, sizeof data};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    CHECK_EQ("received", 2, MUST(recvmsg(got, &message, 0)));
    struct cmsghdr *beside = CMSG_FIRSTHDR(&message);
    CHECK(beside && beside->cmsg_type == IPV6_DSTOPTS, "destination options, expected, got %d", beside ? beside->cmsg_type : -1);
    return 0;
}
