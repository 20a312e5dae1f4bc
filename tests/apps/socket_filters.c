/* Filters of what comes to a socket (SO_ATTACH_FILTER): UDP, unix, netlink; one of them locked. */
#include "check.h"
#include <linux/filter.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

/* Lets through what has 'y' at this place. */
static void attach(int fd, unsigned place, int lock)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, place),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 'y', 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 0xffffffff),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    MUST(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
    if (lock)
        MUST(setsockopt(fd, SOL_SOCKET, SO_LOCK_FILTER, &lock, sizeof lock));
}

static void still(int fd, unsigned place)
{
    struct sock_filter code[16] = {0};
    socklen_t len = 16;
    MUST(getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, code, &len));
    CHECK_EQ("instructions", 4, len);
    CHECK_EQ("place", place, code[0].k);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char buf[64];
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof name;
    int udp = MUST(socket(AF_INET, SOCK_DGRAM, 0)), sender = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    MUST(bind(udp, (struct sockaddr *)&name, len));
    MUST(getsockname(udp, (struct sockaddr *)&name, &len));
    MUST(connect(sender, (struct sockaddr *)&name, len));
    /* The filter of UDP sees its header first. */
    attach(udp, 8, 1);
    int pair[2], uevent = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_KOBJECT_UEVENT));
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
    attach(pair[1], 0, 0);
    attach(uevent, 0, 1);
    CHECK_EQ("send", 5, send(sender, "y one", 5, 0));
    CHECK_EQ("send", 5, send(sender, "n one", 5, 0));
    CHECK_EQ("send", 5, send(pair[0], "y two", 5, 0));
    send(pair[0], "n two", 5, 0);
    check_freeze_here();
    CHECK_EQ("recv", 5, MUST(recv(udp, buf, sizeof buf, 0)));
    CHECK_EQ("first", 0, memcmp(buf, "y one", 5));
    CHECK_EQ("recv", 5, MUST(recv(pair[1], buf, sizeof buf, 0)));
    CHECK_EQ("first", 0, memcmp(buf, "y two", 5));
    send(sender, "n more", 6, 0);
    send(sender, "y more", 6, 0);
    CHECK_EQ("recv", 6, MUST(recv(udp, buf, sizeof buf, 0)));
    CHECK_EQ("second", 0, memcmp(buf, "y more", 6));
    CHECK_EQ("one more", -1, recv(udp, buf, sizeof buf, MSG_DONTWAIT));
    send(pair[0], "n more", 6, MSG_DONTWAIT);
    CHECK_EQ("what is filtered", -1, recv(pair[1], buf, sizeof buf, MSG_DONTWAIT));
    still(udp, 8);
    still(pair[1], 0);
    still(uevent, 0);
    /* Locked, and not locked. */
    CHECK_EQ("detach", -1, setsockopt(udp, SOL_SOCKET, SO_DETACH_FILTER, &len, sizeof len));
    CHECK_EQ("errno", EPERM, errno);
    CHECK_EQ("detach", -1, setsockopt(uevent, SOL_SOCKET, SO_DETACH_FILTER, &len, sizeof len));
    MUST(setsockopt(pair[1], SOL_SOCKET, SO_DETACH_FILTER, &len, sizeof len));
    return 0;
}
