/* Blocked in io_uring_enter until a completion comes from another ring */
#include "uring.h"

static struct ring waits, tells;

static void feed(void)
{
    struct io_uring_sqe *sqe = ring_next(&tells, IORING_OP_MSG_RING, 1);
    sqe->fd = waits.fd, sqe->off = 4711, sqe->len = 12;
    ring_once(&tells, 1, 0);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    waits = ring_make(8, 0, 0), tells = ring_make(8, 0, 0);
    check_feed(SYS_io_uring_enter, feed);
    CHECK_BLOCKS(0, ring_enter(&waits, 0, 1));
    ring_expect(&waits, 4711, 12);
    return 0;
}
