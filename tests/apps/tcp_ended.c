/* A TCP connection that its peer has reset, still open: neither fresh nor bound. */
#include "check.h"
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0)), client = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(bind(fd, (struct sockaddr *)&address, len));
    MUST(listen(fd, 3));
    MUST(getsockname(fd, (struct sockaddr *)&address, &len));
    MUST(connect(client, (struct sockaddr *)&address, len));
    int server = MUST(accept(fd, NULL, NULL));
    CHECK_EQ("write", 5, MUST(write(client, "early", 5)));
    char buf[8];
    CHECK_EQ("read", 5, MUST(read(server, buf, sizeof buf)));
    struct linger reset = {.l_onoff = 1};
    MUST(setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof reset));
    MUST(close(client));
    CHECK_EQ("read", -1, read(server, buf, sizeof buf));
    CHECK_EQ("errno", ECONNRESET, errno);
    check_freeze_here();
    CHECK_EQ("read of what has ended", 0, read(server, buf, sizeof buf));
    struct pollfd ended = {.fd = server, .events = POLLRDHUP};
    CHECK_EQ("poll", 1, poll(&ended, 1, 0));
    CHECK(ended.revents & POLLRDHUP, "POLLRDHUP, expected, got %x", ended.revents);
    return 0;
}
