/* netlink messages that were not yet read: only the kernel can send them. */
#include "check.h"
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int fd = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
    struct {
        struct nlmsghdr head;
        struct ifinfomsg body;
    } request = {{sizeof request, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 17, 0}, {.ifi_family = AF_UNSPEC}};
    CHECK_EQ("send", sizeof request, MUST(send(fd, &request, sizeof request, 0)));
    check_freeze_here();
    static char answer[1 << 16];
    ssize_t got = MUST(recv(fd, answer, sizeof answer, MSG_DONTWAIT));
    CHECK(got > (ssize_t)sizeof(struct nlmsghdr), "a list of links, expected, got %zd bytes", got);
    CHECK_EQ("sequence number", 17, ((struct nlmsghdr *)answer)->nlmsg_seq);
    return 0;
}
