/* The same of an io_uring for one thread alone, which is told of completions when it asks. */
#define FLAGS (IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN)
#include "uring_waiting.c"
