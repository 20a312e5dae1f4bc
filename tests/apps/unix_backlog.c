/* A connection that waits to be accepted, with data that nobody can read before. */
#include "check.h"
#include <sys/socket.h>
#include <sys/un.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", check_path("backlog"));
    int fd = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(bind(fd, (struct sockaddr *)&address, sizeof address));
    MUST(listen(fd, 3));
    MUST(connect(client, (struct sockaddr *)&address, sizeof address));
    CHECK_EQ("write", 5, MUST(write(client, "early", 5)));
    check_freeze_here();
    char buf[8];
    int server = MUST(accept(fd, NULL, NULL));
    CHECK_EQ("read", 5, MUST(read(server, buf, sizeof buf)));
    CHECK_EQ("write", 2, MUST(write(server, "ok", 2)));
    CHECK_EQ("read", 2, MUST(read(client, buf, sizeof buf)));
    return 0;
}
