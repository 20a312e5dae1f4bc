/* An interval timer that falls due after restore fires at its time, not before. */
#include "check.h"
#include <sys/time.h>

static volatile int64_t fired[2];
static volatile int count;

static void on_alarm(int sig)
{
    (void)sig;
    if (count < 2)
        fired[count] = check_now_ms();
    count++;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGALRM, &action, NULL));
    int64_t start = check_now_ms();
    struct itimerval t = {.it_value = {3, 0}, .it_interval = {0, 400000}};
    MUST(setitimer(ITIMER_REAL, &t, NULL));
    while (check_now_ms() < start + 1000)
        check_pause();
    check_ready();
    while (!check_go() || count < 2) {
        check_pause();
        check_stall_ms();
    }
    int64_t late = 700 + check_stall_ms();
    CHECK(fired[0] - start >= 2990 && fired[0] - start < 3000 + late,
          "first alarm after 3000 ms, got %lld", (long long)(fired[0] - start));
    CHECK(fired[1] - start >= 3390 && fired[1] - start < 3400 + late,
          "second alarm after 3400 ms, got %lld", (long long)(fired[1] - start));
    return 0;
}
