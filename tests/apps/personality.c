/* The execution domain flags. */
#include "check.h"
#include <sys/personality.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int wanted = ADDR_NO_RANDOMIZE | STICKY_TIMEOUTS;
    MUST(personality(wanted));
    check_freeze_here();
    CHECK_EQ("personality", wanted, personality(0xffffffff));
    return 0;
}
