/* Blocked in semop on a System V semaphore. */
#include "check.h"
#include <sys/ipc.h>
#include <sys/sem.h>

static int set;

static void feed(void)
{
    struct sembuf up = {0, 2, 0};
    MUST(semop(set, &up, 1));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    set = MUST(semget(IPC_PRIVATE, 2, 0600));
    MUST(semctl(set, 0, SETVAL, 1));
    MUST(semctl(set, 1, SETVAL, 55));
    struct sembuf down = {0, -3, SEM_UNDO};
    check_feed(SYS_semop, feed);
    CHECK_BLOCKS(0, syscall(SYS_semop, set, &down, 1));
    CHECK_EQ("value", 0, semctl(set, 0, GETVAL));
    CHECK_EQ("value of the second", 55, semctl(set, 1, GETVAL));
    MUST(semctl(set, 0, IPC_RMID));
    return 0;
}
