/* Raw IP sockets: protocol, address, peer, filters of ICMP; they go on getting packets. */
#include "check.h"
#include <linux/filter.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <sys/socket.h>

#ifndef ICMP_FILTER
#define ICMP_FILTER 1
#endif

enum { EXPERIMENT = 253 };

static unsigned mark;

static unsigned now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_nsec ^ t.tv_sec << 20;
}

static struct sockaddr_in loopback(int host)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + host)};
    return a;
}

/* Nothing but what this program sends: others on this machine do the same. */
static int make(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, sizeof(struct ip)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, htonl(mark), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 64),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog program = {4, code};
    int fd = MUST(socket(AF_INET, SOCK_RAW, EXPERIMENT));
    MUST(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
    return fd;
}

static void gets(int fd, unsigned number)
{
    unsigned char packet[128];
    unsigned words[2];
    do {
        CHECK_EQ("recv", sizeof(struct ip) + 8, MUST(recv(fd, packet, sizeof packet, 0)));
        memcpy(words, packet + sizeof(struct ip), sizeof words);
        CHECK_EQ("mark", mark, words[0]);
    } while (words[1] != number);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    mark = now();
    int any = make(), bound = make(), connected = make(), value = 1;
    struct sockaddr_in first = loopback(0), second = loopback(1), is;
    MUST(bind(bound, (struct sockaddr *)&second, sizeof second));
    second.sin_port = htons(7);
    MUST(bind(connected, (struct sockaddr *)&first, sizeof first));
    MUST(connect(connected, (struct sockaddr *)&second, sizeof second));
    MUST(setsockopt(any, IPPROTO_IP, IP_TTL, &(int){77}, sizeof value));
    int header = MUST(socket(AF_INET, SOCK_RAW, IPPROTO_UDP)), icmp = MUST(socket(AF_INET, SOCK_RAW | SOCK_NONBLOCK, IPPROTO_ICMP));
    /* Only what is said here comes to the two: nothing. */
    struct sock_filter nothing[] = {BPF_STMT(BPF_RET | BPF_K, 0)};
    struct sock_fprog program = {1, nothing};
    MUST(setsockopt(header, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
    MUST(setsockopt(header, IPPROTO_IP, IP_HDRINCL, &value, sizeof value));
    unsigned filter = ~0u;
    MUST(setsockopt(icmp, SOL_RAW, ICMP_FILTER, &filter, sizeof filter));
    struct icmp6_filter filter6, is6;
    int icmp6 = socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6), sum = -1;
    if (icmp6 >= 0) {
        ICMP6_FILTER_SETBLOCKALL(&filter6);
        filter6.icmp6_filt[7] = 0x7fffffff;
        MUST(setsockopt(icmp6, IPPROTO_ICMPV6, ICMP6_FILTER, &filter6, sizeof filter6));
        MUST(setsockopt(icmp6, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
        sum = MUST(socket(AF_INET6, SOCK_RAW, EXPERIMENT));
        MUST(setsockopt(sum, IPPROTO_IPV6, IPV6_CHECKSUM, &(int){6}, sizeof value));
        MUST(setsockopt(sum, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
    }
    check_freeze_here();
    unsigned words[2] = {mark, now()};
    socklen_t len = sizeof is;
    MUST(getsockname(bound, (struct sockaddr *)&is, &len));
    CHECK_EQ("own address", second.sin_addr.s_addr, is.sin_addr.s_addr);
    CHECK_EQ("protocol as its port", EXPERIMENT, ntohs(is.sin_port));
    len = sizeof is;
    MUST(getpeername(connected, (struct sockaddr *)&is, &len));
    CHECK_EQ("address of the peer", second.sin_addr.s_addr, is.sin_addr.s_addr);
    CHECK_EQ("port of the peer", 7, ntohs(is.sin_port));
    MUST(getsockopt(any, IPPROTO_IP, IP_TTL, &value, &(socklen_t){sizeof value}));
    CHECK_EQ("IP_TTL", 77, value);
    MUST(getsockopt(header, IPPROTO_IP, IP_HDRINCL, &value, &(socklen_t){sizeof value}));
    CHECK_EQ("IP_HDRINCL", 1, value);
    MUST(getsockopt(icmp, SOL_RAW, ICMP_FILTER, &filter, &(socklen_t){sizeof filter}));
    CHECK_EQ("ICMP_FILTER", ~0u, filter);
    if (icmp6 >= 0) {
        MUST(getsockopt(icmp6, IPPROTO_ICMPV6, ICMP6_FILTER, &is6, &(socklen_t){sizeof is6}));
        CHECK(!memcmp(&is6, &filter6, sizeof is6), "ICMP6_FILTER, expected the same");
        MUST(getsockopt(sum, IPPROTO_IPV6, IPV6_CHECKSUM, &value, &(socklen_t){sizeof value}));
        CHECK_EQ("IPV6_CHECKSUM", 6, value);
    }
    CHECK_EQ("send", sizeof words, MUST(send(connected, words, sizeof words, 0)));
    gets(bound, words[1]);
    gets(any, words[1]);
    return 0;
}
