/* A fifo with data, opened by name at both ends, and one opened for both. */
#include "check.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char buf[200];
    MUST(mkfifo(check_path("fifo"), 0600));
    MUST(mkfifo(check_path("both"), 0600));
    int r = MUST(open(check_path("fifo"), O_RDONLY | O_NONBLOCK));
    int w = MUST(open(check_path("fifo"), O_WRONLY | O_CLOEXEC));
    int both = MUST(open(check_path("both"), O_RDWR));
    check_fill(buf, 100, 3);
    CHECK_EQ("write", 100, write(w, buf, 100));
    CHECK_EQ("write", 50, write(both, buf, 50));
    check_freeze_here();
    memset(buf, 0, sizeof buf);
    CHECK_EQ("read", 100, read(r, buf, sizeof buf));
    check_filled("fifo", buf, 100, 3);
    CHECK_EQ("second read", -1, read(r, buf, 1));
    CHECK_EQ("errno", EAGAIN, errno);
    CHECK_EQ("read", 50, read(both, buf, sizeof buf));
    check_filled("fifo opened for both", buf, 50, 3);
    /* It is still the fifo of that name. */
    int again = MUST(open(check_path("fifo"), O_WRONLY | O_NONBLOCK));
    CHECK_EQ("write by name", 2, write(again, "hi", 2));
    CHECK_EQ("read what came by name", 2, read(r, buf, sizeof buf));
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(w, F_GETFD));
    close(again);
    close(w);
    /* Who restores others at the same time may have been forked with this end a moment ago. */
    ssize_t got = read(r, buf, 1);
    for (int tries = 0; got == -1 && errno == EAGAIN && tries < 1000; tries++) {
        usleep(1000);
        got = read(r, buf, 1);
    }
    CHECK_EQ("end of file", 0, got);
    return 0;
}
