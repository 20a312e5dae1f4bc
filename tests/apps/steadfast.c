/*
 * Two processes with threads in calls that any stop could break off: epoll_wait
 * and a blocking read without end, a futex, short sleeps, and one that computes.
 * Whatever is done to them, no call may end but by the event it waits for, and
 * no number in a register may change.
 */
#include "check.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int going, event, numbers[2];
static volatile int done;

static void *in_epoll(void *unused)
{
    int epoll = MUST(epoll_create1(0));
    struct epoll_event wanted = { .events = EPOLLIN }, got;
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted));
    CHECK_EQ("epoll_wait", 1, MUST(epoll_wait(epoll, &got, 1, -1)));
    return unused;
}

static void *in_read(void *unused)
{
    int number;
    CHECK_EQ("read", sizeof number, MUST(read(numbers[0], &number, sizeof number)));
    CHECK_EQ("number read", 4711, number);
    return unused;
}

static void *in_futex(void *unused)
{
    pthread_mutex_lock(&lock);
    while (!going)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    return unused;
}

static void *sleeping(void *unused)
{
    while (!done) {
        struct timespec time = { .tv_nsec = 1000000 };
        CHECK_EQ("nanosleep", 0, nanosleep(&time, NULL));
    }
    return unused;
}

static void *computing(void *unused)
{
    while (!done) {
        uint64_t a = 1, b = 2, c = 3, d = 4;
        double x = 1;
        for (int i = 0; i < 20000; i++) {
            a = a * 6364136223846793005u + 1, b ^= b << 13, b ^= b >> 7, b ^= b << 17;
            c += a ^ b, d = d * 3 + c, x = x * 1.0000001 + 0.5;
        }
        static uint64_t first_d;
        static double first_x;
        if (!first_d)
            first_d = d, first_x = x;
        CHECK(d == first_d && x == first_x, "a computation came out otherwise");
        usleep(500);
    }
    return unused;
}

#ifdef FORKS
/* A fork while foreign code is in this process would carry it on. */
static void *forking(void *unused)
{
    while (!done) {
        int status;
        pid_t child = CHECK_FORK({
            usleep(2000);
            _exit(3);
        });
        CHECK_EQ("waitpid", child, MUST(waitpid(child, &status, 0)));
        CHECK_EQ("wait status", 3 << 8, status);
    }
    return unused;
}
#endif

static void *(*const lives[])(void *) = {
    in_epoll, in_read, in_futex, sleeping, computing,
#ifdef FORKS
    forking,
#endif
};
enum { COUNT = sizeof lives / sizeof *lives };
static pthread_t threads[COUNT];

static void live(void)
{
    event = MUST(eventfd(0, 0));
    MUST(pipe(numbers));
    for (int i = 0; i < COUNT; i++)
        MUST0(pthread_create(&threads[i], NULL, lives[i], NULL));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int alive[2], number = 4711;
    MUST(pipe(alive));
    pid_t child = MUST(fork());
    live();
    usleep(20000); /* every thread is in its call */
    if (!child)
        MUST(write(alive[1], "x", 1));
    else {
        char byte;
        CHECK_EQ("child alive", 1, MUST(read(alive[0], &byte, 1)));
        check_ready();
    }
    while (!check_go())
        usleep(1000);
    done = 1;
    pthread_mutex_lock(&lock);
    going = 1;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    MUST(eventfd_write(event, 1));
    CHECK_EQ("write", sizeof number, MUST(write(numbers[1], &number, sizeof number)));
    for (int i = 0; i < COUNT; i++)
        MUST0(pthread_join(threads[i], NULL));
    if (child) {
        int status;
        CHECK_EQ("waitpid", child, MUST(waitpid(child, &status, 0)));
        CHECK_EQ("wait status", 0, status);
    }
    return 0;
}
