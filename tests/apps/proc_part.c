/* An open file of /proc about a descriptor, beside one about the process: the first is refused. */
#include "check.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int whole = MUST(open("/proc/self/stat", O_RDONLY)), part = MUST(open("/proc/self/fdinfo/0", O_RDONLY));
    check_freeze_here();
    char byte;
    CHECK_EQ("read of the process", 1, MUST(read(whole, &byte, 1)));
    CHECK_EQ("read of the descriptor", 1, MUST(read(part, &byte, 1)));
    return 0;
}
