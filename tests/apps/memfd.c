/* A memfd: content, size, offset, name, and one object behind all its views. */
#include "check.h"

enum { PAGE = 4096, LEN = 20 * PAGE };

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int fd = MUST(memfd_create("appshot-test", MFD_CLOEXEC));
    MUST(ftruncate(fd, LEN + 100));
    char *map = MUST(mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    char *copy = MUST(mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    check_fill(map, LEN / 2, 1);
    check_fill(copy + PAGE, PAGE, 7);
    MUST(lseek(fd, 12345, SEEK_SET));
    int second = MUST(dup(fd));
    check_freeze_here();
    struct stat st;
    MUST(fstat(fd, &st));
    CHECK_EQ("size", LEN + 100, st.st_size);
    CHECK_EQ("offset", 12345, lseek(second, 0, SEEK_CUR));
    MUST(lseek(fd, 54321, SEEK_SET));
    CHECK_EQ("offset shared with the duplicate", 54321, lseek(second, 0, SEEK_CUR));
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(fd, F_GETFD));
    CHECK_EQ("close-on-exec of the duplicate", 0, fcntl(second, F_GETFD));
    check_filled("shared view", map, LEN / 2, 1);
    check_zero("shared view, untouched half", map + LEN / 2, LEN / 2);
    check_filled("private view, changed page", copy + PAGE, PAGE, 7);
    check_fill(map + 3 * PAGE, PAGE, 3);
    char buf[PAGE];
    CHECK_EQ("pread", PAGE, MUST(pread(fd, buf, PAGE, 3 * PAGE)));
    check_filled("through the descriptor", buf, PAGE, 3);
    check_filled("private view, unchanged page", copy + 3 * PAGE, PAGE, 3);
    char link[128] = "", path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    MUST(readlink(path, link, sizeof link - 1));
    CHECK(!strncmp(link, "/memfd:appshot-test", 19), "name, expected memfd:appshot-test, got %s", link);
    return 0;
}
