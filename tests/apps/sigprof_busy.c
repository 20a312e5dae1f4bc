/* Computes without pause under a SIGPROF timer: no signal lost, no result wrong. */
#include "check.h"
#include <sys/time.h>

static volatile long ticks;
static volatile double scratch;

static void on_prof(int sig)
{
    (void)sig;
    scratch = scratch * 1.5 + 1; /* uses the floating-point unit of whoever runs */
    if (scratch > 1e100)
        scratch = 1;
    ticks++;
}

/* Always the same number, by integer and floating-point work. */
__attribute__((noinline)) static double work(void)
{
    double x = 1;
    uint64_t h = 7;
    for (int i = 1; i < 200000; i++) {
        x += 1.0 / ((double)i * i);
        h = h * 6364136223846793005u + 1442695040888963407u;
    }
    return x + (double)(h >> 40);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct sigaction action = {.sa_handler = on_prof, .sa_flags = SA_RESTART};
    double expected = work();
    MUST(sigaction(SIGPROF, &action, NULL));
    struct itimerval t = {{0, 1000}, {0, 1000}};
    MUST(setitimer(ITIMER_PROF, &t, NULL));
    while (ticks < 3)
        work();
    check_ready();
    while (!check_go()) {
        double got = work();
        CHECK(got == expected, "result, expected %.17g, got %.17g", expected, got);
    }
    long at = ticks;
    int64_t deadline = check_now_ms() + 20000;
    while (ticks < at + 3) {
        work();
        CHECK(check_now_ms() < deadline, "SIGPROF after restore, expected, got none");
    }
    return 0;
}
