/*
 * Threads with different filters: each keeps its own, none twice, and those that
 * were shared still are (else SECCOMP_FILTER_FLAG_TSYNC fails).
 */
#include "check.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

static long forbid(long nr, int error, unsigned flags)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

/* As the kernel counts them. */
static long filters(void)
{
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/self/task/%d/status", check_tid());
    text[check_read_file(path, text, sizeof text - 1)] = 0;
    char *line = strstr(text, "Seccomp_filters:");
    return line ? atol(line + 16) : -1;
}

static pthread_barrier_t ready, go, done, end;

static void judge(const char *who, int gid, int sid, int ppid, long count)
{
    errno = 0;
    CHECK(syscall(SYS_getpgid, 0) > 0 ? gid == 0 : errno == gid, "%s: getpgid, expected error %d, got %d", who, gid, errno);
    errno = 0;
    CHECK(syscall(SYS_getsid, 0) > 0 ? sid == 0 : errno == sid, "%s: getsid, expected error %d, got %d", who, sid, errno);
    errno = 0;
    CHECK(syscall(SYS_getppid) >= 0 ? ppid == 0 : errno == ppid, "%s: getppid, expected error %d, got %d", who, ppid, errno);
    CHECK_EQ("filters", count, filters());
}

/* Cloned before the second filter of the main thread; has none of its own. */
static void *early(void *arg)
{
    pthread_barrier_wait(&ready);
    pthread_barrier_wait(&go);
    judge("early thread", 81, 0, 0, (long)arg + 1);
    pthread_barrier_wait(&done);
    pthread_barrier_wait(&end);
    errno = 0;
    CHECK_EQ("getppid of the early thread", -1, syscall(SYS_getppid));
    CHECK_EQ("its errno", 84, errno);
    return NULL;
}

/* Cloned after it; adds the same program twice, which counts twice. */
static void *late(void *arg)
{
    MUST(forbid(SYS_getppid, 83, SECCOMP_FILTER_FLAG_LOG));
    MUST(forbid(SYS_getppid, 83, SECCOMP_FILTER_FLAG_LOG));
    pthread_barrier_wait(&ready);
    pthread_barrier_wait(&go);
    judge("late thread", 81, 82, 83, (long)arg + 4);
    pthread_barrier_wait(&done);
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    long before = filters();
    pthread_barrier_init(&ready, NULL, 3);
    pthread_barrier_init(&go, NULL, 3);
    pthread_barrier_init(&done, NULL, 3);
    pthread_barrier_init(&end, NULL, 2);
    MUST(forbid(SYS_getpgid, 81, 0));
    pthread_t a = check_thread(early, (void *)before);
    MUST(forbid(SYS_getsid, 82, 0));
    pthread_t b = check_thread(late, (void *)before);
    pthread_barrier_wait(&ready);
    check_freeze_here();
    pthread_barrier_wait(&go);
    pthread_barrier_wait(&done);
    judge("main thread", 81, 82, 0, before + 2);
    MUST0(pthread_join(b, NULL));
    /* The filters of the early thread are the start of ours. */
    CHECK_EQ("filter for all threads", 0, forbid(SYS_getppid, 84, SECCOMP_FILTER_FLAG_TSYNC));
    errno = 0;
    CHECK_EQ("getppid", -1, syscall(SYS_getppid));
    CHECK_EQ("errno of getppid", 84, errno);
    pthread_barrier_wait(&end);
    MUST0(pthread_join(a, NULL));
    return 0;
}
