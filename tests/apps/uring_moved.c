/* A buffer that is registered with an io_uring, whose memory has become another since. */
#include "uring.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct ring r = ring_make(8, 0, 0);
    char *memory = MUST(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    struct iovec buffer = {memory, 8192};
    check_fill(memory, 8192, 1);
    MUST(syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_BUFFERS, &buffer, 1));
    /* The ring has the old pages. */
    MUST(madvise(memory + 4096, 4096, MADV_DONTNEED));
    check_fill(memory + 4096, 4096, 2);
    check_freeze_here();
    int pipes[2];
    static char got[4096];
    MUST(pipe(pipes));
    struct io_uring_sqe *sqe = ring_next(&r, IORING_OP_WRITE_FIXED, 1);
    sqe->fd = pipes[1], sqe->addr = (uintptr_t)memory + 4096, sqe->len = 4096, sqe->off = -1;
    ring_once(&r, 1, 4096);
    CHECK_EQ("read", 4096, MUST(read(pipes[0], got, sizeof got)));
    for (int i = 0; i < 4096; i++)
        CHECK_EQ("byte of the old page", check_byte(1, 4096 + i), (unsigned char)got[i]);
    return 0;
}
