/* A file that never had a name (O_TMPFILE): it keeps its flags, and can still be given one. */
#include "check.h"

enum { LEN = 2 * 4096 + 5 };

int main(int argc, char **argv)
{
    check_start(argc, argv);
    static char buf[LEN];
    int fd = open(check_path("."), O_TMPFILE | O_RDWR | O_NOFOLLOW | O_APPEND, 0640);
    if (fd < 0)
        SKIP("O_TMPFILE here");
    check_fill(buf, LEN, 6);
    CHECK_EQ("write", LEN, MUST(write(fd, buf, LEN)));
    const int flags = MUST(fcntl(fd, F_GETFL));
    char again[64];
    snprintf(again, sizeof again, "/proc/self/fd/%d", fd);
    int ro = MUST(open(again, O_RDONLY));
    MUST(lseek(ro, 9, SEEK_SET));
    int gone = MUST(open(check_path("."), O_TMPFILE | O_RDWR, 0600));
    char *map = MUST(mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, gone, 0));
    MUST(ftruncate(gone, LEN));
    map[4096] = 'm';
    MUST(close(gone));
    check_freeze_here();
    CHECK_EQ("flags", flags, MUST(fcntl(fd, F_GETFL)));
    CHECK_EQ("offset of the second description", 9, lseek(ro, 0, SEEK_CUR));
    CHECK_EQ("append", 3, MUST(write(fd, "end", 3)));
    CHECK_EQ("pread", LEN, MUST(pread(ro, buf, LEN, 0)));
    check_filled("content", buf, LEN, 6);
    CHECK_EQ("through a mapping alone", 'm', map[4096]);
    unsigned number;
    MUST(getentropy(&number, sizeof number));
    char name[4096];
    snprintf(name, sizeof name, "%s-%u", check_path("named"), number);
    CHECK_EQ("a name for it", 0, linkat(AT_FDCWD, again, AT_FDCWD, name, AT_SYMLINK_FOLLOW));
    struct stat st;
    MUST(stat(name, &st));
    CHECK_EQ("size by its name", LEN + 3, st.st_size);
    CHECK_EQ("mode by its name", 0640, st.st_mode & 0777);
    MUST(unlink(name));
    return 0;
}
