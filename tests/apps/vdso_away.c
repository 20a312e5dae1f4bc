/* CLOCK_MONOTONIC continues where it was: the time away does not count. */
#include "check.h"

static int64_t ms(clockid_t clock)
{
    struct timespec t;
    MUST(clock_gettime(clock, &t));
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    check_ready();
    int64_t real = ms(CLOCK_REALTIME), mono = ms(CLOCK_MONOTONIC), boot = ms(CLOCK_BOOTTIME);
    int64_t gap_real = 0, gap_mono = 0, gap_boot = 0;
    /* The longest step between two looks is the time away, where there was one. */
    while (!check_go()) {
        check_pause();
        int64_t r = ms(CLOCK_REALTIME), m = ms(CLOCK_MONOTONIC), b = ms(CLOCK_BOOTTIME);
        if (r - real > gap_real)
            gap_real = r - real, gap_mono = m - mono, gap_boot = b - boot;
        real = r, mono = m, boot = b;
    }
    if (gap_real > 1400) {
        CHECK(gap_mono < gap_real - 700, "CLOCK_MONOTONIC over %lld ms away, expected to stand still, got %lld ms",
              (long long)gap_real, (long long)gap_mono);
        CHECK(gap_boot < gap_real - 700, "CLOCK_BOOTTIME over %lld ms away, expected to stand still, got %lld ms",
              (long long)gap_real, (long long)gap_boot);
    }
    return 0;
}
