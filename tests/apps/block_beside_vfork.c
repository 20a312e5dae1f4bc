/* Beside a thread that nobody can stop, the parent in a vfork, others are blocked
 * in calls that the kernel does not restart: when the snapshot gives up they must
 * not have noticed. */
#include "check.h"
#include <sys/epoll.h>

static int fds[2];

static void *sleeper(void *arg)
{
    int ep = *(int *)arg;
    struct epoll_event e;
    CHECK_EQ("epoll_wait", 1, syscall(SYS_epoll_wait, ep, &e, 1, -1));
    return NULL;
}

/* The child shares our memory: nothing but system calls. */
static void __attribute__((noinline)) until_go(void)
{
    pid_t child = vfork();
    if (child == 0) {
        struct timespec ms = {0, 1000000};
        while (syscall(SYS_access, check_go_path, F_OK) != 0)
            syscall(SYS_nanosleep, &ms, NULL);
        _exit(0);
    }
    MUST(child);
    MUST(waitpid(child, NULL, 0));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    MUST(pipe(fds));
    int ep = MUST(epoll_create1(0));
    struct epoll_event e = {.events = EPOLLIN};
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, fds[0], &e));
    pthread_t threads[8];
    for (int i = 0; i < 8; i++)
        MUST0(pthread_create(&threads[i], NULL, sleeper, &ep));
    check_ready();
    until_go();
    CHECK_EQ("write", 1, write(fds[1], "x", 1));
    for (int i = 0; i < 8; i++)
        MUST0(pthread_join(threads[i], NULL));
    return 0;
}
