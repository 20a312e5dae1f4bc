/* A shared file mapping: what is written to it is in the file, both ways. */
#include "check.h"

enum { PAGE = 4096, LEN = 16 * PAGE };

int main(int argc, char **argv)
{
    check_start(argc, argv);
    const char *path = check_path("mapped-shared");
    int fd = MUST(open(path, O_CREAT | O_RDWR, 0644));
    MUST(ftruncate(fd, LEN));
    char *map = MUST(mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    int ro = MUST(open(path, O_RDONLY));
    char *view = MUST(mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED, ro, 4 * PAGE));
    close(fd);
    close(ro);
    check_fill(map, LEN, 1);
    check_freeze_here();
    check_filled("mapping", map, LEN, 1);
    CHECK(!memcmp(view, map + 4 * PAGE, 4 * PAGE), "second view, expected the same bytes");
    check_fill(map + 4 * PAGE, PAGE, 2);
    check_filled("second view after a write", view, PAGE, 2);
    CHECK_EQ("mprotect of a mapping whose descriptor was read-only", -1,
             mprotect(view, PAGE, PROT_READ | PROT_WRITE));
    static char now[LEN];
    CHECK_EQ("length", LEN, check_read_file(path, now, LEN));
    CHECK(!memcmp(now, map, LEN), "file, expected the mapping's bytes, got others");
    fd = MUST(open(path, O_RDWR));
    CHECK_EQ("pwrite", 1, MUST(pwrite(fd, "!", 1, 9)));
    CHECK_EQ("byte written through the file", '!', map[9]);
    return 0;
}
