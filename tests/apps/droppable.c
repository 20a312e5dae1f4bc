/* Memory that the kernel may drop (MAP_DROPPABLE, as random generators of new C libraries keep their state):
 * what is there is whole or gone, and a child has none of it. */
#include "check.h"

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08
#endif

enum { PAGES = 8 };

static int is_empty(const char *page)
{
    for (int i = 0; i < 4096; i++)
        if (page[i])
            return 0;
    return 1;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char *at = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_DROPPABLE, -1, 0);
    if (at == MAP_FAILED)
        SKIP("MAP_DROPPABLE (Linux 6.11)");
    for (int i = 0; i < PAGES; i++)
        check_fill(at + i * 4096, 4096, i);
    check_freeze_here();
    for (int i = 0; i < PAGES; i++)
        if (!is_empty(at + i * 4096))
            check_filled("a page", at + i * 4096, 4096, i);
    pid_t pid = CHECK_FORK(check_zero("memory in the child", at, PAGES * 4096));
    check_child_ok(pid);
    check_fill(at, PAGES * 4096, 99);
    static char maps[1 << 20];
    maps[check_read_file("/proc/self/smaps", maps, sizeof maps - 1)] = 0;
    char head[40];
    snprintf(head, sizeof head, "%lx-%lx ", (long)at, (long)at + PAGES * 4096);
    char *own = strstr(maps, head);
    CHECK(own, "mapping %s, expected, got none", head);
    char *flags = strstr(own, "VmFlags:");
    *strchr(flags, '\n') = 0;
    CHECK(strstr(flags, " dp"), "flags, expected dp, got %s", flags);
    return 0;
}
