/* Blocked in nanosleep: it lasts for the time that was left, no shorter and no longer. */
#include "check.h"

static int64_t start;

static void *waiter(void *arg)
{
    (void)arg;
    while (check_now_ms() < start + (check_sits_in(getpid(), SYS_nanosleep) ? 1000 : 3000))
        check_pause();
    check_freeze_here();
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    start = check_now_ms();
    check_watch(start + 3000);
    pthread_t thread = check_thread(waiter, NULL);
    /* The kernel writes `left` also where a stop interrupts unseen: not checked. */
    struct timespec t = {3, 0}, left;
    CHECK_EQ("nanosleep", 0, syscall(SYS_nanosleep, &t, &left));
    check_due("nanosleep of 3000 ms", 0, check_now_ms());
    MUST0(pthread_join(thread, NULL));
    return 0;
}
