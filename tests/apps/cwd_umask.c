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
    snprintf(made, sizeof made, "made-%d", getpid());
    MUST(close(MUST(open(made, O_CREAT | O_WRONLY | O_EXCL, 0777))));
    struct stat st;
    MUST(stat(made, &st));
    MUST(unlink(made));
    CHECK_EQ("mode of a new file", 0640, st.st_mode & 0777);
    CHECK_EQ("umask", 0137, umask(0));
    return 0;
}
