/* Open namespaces: the app's own, and one beside, which whoever has it enters by it. */
#include "namespace.h"

static const char *const names[] = {"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"};
enum { NAMES = sizeof names / sizeof *names };

static int opened(pid_t pid, const char *name)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/%s", pid, name);
    return open(path, O_RDONLY);
}

static void leads_to(int fd, pid_t pid, const char *name)
{
    char path[64];
    struct stat expected, got;
    snprintf(path, sizeof path, "/proc/%d/ns/%s", pid, name);
    MUST(stat(path, &expected));
    MUST(fstat(fd, &got));
    CHECK_EQ(name, expected.st_ino, got.st_ino);
    CHECK_EQ("device", expected.st_dev, got.st_dev);
}

static void is_named(const char *expected)
{
    struct utsname got;
    MUST(uname(&got));
    CHECK(!strcmp(got.nodename, expected), "host name, expected %s, got %s", expected, got.nodename);
}

int main(int argc, char **argv)
{
    int own[NAMES];
    check_start(argc, argv);
    struct steps *steps = make_steps();
    struct utsname outer;
    MUST(uname(&outer));
    for (int at = 0; at < NAMES; at++)
        own[at] = MUST(opened(getpid(), names[at]));
    pid_t pid = CHECK_FORK({
        if (unshare(CLONE_NEWUTS | CLONE_NEWNET))
            SKIP("UTS and network namespaces");
        MUST(sethostname("inner", 5));
        step(steps, 1);
        check_wait();
        is_named("inner");
        MUST(setns(own[NAMES - 1], CLONE_NEWUTS));
        is_named(outer.nodename);
        step(steps, 2);
        stay(steps);
    });
    await_step(steps, 1);
    int uts = MUST(opened(pid, "uts"));
    int net = MUST(opened(pid, "net"));
    int again = MUST(dup(uts));
    check_freeze_here();
    for (int at = 0; at < NAMES; at++)
        leads_to(own[at], getpid(), names[at]);
    leads_to(net, pid, "net");
    await_step(steps, 2);
    check_child_ok(CHECK_FORK({
        MUST(setns(again, 0));
        is_named("inner");
        MUST(sethostname("entered", 7));
        leads_to(uts, getpid(), "uts");
        MUST(setns(net, CLONE_NEWNET));
        leads_to(net, getpid(), "net");
        same_namespace("net", pid, getpid());
    }));
    is_named(outer.nodename);
    check_child_ok(CHECK_FORK({
        MUST(setns(uts, CLONE_NEWUTS));
        is_named("entered");
    }));
    let_go(steps);
    check_child_ok(pid);
    return 0;
}
