/* A pseudo-terminal inside the app: modes, size, queued data, controlling terminal. */
#include "check.h"
#include <sys/ioctl.h>
#include <termios.h>

static volatile int *step;

static void child(const char *name)
{
    MUST(setsid());
    int tty = MUST(open(name, O_RDWR));
    MUST(ioctl(tty, TIOCSCTTY, 0));
    *step = 1;
    check_wait();
    CHECK_EQ("session of the terminal", getsid(0), tcgetsid(tty));
    CHECK_EQ("foreground group", getpgrp(), tcgetpgrp(tty));
    int again = MUST(open("/dev/tty", O_RDWR));
    CHECK_EQ("write to /dev/tty", 4, MUST(write(again, "ctty", 4)));
    *step = 2;
    while (*step != 3)
        check_pause();
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char buf[4096];
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master < 0)
        SKIP("pseudo-terminals (%s)", strerror(errno));
    MUST(grantpt(master));
    MUST(unlockpt(master));
    char *name = strdup(ptsname(master));
    int slave = MUST(open(name, O_RDWR | O_NOCTTY));
    struct termios modes, now;
    memset(&modes, 0, sizeof modes); /* compared with the padding */
    memset(&now, 0, sizeof now);
    MUST(tcgetattr(slave, &modes));
    modes.c_lflag &= ~(ICANON | ECHO);
    modes.c_oflag &= ~OPOST;
    modes.c_cc[VMIN] = 1;
    modes.c_cc[VINTR] = 7;
    cfsetispeed(&modes, B9600);
    cfsetospeed(&modes, B9600);
    MUST(tcsetattr(slave, TCSANOW, &modes));
    MUST(tcgetattr(slave, &modes)); /* as the kernel took it */
    struct winsize size = {43, 132, 11, 22}, size_now;
    MUST(ioctl(master, TIOCSWINSZ, &size));
    step = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pid_t pid = CHECK_FORK(child(name));
    while (!*step)
        check_pause();
    CHECK_EQ("write", 7, write(slave, "to mast", 7));
    CHECK_EQ("write", 8, write(master, "to slave", 8));
    check_freeze_here();
    MUST(tcgetattr(slave, &now));
    CHECK(!memcmp(&now, &modes, sizeof now), "termios, expected the same");
    MUST(ioctl(slave, TIOCGWINSZ, &size_now));
    CHECK(!memcmp(&size, &size_now, sizeof size), "window size, expected 43x132, got %dx%d",
          size_now.ws_row, size_now.ws_col);
    CHECK(!strcmp(name, ptsname(master)), "name, expected %s, got %s", name, ptsname(master));
    CHECK(!strcmp(name, ttyname(slave)), "name of the slave, expected %s", name);
    CHECK_EQ("queued for the slave", 8, read(slave, buf, sizeof buf));
    CHECK(!memcmp(buf, "to slave", 8), "data for the slave, expected `to slave`");
    size_t have = 0;
    while (have < 11)
        have += MUST(read(master, buf + have, sizeof buf - have));
    CHECK(!memcmp(buf, "to mastctty", 11), "data for the master, expected `to mastctty`, got %.11s", buf);
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(master, F_GETFD));
    while (*step != 2)
        check_pause();
    *step = 3;
    check_child_ok(pid);
    return 0;
}
