/* The parent-death signal is kept, and comes when the parent dies after restore. */
#include "check.h"
#include <sys/prctl.h>

static volatile int *told;

static void grandchild(void)
{
    sigset_t set;
    int sig = 0;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    MUST(sigprocmask(SIG_BLOCK, &set, NULL));
    MUST(prctl(PR_SET_PDEATHSIG, SIGUSR2));
    told[0] = 1;
    check_wait();
    MUST(prctl(PR_GET_PDEATHSIG, &sig));
    CHECK_EQ("parent-death signal", SIGUSR2, sig);
    told[1] = 1;
    struct timespec patience = {20, 0};
    CHECK_EQ("signal", SIGUSR2, sigtimedwait(&set, NULL, &patience));
    told[2] = 1;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    told = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pid_t child = CHECK_FORK({
        CHECK_FORK(grandchild());
        while (!told[1])
            check_pause();
    });
    while (!told[0])
        check_pause();
    check_freeze_here();
    check_child_ok(child);
    int64_t deadline = check_now_ms() + 20000;
    while (!told[2])
        CHECK(check_now_ms() < deadline, "parent-death signal, expected, got none");
    return 0;
}
