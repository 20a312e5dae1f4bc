/* Restartable sequences stay registered, and the kernel keeps updating them. */
#include "check.h"
#include <sched.h>
#include <sys/rseq.h>

static struct rseq *area(void)
{
    return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

/* On every cpu that we may use the kernel has to write that cpu into our area. */
static void follows(void)
{
    cpu_set_t allowed, one;
    MUST(sched_getaffinity(0, sizeof allowed, &allowed));
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed))
            continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        MUST(sched_setaffinity(0, sizeof one, &one));
        sched_yield();
        CHECK_EQ("rseq cpu_id", cpu, *(volatile uint32_t *)&area()->cpu_id);
    }
    MUST(sched_setaffinity(0, sizeof allowed, &allowed));
}

static void *body(void *arg)
{
    struct rseq *mine = area();
    follows();
    __atomic_add_fetch((int *)arg, 1, __ATOMIC_SEQ_CST);
    check_wait();
    CHECK(mine == area(), "rseq area, expected %p, got %p", (void *)mine, (void *)area());
    follows();
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    if (__rseq_size == 0)
        SKIP("rseq registered by the C library");
    int started = 0;
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        threads[i] = check_thread(body, &started);
    while (__atomic_load_n(&started, __ATOMIC_SEQ_CST) < 4)
        check_pause();
    check_freeze_here();
    follows();
    for (int i = 0; i < 4; i++)
        MUST0(pthread_join(threads[i], NULL));
    /* Only the registered address, size and signature can be taken off (1: UNREGISTER). */
    CHECK_EQ("rseq unregister", 0, syscall(SYS_rseq, area(), 32, 1, RSEQ_SIG));
    CHECK_EQ("rseq unregister again", -1, syscall(SYS_rseq, area(), 32, 1, RSEQ_SIG));
    return 0;
}
