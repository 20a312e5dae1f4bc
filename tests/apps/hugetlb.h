/* Huge pages that were set aside. */
#include "check.h"
#include <sys/file.h>

enum { HUGE = 2 << 20 };

/* Enough for all trials that run at the same time. What is set aside stays so. */
CHECK_UNUSED static void need_huge_pages(void)
{
    const long wanted = 256;
    const char *setting = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    int fd = open(setting, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        SKIP("huge pages (CONFIG_HUGETLBFS) that root can set aside");
    MUST(flock(fd, LOCK_EX));
    char text[32] = "";
    MUST(pread(fd, text, sizeof text - 1, 0));
    if (atol(text) < wanted) {
        int n = snprintf(text, sizeof text, "%ld", wanted);
        if (pwrite(fd, text, n, 0) != n)
            SKIP("huge pages that can be set aside");
        memset(text, 0, sizeof text);
        MUST(pread(fd, text, sizeof text - 1, 0));
        if (atol(text) < wanted)
            SKIP("%ld huge pages", wanted);
    }
    MUST(close(fd));
}

/* What smaps tells of the mapping at this address in kB; with a name that it does not tell, its page size. */
CHECK_UNUSED static long told_of(const void *at, const char *name)
{
    FILE *smaps = fopen("/proc/self/smaps", "re");
    CHECK(smaps, "smaps");
    char line[512];
    size_t len = strlen(name);
    long told = -1;
    int inside = 0;
    while (told < 0 && fgets(line, sizeof line, smaps)) {
        unsigned long from, to;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2 && strchr(line, '-') < strchr(line, ' '))
            inside = from <= (unsigned long)at && (unsigned long)at < to;
        else if (inside && strncmp(line, name, len) == 0 && line[len] == ':')
            told = atol(line + len + 1);
    }
    fclose(smaps);
    return told;
}

CHECK_UNUSED static int has_flag(const void *at, const char *flag)
{
    FILE *smaps = fopen("/proc/self/smaps", "re");
    CHECK(smaps, "smaps");
    char line[512];
    int inside = 0, found = 0;
    while (fgets(line, sizeof line, smaps)) {
        unsigned long from, to;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2 && strchr(line, '-') < strchr(line, ' '))
            inside = from <= (unsigned long)at && (unsigned long)at < to;
        else if (inside && strncmp(line, "VmFlags:", 8) == 0)
            found |= strstr(line, flag) != NULL;
    }
    fclose(smaps);
    return found;
}
