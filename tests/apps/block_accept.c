/* Blocked in accept on a TCP listener. */
#include "check.h"
#include <netinet/in.h>
#include <sys/socket.h>

static struct sockaddr_in address = {.sin_family = AF_INET};
static socklen_t len = sizeof address;
static int client;

static void feed(void)
{
    client = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect(client, (struct sockaddr *)&address, len));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(bind(fd, (struct sockaddr *)&address, len));
    MUST(listen(fd, 3));
    MUST(getsockname(fd, (struct sockaddr *)&address, &len));
    struct sockaddr_in peer, named;
    socklen_t peer_len = sizeof peer, named_len = sizeof named;
    check_feed(SYS_accept, feed);
    /* accept takes its number before it blocks; the client gets the next one. */
    CHECK_BLOCKS(fd + 1, accept(fd, (struct sockaddr *)&peer, &peer_len));
    MUST(getsockname(client, (struct sockaddr *)&named, &named_len));
    CHECK_EQ("port of the peer", named.sin_port, peer.sin_port);
    return 0;
}
