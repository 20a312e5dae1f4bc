/* A process that has left an IPC namespace, and still has a segment of it attached. */
#include "namespace.h"
#include <sys/shm.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct steps *steps = make_steps();
    int id = MUST(shmget(IPC_PRIVATE, 4096, 0600));
    char *memory = MUST(shmat(id, NULL, 0));
    memory[0] = 7;
    pid_t pid = CHECK_FORK({
        if (unshare(CLONE_NEWIPC))
            SKIP("IPC namespaces");
        step(steps, 1);
        check_wait();
        CHECK_EQ("shared byte", 7, memory[0]);
    });
    await_step(steps, 1);
    check_freeze_here();
    check_child_ok(pid);
    MUST(shmctl(id, IPC_RMID, NULL));
    return 0;
}
