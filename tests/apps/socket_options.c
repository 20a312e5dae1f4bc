/* Options of sockets, those that few programs set too: what can be set to another value stays so. */
#include "check.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <sys/socket.h>

enum { VALUES = 3 };

static const struct option {
    const char *name;
    int level, number;
} options[] = {
#define OPTION(level, name) {#name, level, name}
    OPTION(SOL_SOCKET, SO_RXQ_OVFL), OPTION(SOL_SOCKET, SO_SELECT_ERR_QUEUE), OPTION(SOL_SOCKET, SO_TIMESTAMPING),
    OPTION(SOL_SOCKET, SO_ZEROCOPY), OPTION(SOL_SOCKET, SO_MAX_PACING_RATE), OPTION(SOL_SOCKET, SO_PASSSEC),
    OPTION(SOL_SOCKET, SO_MARK), OPTION(SOL_SOCKET, SO_PRIORITY), {"SO_PREFER_BUSY_POLL", SOL_SOCKET, 69},
    {"SO_RCVMARK", SOL_SOCKET, 75}, {"SO_PASSPIDFD", SOL_SOCKET, 76}, {"SO_RCVPRIORITY", SOL_SOCKET, 82},
    {"SO_PASSRIGHTS", SOL_SOCKET, 83}, OPTION(IPPROTO_IP, IP_RECVOPTS), OPTION(IPPROTO_IP, IP_RETOPTS),
    OPTION(IPPROTO_IP, IP_PASSSEC), OPTION(IPPROTO_IP, IP_RECVORIGDSTADDR), OPTION(IPPROTO_IP, IP_MINTTL),
    OPTION(IPPROTO_IP, IP_CHECKSUM), OPTION(IPPROTO_IP, IP_RECVFRAGSIZE), OPTION(IPPROTO_IP, IP_MULTICAST_ALL),
    {"IP_RECVERR_RFC4884", IPPROTO_IP, 26}, {"IP_LOCAL_PORT_RANGE", IPPROTO_IP, 51},
    OPTION(IPPROTO_IPV6, IPV6_MULTICAST_HOPS), OPTION(IPPROTO_IPV6, IPV6_MULTICAST_LOOP),
    OPTION(IPPROTO_IPV6, IPV6_MTU_DISCOVER), {"IPV6_MULTICAST_ALL", IPPROTO_IPV6, 29},
    {"IPV6_FLOWINFO_SEND", IPPROTO_IPV6, 33}, OPTION(IPPROTO_IPV6, IPV6_RECVHOPLIMIT),
    OPTION(IPPROTO_IPV6, IPV6_RECVHOPOPTS), OPTION(IPPROTO_IPV6, IPV6_RECVRTHDR), OPTION(IPPROTO_IPV6, IPV6_RECVDSTOPTS),
    OPTION(IPPROTO_IPV6, IPV6_RECVPATHMTU), OPTION(IPPROTO_IPV6, IPV6_DONTFRAG), OPTION(IPPROTO_IPV6, IPV6_RECVTCLASS),
    {"IPV6_AUTOFLOWLABEL", IPPROTO_IPV6, 70}, {"IPV6_MINHOPCOUNT", IPPROTO_IPV6, 73},
    {"IPV6_RECVORIGDSTADDR", IPPROTO_IPV6, 74}, {"IPV6_TRANSPARENT", IPPROTO_IPV6, 75},
    {"IPV6_RECVFRAGSIZE", IPPROTO_IPV6, 77}, {"IPV6_FREEBIND", IPPROTO_IPV6, 78}, OPTION(IPPROTO_TCP, TCP_LINGER2),
    OPTION(IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS), OPTION(IPPROTO_TCP, TCP_NOTSENT_LOWAT), OPTION(IPPROTO_TCP, TCP_SAVE_SYN),
    OPTION(IPPROTO_TCP, TCP_FASTOPEN_CONNECT), {"TCP_FASTOPEN_NO_COOKIE", IPPROTO_TCP, 34}, {"TCP_INQ", IPPROTO_TCP, 36},
    {"UDP_NO_CHECK6_TX", IPPROTO_UDP, 101}, {"UDP_NO_CHECK6_RX", IPPROTO_UDP, 102}, {"UDP_GRO", IPPROTO_UDP, 104},
};
enum { OPTIONS = sizeof options / sizeof *options };

static const struct {
    int family, type;
} kinds[] = {{AF_UNIX, SOCK_STREAM}, {AF_UNIX, SOCK_DGRAM}, {AF_INET, SOCK_STREAM}, {AF_INET, SOCK_DGRAM}, {AF_INET6, SOCK_STREAM}, {AF_INET6, SOCK_DGRAM}};
enum { KINDS = sizeof kinds / sizeof *kinds };

static uint64_t get(int fd, const struct option *o)
{
    uint64_t value = 0;
    socklen_t len = sizeof value;
    return getsockopt(fd, o->level, o->number, &value, &len) == 0 ? value : (uint64_t)-1;
}

/* To another value than it has, if any does. */
static int differs(int fd, const struct option *o)
{
    static const uint64_t values[VALUES] = {1, 0, 0x12345};
    uint64_t fresh = get(fd, o);
    for (int i = 0; i < VALUES; i++) {
        setsockopt(fd, o->level, o->number, &values[i], sizeof(int));
        if (get(fd, o) != fresh)
            return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int fds[KINDS], set = 0;
    uint64_t had[KINDS][OPTIONS];
    for (int k = 0; k < KINDS; k++) {
        fds[k] = socket(kinds[k].family, kinds[k].type, 0);
        for (int o = 0; fds[k] >= 0 && o < OPTIONS; o++)
            set += differs(fds[k], &options[o]);
        for (int o = 0; fds[k] >= 0 && o < OPTIONS; o++)
            had[k][o] = get(fds[k], &options[o]);
    }
    CHECK(set > 60, "options that can be set, expected more than 60, got %d", set);
    check_freeze_here();
    for (int k = 0; k < KINDS; k++)
        for (int o = 0; fds[k] >= 0 && o < OPTIONS; o++)
            CHECK(get(fds[k], &options[o]) == had[k][o], "%s of kind %d, expected %#llx, got %#llx", options[o].name, k,
                  (unsigned long long)had[k][o], (unsigned long long)get(fds[k], &options[o]));
    return 0;
}
