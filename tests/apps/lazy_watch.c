/* Looks at all its memory, all the time: where it comes lazily, whoever brings it
 * may be killed meanwhile. A wrong byte is told at once, and left in a file. */
#include "check.h"

enum { PAGE = 4096, PAGES = 4096 };

static void look(const volatile unsigned char *mem, size_t page)
{
    for (size_t i = page * PAGE; i < (page + 1) * PAGE; i += 61) {
        if (mem[i] == check_byte(3, i))
            continue;
        MUST(open(check_path("wrong"), O_CREAT | O_WRONLY | O_CLOEXEC, 0666));
        FAIL("byte %zu, expected %d, got %d", i, check_byte(3, i), mem[i]);
    }
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    unsigned char *mem = MUST(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    check_fill(mem, PAGES * PAGE, 3);
    check_ready();
    for (size_t at = 1; !check_go(); at = at * 1103515245 + 12345)
        look(mem, (at >> 16) % PAGES);
    check_filled("all memory", mem, PAGES * PAGE, 3);
    return 0;
}
