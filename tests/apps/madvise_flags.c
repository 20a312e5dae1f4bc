/* Marks on mappings: not forked, wiped on fork, not dumped, locked, mergeable. */
#include "check.h"

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif
#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 8 /* Linux 6.11 */
#endif

enum { LEN = 65536 };

/* The VmFlags of the mapping that starts here. */
static void flags_of(const void *at, char *to)
{
    static char text[1 << 20];
    ssize_t n = check_read_file("/proc/self/smaps", text, sizeof text - 1);
    text[n] = 0;
    char head[32];
    snprintf(head, sizeof head, "%lx-", (unsigned long)at);
    char *entry = text;
    if (strncmp(text, head, strlen(head))) {
        char line[40];
        snprintf(line, sizeof line, "\n%s", head);
        entry = strstr(text, line);
    }
    CHECK(entry, "mapping %s, expected in smaps, got none", head);
    char *flags = strstr(entry, "VmFlags:");
    CHECK(flags, "VmFlags, expected, got none");
    snprintf(to, 200, "%.*s ", (int)strcspn(flags, "\n"), flags);
}

static char *area(int advice)
{
    /* A page on either side keeps neighbours from merging. */
    char *map = MUST(mmap(NULL, LEN + 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    MUST(mprotect(map + 4096, LEN, PROT_READ | PROT_WRITE));
    check_fill(map + 4096, LEN, advice);
    MUST(madvise(map + 4096, LEN, advice));
    return map + 4096;
}

static void has(const void *at, const char *flag)
{
    char flags[256], word[8];
    flags_of(at, flags);
    snprintf(word, sizeof word, " %s ", flag);
    CHECK(strstr(flags, word), "VmFlags, expected %s, got %s", flag, flags);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char *unforked = area(MADV_DONTFORK), *wiped = area(MADV_WIPEONFORK);
    char *undumped = area(MADV_DONTDUMP), *huge = area(MADV_HUGEPAGE);
    char *small = area(MADV_NOHUGEPAGE), *random = area(MADV_RANDOM);
    char *locked = area(MADV_NORMAL);
    MUST(mlock(locked, LEN));
    char *droppable = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_DROPPABLE, -1, 0);
    if (droppable != MAP_FAILED)
        memset(droppable, 1, LEN);
    check_freeze_here();
    has(unforked, "dc");
    has(wiped, "wf");
    has(undumped, "dd");
    has(huge, "hg");
    has(small, "nh");
    has(random, "rr");
    has(locked, "lo");
    if (droppable != MAP_FAILED) {
        has(droppable, "dp");
        memset(droppable, 2, LEN);
    }
    check_filled("wipe-on-fork memory", wiped, LEN, MADV_WIPEONFORK);
    check_filled("not-dumped memory", undumped, LEN, MADV_DONTDUMP);
    check_filled("not-forked memory", unforked, LEN, MADV_DONTFORK);
    check_filled("locked memory", locked, LEN, MADV_NORMAL);
    pid_t pid = CHECK_FORK({
        check_zero("wiped on fork", wiped, LEN);
        unsigned char present;
        CHECK_EQ("mincore of memory that is not forked", -1, mincore(unforked, 4096, &present));
    });
    check_child_ok(pid);
    return 0;
}
