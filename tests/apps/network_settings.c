/* Settings of the app's own network namespace (net.ipv4.*, net.core.somaxconn): those that it changed, and one that changes others. */
#include "check.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

static void set(const char *name, const char *value)
{
    char path[128];
    snprintf(path, sizeof path, "/proc/sys/net/%s", name);
    int fd = open(path, O_WRONLY);
    if (fd < 0)
        SKIP("settings of a network of its own (%s: %s)", name, strerror(errno));
    CHECK_EQ(name, strlen(value), write(fd, value, strlen(value)));
    MUST(close(fd));
}

static void is(const char *name, const char *value)
{
    char path[128], text[64];
    snprintf(path, sizeof path, "/proc/sys/net/%s", name);
    ssize_t n = check_read_file(path, text, sizeof text - 1);
    text[n] = 0;
    text[strcspn(text, "\n")] = 0;
    for (char *tab; (tab = strchr(text, '\t'));)
        *tab = ' ';
    CHECK(!strcmp(text, value), "%s, expected %s, got %s", name, value, text);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    set("ipv4/ip_forward", "1");
    set("ipv4/conf/lo/forwarding", "0");
    set("ipv4/ip_local_port_range", "20000 20001");
    set("ipv4/tcp_keepalive_time", "77");
    set("core/somaxconn", "5000");
    check_freeze_here();
    is("ipv4/ip_forward", "1");
    is("ipv4/conf/default/forwarding", "1");
    is("ipv4/conf/lo/forwarding", "0");
    is("ipv4/ip_local_port_range", "20000 20001");
    is("ipv4/tcp_keepalive_time", "77");
    is("core/somaxconn", "5000");
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t len = sizeof at;
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(bind(fd, (void *)&at, len));
    MUST(getsockname(fd, (void *)&at, &len));
    CHECK(ntohs(at.sin_port) == 20000 || ntohs(at.sin_port) == 20001, "a port, expected of two, got %d", ntohs(at.sin_port));
    return 0;
}
