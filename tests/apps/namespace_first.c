/* The app's first process has left the app's namespaces; one that it made before is in them. */
#include "namespace.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct steps *steps = make_steps();
    struct utsname outer;
    MUST(uname(&outer));
    pid_t pid = CHECK_FORK({
        check_wait();
        struct utsname names;
        MUST(uname(&names));
        CHECK(!strcmp(names.nodename, outer.nodename), "host name, expected %s, got %s", outer.nodename,
              names.nodename);
        MUST(sethostname("outside", 7));
        step(steps, 1);
        await_step(steps, 2);
        MUST(uname(&names));
        CHECK(!strcmp(names.nodename, "outside"), "host name, expected outside, got %s", names.nodename);
    });
    if (unshare(CLONE_NEWUTS | CLONE_NEWCGROUP))
        SKIP("UTS and cgroup namespaces");
    MUST(sethostname("first", 5));
    check_freeze_here();
    other_namespace("uts", pid, getpid());
    other_namespace("cgroup", pid, getpid());
    await_step(steps, 1);
    struct utsname names;
    MUST(uname(&names));
    CHECK(!strcmp(names.nodename, "first"), "host name, expected first, got %s", names.nodename);
    MUST(sethostname("second", 6));
    step(steps, 2);
    check_child_ok(pid);
    return 0;
}
