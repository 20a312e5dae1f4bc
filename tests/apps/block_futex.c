/* Blocked in a futex wait without a time-out. */
#include "check.h"
#include <linux/futex.h>

static uint32_t word = 7;

static void feed(void)
{
    __atomic_store_n(&word, 8, __ATOMIC_SEQ_CST);
    CHECK_EQ("woken threads", 1, syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    check_feed(SYS_futex, feed);
    CHECK_BLOCKS(0, syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 7, NULL));
    return 0;
}
