/* Open settings of the kernel: those of System V IPC, of the network and of all are, before and after, the
 * ones that a look by name finds. */
#include "check.h"

static const char *const names[] = {
    "/proc/sys/kernel/shmall",
    "/proc/sys/kernel/msgmax",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/kernel/threads-max",
};
enum { COUNT = sizeof names / sizeof *names };

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int fds[COUNT];
    char had[COUNT][64];
    for (int i = 0; i < COUNT; i++) {
        fds[i] = MUST(open(names[i], O_RDONLY));
        ssize_t length = MUST(read(fds[i], had[i], sizeof had[i] - 1));
        had[i][length] = 0;
        MUST(lseek(fds[i], 0, SEEK_SET));
    }
    check_freeze_here();
    for (int i = 0; i < COUNT; i++) {
        struct stat own, named;
        MUST(fstat(fds[i], &own));
        MUST(stat(names[i], &named));
        CHECK(own.st_ino == named.st_ino, "%s is another file", names[i]);
        char now[64];
        ssize_t length = MUST(read(fds[i], now, sizeof now - 1));
        now[length] = 0;
        CHECK(!strcmp(had[i], now), "%s, expected %s, got %s", names[i], had[i], now);
    }
    return 0;
}
