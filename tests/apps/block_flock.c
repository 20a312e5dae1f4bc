/* Blocked in flock while a child holds the lock. */
#include "check.h"
#include <sys/file.h>

static pid_t child;

static void feed(void)
{
    MUST(kill(child, SIGTERM));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    volatile int *held = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    const char *path = check_path("locked");
    int fd = MUST(open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0644));
    child = CHECK_FORK({
        MUST(close(fd));
        MUST(flock(MUST(open(path, O_RDWR)), LOCK_EX));
        *held = 1;
        for (;;)
            pause();
    });
    while (!*held)
        check_pause();
    check_feed(SYS_flock, feed);
    CHECK_BLOCKS(0, flock(fd, LOCK_EX));
    int status;
    CHECK_EQ("waitpid", child, MUST(waitpid(child, &status, 0)));
    return 0;
}
