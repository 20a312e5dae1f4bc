/* A thread in a UTS namespace of its own, other than its process. */
#include "check.h"
#include <sched.h>

static int apart;

static void *other(void *arg)
{
    char name[64];
    (void)arg;
    if (unshare(CLONE_NEWUTS))
        SKIP("UTS namespaces");
    MUST(sethostname("apart", 5));
    __atomic_store_n(&apart, 1, __ATOMIC_SEQ_CST);
    check_wait();
    MUST(gethostname(name, sizeof name));
    CHECK(!strcmp(name, "apart"), "host name, expected apart, got %s", name);
    return NULL;
}

int main(int argc, char **argv)
{
    char name[64];
    check_start(argc, argv);
    pthread_t thread = check_thread(other, NULL);
    while (!__atomic_load_n(&apart, __ATOMIC_SEQ_CST))
        check_pause();
    check_freeze_here();
    MUST0(pthread_join(thread, NULL));
    MUST(gethostname(name, sizeof name));
    CHECK(strcmp(name, "apart"), "host name, expected another, got %s", name);
    return 0;
}
