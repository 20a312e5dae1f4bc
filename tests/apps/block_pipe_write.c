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
    /* Any stop may end a write that has begun early, with what was written
     * (pipe(7)); never with EINTR, and never with a byte lost. */
    size_t put = 0;
    while (put < TOTAL)
        put += MUST(write(fds[1], in + put, TOTAL - put));
    __atomic_store_n(&check_block.done, 1, __ATOMIC_SEQ_CST);
    MUST0(pthread_join(check_block.thread, NULL));
    check_filled("bytes through the pipe", out, TOTAL, 1);
    return 0;
}
