/* Listening and bound unix sockets: by path, abstract, and named datagrams. */
#include "check.h"
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

static socklen_t name_it(struct sockaddr_un *address, const char *name)
{
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    memcpy(address->sun_path + (name[0] != '/'), name, strlen(name));
    return offsetof(struct sockaddr_un, sun_path) + strlen(name) + 1;
}

static int listener(const char *name, int type)
{
    struct sockaddr_un address;
    socklen_t len = name_it(&address, name);
    int fd = MUST(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
    MUST(bind(fd, (struct sockaddr *)&address, len));
    if (type != SOCK_DGRAM)
        MUST(listen(fd, 7));
    return fd;
}

static void accepts(int fd, const char *name, int type)
{
    struct sockaddr_un address, own;
    socklen_t len = name_it(&address, name), own_len = sizeof own;
    MUST(getsockname(fd, (struct sockaddr *)&own, &own_len));
    CHECK_EQ("length of the name", len, own_len);
    CHECK(!memcmp(&own, &address, len), "name, expected %s", name);
    int client = MUST(socket(AF_UNIX, type, 0));
    MUST(connect(client, (struct sockaddr *)&address, len));
    int server = MUST(accept(fd, NULL, NULL));
    char buf[8];
    CHECK_EQ("send", 5, send(client, "hello", 5, 0));
    CHECK_EQ("recv", 5, recv(server, buf, sizeof buf, 0));
    close(client);
    CHECK_EQ("end", 0, recv(server, buf, sizeof buf, 0));
    close(server);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char abstract[100]; /* pids repeat in other namespaces: the directory does not */
    snprintf(abstract, sizeof abstract, "appshot-test%s", check_path("abstract"));
    const char *path = check_path("socket"), *dgram = check_path("dgram");
    umask(0);
    int by_path = listener(path, SOCK_STREAM), by_name = listener(abstract, SOCK_SEQPACKET);
    int bound = listener(dgram, SOCK_DGRAM);
    MUST(chmod(path, 0640));
    struct sockaddr_un address;
    socklen_t len = name_it(&address, dgram);
    int sender = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    MUST(connect(sender, (struct sockaddr *)&address, len));
    CHECK_EQ("send", 6, send(sender, "queued", 6, 0));
    check_freeze_here();
    struct stat st;
    MUST(stat(path, &st));
    CHECK_EQ("mode of the path", 0640, st.st_mode & 0777);
    accepts(by_path, path, SOCK_STREAM);
    accepts(by_name, abstract, SOCK_SEQPACKET);
    char buf[16];
    CHECK_EQ("queued datagram", 6, recv(bound, buf, sizeof buf, MSG_DONTWAIT));
    CHECK(!memcmp(buf, "queued", 6), "datagram, expected `queued`");
    CHECK_EQ("send by the old connection", 3, send(sender, "new", 3, 0));
    CHECK_EQ("new datagram", 3, recv(bound, buf, sizeof buf, 0));
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(by_path, F_GETFD));
    return 0;
}
