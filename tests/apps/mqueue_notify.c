/* Who is told of a message in an empty POSIX message queue (mq_notify): by a signal with a value, by nothing,
   by a thread; of a queue that has lost its name, in a child; and that one is told once. */
#include "check.h"
#include <mqueue.h>
#include <sys/stat.h>

static mqd_t put_up(const char *name)
{
    struct mq_attr attr = {.mq_maxmsg = 5, .mq_msgsize = 64};
    return mq_open(name, O_CREAT | O_EXCL | O_RDWR | O_NONBLOCK, 0600, &attr);
}

static void check_told(const char *what, int signal, int value)
{
    sigset_t set;
    siginfo_t info;
    struct timespec soon = {10, 0}, now = {0, 0};
    sigemptyset(&set);
    sigaddset(&set, signal);
    CHECK_EQ(what, signal, MUST(sigtimedwait(&set, &info, &soon)));
    CHECK_EQ(what, SI_MESGQ, info.si_code);
    CHECK_EQ(what, value, info.si_value.sival_int);
    CHECK_EQ(what, -1, sigtimedwait(&set, &info, &now));
}

static int called;

static void on_message(union sigval value)
{
    __atomic_store_n(&called, value.sival_int, __ATOMIC_SEQ_CST);
}

static void is_taken(const char *what, mqd_t queue)
{
    struct sigevent event = {.sigev_notify = SIGEV_NONE};
    CHECK_EQ(what, -1, mq_notify(queue, &event));
    CHECK_EQ(what, EBUSY, errno);
}

static void is_free(const char *what, mqd_t queue)
{
    struct sigevent event = {.sigev_notify = SIGEV_NONE};
    CHECK_EQ(what, 0, MUST(mq_notify(queue, &event)));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    sigaddset(&set, SIGRTMIN + 1);
    sigaddset(&set, SIGRTMIN + 2);
    MUST(sigprocmask(SIG_BLOCK, &set, NULL));
    char got[64];
    mqd_t by_signal = put_up("/notify-signal");
    if (by_signal < 0)
        SKIP("POSIX message queues");
    mqd_t removed = MUST(put_up("/notify-removed")), by_nothing = MUST(put_up("/notify-nothing"));
    mqd_t by_thread = MUST(put_up("/notify-thread")), told = MUST(put_up("/notify-told"));
    mqd_t filled = MUST(put_up("/notify-filled"));
    MUST(mq_unlink("/notify-removed"));
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = 41};
    MUST(mq_notify(by_signal, &event));
    event.sigev_signo = SIGRTMIN + 1;
    MUST(mq_notify(told, &event));
    MUST(mq_send(told, "one", 4, 0)); /* its signal waits */
    MUST(mq_send(filled, "one", 4, 0));
    event.sigev_value.sival_int = 43;
    event.sigev_signo = SIGRTMIN + 2;
    MUST(mq_notify(filled, &event)); /* not of what is there already */
    struct sigevent nothing = {.sigev_notify = SIGEV_NONE};
    MUST(mq_notify(by_nothing, &nothing));
    struct sigevent thread = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_message, .sigev_value.sival_int = 44};
    MUST(mq_notify(by_thread, &thread));
    struct timespec times[2] = {{1000, 0}, {2000, 0}};
    MUST(futimens(by_signal, times));

    int ready[2], go[2];
    MUST(pipe(ready));
    MUST(pipe(go));
    pid_t child = CHECK_FORK({
        char byte = 0;
        event.sigev_signo = SIGRTMIN;
        event.sigev_value.sival_int = 45;
        MUST(mq_notify(removed, &event));
        CHECK_EQ("write", 1, MUST(write(ready[1], &byte, 1)));
        CHECK_EQ("read", 1, MUST(read(go[0], &byte, 1)));
        check_told("child", SIGRTMIN, 45);
    });
    char byte;
    CHECK_EQ("read", 1, MUST(read(ready[0], &byte, 1)));
    check_freeze_here();

    struct stat is;
    MUST(fstat(by_signal, &is));
    CHECK_EQ("time of use", 1000, is.st_atime);
    CHECK_EQ("time of change", 2000, is.st_mtime);
    CHECK_EQ("asked", 0, sigpending(&set));
    CHECK(!sigismember(&set, SIGRTMIN) && !sigismember(&set, SIGRTMIN + 2), "signals, expected none yet");
    CHECK(sigismember(&set, SIGRTMIN + 1), "the signal that has come, expected to wait");
    check_told("told", SIGRTMIN + 1, 41);
    is_free("told", told);
    is_taken("by signal", by_signal);
    is_taken("by nothing", by_nothing);
    is_taken("by thread", by_thread);
    is_taken("removed", removed);
    is_taken("filled", filled);
    MUST(mq_send(by_signal, "two", 4, 0));
    check_told("by signal", SIGRTMIN, 41);
    is_free("by signal", by_signal);
    CHECK_EQ("length", 4, MUST(mq_receive(filled, got, sizeof got, NULL)));
    MUST(mq_send(filled, "two", 4, 0));
    check_told("filled", SIGRTMIN + 2, 43);
    MUST(mq_send(by_nothing, "two", 4, 0));
    is_free("by nothing", by_nothing);
    CHECK_EQ("called", 0, __atomic_load_n(&called, __ATOMIC_SEQ_CST));
    MUST(mq_send(by_thread, "two", 4, 0));
    for (int i = 0; i < 10000 && !__atomic_load_n(&called, __ATOMIC_SEQ_CST); i++)
        check_pause();
    CHECK_EQ("called", 44, __atomic_load_n(&called, __ATOMIC_SEQ_CST));
    is_free("by thread", by_thread);
    MUST(mq_send(removed, "two", 4, 0));
    CHECK_EQ("write", 1, MUST(write(go[1], &byte, 1)));
    check_child_ok(child);
    is_free("removed", removed);
    return 0;
}
