/* A filter that forbids one system call and counts on no others stays in force. */
#include "check.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

static void forbid(long nr, int error)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

/* As the kernel counts them. */
static long filters(void)
{
    char text[4096];
    text[check_read_file("/proc/self/status", text, sizeof text - 1)] = 0;
    char *line = strstr(text, "Seccomp_filters:");
    return line ? atol(line + 16) : -1;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    forbid(SYS_getppid, 91);
    forbid(SYS_sethostname, 92);
    /* A restorer or parasite needs these; the app is not allowed to make them. */
    forbid(SYS_mmap, 93);
    forbid(SYS_prctl, 94);
    long count = filters();
    check_freeze_here();
    CHECK_EQ("filters", count, filters());
    CHECK_EQ("getppid", -1, syscall(SYS_getppid));
    CHECK_EQ("errno of getppid", 91, errno);
    CHECK_EQ("sethostname", -1, syscall(SYS_sethostname, "x", 1));
    CHECK_EQ("errno of sethostname", 92, errno);
    CHECK_EQ("mmap", -1, syscall(SYS_mmap, 0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK_EQ("errno of mmap", 93, errno);
    CHECK(syscall(SYS_getpid) > 0, "getpid, expected to be allowed");
    return 0;
}
