/*
 * Processes that share pages since a fork, and more of them since forks of forks:
 * each writes some, throws some away, moves some. Every page of every process must
 * be what that process has, in the data of the program too; and what one writes
 * afterwards no other may see.
 */
#include "check.h"

enum { PAGE = 4096, PAGES = 600, CHILDREN = 5, EMPTY = 0xffff };

static char *base;
static char data[64 * PAGE] = {1};
/* What each page is, in the eyes of this process. */
static uint16_t expected[PAGES];

static void write_page(int at, uint16_t value)
{
    uint32_t *words = (uint32_t *)(base + at * PAGE);
    for (int i = 0; i < PAGE / 4; i++)
        words[i] = (uint32_t)value << 16 | (uint32_t)i;
    expected[at] = value;
}

static void check_all(const char *when)
{
    for (int at = 0; at < PAGES; at++) {
        const uint32_t *words = (const uint32_t *)(base + at * PAGE);
        for (int i = 0; i < PAGE / 4; i++) {
            uint32_t right = expected[at] == EMPTY ? 0 : (uint32_t)expected[at] << 16 | (uint32_t)i;
            if (words[i] != right)
                FAIL("%s: word %d of page %d, expected %#x, got %#x", when, i, at, right, words[i]);
        }
    }
    for (int at = 0; at < (int)sizeof data; at += PAGE)
        CHECK_EQ("data of the program", at == 0 ? 1 : 7, data[at]);
}

static void change(int child)
{
    for (int at = child; at < PAGES; at += 41)
        write_page(at, (uint16_t)(1000 * (child + 1) + at));
    for (int at = 100 + child; at < PAGES; at += 97) {
        MUST(madvise(base + at * PAGE, PAGE, MADV_DONTNEED));
        expected[at] = EMPTY;
    }
    if (child % 2) {
        /* Away and back: the pages stay shared, the mapping is another. */
        char *aside = MUST(mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        MUST(mremap(base + 300 * PAGE, 64 * PAGE, 64 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, aside));
        MUST(mremap(aside, 64 * PAGE, 64 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, base + 300 * PAGE));
    } else {
        MUST(mprotect(base + 200 * PAGE, 8 * PAGE, PROT_READ));
    }
}

static void finish(int child, int generation)
{
    check_all("after it was frozen");
    if (child % 2 == 0)
        MUST(mprotect(base + 200 * PAGE, 8 * PAGE, PROT_READ | PROT_WRITE));
    for (int at = 0; at < PAGES; at += 3)
        write_page(at, (uint16_t)(20000 + 100 * child + generation));
    usleep(20000);
    check_all("after all have written");
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    base = MUST(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (int at = 0; at < PAGES; at++)
        write_page(at, (uint16_t)at);
    for (int at = PAGE; at < (int)sizeof data; at += PAGE)
        data[at] = 7;
    int done[2];
    MUST(pipe(done));
    pid_t pids[CHILDREN];
    for (int child = 0; child < CHILDREN; child++)
        pids[child] = CHECK_FORK({
            change(child);
            pid_t grandchild = CHECK_FORK({
                write_page(child, 30000);
                MUST(write(done[1], "r", 1));
                while (!check_go())
                    usleep(1000);
                finish(child, 2);
                _exit(0);
            });
            MUST(write(done[1], "r", 1));
            while (!check_go())
                usleep(1000);
            finish(child, 1);
            int status;
            MUST(waitpid(grandchild, &status, 0));
            CHECK_EQ("status of a grandchild", 0, status);
            _exit(0);
        });
    for (int i = 0; i < 2 * CHILDREN; i++) {
        char byte;
        CHECK_EQ("a child that is ready", 1, MUST(read(done[0], &byte, 1)));
    }
    check_ready();
    while (!check_go())
        usleep(1000);
    check_all("in the first process");
    for (int child = 0; child < CHILDREN; child++) {
        int status;
        MUST(waitpid(pids[child], &status, 0));
        CHECK_EQ("status of a child", 0, status);
    }
    check_all("in the first process, in the end");
    return 0;
}
