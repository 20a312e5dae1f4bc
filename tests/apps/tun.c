/* The app's end of a network device (tun) */
#include "check.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        SKIP("/dev/net/tun");
    check_freeze_here();
    char byte;
    /* Without a device it has nothing. */
    CHECK_EQ("read", -1, read(fd, &byte, 1));
    CHECK_EQ("errno", EBADFD, errno);
    return 0;
}
