/* Networks beside the app's own: listening and connected sockets, datagrams and settings in one that two
 * processes share; the same port and name in another; one whose loopback device was never up, and one where it
 * is down again; a socket of one held by a process in another. */
#include "namespace.h"
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

enum { PORT = 4711 };

static int loopback(int up)
{
    struct ifreq lo = {.ifr_name = "lo"};
    int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    if (up >= 0) {
        lo.ifr_flags = up ? IFF_UP : 0;
        MUST(ioctl(fd, SIOCSIFFLAGS, &lo));
    }
    MUST(ioctl(fd, SIOCGIFFLAGS, &lo));
    MUST(close(fd));
    return (lo.ifr_flags & IFF_UP) != 0;
}

/* Whether the loopback device has its address, up or not. */
static int has_address(void)
{
    struct ifreq lo = {.ifr_name = "lo"};
    int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    int got = ioctl(fd, SIOCGIFADDR, &lo);
    MUST(close(fd));
    return got == 0;
}

static int setting(const char *value)
{
    char text[32];
    const char *name = "/proc/sys/net/ipv4/ip_forward";
    if (value) {
        int fd = MUST(open(name, O_WRONLY));
        MUST(write(fd, value, 1));
        MUST(close(fd));
    }
    text[check_read_file(name, text, sizeof text - 1)] = 0;
    return atoi(text);
}

static long long cookie(int fd)
{
    long long told = 0;
    socklen_t len = sizeof told;
    if (getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &told, &len))
        SKIP("SO_NETNS_COOKIE (Linux 5.14)");
    return told;
}

static int bound(int type, int port)
{
    struct sockaddr_in at = {AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}, ""};
    int fd = MUST(socket(AF_INET, type, 0));
    MUST(bind(fd, (void *)&at, sizeof at));
    if (type == SOCK_STREAM)
        MUST(listen(fd, 5));
    return fd;
}

static int connected(int type, int port)
{
    struct sockaddr_in at = {AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}, ""};
    int fd = MUST(socket(AF_INET, type, 0));
    MUST(connect(fd, (void *)&at, sizeof at));
    return fd;
}

static int named(int listens)
{
    struct sockaddr_un at = {AF_UNIX, "\0nested"};
    int fd = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    if (listens) {
        MUST(bind(fd, (void *)&at, sizeof(sa_family_t) + 7));
        MUST(listen(fd, 5));
    } else {
        MUST(connect(fd, (void *)&at, sizeof(sa_family_t) + 7));
    }
    return fd;
}

static void says(int from, int to, const char *text)
{
    char got[32];
    if (from >= 0)
        CHECK_EQ("bytes written", strlen(text), MUST(write(from, text, strlen(text))));
    CHECK_EQ("bytes read", strlen(text), MUST(read(to, got, sizeof got)));
    CHECK(!memcmp(got, text, strlen(text)), "text, expected %s, got another", text);
}

struct sockets {
    int listener, client, server, udp, sender, local, local_client, local_server;
};

static void make(struct sockets *to, const char *text)
{
    to->listener = bound(SOCK_STREAM, PORT);
    to->client = connected(SOCK_STREAM, PORT);
    to->server = MUST(accept(to->listener, NULL, NULL));
    CHECK_EQ("written", strlen(text), MUST(write(to->client, text, strlen(text))));
    to->udp = bound(SOCK_DGRAM, PORT);
    to->sender = connected(SOCK_DGRAM, PORT);
    CHECK_EQ("sent", strlen(text), MUST(write(to->sender, text, strlen(text))));
    to->local = named(1);
    to->local_client = named(0);
    to->local_server = MUST(accept(to->local, NULL, NULL));
    CHECK_EQ("written", strlen(text), MUST(write(to->local_client, text, strlen(text))));
}

static void are(const struct sockets *was, const char *text, long long network)
{
    const int *all = &was->listener;
    for (unsigned at = 0; at < sizeof *was / sizeof *all; at++)
        CHECK_EQ("network of a socket", network, cookie(all[at]));
    says(-1, was->server, text);
    says(-1, was->udp, text);
    says(-1, was->local_server, text);
    says(was->server, was->client, "back");
    says(was->client, was->server, "forth");
    says(was->sender, was->udp, "again");
    says(was->local_server, was->local_client, "back");
}

/* Whoever connects is accepted. */
static void serves(int listener, int client)
{
    int server = MUST(accept(listener, NULL, NULL));
    says(client, server, "new");
    MUST(close(server));
    MUST(close(client));
}

static void own(void)
{
    if (unshare(CLONE_NEWNET))
        SKIP("network namespaces");
}

static void never_up(struct steps *steps, const struct sockets *parents, long long parents_network)
{
    own();
    int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    int local = named(1);
    step(steps, 2);
    check_wait();
    other_namespace("net", getppid(), getpid());
    CHECK_EQ("loopback", 0, loopback(-1));
    CHECK_EQ("its address", 0, has_address());
    CHECK_EQ("network of a socket", cookie(fd), cookie(local));
    CHECK(cookie(fd) != parents_network, "another network, expected, got the parent's");
    serves(local, named(0));
    /* What it has of its parent is of its parent's network. */
    CHECK_EQ("network of a socket of the parent's", cookie(parents->listener), cookie(parents->udp));
    CHECK(cookie(fd) != cookie(parents->listener), "another network, expected, got the parent's");
    CHECK_EQ("setting", 0, setting(NULL));
    step(steps, 4);
}

static void down_again(struct steps *steps)
{
    struct sockets all;
    own();
    loopback(1);
    loopback(0);
    step(steps, 3);
    check_wait();
    CHECK_EQ("loopback", 0, loopback(-1));
    CHECK_EQ("its address", 1, has_address());
    loopback(1);
    make(&all, "later");
    are(&all, "later", cookie(all.listener));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct steps *steps = make_steps();
    pid_t pid = CHECK_FORK({
        struct sockets all;
        own();
        loopback(1);
        setting("1");
        make(&all, "first");
        pid_t shares = CHECK_FORK({
            step(steps, 1);
            check_wait();
            same_namespace("net", getppid(), getpid());
            await_step(steps, 4);
            int client = connected(SOCK_STREAM, PORT);
            CHECK_EQ("network of a new socket", cookie(all.listener), cookie(client));
            serves(all.listener, client);
            serves(all.local, named(0));
        });
        await_step(steps, 1);
        long long network = cookie(all.listener);
        pid_t up = CHECK_FORK(never_up(steps, &all, network));
        await_step(steps, 2);
        check_wait();
        CHECK_EQ("loopback", 1, loopback(-1));
        CHECK_EQ("setting", 1, setting(NULL));
        int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
        are(&all, "first", cookie(fd));
        check_child_ok(up);
        check_child_ok(shares);
        stay(steps);
    });
    await_step(steps, 2);
    pid_t other = CHECK_FORK({
        struct sockets all;
        own();
        loopback(1);
        make(&all, "second");
        pid_t down = CHECK_FORK(down_again(steps));
        await_step(steps, 3);
        check_wait();
        CHECK_EQ("setting", 0, setting(NULL));
        are(&all, "second", cookie(all.listener));
        serves(all.listener, connected(SOCK_STREAM, PORT));
        check_child_ok(down);
        stay(steps);
    });
    await_step(steps, 3);
    check_freeze_here();
    other_namespace("net", pid, getpid());
    other_namespace("net", pid, other);
    let_go(steps);
    check_child_ok(other);
    check_child_ok(pid);
    return 0;
}
