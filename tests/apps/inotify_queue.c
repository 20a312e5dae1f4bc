/* Events that were queued and not yet read. */
#include "check.h"
#include <sys/inotify.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    const char *dir = check_path("queued");
    char name[600], buf[4096] __attribute__((aligned(8)));
    MUST(mkdir(dir, 0755));
    int fd = MUST(inotify_init1(IN_NONBLOCK));
    int wd = MUST(inotify_add_watch(fd, dir, IN_CREATE));
    snprintf(name, sizeof name, "%s/early", dir);
    MUST(close(MUST(open(name, O_CREAT | O_WRONLY, 0644))));
    check_freeze_here();
    ssize_t n = read(fd, buf, sizeof buf);
    CHECK(n > 0, "queued event, expected, got %s", strerror(errno));
    struct inotify_event *e = (struct inotify_event *)buf;
    CHECK_EQ("watch", wd, e->wd);
    CHECK(!strcmp(e->name, "early"), "name, expected early, got %s", e->name);
    return 0;
}
