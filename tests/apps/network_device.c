/* A device and an address that an app has made in a network of its own. */
#include "check.h"
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct ifreq request = {0};
    int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    struct sockaddr_in *address = (void *)&request.ifr_addr;
    strcpy(request.ifr_name, "lo:1");
    address->sin_family = AF_INET;
    address->sin_addr.s_addr = htonl(0x0a4d0001);
    if (ioctl(fd, SIOCSIFADDR, &request))
        SKIP("a network of its own (%s)", strerror(errno));
    MUST(close(fd));
    check_freeze_here();
    int bound = MUST(socket(AF_INET, SOCK_STREAM, 0));
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x0a4d0001)};
    MUST(bind(bound, (void *)&at, sizeof at));
    return 0;
}
