/* A cgroup namespace of two processes: the app's cgroup is its root. */
#include "namespace.h"

/* Whether all cgroups of a process are the root, as this one sees them. */
static int is_at_root(pid_t pid)
{
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/%d/cgroup", pid);
    text[check_read_file(path, text, sizeof text - 1)] = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        if (strcmp(strchr(strchr(line, ':') + 1, ':'), ":/"))
            return 0;
    return 1;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct steps *steps = make_steps();
    int outer = is_at_root(getpid());
    pid_t pid = CHECK_FORK({
        if (unshare(CLONE_NEWCGROUP))
            SKIP("cgroup namespaces");
        pid_t shares = CHECK_FORK({
            step(steps, 1);
            check_wait();
            same_namespace("cgroup", getppid(), getpid());
            CHECK(is_at_root(getpid()), "cgroup, expected the root, got another");
        });
        check_wait();
        CHECK(is_at_root(getpid()), "cgroup, expected the root, got another");
        CHECK(is_at_root(getppid()), "cgroup of the parent, expected the root, got another");
        check_child_ok(shares);
        stay(steps);
    });
    await_step(steps, 1);
    check_freeze_here();
    other_namespace("cgroup", pid, getpid());
    CHECK_EQ("at the root, seen from outside", outer, is_at_root(getpid()));
    CHECK_EQ("at the root, seen from outside", outer, is_at_root(pid));
    let_go(steps);
    check_child_ok(pid);
    return 0;
}
