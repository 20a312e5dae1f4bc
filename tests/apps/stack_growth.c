/* The stack grows after restore, and a thread's guard page still guards. */
#include "check.h"
#include <setjmp.h>
#include <sys/resource.h>

enum { DEPTH = 512 };

static sigjmp_buf back;
static char altstack[65536];

/* 4 KiB a frame, each checked on the way back. */
__attribute__((noinline)) static int dig(int depth)
{
    volatile char frame[4096];
    for (size_t i = 0; i < sizeof frame; i++)
        frame[i] = check_byte(depth, i);
    int below = depth ? dig(depth - 1) : 0;
    check_filled("stack frame", (char *)frame, sizeof frame, depth);
    return below + 1;
}

static void on_fault(int sig)
{
    siglongjmp(back, sig);
}

static void *threads_guard(void *arg)
{
    char **low = arg;
    pthread_attr_t attr;
    void *base;
    size_t size, guard;
    MUST0(pthread_getattr_np(pthread_self(), &attr));
    MUST0(pthread_attr_getstack(&attr, &base, &size));
    MUST0(pthread_attr_getguardsize(&attr, &guard));
    CHECK(guard >= 4096, "guard, expected a page, got %zu", guard);
    __atomic_store_n(low, base, __ATOMIC_SEQ_CST);
    check_wait();
    return NULL;
}

static int faults(volatile char *at)
{
    int sig = sigsetjmp(back, 1);
    if (sig == 0)
        *at = 1;
    return sig;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    stack_t alt = {.ss_sp = altstack, .ss_size = sizeof altstack};
    MUST(sigaltstack(&alt, NULL));
    struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_ONSTACK};
    MUST(sigaction(SIGSEGV, &action, NULL));
    char *low = NULL;
    pthread_t thread = check_thread(threads_guard, &low);
    while (!__atomic_load_n(&low, __ATOMIC_SEQ_CST))
        check_pause();
    volatile char deep[16384];
    check_fill((char *)deep, sizeof deep, 5);
    check_freeze_here();
    check_filled("stack", (char *)deep, sizeof deep, 5);
    CHECK_EQ("frames", DEPTH + 1, dig(DEPTH));
    /* The reported stack begins right above its guard. */
    CHECK_EQ("write below a thread's stack", SIGSEGV, faults(low - 8));
    struct rlimit limit;
    MUST(getrlimit(RLIMIT_STACK, &limit));
    if (limit.rlim_cur != RLIM_INFINITY)
        CHECK_EQ("write beyond the stack limit", SIGSEGV,
                 faults((char *)deep - limit.rlim_cur - (64 << 10)));
    MUST0(pthread_join(thread, NULL));
    return 0;
}
