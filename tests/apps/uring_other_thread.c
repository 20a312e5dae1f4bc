/* An io_uring for one thread alone (IORING_SETUP_SINGLE_ISSUER) that is not the main one. */
#include "uring.h"

static int made;

static void *other(void *arg)
{
    (void)arg;
    struct ring r = ring_make(8, IORING_SETUP_SINGLE_ISSUER, 0);
    ring_next(&r, IORING_OP_NOP, 1);
    ring_once(&r, 1, 0);
    __atomic_store_n(&made, 1, __ATOMIC_SEQ_CST);
    check_wait();
    ring_next(&r, IORING_OP_NOP, 2);
    ring_once(&r, 2, 0);
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    pthread_t thread = check_thread(other, NULL);
    while (!__atomic_load_n(&made, __ATOMIC_SEQ_CST))
        check_pause();
    check_freeze_here();
    MUST0(pthread_join(thread, NULL));
    return 0;
}
