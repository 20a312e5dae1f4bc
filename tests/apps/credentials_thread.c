/* Each thread has credentials of its own in the kernel. */
#include "check.h"
#include <linux/capability.h>
#include <sys/prctl.h>

static void ids(uid_t *to)
{
    MUST(syscall(SYS_getresuid, &to[0], &to[1], &to[2]));
}

static void *body(void *arg)
{
    uid_t now[3];
    /* The system call itself: the C library would change all threads. */
    MUST(syscall(SYS_setresgid, 55, 56, 57));
    MUST(syscall(SYS_setresuid, 65, 66, 67));
    __atomic_store_n((int *)arg, 1, __ATOMIC_SEQ_CST);
    check_wait();
    ids(now);
    for (int i = 0; i < 3; i++)
        CHECK_EQ("uid of the thread", 65 + i, now[i]);
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    MUST(syscall(SYS_capget, &head, data));
    CHECK_EQ("permitted capabilities of the thread", 0, data[0].permitted | data[1].permitted);
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    if (geteuid() != 0)
        SKIP("root");
    int started = 0;
    uid_t now[3];
    pthread_t thread = check_thread(body, &started);
    while (!__atomic_load_n(&started, __ATOMIC_SEQ_CST))
        check_pause();
    check_freeze_here();
    ids(now);
    for (int i = 0; i < 3; i++)
        CHECK_EQ("uid of the main thread", 0, now[i]);
    MUST0(pthread_join(thread, NULL));
    return 0;
}
