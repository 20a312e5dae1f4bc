/* An io_uring with a ring of buffers that requests take from (IORING_REGISTER_PBUF_RING) */
#include "uring.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct ring r = ring_make(8, 0, 0);
    char *memory = MUST(mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    struct io_uring_buf_reg provided = {.ring_addr = (uintptr_t)memory, .ring_entries = 4, .bgid = 7};
    if (syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_PBUF_RING, &provided, 1))
        SKIP("rings of buffers (Linux 5.19)");
    struct io_uring_buf_ring *buffers = (struct io_uring_buf_ring *)memory;
    buffers->bufs[0] = (struct io_uring_buf){.addr = (uintptr_t)memory + 4096, .len = 64, .bid = 3};
    __atomic_store_n(&buffers->tail, 1, __ATOMIC_RELEASE);
    check_freeze_here();
    int zero = MUST(open("/dev/zero", O_RDONLY | O_CLOEXEC));
    struct io_uring_sqe *sqe = ring_next(&r, IORING_OP_READ, 1);
    sqe->fd = zero, sqe->len = 64, sqe->flags = IOSQE_BUFFER_SELECT, sqe->buf_group = 7;
    CHECK_EQ("io_uring_enter", 1, MUST(ring_enter(&r, 1, 1)));
    CHECK_EQ("buffer", 3, ring_peek(&r)->flags >> IORING_CQE_BUFFER_SHIFT);
    return 0;
}
