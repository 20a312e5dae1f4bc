/* Processes made by clone(CLONE_FILES | CLONE_FS) share one table and one cwd. */
#include "check.h"
#include <sched.h>

static volatile int *step;
static char stack[65536] __attribute__((aligned(16)));

static int child(void *arg)
{
    int fd = (int)(intptr_t)arg;
    while (!*step)
        check_pause();
    /* Not CHECK: this runs on a small stack of its own, in the parent's table. */
    if (fcntl(fd, F_GETFD) >= 0)
        return 2; /* the parent closed it */
    umask(0123);
    return dup2(1, 99) == 99 ? 0 : 3;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    step = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    int fd = MUST(dup(1));
    pid_t pid = MUST(clone(child, stack + sizeof stack, CLONE_FILES | CLONE_FS | SIGCHLD, (void *)(intptr_t)fd));
    check_freeze_here();
    MUST(close(fd));
    *step = 1;
    check_child_ok(pid);
    MUST(fcntl(99, F_GETFD));
    CHECK_EQ("umask set by the child", 0123, umask(0));
    return 0;
}
