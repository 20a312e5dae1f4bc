/* Pipes: data in flight, full, closed at one end, sized, nonblocking, packets. */
#include "check.h"
#include <sys/ioctl.h>

static void drain(const char *what, int fd, size_t expected, uint64_t seed)
{
    static char buf[2 << 20];
    size_t have = 0;
    ssize_t n;
    int queued;
    MUST(ioctl(fd, FIONREAD, &queued));
    CHECK_EQ(what, expected, queued);
    while (have < expected && (n = MUST(read(fd, buf + have, sizeof buf - have))) > 0)
        have += n;
    CHECK_EQ(what, expected, have);
    check_filled(what, buf, have, seed);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    static char data[1 << 20];
    int plain[2], full[2], no_writer[2], no_reader[2], sized[2], packets[2], empty[2], inherited[2];
    MUST(pipe2(plain, O_CLOEXEC));
    MUST(pipe2(full, O_NONBLOCK));
    MUST(pipe(no_writer));
    MUST(pipe(no_reader));
    MUST(pipe(sized));
    MUST(pipe2(packets, O_DIRECT));
    MUST(pipe(empty));
    MUST(pipe(inherited));
    check_fill(data, sizeof data, 1);
    CHECK_EQ("write", 3000, write(plain[1], data, 3000));
    ssize_t filled = 0, n;
    while ((n = write(full[1], data + filled, 4096)) > 0)
        filled += n;
    CHECK_EQ("errno of a full pipe", EAGAIN, errno);
    CHECK_EQ("write", 500, write(no_writer[1], data, 500));
    close(no_writer[1]);
    close(no_reader[0]);
    int size = MUST(fcntl(sized[1], F_SETPIPE_SZ, 1 << 20));
    CHECK_EQ("write", 200000, write(sized[1], data, 200000));
    CHECK_EQ("packet", 10, write(packets[1], "0123456789", 10));
    CHECK_EQ("packet", 3, write(packets[1], "abc", 3));
    signal(SIGPIPE, SIG_IGN);
    pid_t pid = CHECK_FORK({
        check_wait();
        CHECK_EQ("write", 1000, MUST(write(inherited[1], data, 1000)));
    });
    close(inherited[1]);
    check_freeze_here();
    drain("plain", plain[0], 3000, 1);
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(plain[0], F_GETFD));
    CHECK_EQ("write into a full pipe", -1, write(full[1], data, 4096));
    CHECK_EQ("errno", EAGAIN, errno);
    drain("full", full[0], filled, 1);
    CHECK_EQ("write into it when empty", 4096, write(full[1], data, 4096));
    drain("without writer", no_writer[0], 500, 1);
    CHECK_EQ("end of file", 0, read(no_writer[0], data, 1));
    CHECK_EQ("write without reader", -1, write(no_reader[1], "x", 1));
    CHECK_EQ("errno", EPIPE, errno);
    CHECK_EQ("pipe size", size, fcntl(sized[0], F_GETPIPE_SZ));
    drain("sized", sized[0], 200000, 1);
    char buf[64];
    CHECK_EQ("first packet", 10, read(packets[0], buf, sizeof buf));
    CHECK_EQ("second packet", 3, read(packets[0], buf, sizeof buf));
    CHECK_EQ("flags of an empty pipe", O_WRONLY, fcntl(empty[1], F_GETFL) & (O_ACCMODE | O_NONBLOCK));
    CHECK_EQ("write", 1, write(empty[1], "e", 1));
    CHECK_EQ("read", 1, read(empty[0], buf, sizeof buf));
    check_child_ok(pid);
    drain("from the child", inherited[0], 1000, 1);
    CHECK_EQ("end of file from the child", 0, read(inherited[0], buf, 1));
    return 0;
}
