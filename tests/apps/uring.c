/* io_uring at rest: rings of many forms, counters, completions that were not taken yet, entries
 * that were not submitted yet. */
#include "uring.h"

enum { RINGS = 8 };

static const struct {
    unsigned entries, flags, cq, used;
} FORMS[RINGS] = {
    {8, 0, 0, 0},
    {8, 0, 0, 1003},
    {64, IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG, 512, 77},
    {4, IORING_SETUP_SQE128, 0, 9},
    {16, IORING_SETUP_CQE32, 0, 40},
    {16, IORING_SETUP_SINGLE_ISSUER, 0, 333},
    {256, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, 0, 300},
    {8, IORING_SETUP_R_DISABLED, 0, 0},
};

int main(int argc, char **argv)
{
    check_start(argc, argv);
    static struct ring rings[RINGS];
    for (int i = 0; i < RINGS; i++) {
        struct ring *r = &rings[i];
        *r = ring_make(FORMS[i].entries, FORMS[i].flags, FORMS[i].cq);
        for (unsigned n = 0; n < FORMS[i].used; n++) {
            ring_next(r, IORING_OP_NOP, n);
            ring_once(r, n, 0);
        }
        if (FORMS[i].flags & IORING_SETUP_R_DISABLED)
            continue;
        /* Two that nobody has taken, one that is not submitted. */
        ring_next(r, IORING_OP_NOP, 0xabc0 + i);
        ring_next(r, IORING_OP_NOP, 0xdef0 + i)->flags = IOSQE_FIXED_FILE;
        CHECK_EQ("submitted", 2, MUST(ring_enter(r, 2, 0)));
        ring_next(r, IORING_OP_NOP, 0x7770 + i);
    }
    check_freeze_here();
    for (int i = 0; i < RINGS; i++) {
        struct ring *r = &rings[i];
        if (FORMS[i].flags & IORING_SETUP_R_DISABLED) {
            CHECK_EQ("enter while disabled", -1, ring_enter(r, 0, 0));
            CHECK_EQ("errno", EBADFD, errno);
            MUST(syscall(SYS_io_uring_register, r->fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0));
            ring_next(r, IORING_OP_NOP, 1);
            ring_once(r, 1, 0);
            continue;
        }
        CHECK_EQ("submission head", FORMS[i].used + 2, ring_load(r, r->p.sq_off.head));
        CHECK_EQ("completion tail", FORMS[i].used + 2, ring_load(r, r->p.cq_off.tail));
        CHECK(!memcmp(r->rings, r->more, r->rings_len), "second mapping, expected the same, got another");
        CHECK_EQ("size", FORMS[i].entries, ring_load(r, r->p.sq_off.ring_entries));
        ring_expect(r, 0xabc0 + i, 0);
        ring_expect(r, 0xdef0 + i, ring_peek(r)->res);
        CHECK(!ring_peek(r), "completions, expected no more, got one");
        ring_once(r, 0x7770 + i, 0);
        /* Round and round. */
        for (unsigned n = 0; n < 3 * FORMS[i].entries; n++) {
            ring_next(r, IORING_OP_NOP, n);
            ring_once(r, n, 0);
        }
    }
    return 0;
}
