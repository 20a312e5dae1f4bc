/* A file that is registered with an io_uring and open nowhere else. */
#include "uring.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct ring r = ring_make(8, 0, 0);
    int zero = MUST(open("/dev/zero", O_RDONLY | O_CLOEXEC));
    MUST(syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_FILES, &zero, 1));
    MUST(close(zero));
    check_freeze_here();
    char byte = 1;
    struct io_uring_sqe *sqe = ring_next(&r, IORING_OP_READ, 1);
    sqe->fd = 0, sqe->flags = IOSQE_FIXED_FILE, sqe->addr = (uintptr_t)&byte, sqe->len = 1;
    ring_once(&r, 1, 1);
    CHECK_EQ("byte", 0, byte);
    return 0;
}
