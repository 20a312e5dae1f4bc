/* An io_uring for which a thread of the kernel submits (IORING_SETUP_SQPOLL) */
#include "uring.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct ring r = ring_make(8, IORING_SETUP_SQPOLL, 0);
    ring_next(&r, IORING_OP_NOP, 1);
    CHECK_EQ("wait", 0, MUST(syscall(SYS_io_uring_enter, r.fd, 0, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_SQ_WAKEUP, NULL, 0)));
    ring_expect(&r, 1, 0);
    check_freeze_here();
    ring_next(&r, IORING_OP_NOP, 2);
    CHECK_EQ("wait", 0, MUST(syscall(SYS_io_uring_enter, r.fd, 0, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_SQ_WAKEUP, NULL, 0)));
    ring_expect(&r, 2, 0);
    return 0;
}
