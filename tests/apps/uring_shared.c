/* An io_uring that parent and child have, with its memory, and threads of the kernel that have
 * worked for it. */
#include "uring.h"
#include <sys/eventfd.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct ring r = ring_make(16, 0, 0);
    char buf[8];
    int zero = MUST(open("/dev/zero", O_RDONLY | O_CLOEXEC)), go = MUST(eventfd(0, 0));
    for (int n = 0; n < 20; n++) {
        struct io_uring_sqe *sqe = ring_next(&r, IORING_OP_READ, n);
        sqe->fd = zero, sqe->addr = (uintptr_t)buf, sqe->len = 8, sqe->flags = IOSQE_ASYNC;
        ring_once(&r, n, 8);
    }
    pid_t child = CHECK_FORK({
        CHECK_EQ("word of the parent", 8, MUST(read(go, buf, 8)));
        r.tail = ring_load(&r, r.p.sq_off.tail);
        r.head = ring_load(&r, r.p.cq_off.head);
        CHECK_EQ("entries so far", 21, r.tail);
        ring_next(&r, IORING_OP_NOP, 100);
        ring_once(&r, 100, 0);
    });
    check_freeze_here();
    ring_next(&r, IORING_OP_NOP, 99);
    ring_once(&r, 99, 0);
    CHECK_EQ("write", 8, MUST(write(go, &(uint64_t){ 1 }, 8)));
    check_child_ok(child);
    CHECK_EQ("entries by now", 22, ring_load(&r, r.p.sq_off.head));
    CHECK_EQ("completions by now", 22, ring_load(&r, r.p.cq_off.tail));
    return 0;
}
