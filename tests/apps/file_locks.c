/* Locks on files: flock, POSIX and open-file-description locks. */
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
    return 0;
}
