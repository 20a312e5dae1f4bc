/* oom_score_adj, coredump_filter and transparent huge pages off. */
#include "check.h"
#include <sys/prctl.h>

static void write_file(const char *path, const char *text)
{
    int fd = MUST(open(path, O_WRONLY));
    MUST(write(fd, text, strlen(text)));
    MUST(close(fd));
}

static void is(const char *path, const char *expected)
{
    char now[64] = "";
    check_read_file(path, now, sizeof now - 1);
    now[strcspn(now, "\n")] = 0;
    CHECK(!strcmp(now, expected), "%s, expected %s, got %s", path, expected, now);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    write_file("/proc/self/oom_score_adj", "345");
    write_file("/proc/self/coredump_filter", "0x7b");
    MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
    check_freeze_here();
    is("/proc/self/oom_score_adj", "345");
    is("/proc/self/coredump_filter", "0000007b");
    CHECK_EQ("THP disabled", 1, prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
    return 0;
}
