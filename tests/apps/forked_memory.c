/* Forked processes go on sharing their memory: an app that was left running has as many
 * pages of its own as before, ordinary ones and huge ones. A restored app need not share. */
#include "check.h"

enum { PAGE = 4096, LEN = 4 << 20, CHILDREN = 5, CHANGED = 16 };

static char *ordinary, *huge;
static volatile int *counted;

/* Pages that nobody else maps. */
static int own_pages(const char *from)
{
    static uint64_t words[LEN / PAGE];
    int fd = MUST(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)), own = 0;
    CHECK_EQ("pagemap", sizeof words, MUST(pread(fd, words, sizeof words, (uintptr_t)from / PAGE * 8)));
    MUST(close(fd));
    for (int i = 0; i < LEN / PAGE; i++)
        own += words[i] >> 56 & 1;
    return own;
}

/* The time namespace: another one once it was restored. */
static ino_t time_namespace(void)
{
    struct stat info;
    MUST(stat("/proc/self/ns/time", &info));
    return info.st_ino;
}

static char *memory(int advice)
{
    enum { HUGE = 2 << 20 };
    char *all = MUST(mmap(NULL, LEN + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    char *start = (char *)(((uintptr_t)all + HUGE - 1) & ~(uintptr_t)(HUGE - 1));
    MUST(madvise(start, LEN, advice));
    check_fill(start, LEN, advice);
    return start;
}

static void check_memory(int changed, int own)
{
    check_filled("changed", ordinary, CHANGED * PAGE, changed);
    for (int i = CHANGED * PAGE; i < LEN; i++)
        CHECK_EQ("ordinary memory", check_byte(MADV_NOHUGEPAGE, i), (unsigned char)ordinary[i]);
    check_filled("huge pages", huge, LEN, MADV_HUGEPAGE);
    int now = own_pages(ordinary) + own_pages(huge);
    CHECK(now <= own, "pages of its own, expected %d at most, got %d", own, now);
}

static void process(int number)
{
    check_fill(ordinary, CHANGED * PAGE, number);
    /* Whoever changed a page first left another the last one of it. */
    __atomic_add_fetch(counted, 1, __ATOMIC_SEQ_CST);
    while (*counted < CHILDREN + 1)
        check_pause();
    int own = own_pages(ordinary) + own_pages(huge);
    CHECK(own <= 2 * CHANGED, "pages of its own, expected few, got %d", own);
    ino_t before = time_namespace();
    __atomic_add_fetch(counted, 1, __ATOMIC_SEQ_CST);
    while (*counted < 2 * (CHILDREN + 1))
        check_pause();
    if (number == 0)
        check_ready();
    check_wait();
    check_memory(number, time_namespace() == before ? own : 2 * LEN / PAGE);
    /* What one has alone is another's no more: nobody leaves before all have looked. */
    __atomic_add_fetch(counted, 1, __ATOMIC_SEQ_CST);
    while (*counted < 3 * (CHILDREN + 1))
        check_pause();
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    counted = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    ordinary = memory(MADV_NOHUGEPAGE);
    huge = memory(MADV_HUGEPAGE);
    int pids[CHILDREN];
    for (int i = 0; i < CHILDREN; i++)
        pids[i] = CHECK_FORK(process(i + 1));
    process(0);
    for (int i = 0; i < CHILDREN; i++)
        check_child_ok(pids[i]);
    return 0;
}
