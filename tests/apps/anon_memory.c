/* Private anonymous memory: many mappings of every protection, with holes. */
#include "check.h"

enum { VMAS = 300, PAGE = 4096 };

static char *at[VMAS];

static size_t pages_of(int i)
{
    return 1 + i % 5;
}

static int prot_of(int i)
{
    static const int prots[] = {PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE,
                                PROT_READ | PROT_EXEC};
    return prots[i % 4];
}

/* Every seventh mapping stays untouched, every third has an empty middle. */
static void fill(int i)
{
    if (i % 7 == 6)
        return;
    check_fill(at[i], PAGE, i);
    if (pages_of(i) > 1)
        check_fill(at[i] + (pages_of(i) - 1) * PAGE, PAGE, i + 1000);
}

static void verify(int i)
{
    size_t len = pages_of(i) * PAGE;
    /* Write access must be missing where it was: the kernel refuses to read into it. */
    int zero = MUST(open("/dev/zero", O_RDONLY));
    if (prot_of(i) != (PROT_READ | PROT_WRITE)) {
        CHECK_EQ("read into a mapping without PROT_WRITE", -1, read(zero, at[i], 1));
        CHECK_EQ("errno", EFAULT, errno);
    }
    int out = MUST(open("/dev/shm", O_TMPFILE | O_RDWR, 0600));
    if (prot_of(i) == PROT_NONE) {
        CHECK_EQ("write from PROT_NONE", -1, write(out, at[i], 1));
        CHECK_EQ("errno", EFAULT, errno);
    }
    close(zero);
    close(out);
    MUST(mprotect(at[i], len, PROT_READ | PROT_WRITE));
    if (i % 7 == 6) {
        check_zero("untouched mapping", at[i], len);
        return;
    }
    check_filled("first page", at[i], PAGE, i);
    if (pages_of(i) > 1)
        check_filled("last page", at[i] + len - PAGE, PAGE, i + 1000);
    if (pages_of(i) > 2)
        check_zero("middle", at[i] + PAGE, len - 2 * PAGE);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    size_t room = (size_t)VMAS * 8 * PAGE;
    char *base = MUST(mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    MUST(munmap(base, room));
    for (int i = 0; i < VMAS; i++) {
        at[i] = base + (size_t)i * 8 * PAGE;
        MUST(mmap(at[i], pages_of(i) * PAGE, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
        fill(i);
        MUST(mprotect(at[i], pages_of(i) * PAGE, prot_of(i)));
    }
    check_freeze_here();
    for (int i = 0; i < VMAS; i++) {
        unsigned char present;
        CHECK_EQ("mincore of a hole", -1, mincore(at[i] + pages_of(i) * PAGE, PAGE, &present));
        CHECK_EQ("errno", ENOMEM, errno);
        verify(i);
    }
    return 0;
}
