/* A request of an io_uring that waits for a time, not for a file. */
#include "uring.h"
#include <linux/time_types.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct ring r = ring_make(8, 0, 0);
    struct __kernel_timespec soon = {.tv_sec = 5};
    struct io_uring_sqe *sqe = ring_next(&r, IORING_OP_TIMEOUT, 9);
    sqe->addr = (uintptr_t)&soon, sqe->len = 1;
    CHECK_EQ("submitted", 1, MUST(ring_enter(&r, 1, 0)));
    check_freeze_here();
    CHECK_EQ("wait", 0, MUST(ring_enter(&r, 0, 1)));
    ring_expect(&r, 9, -ETIME);
    return 0;
}
