/* A shared POSIX semaphore with a waiter in another process. */
#include "check.h"
#include <semaphore.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    sem_t *sems = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    MUST(sem_init(&sems[0], 1, 0));
    MUST(sem_init(&sems[1], 1, 5));
    pid_t pid = CHECK_FORK({
        MUST(sem_wait(&sems[0]));
        for (int i = 0; i < 5; i++)
            MUST(sem_trywait(&sems[1]));
        CHECK_EQ("sixth trywait", -1, sem_trywait(&sems[1]));
    });
    check_freeze_here();
    int status;
    CHECK_EQ("child before the post", 0, MUST(waitpid(pid, &status, WNOHANG)));
    MUST(sem_post(&sems[0]));
    check_child_ok(pid);
    return 0;
}
