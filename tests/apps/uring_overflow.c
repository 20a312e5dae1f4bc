/* Completions of an io_uring that found no room, and wait for it. */
#include "uring.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct ring r = ring_make(4, 0, 0);
    for (int n = 0; n < 12; n++) {
        ring_next(&r, IORING_OP_NOP, n);
        CHECK_EQ("submitted", 1, MUST(ring_enter(&r, 1, 0)));
    }
    check_freeze_here();
    for (int n = 0; n < 12; n++) {
        if (!ring_peek(&r))
            MUST(ring_enter(&r, 0, 1));
        ring_expect(&r, n, 0);
    }
    return 0;
}
