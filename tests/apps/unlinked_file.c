/* A file without a name any more, by descriptor and mapping. */
#include "check.h"

enum { LEN = 3 * 4096 + 17 };

int main(int argc, char **argv)
{
    check_start(argc, argv);
    const char *path = check_path("unlinked");
    static char buf[LEN];
    int fd = MUST(open(path, O_CREAT | O_RDWR | O_EXCL, 0640));
    check_fill(buf, LEN, 6);
    CHECK_EQ("write", LEN, MUST(write(fd, buf, LEN)));
    MUST(lseek(fd, 99, SEEK_SET));
    int ro = MUST(open(path, O_RDONLY));
    int nofollow = MUST(open(path, O_RDONLY | O_NOFOLLOW));
    MUST(lseek(nofollow, 5, SEEK_SET));
    const int flags = MUST(fcntl(nofollow, F_GETFL));
    char *map = MUST(mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    MUST(unlink(path));
    check_freeze_here();
    struct stat st;
    MUST(fstat(fd, &st));
    CHECK_EQ("size", LEN, st.st_size);
    CHECK_EQ("links", 0, st.st_nlink);
    CHECK_EQ("mode", 0640, st.st_mode & 0777);
    CHECK_EQ("offset", 99, lseek(fd, 0, SEEK_CUR));
    CHECK(access(path, F_OK) < 0, "name, expected none");
    CHECK_EQ("pread", LEN, MUST(pread(fd, buf, LEN, 0)));
    check_filled("content", buf, LEN, 6);
    check_filled("mapping", map, LEN, 6);
    CHECK_EQ("pwrite", 2, MUST(pwrite(fd, "ab", 2, 50)));
    CHECK_EQ("through the mapping", 'b', map[51]);
    CHECK_EQ("pread of the second description", 2, MUST(pread(ro, buf, 2, 50)));
    CHECK_EQ("through the second description", 'a', buf[0]);
    CHECK_EQ("flags with O_NOFOLLOW", flags, MUST(fcntl(nofollow, F_GETFL)));
    CHECK_EQ("offset of the third description", 5, lseek(nofollow, 0, SEEK_CUR));
    CHECK_EQ("pread of the third description", 2, MUST(pread(nofollow, buf, 2, 50)));
    CHECK_EQ("through the third description", 'a', buf[0]);
    return 0;
}
