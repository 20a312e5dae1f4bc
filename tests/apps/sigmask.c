/* The mask of blocked signals of each thread. */
#include "check.h"

static const uint64_t masks[] = {0x00000000fffffa05ull & ~0x40100ull, 0xf000000012345000ull & ~0x40100ull, 0};

static void set(int i)
{
    MUST(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &masks[i], NULL, 8));
}

static void verify(int i)
{
    uint64_t now;
    MUST(syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, &now, 8));
    CHECK_EQ("mask", masks[i], now);
}

static void *body(void *arg)
{
    int i = *(int *)arg;
    set(i);
    __atomic_store_n((int *)arg, -1, __ATOMIC_SEQ_CST);
    check_wait();
    verify(i);
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int arg[3] = {0, 1, 2};
    pthread_t threads[3];
    for (int i = 1; i < 3; i++) {
        threads[i] = check_thread(body, &arg[i]);
        while (__atomic_load_n(&arg[i], __ATOMIC_SEQ_CST) != -1)
            check_pause();
    }
    set(0);
    check_freeze_here();
    verify(0);
    for (int i = 1; i < 3; i++)
        MUST0(pthread_join(threads[i], NULL));
    return 0;
}
