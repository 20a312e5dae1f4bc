/* A thread with a deadline keeps it, and one that has asked for a slice has it. */
#include "check.h"

enum { DEADLINE = 6 };

struct attr {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

static int slice_kept, deadline_kept;

static struct attr look(void)
{
    struct attr attr = {0};
    MUST(syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0));
    return attr;
}

static void *body(void *kept)
{
    struct attr attr = {.size = sizeof attr};
    if (kept == &deadline_kept) {
        attr.policy = DEADLINE;
        attr.runtime = 1000000;
        attr.deadline = 10000000;
        attr.period = 20000000;
    } else {
        attr.nice = 3;
        attr.runtime = 7000000;
    }
    int set = syscall(SYS_sched_setattr, 0, &attr, 0) == 0;
    attr = look();
    __atomic_store_n((int *)kept, set ? 1 : -1, __ATOMIC_SEQ_CST);
    check_wait();
    struct attr now = look();
    CHECK_EQ("policy", attr.policy, now.policy);
    CHECK_EQ("nice", attr.nice, now.nice);
    CHECK_EQ("runtime", attr.runtime, now.runtime);
    CHECK_EQ("deadline", attr.deadline, now.deadline);
    CHECK_EQ("period", attr.period, now.period);
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int *all[] = {&slice_kept, &deadline_kept};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        threads[i] = check_thread(body, all[i]);
        while (!__atomic_load_n(all[i], __ATOMIC_SEQ_CST))
            check_pause();
    }
    if (slice_kept < 0 && deadline_kept < 0)
        SKIP("SCHED_DEADLINE or slices");
    check_freeze_here();
    for (int i = 0; i < 2; i++)
        MUST0(pthread_join(threads[i], NULL));
    return 0;
}
