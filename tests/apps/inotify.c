/* inotify: watches keep their numbers and masks. */
#include "check.h"
#include <sys/inotify.h>

static char buf[65536] __attribute__((aligned(8)));

static int seen(int fd, int wd, uint32_t mask, const char *name)
{
    ssize_t n = read(fd, buf, sizeof buf);
    for (ssize_t at = 0; at < n;) {
        struct inotify_event *e = (struct inotify_event *)(buf + at);
        if (e->wd == wd && (e->mask & mask) && (!name || (e->len && !strcmp(e->name, name))))
            return 1;
        at += sizeof *e + e->len;
    }
    return 0;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    const char *dir = check_path("watched"), *file = check_path("watched-file");
    MUST(mkdir(dir, 0755));
    MUST(close(MUST(open(file, O_CREAT | O_WRONLY, 0644))));
    int fd = MUST(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
    int gone = MUST(inotify_add_watch(fd, check_path("."), IN_ATTRIB));
    int in_dir = MUST(inotify_add_watch(fd, dir, IN_CREATE | IN_DELETE));
    int in_file = MUST(inotify_add_watch(fd, file, IN_MODIFY));
    MUST(inotify_rm_watch(fd, gone));
    CHECK(read(fd, buf, sizeof buf) > 0, "IN_IGNORED, expected");
    check_freeze_here();
    CHECK_EQ("events made by a restore", -1, read(fd, buf, sizeof buf));
    CHECK_EQ("errno", EAGAIN, errno);
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(fd, F_GETFD));
    char name[600];
    snprintf(name, sizeof name, "%s/new", dir);
    MUST(close(MUST(open(name, O_CREAT | O_WRONLY, 0644))));
    CHECK(seen(fd, in_dir, IN_CREATE, "new"), "IN_CREATE of watch %d, expected, got none", in_dir);
    int w = MUST(open(file, O_WRONLY));
    CHECK_EQ("write", 1, write(w, "x", 1));
    CHECK(seen(fd, in_file, IN_MODIFY, NULL), "IN_MODIFY of watch %d, expected, got none", in_file);
    MUST(fchmod(w, 0600));
    CHECK_EQ("an event that is not watched", -1, read(fd, buf, sizeof buf));
    CHECK_EQ("watch of a known directory", in_dir, inotify_add_watch(fd, dir, IN_DELETE));
    MUST(unlink(name));
    CHECK(seen(fd, in_dir, IN_DELETE, "new"), "IN_DELETE, expected, got none");
    return 0;
}
