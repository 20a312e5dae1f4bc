/* Blocked in nanosleep: it lasts for the time that was left, no shorter and no longer. */
#include "check.h"

static int64_t start;
static int done;

static void *waiter(void *arg)
{
    (void)arg;
    while (!check_sits_in(getpid(), SYS_nanosleep) || check_now_ms() < start + 1000)
        check_pause();
    check_freeze_here();
    CHECK(done || check_now_ms() < start + 3700, "nanosleep, expected to end after 3000 ms");
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    start = check_now_ms();
    pthread_t thread = check_thread(waiter, NULL);
    /* The kernel writes `left` also where a stop interrupts unseen: not checked. */
    struct timespec t = {3, 0}, left;
    CHECK_EQ("nanosleep", 0, syscall(SYS_nanosleep, &t, &left));
    done = 1;
    int64_t took = check_now_ms() - start;
    CHECK(took >= 2990 && took < 3700, "nanosleep of 3000 ms, got %lld", (long long)took);
    MUST0(pthread_join(thread, NULL));
    return 0;
}
