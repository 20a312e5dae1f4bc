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
    int first = check_watch(start + 3000), second = check_watch(start + 3400);
    struct itimerval t = {.it_value = {3, 0}, .it_interval = {0, 400000}};
    MUST(setitimer(ITIMER_REAL, &t, NULL));
    while (check_now_ms() < start + 1000)
        check_pause();
    check_freeze_here();
    while (count < 2)
        check_pause();
    check_due("first alarm", first, fired[0]);
    check_due("second alarm", second, fired[1]);
    return 0;
}
