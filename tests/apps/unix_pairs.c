/* Connected unix sockets of every type, with messages queued in both directions. */
#include "check.h"
#include <sys/socket.h>
#include <sys/un.h>

enum { BIG = 50000 };

static char data[BIG];

static void stream(int *s)
{
    static char buf[BIG];
    for (int side = 0; side < 2; side++) {
        size_t have = 0;
        for (ssize_t n; have < BIG && (n = MUST(read(s[side], buf + have, BIG - have))) > 0;)
            have += n;
        CHECK_EQ("bytes queued in a stream", BIG, have);
        check_filled("stream", buf, BIG, 1);
    }
    CHECK_EQ("recv of an empty stream", -1, recv(s[0], buf, 1, MSG_DONTWAIT));
    CHECK_EQ("errno", EAGAIN, errno);
    CHECK_EQ("write", 4, write(s[0], "ping", 4));
    CHECK_EQ("read", 4, read(s[1], buf, BIG));
}

/* Messages keep their borders and their order, also the empty one. */
static void messages(int *s)
{
    char buf[1000];
    for (int side = 0; side < 2; side++)
        for (int len = 0; len < 5; len++) {
            CHECK_EQ("length of a message", len * 100, recv(s[side], buf, sizeof buf, MSG_DONTWAIT));
            check_filled("message", buf, len * 100, 1);
        }
    CHECK_EQ("one message more", -1, recv(s[0], buf, sizeof buf, MSG_DONTWAIT));
    CHECK_EQ("errno", EAGAIN, errno);
    CHECK_EQ("send", 5, send(s[1], "hello", 5, 0));
    CHECK_EQ("recv", 5, recv(s[0], buf, sizeof buf, 0));
}

static void queue_messages(int *s)
{
    for (int side = 0; side < 2; side++)
        for (int len = 0; len < 5; len++)
            CHECK_EQ("send", len * 100, send(s[side], data, len * 100, 0));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int st[2], dg[2], seq[2], half[2], closed[2], shared[2], one = 1, size = 300000, value;
    socklen_t len = sizeof value;
    check_fill(data, BIG, 1);
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, st));
    MUST(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, dg));
    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, seq));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, half));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, closed));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, shared));
    MUST(setsockopt(st[0], SOL_SOCKET, SO_PASSCRED, &one, sizeof one));
    MUST(setsockopt(st[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
    int sndbuf;
    MUST(getsockopt(st[0], SOL_SOCKET, SO_SNDBUF, &sndbuf, &len));
    for (int side = 0; side < 2; side++)
        CHECK_EQ("write", BIG, write(st[side], data, BIG));
    queue_messages(dg);
    queue_messages(seq);
    CHECK_EQ("write", 100, write(half[0], data, 100));
    MUST(shutdown(half[0], SHUT_WR));
    CHECK_EQ("write", 200, write(closed[0], data, 200));
    close(closed[0]);
    signal(SIGPIPE, SIG_IGN);
    pid_t pid = CHECK_FORK({
        char c;
        CHECK_EQ("read from the parent", 1, MUST(read(shared[1], &c, 1)));
        c++;
        CHECK_EQ("write to the parent", 1, MUST(write(shared[1], &c, 1)));
    });
    close(shared[1]);
    check_freeze_here();
    stream(st);
    messages(dg);
    messages(seq);
    char buf[1000], c = 'a';
    CHECK_EQ("half closed: data", 100, read(half[1], buf, sizeof buf));
    CHECK_EQ("half closed: end", 0, read(half[1], buf, sizeof buf));
    CHECK_EQ("half closed: write", -1, write(half[0], "x", 1));
    CHECK_EQ("errno", EPIPE, errno);
    CHECK_EQ("half closed: the other direction", 2, write(half[1], "yz", 2));
    CHECK_EQ("half closed: the other direction", 2, read(half[0], buf, sizeof buf));
    CHECK_EQ("closed peer: data", 200, read(closed[1], buf, sizeof buf));
    CHECK_EQ("closed peer: end", 0, read(closed[1], buf, sizeof buf));
    CHECK_EQ("closed peer: write", -1, write(closed[1], "x", 1));
    CHECK_EQ("errno", EPIPE, errno);
    CHECK_EQ("write to the child", 1, write(shared[0], &c, 1));
    CHECK_EQ("read from the child", 1, read(shared[0], &c, 1));
    CHECK_EQ("answer of the child", 'b', c);
    check_child_ok(pid);
    CHECK_EQ("end of the child", 0, read(shared[0], &c, 1));
    len = sizeof value;
    MUST(getsockopt(st[0], SOL_SOCKET, SO_PASSCRED, &value, &len));
    CHECK_EQ("SO_PASSCRED", 1, value);
    MUST(getsockopt(st[0], SOL_SOCKET, SO_SNDBUF, &value, &len));
    CHECK_EQ("SO_SNDBUF", sndbuf, value);
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(st[1], F_GETFD));
    CHECK_EQ("nonblocking", O_NONBLOCK, fcntl(dg[1], F_GETFL) & O_NONBLOCK);
    MUST(getsockopt(seq[0], SOL_SOCKET, SO_TYPE, &value, &len));
    CHECK_EQ("type", SOCK_SEQPACKET, value);
    return 0;
}
