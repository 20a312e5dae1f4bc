/* Root directories of processes (chroot): one with its working directory inside, with files, a
 * mapping, a watch and a thread; one with its working directory outside. */
#include "check.h"
#include <dirent.h>
#include <grp.h>
#include <sys/inotify.h>

enum { NOBODY = 65534 };

static int told[2], stands[2];

static void *still_inside(void *arg)
{
    char c;
    (void)arg;
    CHECK_EQ("write", 1, write(stands[1], "t", 1));
    CHECK_EQ("read", 1, read(told[0], &c, 1));
    CHECK_EQ("the jail's file", 0, access("/inside", F_OK));
    CHECK_EQ("a file outside", -1, access("/proc/version", F_OK));
    return NULL;
}

static void confined(const char *jail)
{
    char now[64], buf[64];
    MUST(chroot(jail));
    MUST(chdir("/etc"));
    int file = MUST(open("/inside", O_RDWR)), watch = MUST(inotify_init1(IN_CLOEXEC));
    MUST(inotify_add_watch(watch, "/etc", IN_CREATE));
    char *mapped = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    MUST(lseek(file, 2, SEEK_SET));
    /* As servers do it: no way out any more. */
    MUST(setgroups(0, NULL));
    MUST(setgid(NOBODY));
    MUST(setuid(NOBODY));
    CHECK_EQ("chroot", -1, chroot("/"));
    pthread_t thread = check_thread(still_inside, NULL);
    CHECK_EQ("write", 1, write(stands[1], "m", 1));
    check_wait();
    MUST0(pthread_join(thread, NULL));
    CHECK(getcwd(now, sizeof now) && !strcmp(now, "/etc"), "cwd, expected /etc, got %s", now);
    struct stat a, b;
    MUST(stat("/inside", &a));
    MUST(fstat(file, &b));
    CHECK_EQ("the file behind its name", a.st_ino, b.st_ino);
    MUST(stat("/..", &a));
    MUST(stat("/", &b));
    CHECK_EQ("what is above /", b.st_ino, a.st_ino);
    CHECK_EQ("read", 4, read(file, buf, sizeof buf));
    CHECK(!memcmp(buf, "side", 4) && !memcmp(mapped, "inside", 6), "content, expected the jail's file");
    MUST(close(MUST(open("/etc/new", O_CREAT | O_WRONLY, 0600))));
    MUST(unlink("/etc/new"));
    CHECK(read(watch, buf, sizeof buf) > 0, "an event, expected one");
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char jail[512], path[600];
    snprintf(jail, sizeof jail, "%s", check_path("jail"));
    if (mkdir(jail, 0755) < 0)
        CHECK_EQ("mkdir", EEXIST, errno);
    snprintf(path, sizeof path, "%s/etc", jail);
    if (mkdir(path, 0755) == 0)
        MUST(chown(path, NOBODY, NOBODY));
    snprintf(path, sizeof path, "%s/inside", jail);
    int file = MUST(open(path, O_CREAT | O_WRONLY, 0644));
    CHECK_EQ("write", 6, write(file, "inside", 6));
    MUST(close(file));
    MUST(pipe(told));
    MUST(pipe(stands));
    /* What the trial is about lies outside: it is reached from the working directory. */
    snprintf(path, sizeof path, "%s/..", jail);
    MUST(chdir(path));
    check_ready_path = strrchr(check_ready_path, '/') + 1;
    check_go_path = strrchr(check_go_path, '/') + 1;
    struct stat outside, now;
    MUST(stat(".", &outside));
    pid_t child = CHECK_FORK({
        check_go_path = "/etc/go";
        confined(jail);
    });
    char both;
    for (int i = 0; i < 2; i++)
        CHECK_EQ("read", 1, read(stands[0], &both, 1));
    MUST(chroot(jail));
    check_freeze_here();
    MUST(stat(".", &now));
    CHECK_EQ("working directory outside", outside.st_ino, now.st_ino);
    CHECK_EQ("the jail's file", 0, access("/inside", F_OK));
    CHECK_EQ("a file outside", -1, access("/proc/version", F_OK));
    MUST(close(MUST(open("/etc/go", O_CREAT | O_WRONLY, 0600))));
    CHECK_EQ("write", 1, write(told[1], "x", 1));
    check_child_ok(child);
    return 0;
}
