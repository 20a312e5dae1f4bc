/* Open files: offset, access mode, status flags, close-on-exec, O_PATH. */
#include "check.h"

struct open_file {
    const char *name;
    int flags;
    off_t offset;
    int fd;
};

static struct open_file files[] = {
    {"plain", O_RDWR, 4321, -1},
    {"read-only", O_RDONLY, 100, -1},
    {"write-only", O_WRONLY | O_CLOEXEC, 7, -1},
    {"append", O_RDWR | O_APPEND, 17, -1},
    {"nonblocking", O_RDWR | O_NONBLOCK, 0, -1},
    {"synchronous", O_RDWR | O_SYNC, 1 << 20, -1},
    {"no access time", O_RDONLY | O_NOATIME, 1, -1},
    {"named only", O_PATH, 0, -1},
};
enum { FILES = sizeof files / sizeof *files, LEN = 10000 };

static const int kept = O_ACCMODE | O_APPEND | O_NONBLOCK | O_SYNC | O_NOATIME | O_PATH;

int main(int argc, char **argv)
{
    check_start(argc, argv);
    static char content[LEN];
    check_fill(content, LEN, 1);
    for (int i = 0; i < FILES; i++) {
        int fd = MUST(open(check_path(files[i].name), O_CREAT | O_WRONLY | O_TRUNC, 0644));
        CHECK_EQ("write", LEN, MUST(write(fd, content, LEN)));
        MUST(close(fd));
        fd = MUST(open(check_path(files[i].name), files[i].flags));
        if (!(files[i].flags & O_PATH))
            MUST(lseek(fd, files[i].offset, SEEK_SET));
        /* High and unordered numbers. */
        files[i].fd = MUST(fcntl(fd, files[i].flags & O_CLOEXEC ? F_DUPFD_CLOEXEC : F_DUPFD, 200 - 7 * i));
        MUST(close(fd));
    }
    check_freeze_here();
    for (int i = 0; i < FILES; i++) {
        struct open_file *f = &files[i];
        CHECK_EQ(f->name, f->flags & kept, MUST(fcntl(f->fd, F_GETFL)) & kept);
        CHECK_EQ(f->name, f->flags & O_CLOEXEC ? FD_CLOEXEC : 0, MUST(fcntl(f->fd, F_GETFD)));
        if (f->flags & O_PATH)
            continue;
        CHECK_EQ("offset", f->offset, MUST(lseek(f->fd, 0, SEEK_CUR)));
        if ((f->flags & O_ACCMODE) == O_RDONLY) {
            char buf[50];
            CHECK_EQ("read", 50, MUST(read(f->fd, buf, 50)));
            CHECK(!memcmp(buf, content + f->offset, 50), "%s, expected the file's bytes", f->name);
        }
    }
    CHECK_EQ("append", 3, MUST(write(files[3].fd, "end", 3)));
    CHECK_EQ("offset after an append", LEN + 3, lseek(files[3].fd, 0, SEEK_CUR));
    CHECK_EQ("write at an offset", 3, MUST(write(files[2].fd, "mid", 3)));
    char buf[3];
    int fd = MUST(open(check_path("write-only"), O_RDONLY));
    CHECK_EQ("pread", 3, MUST(pread(fd, buf, 3, 7)));
    CHECK(!memcmp(buf, "mid", 3), "write-only file, expected `mid` at 7");
    return 0;
}
