/* What one thread has forbidden itself (Landlock), and the others have not. */
#include "check.h"
#include <sys/prctl.h>

static int ruled;

static void *other(void *arg)
{
    uint64_t handled = 1 << 7;
    (void)arg;
    int rules = syscall(444, &handled, sizeof handled, 0);
    if (rules < 0)
        SKIP("Landlock");
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    MUST(syscall(446, rules, 0));
    MUST(close(rules));
    __atomic_store_n(&ruled, 1, __ATOMIC_SEQ_CST);
    check_wait();
    CHECK_EQ("mkdir", -1, mkdir(check_path("forbidden"), 0755));
    CHECK_EQ("errno", EACCES, errno);
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    pthread_t thread = check_thread(other, NULL);
    while (!__atomic_load_n(&ruled, __ATOMIC_SEQ_CST))
        check_pause();
    check_freeze_here();
    MUST0(pthread_join(thread, NULL));
    MUST(mkdir(check_path("allowed"), 0755));
    return 0;
}
