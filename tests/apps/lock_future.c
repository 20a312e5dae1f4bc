/* mlockall(MCL_FUTURE): what is mapped later is locked, and there at once. */
#include "check.h"

#ifndef LOCKED
#define LOCKED MCL_FUTURE
#endif

enum { PAGES = 8, PAGE = 4096 };

/* How many pages of new memory are there at once; -1: it is not locked. */
static int maps(void)
{
    unsigned char there[PAGES];
    char *new = MUST(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    int count = 0;
    MUST(mincore(new, PAGES * PAGE, there));
    for (int i = 0; i < PAGES; i++)
        count += there[i] & 1;
    /* What is locked is not thrown away. */
    if (madvise(new, PAGE, MADV_DONTNEED) == 0)
        count = -1;
    MUST(munmap(new, PAGES * PAGE));
    return count;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    /* Not locked. */
    char *before = MUST(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK_EQ("pages of what is not locked", -1, maps());
    MUST(mlockall(LOCKED));
    int expected = LOCKED == MCL_FUTURE ? PAGES : 0;
    CHECK_EQ("pages that are there at once, before", expected, maps());
    check_freeze_here();
    CHECK_EQ("pages that are there at once", expected, maps());
    MUST(madvise(before, PAGE, MADV_DONTNEED));
    MUST(munlockall());
    CHECK_EQ("pages of what is not locked any more", -1, maps());
    return 0;
}
