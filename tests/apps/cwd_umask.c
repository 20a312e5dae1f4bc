/* Working directory and umask. */
#include "check.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    const char *dir = check_path("working directory");
    char now[512], made[600];
    if (mkdir(dir, 0755) < 0)
        CHECK_EQ("mkdir", EEXIST, errno);
    MUST(chdir(dir));
    umask(0137);
    check_freeze_here();
    CHECK(getcwd(now, sizeof now), "getcwd, expected success, got %s", strerror(errno));
    CHECK(!strcmp(dir, now), "cwd, expected %s, got %s", dir, now);
    /* Another instance has the same pid and makes a file of its own. */
    struct timespec t;
    MUST(clock_gettime(CLOCK_REALTIME, &t));
    snprintf(made, sizeof made, "made-%ld-%ld", (long)t.tv_sec, t.tv_nsec);
    MUST(close(MUST(open(made, O_CREAT | O_WRONLY | O_EXCL, 0777))));
    struct stat st;
    MUST(stat(made, &st));
    MUST(unlink(made));
    CHECK_EQ("mode of a new file", 0640, st.st_mode & 0777);
    CHECK_EQ("umask", 0137, umask(0));
    return 0;
}
