/* Processes made by clone(CLONE_FILES), clone(CLONE_FS) or both share one table, one cwd, root and umask, or both */
#include "check.h"
#include <sys/epoll.h>

enum { FILES = 0, FS, BOTH, NONE, BELOW, COUNT };

static const int flags_of[] = {CLONE_FILES, CLONE_FS, CLONE_FILES | CLONE_FS, 0, CLONE_FILES};
static struct shared {
    volatile int step[COUNT], done[COUNT], pid[COUNT], opened;
} *shared;

static int is_same(pid_t one, pid_t other, int what)
{
    enum { KCMP_FILES = 2, KCMP_FS = 3 };
    return MUST(syscall(SYS_kcmp, one, other, what == CLONE_FILES ? KCMP_FILES : KCMP_FS, 0, 0)) == 0;
}

static void await(volatile int *step, int wanted)
{
    while (*step < wanted)
        check_pause();
}

static pid_t make(int which, void (*body)(int))
{
    pid_t pid = MUST(syscall(SYS_clone, flags_of[which] | SIGCHLD, NULL, NULL, NULL, NULL));
    if (pid == 0) {
        body(which);
        _exit(0);
    }
    shared->pid[which] = pid;
    return pid;
}

static void step(int which, int wanted)
{
    shared->step[which] = wanted;
    await(&shared->done[which], wanted);
}

static void *idle(void *arg)
{
    while (pause())
        ;
    return arg;
}

/* What each does when it is told to, after the freeze. */
static void act(int which)
{
    if (which == BOTH) {
        check_thread(idle, NULL);
        /* Of a table that it shares with its grandparent then. */
        make(BELOW, act);
    }
    await(&shared->step[which], 1);
    switch (which) {
    case FILES:
        shared->opened = MUST(open("/dev/zero", O_RDONLY | O_CLOEXEC));
        break;
    case FS:
        MUST(chdir("/tmp"));
        break;
    case BOTH:
        umask(0123);
        MUST(close(50));
        break;
    case NONE:
        MUST(close(60));
        umask(0);
        MUST(chdir("/"));
        break;
    case BELOW:
        MUST(dup2(60, 61));
        umask(0);
        MUST(chdir("/"));
        break;
    }
    shared->done[which] = 1;
    await(&shared->step[which], 2);
    if (which == BOTH) {
        int status;
        CHECK_EQ("wait for the one below", shared->pid[BELOW], MUST(waitpid(shared->pid[BELOW], &status, 0)));
        CHECK_EQ("status of the one below", 0, status);
    }
    shared->done[which] = 2;
}

static void check_sharing(void)
{
    pid_t own = getpid();
    for (int which = 0; which < COUNT; which++) {
        int is_file = which != FS && which != NONE, is_fs = which == FS || which == BOTH;
        CHECK(is_same(own, shared->pid[which], CLONE_FILES) == is_file, "table of process %d", which);
        CHECK(is_same(own, shared->pid[which], CLONE_FS) == is_fs, "directories of process %d", which);
    }
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    shared = MUST(mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    const char *path = check_path("file");
    char directory[512];
    snprintf(directory, sizeof directory, "%.*s", (int)(strrchr(path, '/') - path), path);
    MUST(chdir(directory));
    umask(027);
    int fd = MUST(open(path, O_CREAT | O_RDWR, 0600));
    MUST(write(fd, "0123456789", 10));
    MUST(lseek(fd, 4, SEEK_SET));
    MUST(dup2(fd, 50));
    MUST(dup3(fd, 60, O_CLOEXEC));
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 2, .l_len = 3};
    MUST(fcntl(fd, F_SETLK, &lock));
    int ends[2], epoll = MUST(epoll_create1(EPOLL_CLOEXEC));
    MUST(pipe(ends));
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 77};
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event));
    for (int which = 0; which < BELOW; which++)
        make(which, act);
    await(&shared->pid[BELOW], 1);
    check_sharing();
    check_freeze_here();
    check_sharing();
    char name[512];
    CHECK(strcmp(MUST(getcwd(name, sizeof name)), directory) == 0, "cwd, expected %s, got %s", directory, name);
    CHECK_EQ("umask", 027, umask(027));
    CHECK_EQ("offset", 4, MUST(lseek(60, 0, SEEK_CUR)));
    CHECK_EQ("closed by exec", FD_CLOEXEC, MUST(fcntl(60, F_GETFD)));
    CHECK_EQ("not closed by exec", 0, MUST(fcntl(50, F_GETFD)));
    struct flock other = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 2, .l_len = 3};
    CHECK_EQ("the lock is the table's", 0, fcntl(fd, F_SETLK, &other));
    MUST(write(ends[1], "x", 1));
    CHECK_EQ("epoll", 1, MUST(epoll_wait(epoll, &event, 1, 0)));
    CHECK_EQ("epoll", 77, event.data.u64);

    step(NONE, 1);
    MUST(fcntl(60, F_GETFD));
    CHECK_EQ("umask after another has changed its own", 027, umask(027));
    step(FILES, 1);
    CHECK_EQ("opened by another", FD_CLOEXEC, MUST(fcntl(shared->opened, F_GETFD)));
    step(BOTH, 1);
    CHECK_EQ("umask set by another", 0123, umask(0123));
    CHECK_EQ("closed by another", -1, fcntl(50, F_GETFD));
    step(FS, 1);
    CHECK(strcmp(MUST(getcwd(name, sizeof name)), "/tmp") == 0, "cwd, expected /tmp, got %s", name);
    step(BELOW, 1);
    CHECK_EQ("made by the one below", 0, MUST(fcntl(61, F_GETFD)));
    CHECK_EQ("umask after the one below has changed its own", 0123, umask(0123));
    CHECK(strcmp(MUST(getcwd(name, sizeof name)), "/tmp") == 0, "cwd after that, expected /tmp, got %s", name);
    shared->step[BELOW] = 2;
    for (int which = 0; which < BELOW; which++) {
        step(which, 2);
        check_child_ok(shared->pid[which]);
    }
    return 0;
}
