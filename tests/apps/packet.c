/* Packet sockets: protocol, device, filter, promiscuous mode, options; they go on getting packets. */
#include "check.h"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sys/socket.h>

enum { LOCAL_EXPERIMENT = 0x88b5, SOCKETS = 3 };

struct frame {
    unsigned char to[6], from[6];
    unsigned short protocol;
    unsigned mark, number;
} __attribute__((packed));

static const int options[] = {PACKET_AUXDATA, PACKET_ORIGDEV, PACKET_TX_HAS_OFF, PACKET_QDISC_BYPASS, 23 /* IGNORE_OUTGOING */};
enum { OPTIONS = sizeof options / sizeof *options };

static unsigned mark, number;

static unsigned now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_nsec ^ t.tv_sec << 20;
}

/* Nothing but this program's own frames: others on this machine do the same. `at`: where the mark is. */
static int make(int kind, int device, unsigned at)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, at),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, htonl(mark), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 64),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog program = {4, code};
    struct sockaddr_ll name = {.sll_family = AF_PACKET, .sll_protocol = htons(LOCAL_EXPERIMENT), .sll_ifindex = device};
    int fd = MUST(socket(AF_PACKET, kind, 0));
    MUST(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
    MUST(bind(fd, (struct sockaddr *)&name, sizeof name));
    return fd;
}

/* The frame comes, and those that others sent before. */
static void gets(int fd, size_t skip)
{
    unsigned char frame[128];
    unsigned words[2];
    do {
        ssize_t got = MUST(recv(fd, frame, sizeof frame, 0));
        CHECK(got >= (ssize_t)(skip + sizeof words), "a frame, expected, got %zd bytes", got);
        memcpy(words, frame + skip, sizeof words);
        CHECK_EQ("mark", mark, words[0]);
    } while (words[1] != number);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int lo = if_nametoindex("lo"), value, fds[SOCKETS];
    if (lo == 0)
        SKIP("a loopback device");
    mark = now();
    fds[0] = make(SOCK_RAW, lo, 14);
    fds[1] = make(SOCK_DGRAM, 0, 0);
    fds[2] = MUST(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));
    for (int i = 0; i < OPTIONS; i++) {
        value = options[i] != 23;
        MUST(setsockopt(fds[0], SOL_PACKET, options[i], &value, sizeof value));
    }
    value = 1;
    MUST(setsockopt(fds[2], SOL_PACKET, PACKET_VNET_HDR, &value, sizeof value));
    value = TPACKET_V3;
    MUST(setsockopt(fds[2], SOL_PACKET, PACKET_VERSION, &value, sizeof value));
    value = 1;
    MUST(setsockopt(fds[2], SOL_PACKET, 23, &value, sizeof value));
    struct packet_mreq all = {.mr_ifindex = lo, .mr_type = PACKET_MR_PROMISC};
    /* Twice: nobody but sock_diag tells. */
    MUST(setsockopt(fds[0], SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all));
    MUST(setsockopt(fds[0], SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all));
    int had[SOCKETS][OPTIONS];
    struct sockaddr_ll name[SOCKETS], is;
    memset(name, 0, sizeof name);
    socklen_t len[SOCKETS];
    for (int i = 0; i < SOCKETS; i++) {
        len[i] = sizeof *name;
        MUST(getsockname(fds[i], (struct sockaddr *)&name[i], &len[i]));
        for (int o = 0; o < OPTIONS; o++)
            MUST(getsockopt(fds[i], SOL_PACKET, options[o], &had[i][o], &(socklen_t){sizeof(int)}));
    }
    check_freeze_here();
    for (int i = 0; i < SOCKETS; i++) {
        socklen_t bytes = sizeof is;
        memset(&is, 0, sizeof is);
        MUST(getsockname(fds[i], (struct sockaddr *)&is, &bytes));
        CHECK(bytes == len[i] && !memcmp(&is, &name[i], sizeof is), "address of socket %d, expected the same", i);
        for (int o = 0; o < OPTIONS; o++) {
            MUST(getsockopt(fds[i], SOL_PACKET, options[o], &value, &(socklen_t){sizeof(int)}));
            CHECK_EQ("option", had[i][o], value);
        }
    }
    MUST(getsockopt(fds[2], SOL_PACKET, PACKET_VNET_HDR, &value, &(socklen_t){sizeof(int)}));
    CHECK_EQ("PACKET_VNET_HDR", 1, value);
    MUST(getsockopt(fds[2], SOL_PACKET, PACKET_VERSION, &value, &(socklen_t){sizeof(int)}));
    CHECK_EQ("PACKET_VERSION", TPACKET_V3, value);
    number = now();
    struct frame frame = {.protocol = htons(LOCAL_EXPERIMENT), .mark = mark, .number = number};
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = lo, .sll_halen = 6};
    int sender = MUST(socket(AF_PACKET, SOCK_RAW, 0));
    CHECK_EQ("sendto", sizeof frame, MUST(sendto(sender, &frame, sizeof frame, 0, (struct sockaddr *)&to, sizeof to)));
    gets(fds[0], 14);
    gets(fds[1], 0);
    /* What is not the program's is filtered. */
    frame.mark = ~mark;
    MUST(sendto(sender, &frame, sizeof frame, 0, (struct sockaddr *)&to, sizeof to));
    frame.mark = mark;
    frame.number = number = now();
    MUST(sendto(sender, &frame, sizeof frame, 0, (struct sockaddr *)&to, sizeof to));
    gets(fds[0], 14);
    gets(fds[1], 0);
    return 0;
}
