/* An established TCP connection whose two ends are inside the app. */
#include "check.h"
#include <netinet/in.h>
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
    check_freeze_here();
    char buf[8];
    CHECK_EQ("read", 5, MUST(read(server, buf, sizeof buf)));
    CHECK_EQ("write", 2, MUST(write(server, "ok", 2)));
    CHECK_EQ("read", 2, MUST(read(client, buf, sizeof buf)));
    return 0;
}
