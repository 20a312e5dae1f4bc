/* A child in a namespace of its own, and back to its parent. */
#ifndef NAMESPACE_H
#define NAMESPACE_H

#include "check.h"
#include <sched.h>
#include <sys/utsname.h>

/* The namespace of a process; nothing as long as it has none. */
CHECK_UNUSED static const char *namespace_of(const char *name, pid_t pid)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/%s", pid, name);
    return check_link(path);
}

/* Inodes are others after a restore: what is told by one process is held against another now. */
CHECK_UNUSED static void same_namespace(const char *name, pid_t one, pid_t other)
{
    char expected[64];
    strcpy(expected, namespace_of(name, one));
    const char *got = namespace_of(name, other);
    CHECK(!strcmp(expected, got), "%s namespace of %d and %d, expected the same, got %s and %s", name, one, other,
          expected, got);
}

CHECK_UNUSED static void other_namespace(const char *name, pid_t one, pid_t other)
{
    char expected[64];
    strcpy(expected, namespace_of(name, one));
    const char *got = namespace_of(name, other);
    CHECK(*expected && *got, "%s namespace of %d and %d, expected two, got an end", name, one, other);
    CHECK(strcmp(expected, got), "%s namespace of %d and %d, expected two, got %s", name, one, other, got);
}

/* Processes that wait for each other, in memory that they share. */
struct steps {
    int done, left;
};

CHECK_UNUSED static struct steps *make_steps(void)
{
    return MUST(mmap(NULL, sizeof(struct steps), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
}

CHECK_UNUSED static void step(struct steps *steps, int number)
{
    __atomic_store_n(&steps->done, number, __ATOMIC_SEQ_CST);
}

CHECK_UNUSED static void await_step(struct steps *steps, int number)
{
    while (__atomic_load_n(&steps->done, __ATOMIC_SEQ_CST) < number)
        check_pause();
}

/* Who is looked at stays until whoever looks lets it go. */
CHECK_UNUSED static void let_go(struct steps *steps)
{
    __atomic_store_n(&steps->left, 1, __ATOMIC_SEQ_CST);
}

CHECK_UNUSED static void stay(struct steps *steps)
{
    while (!__atomic_load_n(&steps->left, __ATOMIC_SEQ_CST))
        check_pause();
}

CHECK_UNUSED static int own_namespace(int argc, char **argv, int flag, const char *name)
{
    int ready[2];
    char byte;
    check_start(argc, argv);
    MUST(pipe(ready));
    pid_t pid = MUST(fork());
    if (pid == 0) {
        char before[64], own[64];
        strcpy(before, namespace_of(name, getpid()));
        if (unshare(flag))
            SKIP("a namespace of this kind (%s)", name);
        strcpy(own, namespace_of(name, getpid()));
        CHECK(strcmp(before, own), "namespace, expected another, got %s", own);
        CHECK_EQ("write", 1, MUST(write(ready[1], "x", 1)));
        check_wait();
        CHECK(!strcmp(own, namespace_of(name, getpid())), "namespace, expected %s, got %s", own, namespace_of(name, getpid()));
        _exit(0);
    }
    MUST(close(ready[1]));
    if (read(ready[0], &byte, 1) != 1)
        SKIP("a namespace of this kind (%s)", name);
    check_freeze_here();
    check_child_ok(pid);
    return 0;
}

#endif
