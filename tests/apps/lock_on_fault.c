/* mlockall(MCL_FUTURE | MCL_ONFAULT): what is mapped later is locked when it is used. */
#include <sys/mman.h>
#define LOCKED (MCL_FUTURE | MCL_ONFAULT)
#include "lock_future.c"
