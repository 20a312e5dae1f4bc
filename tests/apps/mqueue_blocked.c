/* Threads that wait for a POSIX message queue: for a message, for room in a full one, until a time that does
   not come, and for its readiness. */
#include "check.h"
#include <mqueue.h>
#include <poll.h>
#include <sys/syscall.h>

static mqd_t empty, full, timed, polled;
static pid_t tids[4];
static int done[4];

static mqd_t put_up(const char *name)
{
    struct mq_attr attr = {.mq_maxmsg = 2, .mq_msgsize = 64};
    mqd_t queue = mq_open(name, O_CREAT | O_EXCL | O_RDWR, 0600, &attr);
    if (queue < 0)
        SKIP("POSIX message queues");
    MUST(mq_unlink(name));
    return queue;
}

static void begins(int at)
{
    __atomic_store_n(&tids[at], check_tid(), __ATOMIC_SEQ_CST);
}

static void ends(int at)
{
    __atomic_store_n(&done[at], 1, __ATOMIC_SEQ_CST);
}

static void *receives(void *arg)
{
    char got[64];
    unsigned priority;
    begins(0);
    CHECK_EQ("length", 6, MUST(mq_receive(empty, got, sizeof got, &priority)));
    CHECK_EQ("priority", 5, priority);
    CHECK(!strcmp(got, "hello"), "message, expected hello, got %s", got);
    ends(0);
    return arg;
}

static void *sends(void *arg)
{
    begins(1);
    MUST(mq_send(full, "third", 6, 9));
    ends(1);
    return arg;
}

static void *receives_in_time(void *arg)
{
    char got[64];
    struct timespec late;
    clock_gettime(CLOCK_REALTIME, &late);
    late.tv_sec += 100000;
    begins(2);
    CHECK_EQ("length", 1, MUST(mq_timedreceive(timed, got, sizeof got, NULL, &late)));
    ends(2);
    return arg;
}

static void *polls(void *arg)
{
    struct pollfd poll_for = {.fd = polled, .events = POLLIN};
    begins(3);
    CHECK_EQ("ready", 1, MUST(poll(&poll_for, 1, -1)));
    ends(3);
    return arg;
}

static void sits(int at, long number)
{
    while (!__atomic_load_n(&tids[at], __ATOMIC_SEQ_CST) || !check_sits_in(tids[at], number))
        check_pause();
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    empty = put_up("/blocked-empty");
    full = put_up("/blocked-full");
    timed = put_up("/blocked-timed");
    polled = put_up("/blocked-polled");
    MUST(mq_send(full, "first", 6, 1));
    MUST(mq_send(full, "second", 7, 1));
    pthread_t threads[] = {check_thread(receives, NULL), check_thread(sends, NULL), check_thread(receives_in_time, NULL),
                           check_thread(polls, NULL)};
    sits(0, SYS_mq_timedreceive);
    sits(1, SYS_mq_timedsend);
    sits(2, SYS_mq_timedreceive);
    sits(3, SYS_poll);
    check_freeze_here();
    for (int i = 0; i < 50; i++)
        check_pause();
    for (int i = 0; i < 4; i++)
        CHECK(!__atomic_load_n(&done[i], __ATOMIC_SEQ_CST), "thread %d, expected still waiting", i);
    MUST(mq_send(empty, "hello", 6, 5));
    MUST0(pthread_join(threads[0], NULL));
    char got[64];
    CHECK_EQ("first", 6, MUST(mq_receive(full, got, sizeof got, NULL)));
    CHECK(!strcmp(got, "first"), "message, expected first, got %s", got);
    MUST0(pthread_join(threads[1], NULL));
    CHECK_EQ("third", 6, MUST(mq_receive(full, got, sizeof got, NULL)));
    CHECK(!strcmp(got, "third"), "message, expected third, got %s", got);
    CHECK_EQ("second", 7, MUST(mq_receive(full, got, sizeof got, NULL)));
    MUST(mq_send(timed, "", 1, 0));
    MUST0(pthread_join(threads[2], NULL));
    MUST(mq_send(polled, "", 1, 0));
    MUST0(pthread_join(threads[3], NULL));
    return 0;
}
