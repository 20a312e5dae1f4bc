/* Huge pages that were set aside (MAP_HUGETLB), private ones: content, holes, reservation, copies after a fork */
#include "hugetlb.h"

static char *map(size_t pages, int flags)
{
    int all = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | flags;
    return MUST(mmap(NULL, pages * HUGE, PROT_READ | PROT_WRITE, all, -1, 0));
}

static char *reserved, *sparse, *untouched, *forked, *giant;

/* Others may have them since the fork. */
static long pages_at(const char *at)
{
    return (told_of(at, "Private_Hugetlb") + told_of(at, "Shared_Hugetlb")) * 1024 / HUGE;
}

static void same(void)
{
    CHECK_EQ("page size", HUGE / 1024, told_of(reserved, "KernelPageSize"));
    CHECK_EQ("pages of what is reserved", 1, pages_at(reserved));
    CHECK_EQ("pages behind a hole", 2, pages_at(reserved + 2 * HUGE));
    CHECK_EQ("pages of what can be read", 1, pages_at(reserved + 5 * HUGE));
    CHECK_EQ("pages of what is sparse", 1, pages_at(sparse));
    CHECK_EQ("pages of what is untouched", 0, pages_at(untouched));
    CHECK_EQ("what is reserved", 0, has_flag(reserved, " nr"));
    CHECK_EQ("what is not", 1, has_flag(sparse, " nr"));
    CHECK_EQ("what is not to be forked", 1, has_flag(sparse, " dc"));
    if (giant)
        CHECK_EQ("page size of giant pages", 1 << 20, told_of(giant, "KernelPageSize"));
    check_filled("reserved", reserved, HUGE, 1);
    check_filled("behind a hole", reserved + 2 * HUGE, HUGE, 2);
    check_zero("written with zeroes", reserved + 3 * HUGE, HUGE);
    check_filled("for reading", reserved + 5 * HUGE, HUGE, 3);
    check_filled("sparse", sparse + HUGE + 12345, 100, 4);
    check_zero("beside", sparse + HUGE, 12345);
}

static void child(volatile int *step)
{
    check_fill(forked + HUGE, HUGE, 7);
    step[0] = 1;
    while (!step[1])
        check_pause();
    check_filled("shared since the fork", forked, HUGE, 5);
    check_filled("written by the child", forked + HUGE, HUGE, 7);
    forked[0] ^= 1;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    need_huge_pages();
    reserved = map(6, 0);
    check_fill(reserved, HUGE, 1);
    MUST(munmap(reserved + HUGE, HUGE));
    check_fill(reserved + 2 * HUGE, HUGE, 2);
    reserved[3 * HUGE] = 0;
    check_fill(reserved + 5 * HUGE, HUGE, 3);
    MUST(mprotect(reserved + 5 * HUGE, HUGE, PROT_READ));
    MUST(mlock(reserved, HUGE));
    sparse = map(3, MAP_NORESERVE);
    check_fill(sparse + HUGE + 12345, 100, 4);
    MUST(madvise(sparse, 3 * HUGE, MADV_DONTFORK));
    untouched = map(3, MAP_NORESERVE);
    giant = mmap(NULL, 1 << 30, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE | 30 << 26, -1, 0);
    if (giant == MAP_FAILED)
        giant = NULL;
    forked = map(2, 0);
    check_fill(forked, HUGE, 5);
    check_fill(forked + HUGE, HUGE, 6);
    volatile int *step = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pid_t pid = CHECK_FORK(child(step));
    while (!step[0])
        check_pause();
    same();
    check_freeze_here();
    same();
    step[1] = 1;
    check_child_ok(pid);
    check_filled("shared since the fork", forked, HUGE, 5);
    check_filled("written by the child alone", forked + HUGE, HUGE, 6);
    /* It can be used as before. */
    check_zero("not touched yet", reserved + 4 * HUGE, HUGE);
    check_fill(reserved + 4 * HUGE, HUGE, 8);
    check_fill(untouched, HUGE, 9);
    MUST(munmap(reserved + 2 * HUGE, 2 * HUGE));
    check_filled("after a part was unmapped", reserved + 4 * HUGE, HUGE, 8);
    MUST(madvise(untouched, HUGE, MADV_DONTNEED));
    check_zero("given back", untouched, HUGE);
    return 0;
}
