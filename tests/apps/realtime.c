/* A real-time thread keeps its class, priority and reset-on-fork flag. */
#include "check.h"
#include <sched.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct sched_param param = {.sched_priority = 3}, now;
    if (sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &param) < 0)
        SKIP("real-time scheduling (%s)", strerror(errno));
    check_freeze_here();
    CHECK_EQ("policy", SCHED_RR | SCHED_RESET_ON_FORK, MUST(sched_getscheduler(0)));
    MUST(sched_getparam(0, &now));
    CHECK_EQ("priority", 3, now.sched_priority);
    return 0;
}
