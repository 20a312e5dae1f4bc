/* The disposition of all 64 signals, as the kernel keeps it. */
#include "check.h"

/* Not the C library's struct: its wrapper hides two signals and the restorer. */
struct action {
    void *handler;
    unsigned long flags;
    void *restorer;
    uint64_t mask;
};

static int calls[65];

static void handler_a(int sig)
{
    calls[sig]++;
}

static void handler_b(int sig)
{
    calls[sig] += 100;
}

static struct action wanted(int sig)
{
    struct action was, a = {0};
    MUST(syscall(SYS_rt_sigaction, SIGUSR1, NULL, &was, 8));
    switch (sig % 4) {
    case 0: a.handler = (void *)SIG_DFL; break;
    case 1: a.handler = (void *)SIG_IGN; break;
    case 2: a.handler = (void *)handler_a; break;
    case 3: a.handler = (void *)handler_b; break;
    }
    if (sig % 4 >= 2) {
        static const unsigned long extra[] = {0, SA_RESTART, SA_NODEFER, SA_ONSTACK, SA_NOCLDSTOP};
        a.flags = 0x04000000 | extra[sig % 5]; /* SA_RESTORER */
        a.restorer = was.restorer;
        /* The kernel takes KILL and STOP out of any mask. */
        a.mask = (0x0101010101010101ull << sig % 8) & ~(1ull << (SIGKILL - 1) | 1ull << (SIGSTOP - 1));
    }
    return a;
}

static int settable(int sig)
{
    return sig != SIGKILL && sig != SIGSTOP;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct action expected[65], now;
    struct sigaction seed = {.sa_handler = handler_a};
    MUST(sigaction(SIGUSR1, &seed, NULL)); /* makes the restorer known */
    for (int sig = 64; sig >= 1; sig--)
        if (settable(sig))
            expected[sig] = wanted(sig);
    for (int sig = 1; sig <= 64; sig++)
        if (settable(sig))
            MUST(syscall(SYS_rt_sigaction, sig, &expected[sig], NULL, 8));
    check_freeze_here();
    for (int sig = 1; sig <= 64; sig++) {
        if (!settable(sig))
            continue;
        MUST(syscall(SYS_rt_sigaction, sig, NULL, &now, 8));
        char what[64];
        snprintf(what, sizeof what, "signal %d: handler", sig);
        CHECK_EQ(what, expected[sig].handler, now.handler);
        snprintf(what, sizeof what, "signal %d: flags", sig);
        CHECK_EQ(what, expected[sig].flags, now.flags);
        snprintf(what, sizeof what, "signal %d: mask", sig);
        CHECK_EQ(what, expected[sig].mask, now.mask);
        snprintf(what, sizeof what, "signal %d: restorer", sig);
        CHECK_EQ(what, expected[sig].restorer, now.restorer);
    }
    for (int sig = 1; sig <= 64; sig++)
        if (settable(sig) && sig % 4 != 0) {
            MUST(syscall(SYS_tgkill, getpid(), check_tid(), sig));
            CHECK_EQ("calls", sig % 4 == 1 ? 0 : sig % 4 == 2 ? 1 : 100, calls[sig]);
        }
    return 0;
}
