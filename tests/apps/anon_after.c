/* Memory that was anonymous still behaves so: brk, mremap and DONTNEED. */
#include "check.h"

enum { PAGE = 4096, LEN = 64 * PAGE };

static char *anon(size_t len)
{
    return MUST(mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

static void grow_brk(char *old, char *top)
{
    CHECK_EQ("brk", (long)top, (long)sbrk(0));
    check_filled("heap", old, top - old, 1);
    CHECK_EQ("sbrk", (long)top, (long)MUST(sbrk(LEN)));
    check_filled("heap after growth", old, top - old, 1);
    check_zero("new heap", top, LEN);
    MUST(sbrk(-2 * LEN));
    CHECK_EQ("brk after shrinking", (long)(top - LEN), (long)sbrk(0));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char *old = MUST(sbrk(2 * LEN)), *top = old + 2 * LEN;
    check_fill(old, 2 * LEN, 1);
    char *moved = anon(LEN), *dropped = anon(LEN), *split = anon(LEN), *large = anon(8 << 20);
    check_fill(moved, LEN, 2);
    check_fill(dropped, LEN, 3);
    check_fill(split, LEN, 4);
    check_fill(large, 8 << 20, 5);
    check_freeze_here();
    grow_brk(old, top);
    check_filled("large", large, 8 << 20, 5);

    char *bigger = MUST(mremap(moved, LEN, 4 * LEN, MREMAP_MAYMOVE));
    check_filled("mremap, old part", bigger, LEN, 2);
    check_zero("mremap, new part", bigger + LEN, 3 * LEN);

    MUST(madvise(dropped, LEN / 2, MADV_DONTNEED));
    check_zero("after MADV_DONTNEED", dropped, LEN / 2);
    for (size_t i = LEN / 2; i < LEN; i++)
        CHECK_EQ("beside MADV_DONTNEED", check_byte(3, i), (unsigned char)dropped[i]);

    MUST(munmap(split + PAGE, PAGE));
    MUST(mprotect(split + 2 * PAGE, PAGE, PROT_READ));
    check_filled("page before the cut", split, PAGE, 4);
    pid_t pid = CHECK_FORK({
        check_filled("in a forked child", split, PAGE, 4);
        check_fill(split, PAGE, 9);
    });
    check_child_ok(pid);
    check_filled("copy on write", split, PAGE, 4);
    return 0;
}
