/* Two processes that have changed their IPC namespaces for each other's, each with a segment attached that has
 * the same id. */
#include "namespace.h"
#include <sys/shm.h>

static char *attached(char byte)
{
    int id = MUST(shmget(IPC_PRIVATE, 4096, 0600));
    char *memory = MUST(shmat(id, NULL, 0));
    memory[0] = byte;
    return memory;
}

static void go(int fd)
{
    MUST(setns(fd, CLONE_NEWIPC));
    MUST(close(fd));
}

static int of(pid_t pid)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/ipc", pid);
    return MUST(open(path, O_RDONLY | O_CLOEXEC));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct steps *steps = make_steps();
    int home = of(getpid());
    pid_t pid = CHECK_FORK({
        if (unshare(CLONE_NEWIPC))
            SKIP("IPC namespaces");
        char *memory = attached(2);
        step(steps, 1);
        await_step(steps, 2);
        go(home);
        step(steps, 3);
        check_wait();
        CHECK_EQ("byte of the child's", 2, memory[0]);
    });
    await_step(steps, 1);
    char *memory = attached(1);
    int nested = of(pid);
    step(steps, 2);
    await_step(steps, 3);
    go(nested);
    MUST(close(home));
    check_freeze_here();
    CHECK_EQ("byte of the parent's", 1, memory[0]);
    check_child_ok(pid);
    return 0;
}
