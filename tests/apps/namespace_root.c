/* Another root (pivot_root), as sandboxes have it: a part of a file system in memory, the rest bound to it. */
#include "namespace.h"
#include <sys/mount.h>
#include <sys/syscall.h>

static char base[512], outer[512];

static const char *in(const char *name)
{
    static char paths[4][1100];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/root%s", base, name);
    return path;
}

/* Directories on the way, too. */
static void make_directory(const char *path)
{
    char so_far[1100];
    for (const char *end = strchr(path + 1, '/');; end = strchr(end + 1, '/')) {
        size_t length = end ? (size_t)(end - path) : strlen(path);
        snprintf(so_far, sizeof so_far, "%.*s", (int)length, path);
        CHECK(!mkdir(so_far, 0755) || errno == EEXIST, "mkdir %s, expected success, got %s", so_far, strerror(errno));
        if (!end)
            return;
    }
}

static void bind_there(const char *directory, unsigned long flags)
{
    make_directory(in(directory));
    MUST(mount(directory, in(directory), NULL, MS_BIND, NULL));
    if (flags)
        MUST(mount(NULL, in(directory), NULL, MS_REMOUNT | MS_BIND | flags, NULL));
}

static int has(const char *path)
{
    return access(path, F_OK) == 0;
}

static void inside(struct steps *steps)
{
    int here = MUST(open(outer, O_RDONLY | O_DIRECTORY));
    if (unshare(CLONE_NEWNS))
        SKIP("mount namespaces");
    MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
    MUST(mount("base", base, "tmpfs", 0, "size=1m,mode=711"));
    MUST(mkdir(in(""), 0750));
    MUST(mkdir(in("/old"), 0700));
    bind_there("/usr", MS_RDONLY | MS_NOSUID);
    bind_there(outer, 0);
    char program[512];
    snprintf(program, sizeof program, "%s", check_link("/proc/self/exe"));
    *strrchr(program, '/') = 0;
    bind_there(program, MS_RDONLY);
    MUST(symlink("usr/lib", in("/lib")));
    MUST(symlink("usr/lib64", in("/lib64")));
    make_directory(in("/dev"));
    MUST(close(MUST(open(in("/dev/null"), O_CREAT | O_WRONLY, 0644))));
    MUST(mount("/dev/null", in("/dev/null"), NULL, MS_BIND, NULL));
    make_directory(in("/proc"));
    MUST(mount("/proc", in("/proc"), NULL, MS_BIND | MS_REC, NULL));
    /* A part of that in memory is the root. */
    MUST(mount(in(""), in(""), NULL, MS_BIND | MS_REC, NULL));
    MUST(syscall(SYS_pivot_root, in(""), in("/old")));
    MUST(chdir("/"));
    MUST(umount2("/old", MNT_DETACH));
    MUST(rmdir("/old"));
    int null = MUST(open("/dev/null", O_RDWR));
    int root = MUST(open("/", O_RDONLY | O_DIRECTORY));
    int library = MUST(open("/usr/bin/env", O_RDONLY));
    step(steps, 1);
    check_wait();
    struct stat got;
    MUST(stat("/", &got));
    CHECK_EQ("mode", S_IFDIR | 0750, got.st_mode);
    CHECK(!has("/etc/passwd") && !has("/old"), "root, expected its own, got another");
    CHECK(has("/lib64") && has("/usr/bin/env"), "what is bound, expected it, got nothing");
    CHECK_EQ("opened", -1, open("/usr/bin/env", O_RDWR));
    CHECK_EQ("errno", EROFS, errno);
    CHECK_EQ("write", 1, MUST(write(null, "x", 1)));
    MUST(fstat(root, &got));
    CHECK_EQ("mode", S_IFDIR | 0750, got.st_mode);
    MUST(mkdirat(root, "made", 0700));
    CHECK(has("/made"), "directory, expected it, got nothing");
    char elf[4];
    CHECK_EQ("read", 4, MUST(read(library, elf, 4)));
    /* What was opened before is in the app's own mounts: it leads out. */
    CHECK(!faccessat(here, "../..", F_OK, 0), "directory, expected it, got %s", strerror(errno));
    char mounts[65536];
    ssize_t length = check_read_file("/proc/self/mountinfo", mounts, sizeof mounts - 1);
    mounts[length] = 0;
    CHECK(strstr(mounts, " /root / rw"), "root, expected a part of a file system, got %s", mounts);
    step(steps, 2);
    stay(steps);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct steps *steps = make_steps();
    strcpy(base, check_path("base"));
    strcpy(outer, check_path("."));
    outer[strlen(outer) - 2] = 0;
    MUST(mkdir(base, 0700));
    pid_t pid = CHECK_FORK(inside(steps));
    await_step(steps, 1);
    check_freeze_here();
    other_namespace("mnt", pid, getpid());
    await_step(steps, 2);
    CHECK(!has(in("")), "file system in memory, expected nothing of it, got it");
    let_go(steps);
    check_child_ok(pid);
    return 0;
}
