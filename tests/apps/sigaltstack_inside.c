/* Frozen while a handler runs on the alternate stack, and back out of it. */
#include "check.h"

static char stack[65536];
static int calls;

static void handler(int sig, siginfo_t *info, void *context)
{
    char local[4096];
    stack_t now;
    (void)context;
    check_fill(local, sizeof local, 3);
    check_freeze_here();
    check_filled("locals of the handler", local, sizeof local, 3);
    CHECK(&local[0] > &stack[0] && &local[0] < &stack[sizeof stack], "locals, expected on the alternate stack");
    MUST(sigaltstack(NULL, &now));
    CHECK_EQ("ss_flags", SS_ONSTACK, now.ss_flags);
    CHECK_EQ("signal", SIGUSR1, sig);
    CHECK_EQ("value", 77, info->si_value.sival_int);
    sigset_t mask;
    MUST(sigprocmask(SIG_SETMASK, NULL, &mask));
    CHECK(sigismember(&mask, SIGUSR1) && sigismember(&mask, SIGTERM), "mask in the handler, expected both");
    calls++;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    stack_t alt = {.ss_sp = stack, .ss_size = sizeof stack}, now;
    MUST(sigaltstack(&alt, NULL));
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_ONSTACK | SA_SIGINFO};
    sigaddset(&action.sa_mask, SIGTERM);
    MUST(sigaction(SIGUSR1, &action, NULL));
    double kept = 1.25;
    MUST(sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 77}));
    CHECK_EQ("calls of the handler", 1, calls);
    CHECK(kept == 1.25, "a floating-point value across the handler, expected 1.25, got %g", kept);
    MUST(sigaltstack(NULL, &now));
    CHECK_EQ("ss_flags after the handler", 0, now.ss_flags);
    sigset_t mask;
    MUST(sigprocmask(SIG_SETMASK, NULL, &mask));
    CHECK(!sigismember(&mask, SIGUSR1), "mask after the handler, expected empty");
    return 0;
}
