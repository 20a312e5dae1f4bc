/* Leases of files: for reading and for writing, with the signal that tells of a break. */
#include "check.h"

static volatile sig_atomic_t told_fd = -1;

static void told(int sig, siginfo_t *info, void *context)
{
    (void)sig, (void)context;
    told_fd = info->si_fd;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    const char *read_path = check_path("leased"), *write_path = check_path("leased-too");
    MUST(close(MUST(open(read_path, O_CREAT | O_WRONLY, 0644))));
    int reading = MUST(open(read_path, O_RDONLY | O_CLOEXEC));
    int writing = MUST(open(write_path, O_CREAT | O_RDWR | O_CLOEXEC, 0644));
    struct sigaction action = {.sa_sigaction = told, .sa_flags = SA_SIGINFO};
    MUST(sigaction(SIGRTMIN + 3, &action, NULL));
    MUST(fcntl(reading, F_SETSIG, SIGRTMIN + 3));
    MUST(fcntl(reading, F_SETLEASE, F_RDLCK));
    MUST(fcntl(writing, F_SETLEASE, F_WRLCK));
    check_freeze_here();
    CHECK_EQ("lease for reading", F_RDLCK, MUST(fcntl(reading, F_GETLEASE)));
    CHECK_EQ("lease for writing", F_WRLCK, MUST(fcntl(writing, F_GETLEASE)));
    CHECK_EQ("signal", SIGRTMIN + 3, MUST(fcntl(reading, F_GETSIG)));
    /* Whoever opens it to write has the holder told, and waits. */
    CHECK_EQ("open of another", -1, open(read_path, O_WRONLY | O_NONBLOCK));
    CHECK_EQ("errno", EWOULDBLOCK, errno);
    while (told_fd < 0)
        check_pause();
    CHECK_EQ("descriptor that is told of", reading, told_fd);
    MUST(fcntl(reading, F_SETLEASE, F_UNLCK));
    MUST(close(MUST(open(read_path, O_WRONLY | O_NONBLOCK))));
    return 0;
}
