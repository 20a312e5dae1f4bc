/* An open table of System V objects (/proc/sysvipc): it shows those of the namespace in which it was opened. */
#include "check.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int fd = MUST(open("/proc/sysvipc/shm", O_RDONLY));
    check_freeze_here();
    char byte;
    CHECK_EQ("read", 1, MUST(read(fd, &byte, 1)));
    return 0;
}
