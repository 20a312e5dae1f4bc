/* A robust mutex whose owner ends after restore is handed on as OWNERDEAD. */
#include "check.h"

static pthread_mutex_t *mutexes;
static int locked;

static void *owner(void *arg)
{
    (void)arg;
    MUST0(pthread_mutex_lock(&mutexes[0]));
    __atomic_store_n(&locked, 1, __ATOMIC_SEQ_CST);
    check_wait();
    return NULL; /* without unlocking */
}

static void make(pthread_mutex_t *mutex)
{
    pthread_mutexattr_t attr;
    MUST0(pthread_mutexattr_init(&attr));
    MUST0(pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED));
    MUST0(pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST));
    MUST0(pthread_mutex_init(mutex, &attr));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    volatile char *held = MUST(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    mutexes = (pthread_mutex_t *)(held + 4096);
    make(&mutexes[0]);
    make(&mutexes[1]);
    pthread_t thread = check_thread(owner, NULL);
    pid_t pid = CHECK_FORK({
        MUST0(pthread_mutex_lock(&mutexes[1]));
        *held = 1;
        check_wait();
        _exit(0);
    });
    while (!*held || !__atomic_load_n(&locked, __ATOMIC_SEQ_CST))
        check_pause();
    CHECK_EQ("lock before", EBUSY, pthread_mutex_trylock(&mutexes[0]));
    check_freeze_here();
    CHECK_EQ("mutex of an ended thread", EOWNERDEAD, pthread_mutex_lock(&mutexes[0]));
    CHECK_EQ("mutex of an ended process", EOWNERDEAD, pthread_mutex_lock(&mutexes[1]));
    MUST0(pthread_mutex_consistent(&mutexes[0]));
    MUST0(pthread_mutex_unlock(&mutexes[0]));
    MUST0(pthread_join(thread, NULL));
    check_child_ok(pid);
    return 0;
}
