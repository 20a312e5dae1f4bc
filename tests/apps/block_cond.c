/* Blocked in the library's condition variable, mutex and semaphore. */
#include "check.h"
#include <semaphore.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER, contended = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static sem_t sem;
static int flag, waiting;

static void *on_cond(void *arg)
{
    MUST0(pthread_mutex_lock(&mutex));
    waiting++;
    while (!flag)
        MUST0(pthread_cond_wait(&cond, &mutex));
    MUST0(pthread_mutex_unlock(&mutex));
    return arg;
}

static void *on_mutex(void *arg)
{
    MUST0(pthread_mutex_lock(&contended));
    MUST0(pthread_mutex_unlock(&contended));
    return arg;
}

static void *on_sem(void *arg)
{
    MUST(sem_wait(&sem)); /* EINTR would be a failure: no handler runs */
    return arg;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    MUST(sem_init(&sem, 0, 0));
    MUST0(pthread_mutex_lock(&contended));
    pthread_t threads[] = {check_thread(on_cond, NULL), check_thread(on_cond, NULL),
                           check_thread(on_mutex, NULL), check_thread(on_sem, NULL)};
    for (int n = 0; n < 2; check_pause()) {
        MUST0(pthread_mutex_lock(&mutex));
        n = waiting;
        MUST0(pthread_mutex_unlock(&mutex));
    }
    check_freeze_here();
    MUST0(pthread_mutex_lock(&mutex));
    flag = 1;
    MUST0(pthread_cond_broadcast(&cond));
    MUST0(pthread_mutex_unlock(&mutex));
    MUST0(pthread_mutex_unlock(&contended));
    MUST(sem_post(&sem));
    for (int i = 0; i < 4; i++)
        MUST0(pthread_join(threads[i], NULL));
    return 0;
}
