/* memfd_secret: memory that nobody but its processes can read, the kernel's own reads among them. */
#include "check.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int fd = syscall(447, FD_CLOEXEC);
    if (fd < 0)
        SKIP("memfd_secret (CONFIG_SECRETMEM, secretmem.enable)");
    MUST(ftruncate(fd, 8192));
    char *at = MUST(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    check_fill(at, 8192, 3);
    check_freeze_here();
    check_filled("secret", at, 8192, 3);
    return 0;
}
