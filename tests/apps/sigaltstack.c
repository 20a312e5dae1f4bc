/* The alternate signal stack of each thread is kept and used. */
#include "check.h"

static __thread char stack[65536];
static __thread volatile int on_it;

static void handler(int sig)
{
    char here;
    (void)sig;
    on_it = &here >= stack && &here < stack + sizeof stack;
}

static void verify(void)
{
    stack_t now;
    MUST(sigaltstack(NULL, &now));
    CHECK(now.ss_sp == stack, "ss_sp, expected %p, got %p", (void *)stack, now.ss_sp);
    CHECK_EQ("ss_size", sizeof stack, now.ss_size);
    CHECK_EQ("ss_flags", 0, now.ss_flags);
    MUST0(pthread_kill(pthread_self(), SIGUSR1));
    CHECK(on_it, "handler, expected on the alternate stack, got another");
}

static void set(void)
{
    stack_t alt = {.ss_sp = stack, .ss_size = sizeof stack};
    MUST(sigaltstack(&alt, NULL));
}

static void *body(void *arg)
{
    set();
    __atomic_store_n((int *)arg, 1, __ATOMIC_SEQ_CST);
    check_wait();
    verify();
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
    MUST(sigaction(SIGUSR1, &action, NULL));
    set();
    int started = 0;
    pthread_t thread = check_thread(body, &started);
    while (!__atomic_load_n(&started, __ATOMIC_SEQ_CST))
        check_pause();
    check_freeze_here();
    verify();
    MUST0(pthread_join(thread, NULL));
    return 0;
}
