/* Mounts of its own, of which a child has a copy: a file system in memory is in both. */
#include "namespace.h"
#include <sys/mount.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct steps *steps = make_steps();
    char private[512];
    strcpy(private, check_path("private"));
    MUST(mkdir(private, 0700));
    pid_t pid = CHECK_FORK({
        if (unshare(CLONE_NEWNS))
            SKIP("mount namespaces");
        MUST(mount("mine", private, "tmpfs", 0, NULL));
        pid_t below = CHECK_FORK({
            MUST(unshare(CLONE_NEWNS));
            step(steps, 1);
            check_wait();
        });
        check_wait();
        check_child_ok(below);
    });
    await_step(steps, 1);
    check_freeze_here();
    check_child_ok(pid);
    return 0;
}
