/* Descriptors that share an offset go on sharing it, within and across processes. */
#include "check.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    const char *path = check_path("offsets");
    int fd = MUST(open(path, O_CREAT | O_RDWR, 0644));
    MUST(ftruncate(fd, 100000));
    int twin = MUST(dup3(fd, 77, O_CLOEXEC));
    int stranger = MUST(open(path, O_RDONLY));
    volatile int *step = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    MUST(lseek(fd, 1000, SEEK_SET));
    pid_t pid = CHECK_FORK({
        while (!*step)
            check_pause();
        CHECK_EQ("offset in the child", 2000, lseek(fd, 0, SEEK_CUR));
        CHECK_EQ("offset of the stranger in the child", 55, lseek(stranger, 0, SEEK_CUR));
        MUST(lseek(twin, 3000, SEEK_SET));
        MUST(fcntl(fd, F_SETFL, O_NONBLOCK));
    });
    MUST(lseek(stranger, 55, SEEK_SET));
    check_freeze_here();
    CHECK_EQ("offset of the twin", 1000, lseek(twin, 0, SEEK_CUR));
    CHECK_EQ("close-on-exec of the twin", FD_CLOEXEC, fcntl(twin, F_GETFD));
    CHECK_EQ("close-on-exec of the first", 0, fcntl(fd, F_GETFD));
    MUST(lseek(twin, 2000, SEEK_SET));
    CHECK_EQ("offset of the first", 2000, lseek(fd, 0, SEEK_CUR));
    CHECK_EQ("offset of the stranger", 55, lseek(stranger, 0, SEEK_CUR));
    *step = 1;
    check_child_ok(pid);
    CHECK_EQ("offset set by the child", 3000, lseek(fd, 0, SEEK_CUR));
    CHECK_EQ("status flag set by the child", O_NONBLOCK, fcntl(twin, F_GETFL) & O_NONBLOCK);
    CHECK_EQ("status flag of the stranger", 0, fcntl(stranger, F_GETFL) & O_NONBLOCK);
    return 0;
}
