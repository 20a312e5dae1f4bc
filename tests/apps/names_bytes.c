/* Names that are no text: of threads, of sockets; arguments and environment. */
#include "check.h"
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>

/* Cut in the middle of a letter, as the kernel cuts long names; and blanks. */
static const char name[16] = "\xd0\xbf\xd1\x80\xd0\xb8\xd0\xb2\xd0\xb5\xd1\x82\xd1 \n";
static const char thread_name[16] = " x\xff\t ";
static const char argument[] = "\xff\xfe\x80", variable[] = "ODD=\xe9\xff";

static int stop;

static void *work(void *arg)
{
    (void)arg;
    MUST(prctl(PR_SET_NAME, thread_name));
    __atomic_store_n(&stop, -1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&stop, __ATOMIC_SEQ_CST) != 1)
        check_pause();
    char got[16] = "";
    MUST(prctl(PR_GET_NAME, got));
    CHECK(!memcmp(got, thread_name, strlen(thread_name) + 1), "name of the thread, got %s", got);
    return NULL;
}

static int bound(const char *path, size_t len)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    memcpy(to.sun_path, path, len);
    int fd = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    MUST(bind(fd, (struct sockaddr *)&to, offsetof(struct sockaddr_un, sun_path) + len));
    return fd;
}

static void verify(int fd, const char *path, size_t len)
{
    struct sockaddr_un is;
    socklen_t room = sizeof is;
    MUST(getsockname(fd, (struct sockaddr *)&is, &room));
    CHECK(!memcmp(is.sun_path, path, len), "name of a socket, got %s", is.sun_path + !is.sun_path[0]);
    /* It is reached by that name. */
    int from = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    char byte = 'x';
    MUST(sendto(from, &byte, 1, 0, (struct sockaddr *)&is, offsetof(struct sockaddr_un, sun_path) + len));
    CHECK_EQ("read", 1, read(fd, &byte, 1));
    MUST(close(from));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    if (argc == 3) {
        char *args[] = {argv[0], argv[1], argv[2], (char *)argument, NULL};
        char *environment[] = {(char *)variable, NULL};
        MUST(execve("/proc/self/exe", args, environment));
    }
    char abstract[100], path[512];
    int n = snprintf(abstract + 1, sizeof abstract - 1, "odd\xff %.80s", check_ready_path);
    abstract[0] = 0;
    int length = snprintf(path, sizeof path, "%s", check_path("s\xff"));
    pthread_t thread = check_thread(work, NULL);
    while (__atomic_load_n(&stop, __ATOMIC_SEQ_CST) != -1)
        check_pause();
    MUST(prctl(PR_SET_NAME, name));
    int sockets[] = {bound(abstract, n + 1), bound(path, length + 1)};
    char before[65536], after[65536], got[16] = "";
    ssize_t size = check_read_file("/proc/self/cmdline", before, sizeof before);
    check_freeze_here();
    CHECK_EQ("cmdline", size, check_read_file("/proc/self/cmdline", after, sizeof after));
    CHECK(!memcmp(before, after, size), "cmdline, expected the same");
    size = check_read_file("/proc/self/environ", after, sizeof after);
    CHECK(size == sizeof variable && !memcmp(after, variable, size), "environ, got %s", after);
    CHECK(!strcmp(argv[3], argument), "argument, got %s", argv[3]);
    MUST(prctl(PR_GET_NAME, got));
    CHECK(!memcmp(got, name, strlen(name) + 1), "name, got %s", got);
    verify(sockets[0], abstract, n + 1);
    verify(sockets[1], path, length + 1);
    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    MUST0(pthread_join(thread, NULL));
    return 0;
}
