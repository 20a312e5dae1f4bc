/* The address space as the kernel lists it: ranges, protections and names. */
#include "check.h"

enum { ROOM = 1 << 20 };

static char before[ROOM], after[ROOM];

/* Neighbours that the kernel merged or kept apart are one and the same. */
static size_t normalize(char *text, size_t len)
{
    static char out[ROOM];
    unsigned long last_start = 0, last_end = 0;
    char last_rest[600] = "";
    size_t n = 0;
    text[len] = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        unsigned long start, end;
        char perms[8], name[512] = "";
        sscanf(line, "%lx-%lx %7s %*s %*s %*s %511[^\n]", &start, &end, perms, name);
        char rest[600];
        snprintf(rest, sizeof rest, "%s %s", perms, name);
        if (start == last_end && !strcmp(rest, last_rest)) {
            last_end = end;
            continue;
        }
        if (last_end)
            n += snprintf(out + n, ROOM - n, "%lx-%lx %s\n", last_start, last_end, last_rest);
        last_start = start, last_end = end;
        strcpy(last_rest, rest);
    }
    n += snprintf(out + n, ROOM - n, "%lx-%lx %s\n", last_start, last_end, last_rest);
    memcpy(text, out, n + 1);
    return n;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char *area = MUST(mmap(NULL, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (int i = 0; i < 16; i++)
        MUST(mprotect(area + i * 65536, 4096, i % 2 ? PROT_READ : PROT_READ | PROT_WRITE));
    MUST(sbrk(123 * 4096));
    size_t n = check_read_file("/proc/self/maps", before, ROOM - 1);
    check_freeze_here();
    size_t m = check_read_file("/proc/self/maps", after, ROOM - 1);
    n = normalize(before, n);
    m = normalize(after, m);
    if (n != m || memcmp(before, after, n)) {
        fprintf(stderr, "before:\n%safter:\n%s", before, after);
        FAIL("/proc/self/maps, expected %zu equal bytes, got %zu", n, m);
    }
    return 0;
}
