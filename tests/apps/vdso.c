/* The vdso's clocks agree with the system calls and never run backwards. */
#include "check.h"

static int64_t by_vdso(clockid_t clock)
{
    struct timespec t;
    MUST(clock_gettime(clock, &t));
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t by_kernel(clockid_t clock)
{
    struct timespec t;
    MUST(syscall(SYS_clock_gettime, clock, &t));
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME,
                                   CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE};
enum { CLOCKS = sizeof clocks / sizeof *clocks };

/* Kernel, vdso, kernel: the middle one lies between (a coarse clock may lag a tick). */
static void agree(void)
{
    for (int i = 0; i < CLOCKS; i++) {
        int64_t before = by_kernel(clocks[i]), inside = by_vdso(clocks[i]);
        int64_t after = by_kernel(clocks[i]);
        CHECK(before - 20000000 <= inside && inside <= after + 20000000,
              "clock %d by vdso, expected %lld to %lld, got %lld", clocks[i], (long long)before,
              (long long)after, (long long)inside);
    }
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    agree();
    check_ready();
    int64_t mono = by_vdso(CLOCK_MONOTONIC), real = by_vdso(CLOCK_REALTIME);
    int64_t boot = by_vdso(CLOCK_BOOTTIME), start_mono = mono, start_real = real;
    while (!check_go()) {
        check_pause();
        agree();
        int64_t m = by_vdso(CLOCK_MONOTONIC), r = by_vdso(CLOCK_REALTIME);
        int64_t b = by_vdso(CLOCK_BOOTTIME);
        CHECK(m >= mono, "CLOCK_MONOTONIC, expected not to go back, got %lld ns", (long long)(m - mono));
        CHECK(b >= boot, "CLOCK_BOOTTIME, expected not to go back, got %lld ns", (long long)(b - boot));
        mono = m, boot = b, real = r;
    }
    agree();
    /* Real time is true; monotonic time stood still while the app was away. */
    CHECK(mono - start_mono <= real - start_real + 100000000,
          "CLOCK_MONOTONIC, expected no more than %lld ns, got %lld ns passed",
          (long long)(real - start_real), (long long)(mono - start_mono));
    unsigned cpu, node;
    MUST(getcpu(&cpu, &node));
    CHECK(cpu < 4096, "getcpu, expected a cpu, got %u", cpu);
    return 0;
}
