/* Host names beside the app's own: one that two processes share, and one below it. */
#include "namespace.h"

static void named(const char *host, const char *domain)
{
    struct utsname names;
    MUST(uname(&names));
    CHECK(!strcmp(names.nodename, host), "host name, expected %s, got %s", host, names.nodename);
    CHECK(!strcmp(names.domainname, domain), "domain name, expected %s, got %s", domain, names.domainname);
}

/* In the same as its parent. */
static void partner(struct steps *steps)
{
    named("inner", "inside");
    step(steps, 1);
    check_wait();
    same_namespace("uts", getppid(), getpid());
    named("inner", "inside");
    MUST(sethostname("changed", 7));
    step(steps, 3);
    await_step(steps, 4);
}

/* In one that began as its parent's. */
static void below(struct steps *steps)
{
    if (unshare(CLONE_NEWUTS))
        SKIP("UTS namespaces");
    other_namespace("uts", getppid(), getpid());
    MUST(sethostname("third", 5));
    /* As long as a name may be. */
    char longest[65];
    memset(longest, 'x', 64);
    longest[64] = 0;
    MUST(setdomainname(longest, 64));
    step(steps, 2);
    check_wait();
    await_step(steps, 4);
    other_namespace("uts", getppid(), getpid());
    named("third", longest);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct steps *steps = make_steps();
    struct utsname outer;
    MUST(uname(&outer));
    pid_t pid = CHECK_FORK({
        if (unshare(CLONE_NEWUTS))
            SKIP("UTS namespaces");
        MUST(sethostname("inner", 5));
        MUST(setdomainname("inside", 6));
        pid_t shares = CHECK_FORK(partner(steps));
        await_step(steps, 1);
        pid_t other = CHECK_FORK(below(steps));
        check_wait();
        same_namespace("uts", shares, getpid());
        other_namespace("uts", other, getpid());
        await_step(steps, 3);
        named("changed", "inside");
        step(steps, 4);
        check_child_ok(other);
        check_child_ok(shares);
        stay(steps);
    });
    await_step(steps, 2);
    check_freeze_here();
    other_namespace("uts", pid, getpid());
    await_step(steps, 3);
    named(outer.nodename, outer.domainname);
    let_go(steps);
    check_child_ok(pid);
    return 0;
}
