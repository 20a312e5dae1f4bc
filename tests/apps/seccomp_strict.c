/* A thread in strict mode can only read, write and exit; the others are free. */
#include "check.h"
#include <linux/seccomp.h>
#include <sys/prctl.h>

static int to_thread[2], from_thread[2];

static void *body(void *arg)
{
    char c = 's';
    MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
    if (write(from_thread[1], &c, 1) != 1 || read(to_thread[0], &c, 1) != 1 || write(from_thread[1], &c, 1) != 1)
        FAIL("strict thread, expected to read and write");
    syscall(SYS_exit, 0);
    return arg;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char c, line[4096];
    MUST(pipe(to_thread));
    MUST(pipe(from_thread));
    check_thread(body, NULL);
    CHECK_EQ("first byte", 1, MUST(read(from_thread[0], &c, 1)));
    check_freeze_here();
    pid_t self = check_tid();
    int strict = 0;
    for (pid_t tid = self + 1; tid < self + 50; tid++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
        if (access(path, R_OK) < 0)
            continue;
        ssize_t n = check_read_file(path, line, sizeof line - 1);
        line[n] = 0;
        strict += strstr(line, "Seccomp:\t1") != NULL;
    }
    CHECK_EQ("threads in strict mode", 1, strict);
    CHECK_EQ("write", 1, MUST(write(to_thread[1], "e", 1)));
    CHECK_EQ("second byte", 1, MUST(read(from_thread[0], &c, 1)));
    CHECK_EQ("echo", 'e', c);
    return 0;
}
