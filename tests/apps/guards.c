/* Parts of mappings that nobody may touch (MADV_GUARD_INSTALL), as new C libraries have below stacks. */
#include "check.h"
#include <setjmp.h>
#include <sys/mman.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

enum { PAGE = 4096, PAGES = 600 };

static sigjmp_buf back;

static void fault(int signal)
{
    (void)signal;
    siglongjmp(back, 1);
}

static int can_read(const volatile char *at)
{
    if (sigsetjmp(back, 1))
        return 0;
    (void)*at;
    return 1;
}

/* Guarded are 3, 7 to 9, and all from 512 on. */
static int is_guarded(int page)
{
    return page == 3 || (page >= 7 && page < 10) || page >= 512;
}

static void verify(const char *what, char *memory)
{
    for (int page = 0; page < PAGES; page++) {
        int can = can_read(memory + page * PAGE);
        CHECK(can == !is_guarded(page), "%s, page %d, expected %d, got %d", what, page, !is_guarded(page), can);
        if (can && page % 2)
            CHECK_EQ(what, page % 100, memory[page * PAGE]);
        else if (can)
            CHECK_EQ(what, 0, memory[page * PAGE]);
    }
}

static void guard(char *memory, int from, int count)
{
    if (madvise(memory + from * PAGE, count * PAGE, MADV_GUARD_INSTALL) != 0)
        SKIP("MADV_GUARD_INSTALL (Linux 6.13)");
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char *memory = MUST(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (int page = 1; page < PAGES; page += 2)
        memory[page * PAGE] = page % 100;
    guard(memory, 3, 1);
    guard(memory, 7, 3);
    guard(memory, 512, PAGES - 512);
    /* One that had a guard, and one that is nothing else. */
    char *was = MUST(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    guard(was, 1, 2);
    MUST(madvise(was, 4 * PAGE, MADV_GUARD_REMOVE));
    char *all = MUST(mmap(NULL, 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    guard(all, 0, 2);
    struct sigaction action = {.sa_handler = fault};
    MUST(sigaction(SIGSEGV, &action, NULL));
    verify("before", memory);
    check_freeze_here();
    verify("after", memory);
    CHECK(can_read(was + PAGE), "what had a guard, expected to be read");
    MUST(mprotect(all, 2 * PAGE, PROT_READ));
    CHECK(!can_read(all), "what is a guard, expected not to be read");
    /* A child has them too. */
    check_child_ok(CHECK_FORK({
        verify("child", memory);
    }));
    MUST(madvise(memory + 7 * PAGE, PAGE, MADV_GUARD_REMOVE));
    CHECK_EQ("removed", 0, memory[7 * PAGE]);
    CHECK(!can_read(memory + 8 * PAGE), "the next one, expected not to be read");
    return 0;
}
