/* The app's own userfaultfd: its faults go to a thread of the app. */
#include "check.h"
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        SKIP("userfaultfd, and the right to it");
    struct uffdio_api api = {.api = UFFD_API};
    MUST(ioctl(fd, UFFDIO_API, &api));
    char *at = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    struct uffdio_register range = {.range = {(uintptr_t)at, 4096}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    MUST(ioctl(fd, UFFDIO_REGISTER, &range));
    check_freeze_here();
    struct uffdio_zeropage zero = {.range = {(uintptr_t)at, 4096}};
    MUST(ioctl(fd, UFFDIO_ZEROPAGE, &zero));
    CHECK_EQ("byte", 0, *at);
    return 0;
}
