/* Nodes of /dev. */
#include "check.h"
#include <sys/sysmacros.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int null = MUST(open("/dev/null", O_RDWR)), zero = MUST(open("/dev/zero", O_RDONLY));
    int full = MUST(open("/dev/full", O_WRONLY)), random = MUST(open("/dev/urandom", O_RDONLY | O_CLOEXEC));
    char *map = MUST(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, zero, 0));
    check_fill(map, 4096, 8);
    check_freeze_here();
    char buf[256] = "x";
    struct stat st;
    MUST(fstat(null, &st));
    CHECK_EQ("/dev/null", makedev(1, 3), st.st_rdev);
    CHECK_EQ("write to null", 5, write(null, "hello", 5));
    CHECK_EQ("read from null", 0, read(null, buf, 1));
    CHECK_EQ("read from zero", 100, read(zero, buf, 100));
    check_zero("bytes from zero", buf, 100);
    CHECK_EQ("write to full", -1, write(full, "x", 1));
    CHECK_EQ("errno", ENOSPC, errno);
    CHECK_EQ("read from urandom", 256, read(random, buf, 256));
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(random, F_GETFD));
    check_filled("private mapping of zero", map, 4096, 8);
    check_zero("its untouched page", map + 4096, 4096);
    return 0;
}
