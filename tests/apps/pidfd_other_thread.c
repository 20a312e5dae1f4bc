/* A pidfd of a thread that is not the main one. */
#include "check.h"
#include <poll.h>

static int go[2], tid;

static void *other(void *arg)
{
    char byte;
    (void)arg;
    __atomic_store_n(&tid, check_tid(), __ATOMIC_SEQ_CST);
    MUST(read(go[0], &byte, 1));
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    MUST(pipe(go));
    pthread_t thread = check_thread(other, NULL);
    while (!__atomic_load_n(&tid, __ATOMIC_SEQ_CST))
        check_pause();
    int fd = syscall(SYS_pidfd_open, tid, O_EXCL);
    if (fd < 0)
        SKIP("PIDFD_THREAD (Linux 6.9)");
    check_freeze_here();
    struct pollfd polled = {fd, POLLIN, 0};
    CHECK_EQ("ends that are told", 0, MUST(poll(&polled, 1, 0)));
    CHECK_EQ("write", 1, MUST(write(go[1], "x", 1)));
    MUST0(pthread_join(thread, NULL));
    CHECK_EQ("ends that are told", 1, MUST(poll(&polled, 1, 20000)));
    return 0;
}
