/* A descriptor that is on its way in a unix socket (SCM_RIGHTS). */
#include "check.h"
#include <sys/socket.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int s[2], p[2];
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr head;
    } control = {0};
    char c = 'r';
    struct iovec data = {&c, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    MUST(pipe(p));
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(head), &p[1], sizeof(int));
    CHECK_EQ("sendmsg", 1, MUST(sendmsg(s[0], &message, 0)));
    close(p[1]);
    check_freeze_here();
    message.msg_controllen = sizeof control;
    CHECK_EQ("recvmsg", 1, MUST(recvmsg(s[1], &message, 0)));
    head = CMSG_FIRSTHDR(&message);
    CHECK(head && head->cmsg_type == SCM_RIGHTS, "control message, expected a descriptor, got none");
    int fd;
    memcpy(&fd, CMSG_DATA(head), sizeof fd);
    CHECK_EQ("write to the received descriptor", 2, MUST(write(fd, "ok", 2)));
    char buf[4];
    CHECK_EQ("read at the other end", 2, MUST(read(p[0], buf, 4)));
    return 0;
}
