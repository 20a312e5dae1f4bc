/* A socket with an address of a network of its own whose loopback device is down by now. */
#include "namespace.h"
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    if (unshare(CLONE_NEWNET))
        SKIP("network namespaces");
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    struct sockaddr_in at = {AF_INET, htons(4711), {htonl(INADDR_LOOPBACK)}, ""};
    int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    MUST(ioctl(fd, SIOCSIFFLAGS, &lo));
    MUST(bind(fd, (void *)&at, sizeof at));
    lo.ifr_flags = 0;
    MUST(ioctl(fd, SIOCSIFFLAGS, &lo));
    check_freeze_here();
    return 0;
}
