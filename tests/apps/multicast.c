/* Multicast groups that sockets have joined: IPv4 and IPv6, each its own. */
#include "check.h"
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>

static struct group_req request(int device, int family, int host)
{
    struct group_req group;
    memset(&group, 0, sizeof group);
    group.gr_interface = device;
    if (family == AF_INET) {
        struct sockaddr_in *to = (void *)&group.gr_group;
        to->sin_family = AF_INET;
        to->sin_addr.s_addr = htonl(0xef010200 + host);
    } else {
        struct sockaddr_in6 *to = (void *)&group.gr_group;
        to->sin6_family = AF_INET6;
        to->sin6_addr.s6_addr[0] = 0xff;
        to->sin6_addr.s6_addr[1] = 0x11;
        to->sin6_addr.s6_addr[15] = host;
    }
    return group;
}

static int change(int fd, int family, int what, int device, int host)
{
    struct group_req group = request(device, family, host);
    return setsockopt(fd, family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6, what, &group, sizeof group);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int lo = if_nametoindex("lo");
    if (lo == 0)
        SKIP("a loopback device");
    int a = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0)), b = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    int v6 = socket(AF_INET6, SOCK_DGRAM, 0);
    struct sockaddr_in name = {.sin_family = AF_INET};
    socklen_t len = sizeof name;
    MUST(bind(a, (struct sockaddr *)&name, len));
    MUST(getsockname(a, (struct sockaddr *)&name, &len));
    MUST(change(a, AF_INET, MCAST_JOIN_GROUP, lo, 3));
    MUST(change(a, AF_INET, MCAST_JOIN_GROUP, lo, 4));
    MUST(change(b, AF_INET, MCAST_JOIN_GROUP, lo, 4));
    int has6 = v6 >= 0 && change(v6, AF_INET6, MCAST_JOIN_GROUP, lo, 7) == 0;
    if (has6)
        MUST(change(v6, AF_INET, MCAST_JOIN_GROUP, lo, 5));
    check_freeze_here();
    struct ip_mreqn device = {.imr_ifindex = lo, .imr_address.s_addr = htonl(INADDR_LOOPBACK)};
    int sender = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    MUST(setsockopt(sender, IPPROTO_IP, IP_MULTICAST_IF, &device, sizeof device));
    struct sockaddr_in to = name;
    to.sin_addr.s_addr = htonl(0xef010203);
    CHECK_EQ("sendto", 5, MUST(sendto(sender, "hello", 5, 0, (struct sockaddr *)&to, sizeof to)));
    char buf[8];
    while (recv(a, buf, sizeof buf, 0) != 5)
        check_pause();
    MUST(change(a, AF_INET, MCAST_LEAVE_GROUP, lo, 3));
    MUST(change(a, AF_INET, MCAST_LEAVE_GROUP, lo, 4));
    CHECK_EQ("what it has not joined", -1, change(a, AF_INET, MCAST_LEAVE_GROUP, lo, 5));
    MUST(change(b, AF_INET, MCAST_LEAVE_GROUP, lo, 4));
    CHECK_EQ("what it has not joined", -1, change(b, AF_INET, MCAST_LEAVE_GROUP, lo, 3));
    if (has6) {
        MUST(change(v6, AF_INET6, MCAST_LEAVE_GROUP, lo, 7));
        MUST(change(v6, AF_INET, MCAST_LEAVE_GROUP, lo, 5));
        CHECK_EQ("what it has not joined", -1, change(v6, AF_INET, MCAST_LEAVE_GROUP, lo, 3));
    }
    return 0;
}
