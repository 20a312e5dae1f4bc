/*
 * Sessions, process groups and orphans. Each process remembers its own numbers
 * and compares; a shared page says which of them were right.
 *
 *   root -+- leader (setsid) -+- member of that session, group of its own
 *         |                   `- member of the leader's group
 *         +- group (own group in root's session)
 *         `- (ended) --- orphan, taken over by init
 */
#include "check.h"

enum { LEADER, MEMBER, GROUPED, GROUP, ORPHAN, ROLES };

static struct {
    volatile int set[ROLES], right[ROLES];
} *page;

/* The numbers must be as they were. */
static void keep(int role)
{
    pid_t pid = getpid(), ppid = getppid(), pgid = getpgrp(), sid = getsid(0);
    page->set[role] = 1;
    check_wait();
    CHECK_EQ("pid", pid, getpid());
    CHECK_EQ("parent", ppid, getppid());
    CHECK_EQ("process group", pgid, getpgrp());
    CHECK_EQ("session", sid, getsid(0));
    page->right[role] = 1;
}

static void leader(void)
{
    CHECK_EQ("setsid", getpid(), MUST(setsid()));
    pid_t member = CHECK_FORK({
        MUST(setpgid(0, 0));
        keep(MEMBER);
    });
    pid_t grouped = CHECK_FORK(keep(GROUPED));
    keep(LEADER);
    check_child_ok(member);
    check_child_ok(grouped);
}

static void orphan(void)
{
    pid_t parent = getppid();
    page->set[ORPHAN] = -1;
    while (getppid() == parent)
        check_pause();
    keep(ORPHAN);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    page = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pid_t first = CHECK_FORK(leader());
    pid_t second = CHECK_FORK({
        MUST(setpgid(0, 0));
        keep(GROUP);
    });
    check_child_ok(CHECK_FORK({
        CHECK_FORK(orphan());
        while (!page->set[ORPHAN])
            check_pause();
    }));
    for (int role = 0; role < ROLES; role++)
        while (page->set[role] != 1)
            check_pause();
    pid_t pgid = getpgrp(), sid = getsid(0);
    check_freeze_here();
    CHECK_EQ("process group of the root", pgid, getpgrp());
    CHECK_EQ("session of the root", sid, getsid(0));
    CHECK_EQ("session of the leader, seen from outside", first, MUST(getsid(first)));
    CHECK_EQ("group of the second child, seen from outside", second, MUST(getpgid(second)));
    check_child_ok(first);
    check_child_ok(second);
    int64_t deadline = check_now_ms() + 20000;
    while (!page->right[ORPHAN])
        CHECK(check_now_ms() < deadline, "orphan, expected to be right, got no word");
    for (int role = 0; role < ROLES; role++)
        CHECK_EQ("role", 1, page->right[role]);
    return 0;
}
