/* A controlling terminal: session, foreground group, ^C, SIGWINCH, who has it and who has not. */
#include "check.h"
#include <sys/ioctl.h>
#include <termios.h>

static struct {
    volatile int leader, worker, loner, interrupted, resized, leader_interrupted, step;
} *shared;

static void on_int(int signal)
{
    (void)signal;
    shared->interrupted++;
}

static void on_winch(int signal)
{
    (void)signal;
    shared->resized++;
}

static void on_leader_int(int signal)
{
    (void)signal;
    shared->leader_interrupted++;
}

/* Forked before the leader has its terminal: never gets one. */
static void loner(void)
{
    shared->loner = 1;
    check_wait();
    CHECK_EQ("a terminal for who had none", -1, open("/dev/tty", O_RDWR | O_NOCTTY));
    CHECK_EQ("errno", ENXIO, errno);
}

/* The foreground group. */
static void worker(void)
{
    signal(SIGINT, on_int);
    signal(SIGWINCH, on_winch);
    setpgid(0, 0);
    int tty = MUST(open("/dev/tty", O_RDWR));
    while (tcgetpgrp(tty) != getpgrp())
        check_pause();
    shared->worker = getpid();
    check_wait();
    CHECK_EQ("foreground group", getpgrp(), tcgetpgrp(tty));
    CHECK_EQ("session of the terminal", shared->leader, tcgetsid(tty));
    CHECK_EQ("SIGWINCH by the restore", 0, shared->resized);
    char name[64] = "";
    MUST(readlink("/proc/self/fd/0", name, sizeof name - 1));
    CHECK(!strcmp(name, ttyname(0)), "name, expected %s, got %s", name, ttyname(0));
    shared->step = 1;
    while (!shared->interrupted || !shared->resized)
        check_pause();
    char line[16] = "";
    CHECK_EQ("a line", 3, read(tty, line, sizeof line));
    CHECK_EQ("end of file", 0, read(tty, line, sizeof line));
    CHECK_EQ("the line that was begun", 5, read(tty, line, sizeof line));
    CHECK(!memcmp(line, "half\n", 5), "the line that was begun, expected `half`, got %.5s", line);
}

static void leader(const char *name)
{
    MUST(setsid());
    pid_t alone = CHECK_FORK(loner());
    while (!shared->loner)
        check_pause();
    int tty = MUST(open(name, O_RDWR));
    CHECK_EQ("stdin", 0, MUST(dup2(tty, 0)));
    signal(SIGTTOU, SIG_IGN);
    signal(SIGINT, on_leader_int);
    shared->leader = getpid();
    pid_t pid = CHECK_FORK(worker());
    setpgid(pid, pid);
    MUST(tcsetpgrp(tty, pid));
    check_wait();
    CHECK_EQ("foreground group, seen by the leader", pid, tcgetpgrp(0));
    check_child_ok(pid);
    check_child_ok(alone);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    shared = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0)
        SKIP("pseudo-terminals (%s)", strerror(errno));
    MUST(grantpt(master));
    MUST(unlockpt(master));
    /* An index of its own: the restore must not depend on the first free one. */
    int second = MUST(posix_openpt(O_RDWR | O_NOCTTY));
    MUST(unlockpt(second));
    char *name = strdup(ptsname(second));
    MUST(close(master));
    master = second;
    struct stat before, after;
    MUST(chmod(name, 0600));
    pid_t pid = CHECK_FORK(leader(name));
    while (!shared->worker)
        check_pause();
    struct termios modes;
    MUST(tcgetattr(master, &modes));
    modes.c_lflag &= ~ECHO;
    MUST(tcsetattr(master, TCSANOW, &modes));
    MUST(stat(name, &before));
    CHECK_EQ("write", 8, write(master, "ab\n\004half", 8));
    int packets = 1;
    MUST(ioctl(master, TIOCPKT, &packets));
    check_freeze_here();
    CHECK_EQ("foreground group, by the master", shared->worker, tcgetpgrp(master));
    while (shared->step != 1)
        check_pause();
    MUST(stat(name, &after));
    CHECK_EQ("mode", before.st_mode, after.st_mode);
    CHECK_EQ("group", before.st_gid, after.st_gid);
    packets = 0;
    MUST(ioctl(master, TIOCGPKT, &packets));
    CHECK_EQ("packet mode", 1, packets);
    struct winsize size = {50, 100, 0, 0};
    MUST(ioctl(master, TIOCSWINSZ, &size));
    while (!shared->resized)
        check_pause();
    /* ^C empties the input unless told not to. */
    modes.c_lflag |= NOFLSH;
    MUST(tcsetattr(master, TCSANOW, &modes));
    CHECK_EQ("write", 1, write(master, "\003", 1));
    while (!shared->interrupted)
        check_pause();
    CHECK_EQ("write", 1, write(master, "\n", 1));
    check_child_ok(pid);
    CHECK_EQ("^C for the background", 0, shared->leader_interrupted);
    return 0;
}
