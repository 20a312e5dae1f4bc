/* Memory in huge pages: some by advice, some put together, some with holes. */
#include "check.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

enum { HUGE = 2 << 20, COUNT = 4 };

/* AnonHugePages of the mapping that this lies in, in kilobytes. */
static long huge_kb(const void *at)
{
    static char text[1 << 20];
    ssize_t n = check_read_file("/proc/self/smaps", text, sizeof text - 1);
    text[n] = 0;
    int inside = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        unsigned long start, end;
        long kb;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
            inside = start <= (unsigned long)at && (unsigned long)at < end;
        else if (inside && sscanf(line, "AnonHugePages: %ld kB", &kb) == 1)
            return kb;
    }
    FAIL("mapping of %p, expected in smaps, got none", at);
}

static char *area(int advised)
{
    /* Nothing beside it becomes one with it. */
    char *map = MUST(mmap(NULL, (COUNT + 2) * HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    char *start = (char *)(((uintptr_t)map + HUGE) & ~(uintptr_t)(HUGE - 1));
    MUST(mprotect(start, COUNT * HUGE, PROT_READ | PROT_WRITE));
    if (advised)
        MUST(madvise(start, COUNT * HUGE, MADV_HUGEPAGE));
    check_fill(start, COUNT * HUGE, advised + 1);
    if (!advised && madvise(start, COUNT * HUGE, MADV_COLLAPSE))
        SKIP("MADV_COLLAPSE (Linux 6.1): %s", strerror(errno));
    return start;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char *area_of[2] = {area(0), area(1)};
    long had[2];
    for (int i = 0; i < 2; i++)
        had[i] = huge_kb(area_of[i]);
    if (!had[0])
        SKIP("transparent huge pages");
    check_freeze_here();
    for (int i = 0; i < 2; i++) {
        /* They may come a while after the memory. */
        for (int tries = 0; huge_kb(area_of[i]) < had[i] && tries < 1500; tries++)
            usleep(10000);
        long has = huge_kb(area_of[i]);
        CHECK(has >= had[i], "huge pages, expected %ld kB, got %ld", had[i], has);
        check_filled("memory in huge pages", area_of[i], COUNT * HUGE, i + 1);
    }
    return 0;
}
