/* Connections that wait to be accepted, in their order, clients inside the app, nothing written. */
#include "check.h"
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { CLIENTS = 4 };

static struct sockaddr_un address;
static socklen_t length;

static int listener(int kind, int backlog)
{
    int fd = MUST(socket(AF_UNIX, kind, 0));
    MUST(bind(fd, (struct sockaddr *)&address, length));
    MUST(listen(fd, backlog));
    return fd;
}

static int client(int kind, const char *name)
{
    int fd = MUST(socket(AF_UNIX, kind, 0));
    struct sockaddr_un own = {.sun_family = AF_UNIX};
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int bytes = snprintf(own.sun_path + 1, sizeof own.sun_path - 1, "%s-%ld", name, now.tv_sec * 1000000000 + now.tv_nsec);
    MUST(bind(fd, (struct sockaddr *)&own, offsetof(struct sockaddr_un, sun_path) + 1 + bytes));
    MUST(connect(fd, (struct sockaddr *)&address, length));
    return fd;
}

/* The next one that is accepted is the other end of this one. */
static void accepts(int fd, int client)
{
    char buf[8];
    struct sockaddr_un own, peer;
    socklen_t own_len = sizeof own, peer_len = sizeof peer;
    int server = MUST(accept(fd, (struct sockaddr *)&peer, &peer_len));
    MUST(getsockname(client, (struct sockaddr *)&own, &own_len));
    CHECK(own_len == peer_len && !memcmp(&own, &peer, own_len), "the peer, expected the next client");
    CHECK_EQ("write", 3, write(client, "one", 3));
    CHECK_EQ("read", 3, read(server, buf, sizeof buf));
    CHECK_EQ("write", 2, write(server, "ok", 2));
    CHECK_EQ("read", 2, read(client, buf, sizeof buf));
    close(server);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    address.sun_family = AF_UNIX;
    snprintf(address.sun_path, sizeof address.sun_path, "%s", check_path("backlog"));
    length = sizeof address;
    int streams = listener(SOCK_STREAM, CLIENTS), stream[CLIENTS];
    for (int i = 0; i < CLIENTS; i++)
        stream[i] = client(SOCK_STREAM, (char[]){'s', '0' + i, 0});
    /* Fewer than wait there. */
    MUST(listen(streams, 1));
    address.sun_path[strlen(address.sun_path) - 1] = 'K';
    int packets = listener(SOCK_SEQPACKET, 5), packet = client(SOCK_SEQPACKET, "p");
    MUST(shutdown(packet, SHUT_WR));
    check_freeze_here();
    for (int i = 0; i < CLIENTS; i++)
        accepts(streams, stream[i]);
    char buf[8];
    int server = MUST(accept(packets, NULL, NULL));
    CHECK_EQ("end of what it sends", 0, read(server, buf, sizeof buf));
    CHECK_EQ("write", 2, write(server, "ok", 2));
    CHECK_EQ("read", 2, read(packet, buf, sizeof buf));
    MUST(fcntl(streams, F_SETFL, O_NONBLOCK));
    CHECK_EQ("one more", -1, accept(streams, NULL, NULL));
    /* Two of the last backlog, which is one, and no more. */
    for (int i = 0; i < 3; i++) {
        int next = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));
        address.sun_path[strlen(address.sun_path) - 1] = 'g';
        CHECK_EQ("connect", i < 2 ? 0 : -1, connect(next, (struct sockaddr *)&address, length));
    }
    return 0;
}
