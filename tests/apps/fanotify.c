/* fanotify: a group with a mark. */
#include "check.h"
#include <sys/fanotify.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int fd = fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK | FAN_CLOEXEC, O_RDONLY);
    if (fd < 0)
        SKIP("fanotify (CAP_SYS_ADMIN)");
    const char *path = check_path("marked");
    MUST(close(MUST(open(path, O_CREAT | O_WRONLY, 0644))));
    MUST(fanotify_mark(fd, FAN_MARK_ADD, FAN_OPEN, AT_FDCWD, path));
    check_freeze_here();
    MUST(close(MUST(open(path, O_RDONLY))));
    struct fanotify_event_metadata event;
    CHECK(read(fd, &event, sizeof event) > 0, "event, expected one, got %s", strerror(errno));
    return 0;
}
