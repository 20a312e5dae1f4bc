/* A child in a namespace of its own, and back to its parent. */
#ifndef NAMESPACE_H
#define NAMESPACE_H

#include "check.h"
#include <sched.h>

/* The namespace of this process; nothing as long as it has none. */
static const char *namespace_of(const char *name)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/ns/%s", name);
    return check_link(path);
}

static int own_namespace(int argc, char **argv, int flag, const char *name)
{
    int ready[2];
    char byte;
    check_start(argc, argv);
    MUST(pipe(ready));
    pid_t pid = MUST(fork());
    if (pid == 0) {
        char before[64], own[64];
        strcpy(before, namespace_of(name));
        if (unshare(flag))
            SKIP("a namespace of this kind (%s)", name);
        strcpy(own, namespace_of(name));
        CHECK(strcmp(before, own), "namespace, expected another, got %s", own);
        CHECK_EQ("write", 1, MUST(write(ready[1], "x", 1)));
        check_wait();
        CHECK(!strcmp(own, namespace_of(name)), "namespace, expected %s, got %s", own, namespace_of(name));
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
