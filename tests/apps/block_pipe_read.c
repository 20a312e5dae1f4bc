/* Blocked in a read of an empty pipe. */
#include "check.h"

static int fds[2];

static void feed(void)
{
    CHECK_EQ("write", 5, write(fds[1], "hello", 5));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char buf[16];
    MUST(pipe(fds));
    check_feed(SYS_read, feed);
    CHECK_BLOCKS(5, read(fds[0], buf, sizeof buf));
    CHECK(!memcmp(buf, "hello", 5), "data, expected hello");
    return 0;
}
