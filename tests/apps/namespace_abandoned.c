/* An attached segment of an IPC namespace in which nobody is any more, beside one of the app's own with the same id. */
#include "namespace.h"
#include <sys/shm.h>

static char *attached(char byte)
{
    int id = MUST(shmget(IPC_PRIVATE, 4096, 0600));
    char *memory = MUST(shmat(id, NULL, 0));
    memory[0] = byte;
    return memory;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char *own = attached(1);
    int home = MUST(open("/proc/self/ns/ipc", O_RDONLY | O_CLOEXEC));
    if (unshare(CLONE_NEWIPC))
        SKIP("IPC namespaces");
    char *nested = attached(2);
    MUST(setns(home, CLONE_NEWIPC));
    MUST(close(home));
    check_freeze_here();
    CHECK_EQ("byte of its own segment", 1, own[0]);
    CHECK_EQ("byte of the other one", 2, nested[0]);
    return 0;
}
