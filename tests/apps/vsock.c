/* A socket between virtual machines (vsock) that listens. */
#include "check.h"
#include <sys/socket.h>
#include <linux/vm_sockets.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0)
        SKIP("vsock (CONFIG_VSOCKETS)");
    struct sockaddr_vm any = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = VMADDR_PORT_ANY};
    MUST(bind(fd, (struct sockaddr *)&any, sizeof any));
    MUST(listen(fd, 5));
    check_freeze_here();
    CHECK_EQ("accept", -1, accept(fd, NULL, NULL));
    CHECK_EQ("errno", EAGAIN, errno);
    return 0;
}
