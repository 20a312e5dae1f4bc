/* POSIX message queues that no descriptor leads to: they are there by their names, in the order in which
   they were made, some with messages, one that is larger than everybody may make them where that is allowed. */
#include "check.h"
#include <mqueue.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <dirent.h>

static const char *names[] = {"/appshot-mqueue-closed", "/appshot-mqueue-b", "/appshot-mqueue-a", "/pipe:[1]", "/memfd:x (deleted)"};
enum { COUNT = sizeof names / sizeof *names, LARGE = 20000, USUAL = 8192 };

/* The namespace's own directory, the youngest name first; mounted nowhere. */
static void check_order(void)
{
    int context = MUST(syscall(SYS_fsopen, "mqueue", 0));
    MUST(syscall(SYS_fsconfig, context, 6, NULL, NULL, 0));
    int place = MUST(syscall(SYS_fsmount, context, 0, 0));
    DIR *directory = fdopendir(MUST(openat(place, ".", O_RDONLY | O_DIRECTORY)));
    int at = COUNT;
    for (struct dirent *entry; (entry = readdir(directory));)
        if (entry->d_name[0] != '.') {
            at--;
            CHECK(at >= 0 && !strcmp(entry->d_name, names[at] + 1), "name %d, expected %s, got %s", at,
                  at < 0 ? "none" : names[at], entry->d_name);
        }
    CHECK_EQ("names that are missing", 0, at);
    closedir(directory);
    MUST(close(place));
    MUST(close(context));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char text[LARGE];
    int large = LARGE;
    for (int i = 0; i < COUNT; i++) {
        struct mq_attr attr = {.mq_maxmsg = 5, .mq_msgsize = i == 1 ? LARGE : 64};
        mqd_t queue = mq_open(names[i], O_CREAT | O_EXCL | O_RDWR, 0606, &attr);
        if (queue < 0 && i == 1 && errno == EINVAL) {
            attr.mq_msgsize = large = USUAL;
            queue = mq_open(names[i], O_CREAT | O_EXCL | O_RDWR, 0606, &attr);
        }
        if (queue < 0)
            SKIP("POSIX message queues");
        if (i == 0)
            MUST(mq_send(queue, "kept", 5, 1));
        if (i == 1) {
            check_fill(text, large, 1);
            MUST(mq_send(queue, text, large, 1000));
            MUST(mq_send(queue, text, large - 1, 1000));
        }
        MUST(fchmod(queue, 0600 + i));
        struct timespec times[2] = {{100 + i, 0}, {200 + i, 0}};
        MUST(futimens(queue, times));
        MUST(mq_close(queue));
    }
    check_order();
    check_freeze_here();
    check_order();
    for (int i = 0; i < COUNT; i++) {
        struct stat is;
        struct mq_attr attr;
        mqd_t queue = MUST(mq_open(names[i], O_RDWR | O_NONBLOCK));
        MUST(fstat(queue, &is));
        CHECK_EQ("mode", 0600 + i, is.st_mode & 07777);
        CHECK_EQ("owner", geteuid(), is.st_uid);
        CHECK_EQ("time of use", 100 + i, is.st_atime);
        CHECK_EQ("time of change", 200 + i, is.st_mtime);
        MUST(mq_getattr(queue, &attr));
        CHECK_EQ("messages", i == 0 ? 1 : i == 1 ? 2 : 0, attr.mq_curmsgs);
        CHECK_EQ("size", i == 1 ? large : 64, attr.mq_msgsize);
        if (i == 0) {
            CHECK_EQ("length", 5, MUST(mq_receive(queue, text, sizeof text, NULL)));
            CHECK(!strcmp(text, "kept"), "message, expected kept, got %s", text);
        }
        for (int n = 0; i == 1 && n < 2; n++) {
            CHECK_EQ("length", large - n, MUST(mq_receive(queue, text, sizeof text, NULL)));
            check_filled("message", text, large - n, 1);
        }
        CHECK_EQ("one more", -1, mq_receive(queue, text, sizeof text, NULL));
        MUST(mq_close(queue));
        MUST(mq_unlink(names[i]));
    }
    return 0;
}
