/* 100 threads: each keeps its TLS, number, name, mask and its own count. */
#include "check.h"
#include <sys/prctl.h>

enum { THREADS = 100 };

static __thread char own[512];
static __thread int own_number = -1;
static __thread volatile uint64_t own_count;
static int started;

static void *body(void *arg)
{
    int i = (int)(intptr_t)arg;
    char name[16], now[16];
    sigset_t mask, mask_now;
    own_number = i;
    check_fill(own, sizeof own, i);
    snprintf(name, sizeof name, "thread-%d", i);
    MUST(prctl(PR_SET_NAME, name));
    sigemptyset(&mask);
    sigaddset(&mask, SIGRTMIN + i % 20);
    MUST0(pthread_sigmask(SIG_SETMASK, &mask, NULL));
    pid_t tid = check_tid();
    pthread_t self = pthread_self();
    char *address = own;
    uint64_t count = 0;
    __atomic_add_fetch(&started, 1, __ATOMIC_SEQ_CST);
    while (!check_go()) {
        own_count++, count++;
        check_pause();
    }
    CHECK_EQ("thread-local number", i, own_number);
    CHECK_EQ("thread-local count", count, own_count);
    check_filled("thread-local bytes", own, sizeof own, i);
    CHECK(address == own, "address of TLS, expected %p, got %p", address, own);
    CHECK(self == pthread_self(), "pthread_self, expected the same, got another");
    CHECK_EQ("tid", tid, check_tid());
    MUST(prctl(PR_GET_NAME, now));
    CHECK(!strcmp(name, now), "name, expected %s, got %s", name, now);
    MUST0(pthread_sigmask(SIG_SETMASK, NULL, &mask_now));
    CHECK(!memcmp(&mask, &mask_now, 8), "mask, expected the thread's own, got another");
    return (void *)(intptr_t)(i + 1);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        threads[i] = check_thread(body, (void *)(intptr_t)i);
    while (__atomic_load_n(&started, __ATOMIC_SEQ_CST) < THREADS)
        check_pause();
    check_freeze_here();
    /* The join waits on the tid word that the kernel clears and wakes. */
    for (int i = 0; i < THREADS; i++) {
        void *result;
        MUST0(pthread_join(threads[i], &result));
        CHECK_EQ("result of a thread", i + 1, (intptr_t)result);
    }
    /* And new ones can be made. */
    void *result;
    MUST0(pthread_join(check_thread(body, (void *)7), &result));
    CHECK_EQ("result of a new thread", 8, (intptr_t)result);
    return 0;
}
