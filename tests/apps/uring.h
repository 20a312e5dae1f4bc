/* io_uring without its library: rings, submitting, completions. */
#ifndef URING_H
#define URING_H

#include "check.h"
#include <linux/io_uring.h>
#include <sys/eventfd.h>
#include <sys/uio.h>

#ifndef IORING_SETUP_NO_SQARRAY
#define IORING_SETUP_NO_SQARRAY (1U << 16)
#endif

struct ring {
    int fd;
    struct io_uring_params p;
    unsigned char *rings, *more;
    size_t rings_len;
    struct io_uring_sqe *sqes;
    /* As the library does: what was handed out is counted here. */
    unsigned tail, head;
};

#define RING_WORD(ring, off) ((unsigned *)((ring)->rings + (off)))

CHECK_UNUSED static struct ring ring_make(unsigned entries, unsigned flags, unsigned cq)
{
    struct ring r = {.p = {.flags = flags | (cq ? IORING_SETUP_CQSIZE : 0), .cq_entries = cq}};
    r.fd = syscall(SYS_io_uring_setup, entries, &r.p);
    if (r.fd < 0 && (errno == EPERM || errno == ENOSYS))
        SKIP("io_uring (sysctl kernel.io_uring_disabled=0)");
    CHECK(r.fd >= 0, "io_uring_setup with %#x, expected a ring, got %s", flags, strerror(errno));
    size_t cqe = flags & IORING_SETUP_CQE32 ? 32 : 16, sqe = flags & IORING_SETUP_SQE128 ? 128 : 64;
    size_t sq = r.p.sq_off.array + r.p.sq_entries * sizeof(unsigned);
    r.rings_len = r.p.cq_off.cqes + r.p.cq_entries * cqe;
    if (sq > r.rings_len)
        r.rings_len = sq;
    r.rings = MUST(mmap(NULL, r.rings_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r.fd,
                        IORING_OFF_SQ_RING));
    /* The same memory once more, as programs of old kernels have it. */
    r.more = MUST(mmap(NULL, r.rings_len, PROT_READ | PROT_WRITE, MAP_SHARED, r.fd, IORING_OFF_CQ_RING));
    r.sqes = MUST(mmap(NULL, r.p.sq_entries * sqe, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r.fd,
                       IORING_OFF_SQES));
    return r;
}

CHECK_UNUSED static unsigned ring_load(struct ring *r, unsigned off)
{
    return __atomic_load_n(RING_WORD(r, off), __ATOMIC_ACQUIRE);
}

/* The next entry, ready to be filled. */
CHECK_UNUSED static struct io_uring_sqe *ring_next(struct ring *r, int op, uint64_t data)
{
    unsigned at = r->tail & (r->p.sq_entries - 1);
    size_t wide = r->p.flags & IORING_SETUP_SQE128 ? 2 : 1;
    struct io_uring_sqe *sqe = &r->sqes[at * wide];
    memset(sqe, 0, sizeof *sqe * wide);
    sqe->opcode = op;
    sqe->user_data = data;
    if (!(r->p.flags & IORING_SETUP_NO_SQARRAY))
        RING_WORD(r, r->p.sq_off.array)[at] = at;
    r->tail++;
    __atomic_store_n(RING_WORD(r, r->p.sq_off.tail), r->tail, __ATOMIC_RELEASE);
    return sqe;
}

CHECK_UNUSED static int ring_enter(struct ring *r, unsigned submit, unsigned wait)
{
    return syscall(SYS_io_uring_enter, r->fd, submit, wait, wait ? IORING_ENTER_GETEVENTS : 0, NULL, 0);
}

CHECK_UNUSED static struct io_uring_cqe *ring_peek(struct ring *r)
{
    size_t wide = r->p.flags & IORING_SETUP_CQE32 ? 2 : 1;
    if (r->head == ring_load(r, r->p.cq_off.tail))
        return NULL;
    return (struct io_uring_cqe *)(r->rings + r->p.cq_off.cqes) + (r->head & (r->p.cq_entries - 1)) * wide;
}

CHECK_UNUSED static void ring_seen(struct ring *r)
{
    r->head++;
    __atomic_store_n(RING_WORD(r, r->p.cq_off.head), r->head, __ATOMIC_RELEASE);
}

/* The next completion is this one. */
CHECK_UNUSED static void ring_expect(struct ring *r, uint64_t data, int res)
{
    struct io_uring_cqe *cqe = ring_peek(r);
    CHECK(cqe, "completion %#llx, expected, got none", (long long)data);
    CHECK_EQ("user data", data, cqe->user_data);
    CHECK_EQ("result", res, cqe->res);
    ring_seen(r);
}

/* One request through the ring and back. */
CHECK_UNUSED static void ring_once(struct ring *r, uint64_t data, int res)
{
    CHECK_EQ("io_uring_enter", 1, MUST(ring_enter(r, 1, 1)));
    ring_expect(r, data, res);
}

#endif
