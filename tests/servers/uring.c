/* uring PORT [again]: answers whatever comes over a connection with "done", by io_uring alone: an accept
 * waits at all times, and a receive for each connection. With `again` it is one accept for all.
 */
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ENTRIES = 64, CONNECTIONS = 1024, ACCEPT = 1 << 30 };

static unsigned char *rings;
static struct io_uring_sqe *entries;
static struct io_uring_params p;
static unsigned tail, head, to_submit;
static char came[CONNECTIONS][64];

static unsigned *word(unsigned off)
{
    return (unsigned *)(rings + off);
}

static struct io_uring_sqe *next(int op, uint64_t data)
{
    unsigned at = tail++ & (p.sq_entries - 1);
    entries[at] = (struct io_uring_sqe){.opcode = op, .user_data = data};
    word(p.sq_off.array)[at] = at;
    __atomic_store_n(word(p.sq_off.tail), tail, __ATOMIC_RELEASE);
    to_submit++;
    return &entries[at];
}

static void receive(int fd)
{
    struct io_uring_sqe *e = next(IORING_OP_RECV, fd);
    e->fd = fd, e->addr = (uintptr_t)came[fd], e->len = sizeof came[fd];
}

int main(int argc, char **argv)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    at.sin_port = htons(argc > 1 ? atoi(argv[1]) : 0);
    int again = argc > 2 ? IORING_ACCEPT_MULTISHOT : 0, on = 1;
    int listener = socket(AF_INET, SOCK_STREAM, 0), ring = syscall(SYS_io_uring_setup, ENTRIES, &p);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (ring < 0 || bind(listener, (void *)&at, sizeof at) || listen(listener, 128)) {
        perror("uring");
        return 1;
    }
    size_t len = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    if (len < p.sq_off.array + ENTRIES * sizeof(unsigned))
        len = p.sq_off.array + ENTRIES * sizeof(unsigned);
    rings = mmap(0, len, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    entries = mmap(0, ENTRIES * sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    for (int accepts = 0;;) {
        if (!accepts) {
            struct io_uring_sqe *e = next(IORING_OP_ACCEPT, ACCEPT);
            e->fd = listener, e->ioprio = again, accepts = 1;
        }
        int taken = syscall(SYS_io_uring_enter, ring, to_submit, 1, IORING_ENTER_GETEVENTS, NULL, 0);
        to_submit -= taken > 0 ? taken : 0;
        while (head != __atomic_load_n(word(p.cq_off.tail), __ATOMIC_ACQUIRE) && tail - *word(p.sq_off.head) < ENTRIES) {
            struct io_uring_cqe *cqe = (struct io_uring_cqe *)(rings + p.cq_off.cqes) + (head & (p.cq_entries - 1));
            int fd = cqe->user_data, res = cqe->res;
            accepts = fd == ACCEPT && !(cqe->flags & IORING_CQE_F_MORE) ? 0 : accepts;
            __atomic_store_n(word(p.cq_off.head), ++head, __ATOMIC_RELEASE);
            if (fd == ACCEPT && (res < 0 || res >= CONNECTIONS))
                return fprintf(stderr, "accept: %s\n", strerror(-res)), 1;
            if (fd == ACCEPT)
                receive(res);
            else if (res <= 0)
                close(fd);
            else if (write(fd, "done\n", 5) == 5)
                receive(fd);
        }
    }
}
