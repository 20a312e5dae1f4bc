/* Mounts of its own: a file system in memory with files of all kinds, what is bound, read-only, unmounted. */
#include "namespace.h"
#include <dirent.h>
#include <sys/mount.h>
#include <sys/xattr.h>

static char private[512], bound[512], source[512], processes[512];

static const char *in(const char *directory, const char *name)
{
    static char paths[8][1100];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", directory, name);
    return path;
}

static void write_file(const char *path, const char *text, mode_t mode)
{
    int fd = MUST(open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600));
    CHECK_EQ("write", strlen(text), MUST(write(fd, text, strlen(text))));
    MUST(fchmod(fd, mode));
    MUST(close(fd));
}

static void holds(const char *path, const char *text)
{
    char got[64];
    ssize_t length = check_read_file(path, got, sizeof got - 1);
    got[length] = 0;
    CHECK(!strcmp(got, text), "%s, expected %s, got %s", path, text, got);
}

static const struct timespec times[2] = {{1000000001, 123456789}, {1000000002, 987654321}};

static void furnish(void)
{
    write_file(in(private, "file"), "content", 0640);
    MUST(chown(in(private, "file"), 4711, 4712));
    MUST(setxattr(in(private, "file"), "trusted.kept", "value", 5, 0));
    MUST(link(in(private, "file"), in(private, "other name")));
    MUST(mkdir(in(private, "directory"), 01777));
    MUST(chmod(in(private, "directory"), 01777));
    write_file(in(private, "directory/program"), "#!", 04755);
    MUST(symlink("../file", in(private, "directory/link")));
    MUST(mkfifo(in(private, "directory/fifo"), 0622));
    int fd = MUST(open(in(private, "directory/sparse"), O_CREAT | O_RDWR, 0600));
    MUST(ftruncate(fd, 1 << 20));
    CHECK_EQ("write", 4, MUST(pwrite(fd, "hole", 4, 500000)));
    MUST(close(fd));
    MUST(utimensat(AT_FDCWD, in(private, "directory/link"), times, AT_SYMLINK_NOFOLLOW));
    MUST(utimensat(AT_FDCWD, in(private, "file"), times, 0));
    MUST(utimensat(AT_FDCWD, in(private, "directory"), times, 0));
}

static struct stat stat_of(const char *path)
{
    struct stat got;
    MUST(lstat(path, &got));
    return got;
}

static void has_times(const char *path)
{
    struct stat got = stat_of(path);
    CHECK_EQ("atime", times[0].tv_sec, got.st_atim.tv_sec);
    CHECK_EQ("atime", times[0].tv_nsec, got.st_atim.tv_nsec);
    CHECK_EQ("mtime", times[1].tv_sec, got.st_mtim.tv_sec);
    CHECK_EQ("mtime", times[1].tv_nsec, got.st_mtim.tv_nsec);
}

static void is_furnished(void)
{
    struct stat got;
    has_times(in(private, "file"));
    has_times(in(private, "directory"));
    has_times(in(private, "directory/link"));
    got = stat_of(in(private, "file"));
    CHECK_EQ("mode", S_IFREG | 0640, got.st_mode);
    CHECK_EQ("uid", 4711, got.st_uid);
    CHECK_EQ("gid", 4712, got.st_gid);
    CHECK_EQ("names", 2, got.st_nlink);
    CHECK_EQ("inode", got.st_ino, stat_of(in(private, "other name")).st_ino);
    char value[16];
    CHECK_EQ("attribute", 5, MUST(getxattr(in(private, "file"), "trusted.kept", value, sizeof value)));
    CHECK_EQ("mode", S_IFDIR | 01777, stat_of(in(private, "directory")).st_mode);
    CHECK_EQ("mode", S_IFREG | 04755, stat_of(in(private, "directory/program")).st_mode);
    CHECK_EQ("mode", S_IFIFO, stat_of(in(private, "directory/fifo")).st_mode & S_IFMT);
    CHECK(!strcmp(check_link(in(private, "directory/link")), "../file"), "link, expected ../file, got %s",
          check_link(in(private, "directory/link")));
    got = stat_of(in(private, "directory/sparse"));
    CHECK_EQ("size", 1 << 20, got.st_size);
    CHECK(got.st_blocks <= 64, "blocks, expected few, got %lld", (long long)got.st_blocks);
    int fd = MUST(open(in(private, "directory/sparse"), O_RDONLY));
    char hole[6];
    CHECK_EQ("pread", 6, MUST(pread(fd, hole, 6, 499999)));
    CHECK(!memcmp(hole, "\0hole", 6), "sparse file, expected hole, got other bytes");
    MUST(close(fd));
    got = stat_of(private);
    CHECK_EQ("mode", S_IFDIR | 0750, got.st_mode);
}

/* The line of what is mounted last at a place, from its flags on; empty where nothing is. */
static const char *mounted(const char *at)
{
    static char found[2][1024];
    static int next;
    char line[1024], place[512], flags[256];
    char *last = found[next++ % 2];
    FILE *mounts = fopen("/proc/self/mountinfo", "re");
    CHECK(mounts, "mountinfo, expected a file, got %s", strerror(errno));
    *last = 0;
    while (fgets(line, sizeof line, mounts))
        if (sscanf(line, "%*d %*d %*s %*s %511s %255s", place, flags) == 2 && !strcmp(place, at))
            snprintf(last, sizeof found[0], "%s%s", flags, strstr(line, " - "));
    fclose(mounts);
    return last;
}

static void same_mount(const char *at, const char *before)
{
    const char *got = mounted(at);
    CHECK(!strcmp(got, before), "mount %s, expected %s, got %s", at, before, got);
}

static void apart(struct steps *steps)
{
    char before[5][1024];
    if (unshare(CLONE_NEWNS))
        SKIP("mount namespaces");
    MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
    MUST(mount("mine", private, "tmpfs", MS_NOSUID | MS_NOATIME, "size=4m,mode=750"));
    furnish();
    MUST(mount(source, bound, NULL, MS_BIND, NULL));
    MUST(mount(NULL, bound, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NODEV, NULL));
    MUST(mount("proc", processes, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
    /* On what is private, another; in it, a file that is another's. */
    MUST(mkdir(in(private, "directory/deeper"), 0700));
    MUST(mount(NULL, in(private, "directory/deeper"), "tmpfs", 0, "size=1m"));
    write_file(in(private, "directory/deeper/inner"), "deep", 0600);
    write_file(in(private, "directory/null"), "", 0600);
    MUST(mount("/dev/null", in(private, "directory/null"), NULL, MS_BIND, NULL));
    MUST(utimensat(AT_FDCWD, in(private, "directory"), times, 0));
    int has_terminals = *mounted("/dev/pts") && !umount2("/dev/pts", MNT_DETACH);
    int fd = MUST(open(in(private, "file"), O_RDWR | O_APPEND));
    CHECK_EQ("lseek", 3, MUST(lseek(fd, 3, SEEK_SET)));
    int read_only = MUST(open(in(bound, "outer"), O_RDONLY));
    int by_path = MUST(open(in(private, "directory"), O_PATH | O_DIRECTORY));
    int path_of_file = MUST(open(in(private, "file"), O_PATH));
    int directory = MUST(open(in(private, "directory"), O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
    char *map = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED,
                          MUST(open(in(private, "directory/deeper/inner"), O_RDWR)), 0));
    MUST(chdir(in(private, "directory/deeper")));
    strcpy(before[0], mounted(private));
    strcpy(before[1], mounted(bound));
    strcpy(before[2], mounted(in(private, "directory/deeper")));
    strcpy(before[3], mounted(processes));
    /* What was below the app's own terminals. */
    strcpy(before[4], mounted("/dev/pts"));
    pid_t shares = CHECK_FORK({
        step(steps, 1);
        check_wait();
        same_namespace("mnt", getppid(), getpid());
        holds(in(private, "directory/deeper/inner"), "deep");
        stay(steps);
    });
    check_wait();
    same_namespace("mnt", shares, getpid());
    if (has_terminals)
        same_mount("/dev/pts", before[4]);
    same_mount(private, before[0]);
    same_mount(bound, before[1]);
    same_mount(in(private, "directory/deeper"), before[2]);
    same_mount(processes, before[3]);
    is_furnished();
    struct stat null = stat_of(in(private, "directory/null"));
    CHECK(S_ISCHR(null.st_mode), "null, expected a device, got mode %o", null.st_mode);
    holds("inner", "deep");
    map[0] = 'D';
    holds("inner", "Deep");
    map[0] = 'd';
    char rest[8] = "";
    CHECK_EQ("read", 4, MUST(read(fd, rest, 7)));
    CHECK(!strcmp(rest, "tent"), "file, expected tent, got %s", rest);
    CHECK_EQ("write", 1, MUST(write(fd, "+", 1)));
    holds(in(private, "other name"), "content+");
    CHECK_EQ("read", 5, MUST(read(read_only, rest, 7)));
    struct stat opened;
    MUST(fstat(path_of_file, &opened));
    CHECK_EQ("the file that is open by its path", stat_of(in(private, "file")).st_ino, opened.st_ino);
    CHECK_EQ("below what is open by its path", 0, MUST(faccessat(by_path, "deeper", F_OK, 0)));
    CHECK_EQ("below what is open", 0, MUST(faccessat(directory, "deeper", F_OK, 0)));
    CHECK_EQ("opened", -1, open(in(bound, "outer"), O_RDWR));
    CHECK_EQ("errno", EROFS, errno);
    char link[64], number[16];
    snprintf(number, sizeof number, "%d", getpid());
    strcpy(link, check_link(in(processes, "self")));
    CHECK(!strcmp(link, number), "self, expected %s, got %s", number, link);
    step(steps, 2);
    stay(steps);
    check_child_ok(shares);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct steps *steps = make_steps();
    strcpy(private, check_path("private"));
    strcpy(bound, check_path("bound"));
    strcpy(source, check_path("source"));
    strcpy(processes, check_path("processes"));
    MUST(mkdir(private, 0700));
    MUST(mkdir(bound, 0700));
    MUST(mkdir(source, 0700));
    MUST(mkdir(processes, 0700));
    write_file(in(source, "outer"), "outer", 0600);
    pid_t pid = CHECK_FORK(apart(steps));
    await_step(steps, 1);
    check_freeze_here();
    other_namespace("mnt", pid, getpid());
    await_step(steps, 2);
    /* Nobody else hears of what is mounted there. */
    same_mount(private, "");
    CHECK_EQ("opened", -1, open(in(private, "file"), O_RDONLY));
    CHECK_EQ("opened", -1, open(in(bound, "outer"), O_RDONLY));
    let_go(steps);
    check_child_ok(pid);
    return 0;
}
