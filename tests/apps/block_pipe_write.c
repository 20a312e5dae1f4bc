/* Blocked in a write to a full pipe, of which a part has been taken: no byte is lost or doubled. */
#include "check.h"

enum { TOTAL = 300000 };

static int fds[2];
static char in[TOTAL], out[TOTAL];

static void feed(void)
{
    size_t have = 0;
    while (have < TOTAL)
        have += MUST(read(fds[0], out + have, TOTAL - have));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    MUST(pipe(fds));
    check_fill(in, TOTAL, 1);
    check_feed(SYS_write, feed);
    CHECK_BLOCKS(TOTAL, write(fds[1], in, TOTAL));
    check_filled("bytes through the pipe", out, TOTAL, 1);
    return 0;
}
