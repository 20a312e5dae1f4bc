/* Locks on files: flock, POSIX and open-file-description locks; a POSIX lock of a child by a descriptor that it has of its parent. */
#include "check.h"
#include <sys/file.h>

static int file(const char *name)
{
    return MUST(open(check_path(name), O_CREAT | O_RDWR, 0644));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int whole = file("lock-flock"), posix = file("lock-posix"), ofd = file("lock-ofd");
    struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 50};
    MUST(flock(whole, LOCK_EX));
    MUST(fcntl(posix, F_SETLK, &range));
    MUST(fcntl(ofd, F_OFD_SETLK, &range));
    int has[2], done[2];
    MUST(pipe(has));
    MUST(pipe(done));
    struct flock own = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 300, .l_len = 7};
    pid_t other = CHECK_FORK({
        char byte;
        MUST(fcntl(posix, F_SETLK, &own));
        CHECK_EQ("write", 1, MUST(write(has[1], "x", 1)));
        CHECK_EQ("read", 1, MUST(read(done[0], &byte, 1)));
    });
    char byte;
    CHECK_EQ("read", 1, MUST(read(has[0], &byte, 1)));
    check_freeze_here();
    CHECK_EQ("flock by another description", -1, flock(file("lock-flock"), LOCK_EX | LOCK_NB));
    CHECK_EQ("errno", EWOULDBLOCK, errno);
    struct flock ask = range;
    MUST(fcntl(file("lock-ofd"), F_OFD_GETLK, &ask));
    CHECK_EQ("open-file-description lock", F_WRLCK, ask.l_type);
    CHECK_EQ("its start", 100, ask.l_start);
    pid_t pid = CHECK_FORK({
        struct flock theirs = range;
        MUST(fcntl(posix, F_GETLK, &theirs));
        CHECK_EQ("POSIX lock", F_WRLCK, theirs.l_type);
        CHECK_EQ("its owner", getppid(), theirs.l_pid);
    });
    check_child_ok(pid);
    struct flock childs = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 290, .l_len = 90};
    MUST(fcntl(posix, F_GETLK, &childs));
    CHECK_EQ("POSIX lock of a child", F_RDLCK, childs.l_type);
    CHECK_EQ("its start", 300, childs.l_start);
    CHECK_EQ("its length", 7, childs.l_len);
    CHECK_EQ("its owner", other, childs.l_pid);
    CHECK_EQ("write", 1, MUST(write(done[1], "x", 1)));
    check_child_ok(other);
    return 0;
}
