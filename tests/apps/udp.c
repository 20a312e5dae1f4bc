/* UDP: bound, connected, with queued datagrams and their senders; one that was to send no more. */
#include "check.h"
#include <netinet/in.h>
#include <sys/socket.h>

static struct sockaddr_in loopback(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    return a;
}

static int make(struct sockaddr_in *name)
{
    socklen_t len = sizeof *name;
    int fd = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0));
    *name = loopback();
    MUST(bind(fd, (struct sockaddr *)name, len));
    MUST(getsockname(fd, (struct sockaddr *)name, &len));
    return fd;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct sockaddr_in name_a, name_b, name_c, from, now;
    socklen_t len = sizeof from;
    int a = make(&name_a), b = make(&name_b), c = make(&name_c), one = 1, value;
    MUST(connect(b, (struct sockaddr *)&name_c, len));
    MUST(connect(c, (struct sockaddr *)&name_b, len));
    MUST(setsockopt(a, SOL_SOCKET, SO_BROADCAST, &one, sizeof one));
    MUST(setsockopt(a, IPPROTO_IP, IP_RECVERR, &one, sizeof one));
    int unbound = MUST(socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    char buf[2000];
    for (int i = 0; i < 5; i++) {
        check_fill(buf, 300 * i, i);
        CHECK_EQ("send", 300 * i, send(b, buf, 300 * i, 0));
    }
    CHECK_EQ("sendto", 4, sendto(a, "self", 4, 0, (struct sockaddr *)&name_a, len));
    /* It says that it is not connected, and does as it was told. */
    int mute = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    CHECK_EQ("shutdown", -1, shutdown(mute, SHUT_WR));
    CHECK_EQ("errno", ENOTCONN, errno);
    check_freeze_here();
    CHECK_EQ("sendto by a socket that is to send no more", -1, sendto(mute, "x", 1, MSG_NOSIGNAL, (struct sockaddr *)&name_a, len));
    CHECK_EQ("errno", EPIPE, errno);
    for (int i = 0; i < 5; i++) {
        len = sizeof from;
        CHECK_EQ("length of a datagram", 300 * i, recvfrom(c, buf, sizeof buf, 0, (struct sockaddr *)&from, &len));
        check_filled("datagram", buf, 300 * i, i);
        CHECK_EQ("port of the sender", name_b.sin_port, from.sin_port);
        CHECK_EQ("address of the sender", name_b.sin_addr.s_addr, from.sin_addr.s_addr);
    }
    CHECK_EQ("one datagram more", -1, recv(c, buf, sizeof buf, 0));
    CHECK_EQ("errno", EAGAIN, errno);
    CHECK_EQ("datagram to self", 4, recv(a, buf, sizeof buf, 0));
    len = sizeof now;
    MUST(getsockname(a, (struct sockaddr *)&now, &len));
    CHECK_EQ("port", name_a.sin_port, now.sin_port);
    len = sizeof now;
    MUST(getpeername(b, (struct sockaddr *)&now, &len));
    CHECK_EQ("port of the peer", name_c.sin_port, now.sin_port);
    CHECK_EQ("send back", 3, send(c, "two", 3, 0));
    CHECK_EQ("recv", 3, recv(b, buf, sizeof buf, 0));
    len = sizeof value;
    MUST(getsockopt(a, SOL_SOCKET, SO_BROADCAST, &value, &len));
    CHECK_EQ("SO_BROADCAST", 1, value);
    MUST(getsockopt(a, IPPROTO_IP, IP_RECVERR, &value, &len));
    CHECK_EQ("IP_RECVERR", 1, value);
    CHECK_EQ("unbound socket", FD_CLOEXEC, fcntl(unbound, F_GETFD));
    return 0;
}
