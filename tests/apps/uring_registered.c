/* What is registered with an io_uring: files with holes, buffers, an eventfd, the ring
 * itself; and they work. */
#include "uring.h"

enum { BYTES = 3 * 4096 + 100 };

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct ring r = ring_make(32, 0, 0), single = ring_make(8, IORING_SETUP_SINGLE_ISSUER, 0);
    int pipes[2], event = MUST(eventfd(5, EFD_NONBLOCK)), quiet = MUST(eventfd(0, EFD_NONBLOCK));
    MUST(pipe(pipes));
    int files[4] = {-1, pipes[0], -1, pipes[1]};
    MUST(syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_FILES, files, 4));
    char *memory = MUST(mmap(NULL, 16 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    check_fill(memory, BYTES, 7);
    struct iovec buffers[3] = {{memory + 10, BYTES - 10}, {NULL, 0}, {memory + 8 * 4096, 4096}};
    MUST(syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_BUFFERS, buffers, 3));
    MUST(syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_EVENTFD, &event, 1));
    MUST(syscall(SYS_io_uring_register, single.fd, IORING_REGISTER_EVENTFD, &quiet, 1));
    struct io_uring_rsrc_update own = {.offset = 3, .data = r.fd};
    CHECK_EQ("ring of its own", 1, MUST(syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_RING_FDS, &own, 1)));
    for (int n = 0; n < 50; n++) {
        ring_next(&r, IORING_OP_NOP, n);
        ring_once(&r, n, 0);
        ring_next(&single, IORING_OP_NOP, n);
        ring_once(&single, n, 0);
    }
    check_freeze_here();
    uint64_t count;
    CHECK_EQ("read of the eventfd", 8, MUST(read(event, &count, 8)));
    CHECK_EQ("completions that it was told of", 55, count);
    CHECK_EQ("read of the other", 8, MUST(read(quiet, &count, 8)));
    CHECK_EQ("completions that it was told of", 50, count);
    /* Through the registered pipe, from the first buffer into the last. */
    struct io_uring_sqe *sqe = ring_next(&r, IORING_OP_WRITE_FIXED, 1);
    sqe->fd = 3, sqe->flags = IOSQE_FIXED_FILE, sqe->buf_index = 0;
    sqe->addr = (uintptr_t)memory + 10, sqe->len = 4000, sqe->off = -1;
    ring_once(&r, 1, 4000);
    sqe = ring_next(&r, IORING_OP_READ_FIXED, 2);
    sqe->fd = 1, sqe->flags = IOSQE_FIXED_FILE, sqe->buf_index = 2;
    sqe->addr = (uintptr_t)memory + 8 * 4096 + 10, sqe->len = 4000, sqe->off = -1;
    ring_once(&r, 2, 4000);
    CHECK(!memcmp(memory + 10, memory + 8 * 4096 + 10, 4000), "bytes, expected those that were written, got others");
    check_filled("the buffer", memory, BYTES, 7);
    sqe = ring_next(&r, IORING_OP_READ_FIXED, 3);
    sqe->fd = 0, sqe->flags = IOSQE_FIXED_FILE, sqe->buf_index = 2, sqe->addr = (uintptr_t)memory + 8 * 4096, sqe->len = 1;
    ring_once(&r, 3, -EBADF);
    CHECK_EQ("read of the eventfd", 8, MUST(read(event, &count, 8)));
    CHECK_EQ("completions that it was told of", 3, count);
    /* By the number that it has among the thread's rings. */
    ring_next(&r, IORING_OP_NOP, 4);
    CHECK_EQ("submitted", 1, MUST(syscall(SYS_io_uring_enter, 3, 1, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_REGISTERED_RING, NULL, 0)));
    ring_expect(&r, 4, 0);
    ring_next(&single, IORING_OP_NOP, 5);
    ring_once(&single, 5, 0);
    CHECK_EQ("read of the other", 8, MUST(read(quiet, &count, 8)));
    CHECK_EQ("completions that it was told of", 1, count);
    return 0;
}
