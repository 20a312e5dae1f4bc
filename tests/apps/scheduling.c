/* Policy, nice, affinity, I/O priority and timer slack of each thread. */
#include "check.h"
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>

enum { IOPRIO_BEST_EFFORT_7 = 2 << 13 | 7, IOPRIO_IDLE = 3 << 13 };

struct wish {
    int policy, nice, ioprio, priority;
    long slack;
};

static const struct wish wishes[] = {
    {SCHED_OTHER, 5, IOPRIO_BEST_EFFORT_7, 0, 77000},
    {SCHED_BATCH, 11, IOPRIO_IDLE, 0, 123456},
    {SCHED_IDLE, 0, 0, 0, 50000},
};

static int cpu;

static void set(const struct wish *w)
{
    struct sched_param param = {.sched_priority = w->priority};
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    MUST(syscall(SYS_sched_setscheduler, 0, w->policy, &param));
    MUST(syscall(SYS_setpriority, PRIO_PROCESS, 0, w->nice));
    if (w->ioprio)
        MUST(syscall(SYS_ioprio_set, 1, 0, w->ioprio));
    MUST(prctl(PR_SET_TIMERSLACK, w->slack));
    MUST(sched_setaffinity(0, sizeof one, &one));
}

static void verify(const struct wish *w)
{
    cpu_set_t one, now;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    CHECK_EQ("policy", w->policy, MUST(sched_getscheduler(0)));
    errno = 0;
    CHECK_EQ("nice", w->nice, getpriority(PRIO_PROCESS, 0));
    if (w->ioprio)
        CHECK_EQ("I/O priority", w->ioprio, MUST(syscall(SYS_ioprio_get, 1, 0)));
    CHECK_EQ("timer slack", w->slack, prctl(PR_GET_TIMERSLACK));
    MUST(sched_getaffinity(0, sizeof now, &now));
    CHECK(CPU_EQUAL(&one, &now), "affinity, expected cpu %d alone, got %d cpus", cpu, CPU_COUNT(&now));
}

static void *body(void *arg)
{
    const struct wish *w = *(const struct wish **)arg;
    set(w);
    __atomic_store_n((const struct wish **)arg, NULL, __ATOMIC_SEQ_CST);
    check_wait();
    verify(w);
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    cpu_set_t all;
    MUST(sched_getaffinity(0, sizeof all, &all));
    while (!CPU_ISSET(cpu, &all))
        cpu++;
    const struct wish *mine[3] = {&wishes[0], &wishes[1], &wishes[2]};
    pthread_t threads[3];
    for (int i = 1; i < 3; i++) {
        threads[i] = check_thread(body, &mine[i]);
        while (__atomic_load_n(&mine[i], __ATOMIC_SEQ_CST))
            check_pause();
    }
    set(&wishes[0]);
    check_freeze_here();
    verify(&wishes[0]);
    for (int i = 1; i < 3; i++)
        MUST0(pthread_join(threads[i], NULL));
    return 0;
}
