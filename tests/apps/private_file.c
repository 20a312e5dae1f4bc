/* Private file mappings: changed pages are the app's, unchanged ones the file's. */
#include "check.h"

enum { PAGE = 4096, PAGES = 64, LEN = PAGES * PAGE };

static char content[LEN];

int main(int argc, char **argv)
{
    check_start(argc, argv);
    const char *path = check_path("mapped-private");
    int fd = MUST(open(path, O_CREAT | O_RDWR, 0644));
    check_fill(content, LEN, 1);
    CHECK_EQ("write", LEN, MUST(write(fd, content, LEN)));
    char *map = MUST(mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    char *tail = MUST(mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, LEN - 8 * PAGE));
    for (int i = 0; i < PAGES; i += 3)
        check_fill(map + i * PAGE, PAGE, 100 + i);
    check_fill(tail + 7 * PAGE, PAGE, 999);
    /* Changed data that may no longer be written. */
    MUST(mprotect(map + 3 * PAGE, PAGE, PROT_READ));
    check_freeze_here();
    for (int i = 0; i < PAGES; i++) {
        if (i % 3 == 0)
            check_filled("changed page", map + i * PAGE, PAGE, 100 + i);
        else
            CHECK(!memcmp(map + i * PAGE, content + i * PAGE, PAGE),
                  "unchanged page %d, expected the file's content, got another", i);
    }
    check_filled("last page through a second mapping", tail + 7 * PAGE, PAGE, 999);
    CHECK(!memcmp(tail, content + LEN - 8 * PAGE, 7 * PAGE), "tail, expected the file's content");
    /* A page given back shows the file again, not the change. */
    MUST(madvise(map, PAGE, MADV_DONTNEED));
    CHECK(!memcmp(map, content, PAGE), "after MADV_DONTNEED, expected the file's content");
    /* The changes never reached the file. */
    static char now[LEN];
    CHECK_EQ("pread", LEN, MUST(pread(fd, now, LEN, 0)));
    CHECK(!memcmp(now, content, LEN), "file, expected unchanged, got changed");
    return 0;
}
