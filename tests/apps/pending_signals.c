/* Pending signals: for the process, for one thread, queued in order with values. */
#include "check.h"

static pid_t other_tid;
static pthread_t other;

static void expect(int sig, int code, int value, const sigset_t *set)
{
    siginfo_t info;
    struct timespec none = {0, 0};
    /* Not the C library's wrapper, which shows SI_TKILL as SI_USER. */
    CHECK_EQ("signal", sig, syscall(SYS_rt_sigtimedwait, set, &info, &none, 8));
    CHECK_EQ("si_code", code, info.si_code);
    CHECK_EQ("si_pid", getpid(), info.si_pid);
    CHECK_EQ("si_uid", getuid(), info.si_uid);
    if (code == SI_QUEUE)
        CHECK_EQ("si_value", value, info.si_value.sival_int);
}

static void nothing_more(const sigset_t *set)
{
    struct timespec none = {0, 0};
    CHECK_EQ("one signal more", -1, sigtimedwait(set, NULL, &none));
    CHECK_EQ("errno", EAGAIN, errno);
}

static sigset_t set_of(int a, int b)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, a);
    sigaddset(&set, b);
    return set;
}

static void *body(void *arg)
{
    (void)arg;
    __atomic_store_n(&other_tid, check_tid(), __ATOMIC_SEQ_CST);
    check_wait();
    sigset_t mine = set_of(SIGUSR2, SIGRTMIN + 5);
    expect(SIGUSR2, SI_TKILL, 0, &mine);
    for (int i = 0; i < 10; i++)
        expect(SIGRTMIN + 5, SI_QUEUE, 500 + i, &mine);
    nothing_more(&mine);
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    sigset_t all, pending;
    sigfillset(&all);
    MUST(sigprocmask(SIG_SETMASK, &all, NULL));
    other = check_thread(body, NULL);
    while (!__atomic_load_n(&other_tid, __ATOMIC_SEQ_CST))
        check_pause();
    MUST(kill(getpid(), SIGUSR1));
    for (int i = 0; i < 50; i++)
        MUST(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 1000 + i}));
    MUST(sigqueue(getpid(), SIGRTMIN + 2, (union sigval){.sival_int = -1}));
    MUST0(pthread_kill(other, SIGUSR2));
    for (int i = 0; i < 10; i++)
        MUST0(pthread_sigqueue(other, SIGRTMIN + 5, (union sigval){.sival_int = 500 + i}));
    MUST0(pthread_kill(pthread_self(), SIGTERM));
    check_freeze_here();
    MUST(sigpending(&pending));
    CHECK(sigismember(&pending, SIGUSR1), "SIGUSR1, expected pending");
    CHECK(sigismember(&pending, SIGTERM), "SIGTERM, expected pending");
    CHECK(!sigismember(&pending, SIGUSR2), "another thread's SIGUSR2, expected not pending here");
    CHECK(!sigismember(&pending, SIGCHLD), "SIGCHLD, expected not pending");
    sigset_t own = set_of(SIGTERM, SIGTERM), shared = set_of(SIGUSR1, SIGUSR1);
    expect(SIGTERM, SI_TKILL, 0, &own);
    expect(SIGUSR1, SI_USER, 0, &shared);
    sigset_t queued = set_of(SIGRTMIN + 2, SIGRTMIN + 3);
    expect(SIGRTMIN + 2, SI_QUEUE, -1, &queued);
    for (int i = 0; i < 50; i++)
        expect(SIGRTMIN + 3, SI_QUEUE, 1000 + i, &queued);
    MUST0(pthread_join(other, NULL));
    nothing_more(&all);
    return 0;
}
