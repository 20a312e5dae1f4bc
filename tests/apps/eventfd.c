/* eventfd: count, semaphore mode, flags, shared with a child. */
#include "check.h"
#include <sys/eventfd.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int plain = MUST(eventfd(12345, EFD_CLOEXEC)), full = MUST(eventfd(0, EFD_NONBLOCK));
    int semaphore = MUST(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK)), shared = MUST(eventfd(0, 0));
    uint64_t value = 0xfffffffffffffffe, got;
    CHECK_EQ("write", 8, write(full, &value, 8));
    pid_t pid = CHECK_FORK({
        CHECK_EQ("read in the child", 8, read(shared, &got, 8));
        CHECK_EQ("value in the child", 99, got);
    });
    check_freeze_here();
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(plain, F_GETFD));
    CHECK_EQ("read", 8, read(plain, &got, 8));
    CHECK_EQ("count", 12345, got);
    got = 1;
    CHECK_EQ("write to a full one", -1, write(full, &got, 8));
    CHECK_EQ("errno", EAGAIN, errno);
    CHECK_EQ("read", 8, read(full, &got, 8));
    CHECK_EQ("count", value, got);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ("read of the semaphore", 8, read(semaphore, &got, 8));
        CHECK_EQ("value of the semaphore", 1, got);
    }
    CHECK_EQ("fourth read", -1, read(semaphore, &got, 8));
    CHECK_EQ("errno", EAGAIN, errno);
    got = 99;
    CHECK_EQ("write", 8, write(shared, &got, 8));
    check_child_ok(pid);
    return 0;
}
