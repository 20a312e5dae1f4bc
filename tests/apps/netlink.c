/* netlink: port ids, groups, peers and options; they go on asking the kernel. */
#include "check.h"
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#ifndef NETLINK_EXT_ACK
#define NETLINK_EXT_ACK 11
#endif
#ifndef NETLINK_GET_STRICT_CHK
#define NETLINK_GET_STRICT_CHK 12
#endif

static const int options[] = {NETLINK_PKTINFO,  NETLINK_BROADCAST_ERROR, NETLINK_NO_ENOBUFS,     NETLINK_LISTEN_ALL_NSID,
                              NETLINK_CAP_ACK, NETLINK_EXT_ACK,         NETLINK_GET_STRICT_CHK};
enum { OPTIONS = sizeof options / sizeof *options, SOCKETS = 6 };

static struct sockaddr_nl name_of(int fd, int (*ask)(int, struct sockaddr *, socklen_t *))
{
    struct sockaddr_nl name = {0};
    socklen_t len = sizeof name;
    MUST(ask(fd, (struct sockaddr *)&name, &len));
    CHECK_EQ("length of an address", sizeof name, len);
    return name;
}

static int make(int kind, int protocol, unsigned port, unsigned groups)
{
    int fd = MUST(socket(AF_NETLINK, kind, protocol));
    struct sockaddr_nl name = {.nl_family = AF_NETLINK, .nl_pid = port, .nl_groups = groups};
    MUST(bind(fd, (struct sockaddr *)&name, sizeof name));
    return fd;
}

/* What the kernel tells of a socket. */
struct state {
    struct sockaddr_nl name, peer;
    unsigned groups[4];
    int option[OPTIONS], room;
};

static struct state look(int fd)
{
    struct state state;
    memset(&state, 0, sizeof state);
    state.name = name_of(fd, getsockname);
    state.peer = name_of(fd, getpeername);
    socklen_t len = sizeof state.groups;
    MUST(getsockopt(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, state.groups, &len));
    for (int i = 0; i < OPTIONS; i++) {
        len = sizeof(int);
        /* A kernel may let one be set, and not be read. */
        if (getsockopt(fd, SOL_NETLINK, options[i], &state.option[i], &len) != 0)
            state.option[i] = -errno;
    }
    len = sizeof(int);
    MUST(getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &state.room, &len));
    return state;
}

/* Asks for all links; the port id that the kernel answers to. */
static unsigned ask(int fd)
{
    struct {
        struct nlmsghdr head;
        struct ifinfomsg body;
    } request = {{sizeof request, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 17, 0}, {.ifi_family = AF_UNSPEC}};
    CHECK_EQ("send", sizeof request, MUST(send(fd, &request, sizeof request, 0)));
    static char answer[1 << 16];
    unsigned port = 0;
    for (int done = 0; !done;) {
        unsigned left = MUST(recv(fd, answer, sizeof answer, 0));
        for (struct nlmsghdr *head = (void *)answer; NLMSG_OK(head, left); head = NLMSG_NEXT(head, left)) {
            CHECK(head->nlmsg_type != NLMSG_ERROR, "a list of links, expected, got an error");
            port = head->nlmsg_pid;
            done |= head->nlmsg_type == NLMSG_DONE;
        }
    }
    return port;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int on = 1, group = RTNLGRP_NEXTHOP, room = 300000;
    /* Others beside it on this machine have others. */
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    unsigned port = 0x10000000 + (now.tv_nsec / 64 * 4);
    int fds[SOCKETS];
    /* Its port id is the kernel's choice: not the pid, which somebody has. */
    int taken = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
    struct sockaddr_nl pid = {.nl_family = AF_NETLINK, .nl_pid = getpid()};
    bind(taken, (struct sockaddr *)&pid, sizeof pid);
    fds[0] = make(SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE, 0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR);
    MUST(setsockopt(fds[0], SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group));
    MUST(setsockopt(fds[0], SOL_SOCKET, SO_RCVBUF, &room, sizeof room));
    for (int i = 0; i < OPTIONS; i++)
        if (options[i] != NETLINK_LISTEN_ALL_NSID && options[i] != NETLINK_GET_STRICT_CHK)
            MUST(setsockopt(fds[0], SOL_NETLINK, options[i], &on, sizeof on));
    fds[1] = make(SOCK_DGRAM | SOCK_NONBLOCK, NETLINK_ROUTE, port, 0);
    MUST(setsockopt(fds[1], SOL_NETLINK, NETLINK_GET_STRICT_CHK, &on, sizeof on));
    /* In a group, and not bound. */
    fds[2] = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_KOBJECT_UEVENT));
    group = 2;
    MUST(setsockopt(fds[2], SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group));
    fds[3] = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG));
    /* Two that talk to each other. */
    fds[4] = make(SOCK_RAW, NETLINK_USERSOCK, port, 0);
    fds[5] = make(SOCK_RAW, NETLINK_USERSOCK, port + 1, 0);
    MUST(setsockopt(fds[5], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
    struct sockaddr_nl peer = {.nl_family = AF_NETLINK, .nl_pid = port + 1};
    MUST(connect(fds[4], (struct sockaddr *)&peer, sizeof peer));
    struct state before[SOCKETS];
    for (int i = 0; i < SOCKETS; i++)
        before[i] = look(fds[i]);
    MUST(close(taken));
    CHECK(before[0].name.nl_pid != 0, "a port id, expected, got none");
    CHECK(before[0].groups[0] && before[2].groups[0], "groups, expected, got none");
    check_freeze_here();
    for (int i = 0; i < SOCKETS; i++) {
        struct state now = look(fds[i]);
        CHECK_EQ("port id", before[i].name.nl_pid, now.name.nl_pid);
        CHECK_EQ("port id of the peer", before[i].peer.nl_pid, now.peer.nl_pid);
        for (int word = 0; word < 4; word++)
            CHECK_EQ("groups", before[i].groups[word], now.groups[word]);
        for (int o = 0; o < OPTIONS; o++)
            CHECK(before[i].option[o] == now.option[o], "socket %d, option %d, expected %d, got %d", i, options[o],
                  before[i].option[o], now.option[o]);
        CHECK_EQ("SO_RCVBUF", before[i].room, now.room);
        CHECK(memcmp(&before[i], &now, sizeof now) == 0, "socket %d, expected as before, got another", i);
    }
    CHECK_EQ("port id of an answer", before[0].name.nl_pid, ask(fds[0]));
    struct {
        struct nlmsghdr head;
        char text[8];
    } message = {{sizeof message, NLMSG_MIN_TYPE, 0, 1, port}, "hello"};
    CHECK_EQ("send", sizeof message, MUST(send(fds[4], &message, sizeof message, 0)));
    union {
        char bytes[CMSG_SPACE(sizeof(struct ucred))];
        struct cmsghdr head;
    } control;
    memset(&message, 0, sizeof message);
    struct iovec data = {&message, sizeof message};
    struct sockaddr_nl from;
    struct msghdr head = {&from, sizeof from, &data, 1, &control, sizeof control, 0};
    CHECK_EQ("recvmsg", sizeof message, MUST(recvmsg(fds[5], &head, 0)));
    CHECK_EQ("sender", port, from.nl_pid);
    CHECK_EQ("text", 0, strcmp(message.text, "hello"));
    struct cmsghdr *first = CMSG_FIRSTHDR(&head);
    CHECK(first && first->cmsg_type == SCM_CREDENTIALS, "credentials, expected, got none");
    CHECK_EQ("pid of the sender", getpid(), ((struct ucred *)CMSG_DATA(first))->pid);
    /* Nobody but the peer may write to one that is connected. */
    struct sockaddr_nl connected = {.nl_family = AF_NETLINK, .nl_pid = port};
    int other = make(SOCK_RAW, NETLINK_USERSOCK, port + 2, 0);
    CHECK_EQ("sendto", -1, sendto(other, &message, sizeof message, 0, (struct sockaddr *)&connected, sizeof connected));
    CHECK_EQ("errno", ECONNREFUSED, errno);
    return 0;
}
