/* Seals of a memfd hold after restore. */
#include "check.h"

enum { LEN = 8192 };

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int fd = MUST(memfd_create("sealed", MFD_ALLOW_SEALING));
    int open_ended = MUST(memfd_create("unsealed", MFD_ALLOW_SEALING));
    static char buf[LEN];
    check_fill(buf, LEN, 4);
    CHECK_EQ("write", LEN, MUST(write(fd, buf, LEN)));
    int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
    MUST(fcntl(fd, F_ADD_SEALS, seals));
    MUST(fcntl(open_ended, F_ADD_SEALS, F_SEAL_SHRINK));
    char *map = MUST(mmap(NULL, LEN, PROT_READ, MAP_PRIVATE, fd, 0));
    check_freeze_here();
    CHECK_EQ("seals", seals, fcntl(fd, F_GET_SEALS));
    CHECK_EQ("seals of the second", F_SEAL_SHRINK, fcntl(open_ended, F_GET_SEALS));
    check_filled("mapping", map, LEN, 4);
    CHECK_EQ("write to a sealed memfd", -1, pwrite(fd, "x", 1, 0));
    CHECK_EQ("errno", EPERM, errno);
    CHECK_EQ("offset", LEN, lseek(fd, 0, SEEK_CUR));
    CHECK_EQ("growth", -1, ftruncate(fd, LEN * 2));
    MUST(ftruncate(open_ended, 100));
    MUST(fcntl(open_ended, F_ADD_SEALS, F_SEAL_GROW));
    return 0;
}
