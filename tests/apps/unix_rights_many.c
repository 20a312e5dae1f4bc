/* Descriptors on their way through streams, datagrams and packets: files of many kinds, some
 * of them nowhere else, some shared; each comes with the byte it was sent with. */
#include "check.h"
#include <sys/eventfd.h>
#include <sys/socket.h>

static void give(int socket, const char *data, size_t bytes, const int *fds, int count)
{
    union {
        char bytes[CMSG_SPACE(8 * sizeof(int))];
        struct cmsghdr head;
    } control = {0};
    struct iovec io = {(void *)data, bytes};
    struct msghdr message = {.msg_iov = &io, .msg_iovlen = 1};
    if (count) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(head), fds, count * sizeof(int));
    }
    CHECK_EQ("sendmsg", bytes, MUST(sendmsg(socket, &message, 0)));
}

/* Exactly these bytes, and so many descriptors with them. */
static void take(int socket, const char *data, size_t bytes, size_t room, int *fds, int count)
{
    union {
        char bytes[CMSG_SPACE(8 * sizeof(int))];
        struct cmsghdr head;
    } control = {0};
    char got[64];
    struct iovec io = {got, room};
    struct msghdr message = {NULL, 0, &io, 1, &control, sizeof control, 0};
    CHECK_EQ("recvmsg", bytes, MUST(recvmsg(socket, &message, MSG_DONTWAIT)));
    CHECK(!memcmp(data, got, bytes), "data, expected %s, got %.*s", data, (int)bytes, got);
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    int came = head && head->cmsg_type == SCM_RIGHTS ? (int)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int)) : 0;
    CHECK_EQ("descriptors", count, came);
    if (count)
        memcpy(fds, CMSG_DATA(head), count * sizeof(int));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int stream[2], packets[2], datagrams[2], inner[2], p[2], fds[8];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, stream));
    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets));
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, inner));
    MUST(pipe(p));
    int count = MUST(eventfd(5, EFD_SEMAPHORE)), memory = MUST(memfd_create("flight", 0));
    int file = MUST(open(check_path("file"), O_CREAT | O_RDWR | O_APPEND, 0600));
    CHECK_EQ("write", 8, write(file, "contents", 8));
    MUST(lseek(file, 3, SEEK_SET));
    CHECK_EQ("write", 4, write(memory, "mem!", 4));
    CHECK_EQ("write", 4, write(p[1], "pipe", 4));

    /* In a stream, between bytes that come without. */
    give(stream[0], "abc", 3, NULL, 0);
    give(stream[0], "de", 2, (int[]){file, count}, 2);
    give(stream[0], "fg", 2, NULL, 0);
    give(stream[0], "h", 1, (int[]){count, p[0], memory}, 3);
    /* An empty datagram, and another. */
    give(datagrams[0], "", 0, (int[]){p[1]}, 1);
    give(datagrams[0], "x", 1, (int[]){p[1]}, 1);
    /* A socket with a descriptor in it, whose sender is gone. */
    give(inner[0], "deep", 4, (int[]){memory, inner[1]}, 2);
    give(packets[0], "nest", 4, (int[]){inner[1]}, 1);
    give(packets[0], "none", 4, NULL, 0);
    close(file);
    close(memory);
    close(p[0]);
    close(p[1]);
    close(inner[0]);
    close(inner[1]);
    check_freeze_here();
    char buf[16];
    uint64_t value;
    take(stream[1], "ab", 2, 2, fds, 0);
    take(stream[1], "c", 1, 1, fds, 0);
    take(stream[1], "de", 2, 16, fds, 2);
    CHECK_EQ("offset", 3, lseek(fds[0], 0, SEEK_CUR));
    CHECK_EQ("O_APPEND", O_APPEND, fcntl(fds[0], F_GETFL) & O_APPEND);
    CHECK_EQ("read", 5, read(fds[0], buf, sizeof buf));
    CHECK(!memcmp(buf, "tents", 5), "the file, expected tents, got %.5s", buf);
    CHECK_EQ("read", 8, read(fds[1], &value, 8));
    take(stream[1], "fgh", 3, 16, fds + 2, 3);
    CHECK_EQ("read", 8, read(fds[2], &value, 8));
    /* All are one eventfd: three of five are left. */
    CHECK_EQ("read", 8, read(count, &value, 8));
    CHECK_EQ("semaphore", 1, value);
    CHECK_EQ("nonblocking", 0, fcntl(count, F_SETFL, O_NONBLOCK));
    CHECK_EQ("O_NONBLOCK of the other", O_NONBLOCK, fcntl(fds[1], F_GETFL) & O_NONBLOCK);
    CHECK_EQ("read", 8, read(count, &value, 8));
    CHECK_EQ("read", 8, read(count, &value, 8));
    CHECK_EQ("one more", -1, read(count, &value, 8));
    CHECK_EQ("read of the pipe", 4, read(fds[3], buf, sizeof buf));
    CHECK_EQ("pread", 4, pread(fds[4], buf, 4, 0));
    CHECK(!memcmp(buf, "mem!", 4), "memfd, expected mem!, got %.4s", buf);
    int write_end[2], nested, deep[2];
    take(datagrams[1], "", 0, 16, &write_end[0], 1);
    take(datagrams[1], "x", 1, 16, &write_end[1], 1);
    CHECK_EQ("write", 3, write(write_end[0], "two", 3));
    CHECK_EQ("read of the pipe", 3, read(fds[3], buf, sizeof buf));
    close(write_end[0]);
    close(write_end[1]);
    CHECK_EQ("end of the pipe", 0, read(fds[3], buf, sizeof buf));
    take(packets[1], "nest", 4, 16, &nested, 1);
    take(packets[1], "none", 4, 16, NULL, 0);
    take(nested, "deep", 4, 16, deep, 2);
    CHECK_EQ("offset that is shared", 4, lseek(deep[0], 0, SEEK_CUR));
    MUST(lseek(deep[0], 1, SEEK_SET));
    CHECK_EQ("offset of the other", 1, lseek(fds[4], 0, SEEK_CUR));
    struct stat a, b;
    MUST(fstat(nested, &a));
    MUST(fstat(deep[1], &b));
    CHECK_EQ("the socket in its own queue", a.st_ino, b.st_ino);
    CHECK_EQ("its end", 0, recv(nested, buf, sizeof buf, 0));
    return 0;
}
