/* What prctl(2), membarrier(2) and set_mempolicy(2) have set: of the process, and of each thread. */
#include "check.h"
#include <sys/prctl.h>

enum { SET_IO_FLUSHER = 57, GET_IO_FLUSHER, SET_MDWE = 65, GET_MDWE, SET_MERGE, GET_MERGE };
enum { SPECULATION_GET = 52, SPECULATION_SET };
enum { BARRIER_EXPEDITED = 1 << 3, BARRIER_REGISTER = 1 << 4, BARRIER_SYNC_CORE_REGISTER = 1 << 6, BARRIERS = 1 << 9 };
enum { BIND = 2, PREFERRED = 1 };

static int ready, go;

static long barrier(int command)
{
    return syscall(SYS_membarrier, command, 0, 0);
}

static int policy(unsigned long *nodes)
{
    int mode = -1;
    unsigned long all[16] = {0};
    if (syscall(SYS_get_mempolicy, &mode, all, 1024, NULL, 0) != 0)
        return -errno;
    *nodes = all[0];
    return mode;
}

struct kept {
    int machine_check, io_flusher, speculation[2], tsc, policy;
    unsigned long nodes;
};

static struct kept look(void)
{
    struct kept kept;
    memset(&kept, 0, sizeof kept);
    kept.machine_check = prctl(PR_MCE_KILL_GET, 0, 0, 0, 0);
    kept.io_flusher = prctl(GET_IO_FLUSHER, 0, 0, 0, 0);
    for (int which = 0; which < 2; which++)
        kept.speculation[which] = prctl(SPECULATION_GET, which, 0, 0, 0);
    MUST(prctl(PR_GET_TSC, &kept.tsc));
    kept.policy = policy(&kept.nodes);
    return kept;
}

static void same(const char *who, struct kept was, struct kept is)
{
    CHECK_EQ(who, was.machine_check, is.machine_check);
    CHECK_EQ("PR_GET_IO_FLUSHER", was.io_flusher, is.io_flusher);
    CHECK_EQ("speculation of stores", was.speculation[0], is.speculation[0]);
    CHECK_EQ("speculation of branches", was.speculation[1], is.speculation[1]);
    CHECK_EQ("PR_GET_TSC", was.tsc, is.tsc);
    CHECK_EQ("memory policy", was.policy, is.policy);
    CHECK_EQ("nodes", was.nodes, is.nodes);
}

/* Its settings are its own, and the other way round than the main thread's. */
static void *other(void *arg)
{
    (void)arg;
    unsigned long node = 1;
    syscall(SYS_set_mempolicy, PREFERRED, &node, 64);
    MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0));
    prctl(SPECULATION_SET, 1, PR_SPEC_FORCE_DISABLE, 0, 0);
    MUST(prctl(PR_SET_TSC, PR_TSC_SIGSEGV));
    struct kept kept = look();
    __atomic_store_n(&ready, 1, __ATOMIC_SEQ_CST);
    while (!__atomic_load_n(&go, __ATOMIC_SEQ_CST))
        /* No clock here: it would read the TSC. */
        syscall(SYS_sched_yield);
    same("PR_MCE_KILL_GET of the other", kept, look());
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    pthread_t thread = check_thread(other, NULL);
    while (!__atomic_load_n(&ready, __ATOMIC_SEQ_CST))
        check_pause();
    unsigned long node = 1;
    syscall(SYS_set_mempolicy, BIND, &node, 64);
    MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
    prctl(SET_IO_FLUSHER, 1, 0, 0, 0);
    prctl(SPECULATION_SET, 0, PR_SPEC_DISABLE, 0, 0);
    MUST(barrier(BARRIER_REGISTER));
    long core = barrier(BARRIER_SYNC_CORE_REGISTER), registered = barrier(BARRIERS);
    int merge = prctl(SET_MERGE, 1, 0, 0, 0) == 0, deny = prctl(SET_MDWE, 1, 0, 0, 0) == 0;
    struct kept kept = look();
    check_freeze_here();
    same("PR_MCE_KILL_GET", kept, look());
    MUST(barrier(BARRIER_EXPEDITED));
    CHECK_EQ("membarrier, registered for", registered, barrier(BARRIERS));
    if (core == 0)
        MUST(barrier(1 << 5));
    if (merge)
        CHECK_EQ("PR_GET_MEMORY_MERGE", 1, prctl(GET_MERGE, 0, 0, 0, 0));
    if (deny) {
        CHECK_EQ("PR_GET_MDWE", 1, prctl(GET_MDWE, 0, 0, 0, 0));
        void *got = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(got == MAP_FAILED && errno == EACCES, "memory to write and execute, expected EACCES, got %s", strerror(errno));
    }
    __atomic_store_n(&go, 1, __ATOMIC_SEQ_CST);
    MUST0(pthread_join(thread, NULL));
    return 0;
}
