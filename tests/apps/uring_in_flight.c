/* A request of an io_uring that waits and cannot be made again: a read to pieces of memory that the
 * kernel alone knows by now. */
#include "uring.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct ring r = ring_make(8, 0, 0);
    int pipes[2];
    char byte = 'x', got = 0;
    MUST(pipe(pipes));
    struct iovec *piece = malloc(sizeof *piece);
    *piece = (struct iovec){&got, 1};
    struct io_uring_sqe *sqe = ring_next(&r, IORING_OP_READV, 9);
    sqe->fd = pipes[0], sqe->addr = (uintptr_t)piece, sqe->len = 1, sqe->off = -1;
    CHECK_EQ("submitted", 1, MUST(ring_enter(&r, 1, 0)));
    free(piece);
    check_freeze_here();
    CHECK_EQ("write", 1, MUST(write(pipes[1], &byte, 1)));
    CHECK_EQ("wait", 0, MUST(ring_enter(&r, 0, 1)));
    ring_expect(&r, 9, 1);
    CHECK_EQ("byte", byte, got);
    return 0;
}
