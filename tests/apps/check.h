/*
 * What every test program shares.
 *
 * Contract: PROGRAM READY GO. The program sets up one kernel object, creates
 * the file READY, waits until the file GO exists, checks its own state and
 * exits 0. Between READY and GO it may be frozen, ended and restored, once or
 * several times. It exits 1 after a line `FAIL: what, expected, got` on
 * stderr, and 77 when the machine lacks what it needs.
 */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CHECK_SKIPPED = 77 };

static const char *check_ready_path, *check_go_path;

#define CHECK_UNUSED __attribute__((unused))

/* Written by one call, so that lines of several processes do not mix.
 * _exit: a failed thread or forked child must not run exit handlers. */
__attribute__((noreturn, format(printf, 2, 3))) CHECK_UNUSED static void
check_end(int code, const char *fmt, ...)
{
    char line[1024];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(line, sizeof line - 1, fmt, args);
    va_end(args);
    if (n > (int)sizeof line - 2)
        n = sizeof line - 2;
    line[n++] = '\n';
    if (write(2, line, n) < 0)
        _exit(code);
    _exit(code);
}

#define FAIL(fmt, ...)                                                                  \
    check_end(1, "FAIL: %s:%d (pid %d): " fmt, __FILE__, __LINE__, getpid(), ##__VA_ARGS__)
#define SKIP(fmt, ...) check_end(CHECK_SKIPPED, "skipped: needs " fmt, ##__VA_ARGS__)

#define CHECK(ok, fmt, ...)                                                             \
    do {                                                                                \
        if (!(ok))                                                                      \
            FAIL(fmt, ##__VA_ARGS__);                                                   \
    } while (0)

#define CHECK_EQ(what, expected, got)                                                   \
    do {                                                                                \
        long long e_ = (long long)(expected), g_ = (long long)(got);                    \
        if (e_ != g_)                                                                   \
            FAIL("%s, expected %lld (%#llx), got %lld (%#llx)", what, e_, e_, g_, g_);  \
    } while (0)

/* A call that has to succeed; its result. */
#define MUST(call)                                                                      \
    ({                                                                                  \
        __typeof__(call) r_ = (call);                                                   \
        if (r_ == (__typeof__(call))-1)                                                 \
            FAIL("%s, expected success, got %s", #call, strerror(errno));               \
        r_;                                                                             \
    })

/* A pthread call that has to succeed. */
#define MUST0(call)                                                                     \
    do {                                                                                \
        int r_ = (call);                                                                \
        if (r_ != 0)                                                                    \
            FAIL("%s, expected 0, got %s", #call, strerror(r_));                        \
    } while (0)

CHECK_UNUSED static void check_start(int argc, char **argv)
{
    if (argc < 3)
        check_end(2, "usage: %s READY GO", argv[0]);
    check_ready_path = argv[1];
    check_go_path = argv[2];
}

CHECK_UNUSED static void check_pause(void)
{
    struct timespec ms = {0, 1000000};
    nanosleep(&ms, NULL);
}

CHECK_UNUSED static void check_ready(void)
{
    /* It appears once it is closed: the harness looks at descriptors then. */
    char fresh_[4096];
    snprintf(fresh_, sizeof fresh_, "%s.new", check_ready_path);
    MUST(close(MUST(open(fresh_, O_CREAT | O_WRONLY | O_CLOEXEC, 0666))));
    MUST(rename(fresh_, check_ready_path));
}

CHECK_UNUSED static int check_go(void)
{
    return access(check_go_path, F_OK) == 0;
}

CHECK_UNUSED static void check_wait(void)
{
    while (!check_go())
        check_pause();
}

/* The usual single point at which the program is frozen and restored. */
CHECK_UNUSED static void check_freeze_here(void)
{
    check_ready();
    check_wait();
}

/* A path in the trial's directory. */
CHECK_UNUSED static const char *check_path(const char *name)
{
    static char paths[8][512];
    static int next;
    char *path = paths[next++ % 8];
    const char *slash = strrchr(check_ready_path, '/');
    snprintf(path, 512, "%.*s/%s", (int)(slash - check_ready_path), check_ready_path, name);
    return path;
}

/* Reproducible bytes: each depends on the seed and on its place. */
CHECK_UNUSED static unsigned char check_byte(uint64_t seed, uint64_t at)
{
    uint64_t x = (seed + 1) * 0x9e3779b97f4a7c15u ^ at * 0xbf58476d1ce4e5b9u;
    x ^= x >> 29;
    x *= 0x94d049bb133111ebu;
    return x >> 56;
}

CHECK_UNUSED static void check_fill(void *to, size_t len, uint64_t seed)
{
    for (size_t i = 0; i < len; i++)
        ((unsigned char *)to)[i] = check_byte(seed, i);
}

CHECK_UNUSED static void check_filled(const char *what, const void *mem, size_t len, uint64_t seed)
{
    const volatile unsigned char *got = mem;
    for (size_t i = 0; i < len; i++)
        if (got[i] != check_byte(seed, i))
            FAIL("%s at %zu, expected %d, got %d", what, i, check_byte(seed, i), got[i]);
}

CHECK_UNUSED static void check_zero(const char *what, const void *mem, size_t len)
{
    const volatile unsigned char *got = mem;
    for (size_t i = 0; i < len; i++)
        if (got[i])
            FAIL("%s at %zu, expected 0, got %d", what, i, got[i]);
}

CHECK_UNUSED static int64_t check_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

CHECK_UNUSED static pid_t check_tid(void)
{
    return syscall(SYS_gettid);
}

/* A whole small file; the length. */
CHECK_UNUSED static ssize_t check_read_file(const char *path, char *to, size_t room)
{
    int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
    size_t have = 0;
    for (ssize_t n; have < room && (n = MUST(read(fd, to + have, room - have))) > 0;)
        have += n;
    MUST(close(fd));
    return have;
}

/* Where a link leads, as long as no two more are asked for; empty where there is none. */
CHECK_UNUSED static const char *check_link(const char *path)
{
    static char targets[2][512];
    static int next;
    char *target = targets[next++ % 2];
    ssize_t len = readlink(path, target, sizeof targets[0] - 1);
    target[len < 0 ? 0 : len] = 0;
    return target;
}

/* Runs the body in a child; the parent goes on with its pid. */
#define CHECK_FORK(body)                                                                \
    ({                                                                                  \
        pid_t pid_ = MUST(fork());                                                      \
        if (pid_ == 0) {                                                                \
            body;                                                                       \
            _exit(0);                                                                   \
        }                                                                               \
        pid_;                                                                           \
    })

CHECK_UNUSED static void check_child_ok(pid_t pid)
{
    int status;
    CHECK_EQ("waitpid", pid, MUST(waitpid(pid, &status, 0)));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child %d, expected exit 0, got status %#x",
          pid, status);
}

CHECK_UNUSED static pthread_t check_thread(void *(*body)(void *), void *arg)
{
    pthread_t thread;
    MUST0(pthread_create(&thread, NULL, body, arg));
    return thread;
}

/*
 * Judging instants. A busy machine, or a long freeze, may keep a program from
 * running when something is due: what counts is when it could first run then.
 */
static struct {
    int64_t due, chance;
} check_watched[4];
static int check_watches;

CHECK_UNUSED static void *check_watcher(void *arg)
{
    __typeof__(check_watched[0]) *watched = arg;
    while (check_now_ms() < watched->due)
        check_pause();
    __atomic_store_n(&watched->chance, check_now_ms(), __ATOMIC_SEQ_CST);
    /* It stays: a thread that ends looks like a change. */
    while (pause())
        ;
    return NULL;
}

/* Starts to watch for an instant; its number. */
CHECK_UNUSED static int check_watch(int64_t due)
{
    check_watched[check_watches].due = due;
    MUST0(pthread_detach(check_thread(check_watcher, &check_watched[check_watches])));
    return check_watches++;
}

/* It happened `at` an instant that was watched for, and not long after. */
CHECK_UNUSED static void check_due(const char *what, int watch, int64_t at)
{
    int64_t due = check_watched[watch].due, chance;
    while (!(chance = __atomic_load_n(&check_watched[watch].chance, __ATOMIC_SEQ_CST)))
        check_pause();
    CHECK(at >= due - 10 && at < chance + 700, "%s, expected when due, got %lld ms later (could run %lld ms later)",
          what, (long long)(at - due), (long long)(chance - due));
}

/*
 * Blocking calls: the main thread sits in the system call under test; a feeder
 * thread says ready once the kernel shows it there, waits for go, sees that the
 * call is still blocked, and only then unblocks it.
 */
static struct {
    long nr;
    pid_t tid;
    void (*feed)(void);
    int fed, done;
    pthread_t thread;
} check_block;

CHECK_UNUSED static int check_sits_in(pid_t tid, long nr)
{
    char path[64], text[128];
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
    ssize_t n = check_read_file(path, text, sizeof text - 1);
    text[n] = 0;
    char *end;
    long at = strtol(text, &end, 10);
    return end != text && at == nr;
}

CHECK_UNUSED static void *check_feeder(void *arg)
{
    (void)arg;
    while (!check_sits_in(check_block.tid, check_block.nr))
        check_pause();
    check_ready();
    check_wait();
    /* A call that was broken by the freeze returns as soon as it runs again. */
    for (int i = 0; i < 50; i++)
        check_pause();
    CHECK(!__atomic_load_n(&check_block.done, __ATOMIC_SEQ_CST),
          "system call %ld, expected still blocked, got returned early", check_block.nr);
    __atomic_store_n(&check_block.fed, 1, __ATOMIC_SEQ_CST);
    check_block.feed();
    return NULL;
}

/* From now on the calling thread is fed when it sits in system call `nr`. */
CHECK_UNUSED static void check_feed(long nr, void (*feed)(void))
{
    check_block.nr = nr;
    check_block.tid = check_tid();
    check_block.feed = feed;
    check_block.thread = check_thread(check_feeder, NULL);
}

/* Calls, and expects this result, after the feeding and not before. */
#define CHECK_BLOCKS(expected, call)                                                    \
    do {                                                                                \
        errno = 0;                                                                      \
        long got_ = (call);                                                             \
        int errno_ = errno;                                                             \
        __atomic_store_n(&check_block.done, 1, __ATOMIC_SEQ_CST);                       \
        CHECK(got_ == (long)(expected), "%s, expected %ld, got %ld (%s)", #call,        \
              (long)(expected), got_, strerror(errno_));                                \
        CHECK(__atomic_load_n(&check_block.fed, __ATOMIC_SEQ_CST),                      \
              "%s, expected to be fed first, got an early return", #call);              \
        MUST0(pthread_join(check_block.thread, NULL));                                  \
    } while (0)

#endif
