/*
 * Forks and reaps without pause: the freeze has to hold a tree that moves.
 * Every child increments a shared count and exits 3; none may be lost, doubled
 * or reaped twice.
 */
#include "check.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    volatile long *count = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    long started = 0, reaped = 0;
    char local[4096];
    check_fill(local, sizeof local, 1);
    check_ready();
    while (!check_go() || started < 100) {
        pid_t pids[3];
        for (int i = 0; i < 3; i++, started++)
            pids[i] = CHECK_FORK({
                check_filled("memory of a fresh child", local, sizeof local, 1);
                __atomic_add_fetch(count, 1, __ATOMIC_SEQ_CST);
                _exit(3);
            });
        for (int i = 0; i < 3; i++, reaped++) {
            int status;
            CHECK_EQ("waitpid", pids[i], MUST(waitpid(pids[i], &status, 0)));
            CHECK_EQ("wait status", 3 << 8, status);
        }
    }
    CHECK_EQ("children reaped", started, reaped);
    CHECK_EQ("children that ran", started, *count);
    CHECK_EQ("children left", -1, waitpid(-1, NULL, WNOHANG));
    return 0;
}
