/* Unix connections that were accepted at a path, and listeners that had the same path one after the other. */
#include "check.h"
#include <sys/socket.h>
#include <sys/un.h>

static struct sockaddr_un address;

static int listener(void)
{
    int fd = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(bind(fd, (struct sockaddr *)&address, sizeof address));
    MUST(listen(fd, 7));
    return fd;
}

static void connects(int at, int ends[2])
{
    ends[0] = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(connect(ends[0], (struct sockaddr *)&address, sizeof address));
    ends[1] = MUST(accept(at, NULL, NULL));
}

static void speaks(int ends[2])
{
    char buf[8];
    for (int from = 0; from < 2; from++) {
        CHECK_EQ("send", 5, send(ends[from], "hello", 5, 0));
        CHECK_EQ("recv", 5, recv(ends[!from], buf, sizeof buf, 0));
    }
    struct sockaddr_un name = {0};
    socklen_t len = sizeof name;
    MUST(getsockname(ends[1], (struct sockaddr *)&name, &len));
    CHECK(!strcmp(name.sun_path, address.sun_path), "name, expected %s, got %s", address.sun_path, name.sun_path);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    address.sun_family = AF_UNIX;
    strcpy(address.sun_path, check_path("socket"));
    int first[2], second[2], third[2];
    int old = listener();
    connects(old, first);
    MUST(unlink(address.sun_path));
    int new = listener();
    connects(new, second);
    /* The old one under a higher number than the new one. */
    old = MUST(fcntl(old, F_DUPFD, 100));
    MUST(close(3));
    CHECK_EQ("send", 6, send(second[0], "queued", 6, 0));
    check_freeze_here();
    char buf[8];
    CHECK_EQ("queued", 6, recv(second[1], buf, sizeof buf, MSG_DONTWAIT));
    speaks(first);
    speaks(second);
    connects(new, third);
    speaks(third);
    MUST(fcntl(old, F_SETFL, O_NONBLOCK));
    CHECK(accept(old, NULL, NULL) < 0 && errno == EAGAIN, "accept at the old one, expected EAGAIN, got %s", strerror(errno));
    return 0;
}
