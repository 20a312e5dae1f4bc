/* A request of an io_uring that waits for what comes: a read of an empty pipe. */
#include "uring.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct ring r = ring_make(8, 0, 0);
    int pipes[2];
    char byte = 'x', got = 0;
    MUST(pipe(pipes));
    struct io_uring_sqe *sqe = ring_next(&r, IORING_OP_READ, 9);
    sqe->fd = pipes[0], sqe->addr = (uintptr_t)&got, sqe->len = 1, sqe->off = -1;
    CHECK_EQ("submitted", 1, MUST(ring_enter(&r, 1, 0)));
    check_freeze_here();
    CHECK_EQ("write", 1, MUST(write(pipes[1], &byte, 1)));
    CHECK_EQ("wait", 0, MUST(ring_enter(&r, 0, 1)));
    ring_expect(&r, 9, 1);
    CHECK_EQ("byte", byte, got);
    return 0;
}
