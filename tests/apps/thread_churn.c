/* Starts and joins threads without pause while it is frozen. */
#include "check.h"

static long count;

static void *body(void *arg)
{
    __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    return arg;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    long started = 0;
    check_ready();
    while (!check_go() || started < 100) {
        pthread_t threads[4];
        for (long i = 0; i < 4; i++)
            threads[i] = check_thread(body, (void *)(started + i));
        for (long i = 0; i < 4; i++) {
            void *result;
            MUST0(pthread_join(threads[i], &result));
            CHECK_EQ("result of a thread", started + i, (long)result);
        }
        started += 4;
    }
    CHECK_EQ("threads that ran", started, count);
    return 0;
}
