/* Empty messages that wait between others: the kernel shows them to one look only. */
#include "check.h"
#include <netinet/in.h>
#include <sys/socket.h>

static const int lengths[] = {100, 0, 0, 200, 0};

static void queue(int to)
{
    char data[200];
    check_fill(data, sizeof data, 1);
    for (int i = 0; i < 5; i++)
        CHECK_EQ("send", lengths[i], send(to, data, lengths[i], 0));
}

static void receive(int from)
{
    char buf[1000];
    for (int i = 0; i < 5; i++) {
        CHECK_EQ("length of a message", lengths[i], recv(from, buf, sizeof buf, MSG_DONTWAIT));
        check_filled("message", buf, lengths[i], 1);
    }
    CHECK_EQ("one message more", -1, recv(from, buf, sizeof buf, MSG_DONTWAIT));
    CHECK_EQ("errno", EAGAIN, errno);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int unix_dgram[2], seqpacket[2], udp[2];
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof name;
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, unix_dgram));
    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, seqpacket));
    udp[0] = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    udp[1] = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    MUST(bind(udp[1], (struct sockaddr *)&name, len));
    MUST(getsockname(udp[1], (struct sockaddr *)&name, &len));
    MUST(connect(udp[0], (struct sockaddr *)&name, len));
    queue(unix_dgram[0]);
    queue(seqpacket[0]);
    queue(udp[0]);
    check_freeze_here();
    receive(unix_dgram[1]);
    receive(seqpacket[1]);
    receive(udp[1]);
    return 0;
}
