/* POSIX message queues that are open: their messages in order, sizes, owner, mode, times, user to whom they
   are charged, descriptions with flags of their own, also of one that has lost its name, and shared ones. */
#include "check.h"
#include <mqueue.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/stat.h>

enum { LONG = 5000, OWNER = 54321, GROUP = 54322 };

static mqd_t put_up(const char *name, int flags, long messages, long bytes)
{
    struct mq_attr attr = {.mq_maxmsg = messages, .mq_msgsize = bytes};
    return mq_open(name, flags | O_CREAT | O_EXCL, 0600, &attr);
}

static void put(mqd_t queue, unsigned priority, int len, int seed)
{
    char text[LONG];
    check_fill(text, len, seed);
    MUST(mq_send(queue, text, len, priority));
}

static void get(mqd_t queue, unsigned priority, int len, int seed)
{
    char text[LONG];
    unsigned was;
    CHECK_EQ("length", len, MUST(mq_receive(queue, text, sizeof text, &was)));
    CHECK_EQ("priority", priority, was);
    check_filled("message", text, len, seed);
}

static void has_attributes(const char *what, mqd_t queue, long flags, long messages, long bytes, long waiting)
{
    struct mq_attr attr;
    MUST(mq_getattr(queue, &attr));
    CHECK_EQ(what, flags, attr.mq_flags);
    CHECK_EQ(what, messages, attr.mq_maxmsg);
    CHECK_EQ(what, bytes, attr.mq_msgsize);
    CHECK_EQ(what, waiting, attr.mq_curmsgs);
}

/* Whether the user of this process may have a further small queue, beside so many bytes. */
static int has_room(rlim_t bytes)
{
    struct rlimit limit;
    MUST(getrlimit(RLIMIT_MSGQUEUE, &limit));
    limit.rlim_cur = bytes;
    MUST(setrlimit(RLIMIT_MSGQUEUE, &limit));
    mqd_t small = put_up("/appshot-mqueue-small", O_RDWR, 1, 1);
    CHECK(small >= 0 || errno == EMFILE, "one more queue, expected it or EMFILE, got %s", strerror(errno));
    if (small < 0)
        return 0;
    MUST(mq_close(small));
    MUST(mq_unlink("/appshot-mqueue-small"));
    return 1;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char name[64], link[64];
    snprintf(name, sizeof name, "/appshot-mqueue-%d", getpid());
    mqd_t removed = put_up(name, O_RDWR | O_NONBLOCK, 5, 64);
    if (removed < 0)
        SKIP("POSIX message queues");
    MUST(mq_send(removed, "low", 4, 1));
    MUST(mq_send(removed, "high", 5, 9));
    mqd_t removed_too = MUST(mq_open(name, O_RDONLY));
    MUST(mq_unlink(name));

    /* Another one has its name now. */
    mqd_t queue = put_up(name, O_RDWR, 10, LONG);
    mqd_t writer = MUST(mq_open(name, O_WRONLY | O_NONBLOCK));
    mqd_t reader = MUST(mq_open(name, O_RDONLY | O_NONBLOCK));
    snprintf(link, sizeof link, "/proc/self/fd/%d", queue);
    int opened = MUST(open(link, O_RDWR));
    int path = MUST(open(link, O_PATH));
    int copy = MUST(dup(writer));
    mqd_t closing = MUST(mq_open(name, O_RDONLY | O_CLOEXEC)); /* which stays among its flags */
    int staying = MUST(dup(closing));
    put(queue, 3, LONG, 1);
    put(queue, 0, 0, 2);
    put(writer, 3, 4100, 3);
    put(queue, 32767, 1, 4);
    put(queue, 7, 4048, 5);
    put(queue, 7, 4049, 6);
    put(queue, 3, 5, 7);
    put(queue, 7, 100, 8);
    put(queue, 0, 3, 9);
    MUST(fchown(queue, OWNER, GROUP));
    MUST(fchmod(queue, 0640));
    struct timespec times[2] = {{1000000000, 0}, {1100000000, 0}};
    MUST(futimens(queue, times));
    char text[100];
    long told = MUST(read(reader, text, 20)); /* what waits, as a text: the offset is its description's */
    CHECK_EQ("told", 20, told);
    MUST(futimens(queue, times));
    int watch = MUST(epoll_create1(EPOLL_CLOEXEC));
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 17};
    MUST(epoll_ctl(watch, EPOLL_CTL_ADD, reader, &event));
    MUST(fcntl(path, F_SETFD, 0));

    /* A queue of another user, which a child has made and left. */
    int ready[2], go[2];
    MUST(pipe(ready));
    MUST(pipe(go));
    pid_t child = CHECK_FORK({
        char byte = 0;
        MUST(setresuid(OWNER + getpid(), -1, -1));
        mqd_t charged = put_up("/appshot-mqueue-charged", O_RDWR | O_NONBLOCK, 10, 8000);
        MUST(charged);
        MUST(fchown(charged, 0, 0));
        CHECK(!has_room(80001), "a further queue before, expected none");
        CHECK_EQ("write", 1, MUST(write(ready[1], &byte, 1)));
        CHECK_EQ("read", 1, MUST(read(go[0], &byte, 1)));
        CHECK(!has_room(80001), "a further queue, expected none beside what is charged already");
        CHECK(has_room(800000), "a further queue, expected one");
        MUST(mq_close(charged));
        MUST(mq_unlink("/appshot-mqueue-charged"));
        /* It shares the descriptions of its parent. */
        char got[LONG];
        CHECK_EQ("shared", 1, MUST(mq_receive(queue, got, sizeof got, NULL)));
    });
    char byte;
    CHECK_EQ("read", 1, MUST(read(ready[0], &byte, 1)));
    struct stat was;
    MUST(fstat(queue, &was));
    check_freeze_here();

    struct stat is;
    MUST(fstat(queue, &is));
    CHECK_EQ("mode", was.st_mode, is.st_mode);
    CHECK_EQ("owner", OWNER, is.st_uid);
    CHECK_EQ("group", GROUP, is.st_gid);
    CHECK_EQ("size", was.st_size, is.st_size);
    CHECK_EQ("names", 1, is.st_nlink);
    CHECK_EQ("time of use", 1000000000, is.st_atime);
    CHECK_EQ("time of change", 1100000000, is.st_mtime);
    MUST(fstat(path, &was));
    CHECK_EQ("inode by the path", is.st_ino, was.st_ino);
    MUST(fstat(opened, &was));
    CHECK_EQ("inode by open(2)", is.st_ino, was.st_ino);
    snprintf(link, sizeof link, "/proc/self/fd/%d", path);
    CHECK(!strcmp(check_link(link), name), "name of the path, expected %s, got %s", name, check_link(link));
    has_attributes("queue", queue, 0, 10, LONG, 9);
    has_attributes("writer", writer, O_NONBLOCK, 10, LONG, 9);
    has_attributes("reader", reader, O_NONBLOCK, 10, LONG, 9);
    has_attributes("removed", removed, O_NONBLOCK, 5, 64, 2);
    has_attributes("removed, too", removed_too, 0, 5, 64, 2);
    CHECK_EQ("flags", O_RDWR, MUST(fcntl(queue, F_GETFL)));
    CHECK_EQ("flags by open(2)", O_RDWR | 0100000, MUST(fcntl(opened, F_GETFL)));
    CHECK_EQ("flags of the path", O_PATH, MUST(fcntl(path, F_GETFL)));
    CHECK_EQ("flags of the writer", O_WRONLY | O_NONBLOCK, MUST(fcntl(writer, F_GETFL)));
    CHECK_EQ("close-on-exec", FD_CLOEXEC, MUST(fcntl(queue, F_GETFD)));
    CHECK_EQ("none", 0, MUST(fcntl(path, F_GETFD)));
    CHECK_EQ("flags with O_CLOEXEC", O_CLOEXEC, MUST(fcntl(closing, F_GETFL)));
    CHECK_EQ("close-on-exec", FD_CLOEXEC, MUST(fcntl(closing, F_GETFD)));
    CHECK_EQ("none of its copy", 0, MUST(fcntl(staying, F_GETFD)));
    CHECK_EQ("none of a copy", 0, MUST(fcntl(copy, F_GETFD)));
    MUST(fcntl(copy, F_SETFL, O_WRONLY));
    CHECK_EQ("flags of a copy", O_WRONLY, MUST(fcntl(writer, F_GETFL)));
    MUST(fcntl(copy, F_SETFL, O_WRONLY | O_NONBLOCK));
    CHECK_EQ("offset", 20, MUST(lseek(reader, 0, SEEK_CUR)));
    CHECK_EQ("to write", -1, mq_send(reader, "", 1, 0));
    CHECK_EQ("errno of that", EBADF, errno);
    CHECK_EQ("watched", 1, MUST(epoll_wait(watch, &event, 1, 0)));
    CHECK_EQ("watched as", 17, event.data.u64);

    CHECK_EQ("write", 1, MUST(write(go[1], &byte, 1))); /* takes the most urgent one */
    check_child_ok(child);
    put(writer, 7, 2, 10);
    CHECK_EQ("by name", 1, MUST(mq_unlink(name)) == 0);
    get(reader, 7, 4048, 5);
    get(reader, 7, 4049, 6);
    get(opened, 7, 100, 8);
    get(reader, 7, 2, 10);
    get(reader, 3, LONG, 1);
    get(reader, 3, 4100, 3);
    get(reader, 3, 5, 7);
    get(reader, 0, 0, 2);
    get(reader, 0, 3, 9);
    CHECK_EQ("one more", -1, mq_receive(reader, text, sizeof text, NULL));
    CHECK_EQ("errno of one more", EMSGSIZE, errno);
    char got[64];
    unsigned priority;
    CHECK_EQ("length", 5, MUST(mq_receive(removed_too, got, sizeof got, &priority)));
    CHECK_EQ("priority", 9, priority);
    CHECK_EQ("length", 4, MUST(mq_receive(removed, got, sizeof got, &priority)));
    CHECK(!strcmp(got, "low"), "message, expected low, got %s", got);
    CHECK_EQ("one more", -1, mq_receive(removed, got, sizeof got, NULL));
    CHECK_EQ("errno of one more", EAGAIN, errno);
    return 0;
}
