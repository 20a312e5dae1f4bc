/* A thread with a descriptor table of its own (unshare(CLONE_FILES)) */
#include "check.h"
#include <sched.h>

static volatile int apart;

static void *body(void *arg)
{
    MUST(unshare(CLONE_FILES));
    MUST(close(0));
    apart = 1;
    check_wait();
    return arg;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    pthread_t thread = check_thread(body, NULL);
    while (!apart)
        check_pause();
    check_freeze_here();
    MUST0(pthread_join(thread, NULL));
    MUST(fcntl(0, F_GETFD));
    return 0;
}
