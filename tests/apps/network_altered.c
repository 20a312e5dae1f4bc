/* A network beside the app's own of which the loopback device has another MTU. */
#include "namespace.h"
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static int mtu(int value)
{
    struct ifreq lo = {.ifr_name = "lo"};
    int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    if (value) {
        lo.ifr_mtu = value;
        MUST(ioctl(fd, SIOCSIFMTU, &lo));
    }
    MUST(ioctl(fd, SIOCGIFMTU, &lo));
    MUST(close(fd));
    return lo.ifr_mtu;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct steps *steps = make_steps();
    pid_t pid = CHECK_FORK({
        if (unshare(CLONE_NEWNET))
            SKIP("network namespaces");
        mtu(1400);
        step(steps, 1);
        check_wait();
        CHECK_EQ("MTU", 1400, mtu(0));
    });
    await_step(steps, 1);
    check_freeze_here();
    check_child_ok(pid);
    return 0;
}
