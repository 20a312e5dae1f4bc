/* timerfd: time left, interval, ticks that were not yet read. */
#include "check.h"
#include <poll.h>
#include <sys/timerfd.h>

static int make(clockid_t clock, int flags, double value, double interval, int absolute)
{
    int fd = MUST(timerfd_create(clock, flags));
    struct itimerspec t = {.it_value = {value, (value - (long)value) * 1e9},
                           .it_interval = {interval, (interval - (long)interval) * 1e9}};
    MUST(timerfd_settime(fd, absolute ? TFD_TIMER_ABSTIME : 0, &t, NULL));
    return fd;
}

static void verify(const char *what, int fd, double expected, long interval)
{
    struct itimerspec t;
    MUST(timerfd_gettime(fd, &t));
    double left = t.it_value.tv_sec + t.it_value.tv_nsec / 1e9;
    CHECK(left > expected - 0.7 && left < expected + 0.7, "%s, expected %.2f s left, got %.2f", what,
          expected, left);
    CHECK_EQ(what, interval, t.it_interval.tv_sec);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int64_t start = check_now_ms();
    int watch = check_watch(start + 3000);
    int relative = make(CLOCK_MONOTONIC, TFD_NONBLOCK, 1000, 60, 0);
    int absolute = make(CLOCK_MONOTONIC, 0, start / 1000 + 2000, 0, 1);
    int boot = make(CLOCK_BOOTTIME, TFD_CLOEXEC, 3000, 0, 0);
    int idle = MUST(timerfd_create(CLOCK_REALTIME, 0));
    int ticked = make(CLOCK_MONOTONIC, TFD_NONBLOCK, 0.01, 1000, 0);
    /* Faster than anybody can look; not armed, but with a period. */
    int fast = make(CLOCK_MONOTONIC, TFD_NONBLOCK, 1e-6, 1e-6, 0);
    int period = make(CLOCK_MONOTONIC, 0, 0, 77, 0);
    int soon = make(CLOCK_MONOTONIC, 0, 3, 0, 0);
    struct pollfd wait = {.fd = ticked, .events = POLLIN};
    CHECK_EQ("poll", 1, poll(&wait, 1, 10000));
    while (check_now_ms() < start + 1000)
        check_pause();
    check_freeze_here();
    int64_t back = check_now_ms();
    double passed = (check_now_ms() - start) / 1e3;
    verify("relative", relative, 1000 - passed, 60);
    verify("absolute", absolute, start / 1000 + 2000 - check_now_ms() / 1e3, 0);
    verify("boottime", boot, 3000 - passed, 0);
    verify("never armed", idle, 0, 0);
    verify("period only", period, 0, 77);
    CHECK_EQ("flags of relative", O_NONBLOCK, fcntl(relative, F_GETFL) & O_NONBLOCK);
    CHECK_EQ("close-on-exec of boottime", FD_CLOEXEC, fcntl(boot, F_GETFD));
    uint64_t ticks;
    CHECK_EQ("read of the ticked one", 8, read(ticked, &ticks, 8));
    CHECK_EQ("ticks", 1, ticks);
    CHECK_EQ("second read", -1, read(ticked, &ticks, 8));
    CHECK_EQ("errno", EAGAIN, errno);
    for (int i = 0; i < 3; i++) {
        struct pollfd ticks_again = {.fd = fast, .events = POLLIN};
        CHECK_EQ("poll of the fast one", 1, poll(&ticks_again, 1, 10000));
        CHECK_EQ("read of the fast one", 8, read(fast, &ticks, 8));
    }
    CHECK_EQ("blocking read", 8, read(soon, &ticks, 8));
    /* Read late where it was told to go late. */
    int64_t now = check_now_ms();
    check_due("timer of 3000 ms", watch, now - (back > start + 3000 ? back - start - 3000 : 0));
    return 0;
}
