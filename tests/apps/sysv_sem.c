/* System V semaphores: id, key, owner, mode, values, last pids, and what the end of a process undoes. */
#include "check.h"
#include <sys/ipc.h>
#include <sys/sem.h>

enum { COUNT = 7 };

static void change(int set, int number, int by, int flags)
{
    struct sembuf op = {number, by, flags};
    MUST(semop(set, &op, 1));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    key_t key = 0x41600000 | (getpid() & 0xffff);
    for (int i = 0; i < 3; i++)
        MUST(semctl(MUST(semget(IPC_PRIVATE, 1, 0600)), 0, IPC_RMID));
    int set = MUST(semget(key, COUNT, IPC_CREAT | IPC_EXCL | 0640));
    int unused = MUST(semget(IPC_PRIVATE, 2, 0600));
    unsigned short values[COUNT] = {1, 0, 32767, 5, 100, 20000, 0}, got[COUNT];
    MUST(semctl(set, 0, SETALL, values));
    MUST(semctl(unused, 1, SETVAL, 9));
    int ready[2], go[2];
    char c = 0;
    MUST(pipe(ready));
    MUST(pipe(go));
    pid_t pid = CHECK_FORK({
        change(set, 0, -1, SEM_UNDO);      /* owes +1 */
        change(set, 1, 1, SEM_UNDO);       /* owes -1 */
        change(set, 2, -32767, SEM_UNDO);  /* owes all there is */
        change(set, 3, 300, SEM_UNDO);     /* owes -300 */
        change(set, 4, -70, SEM_UNDO);     /* owes +70, after which others raise it */
        MUST(write(ready[1], "r", 1));
        MUST(read(go[0], &c, 1));
    });
    MUST(read(ready[0], &c, 1));
    change(set, 4, 32000, 0);
    change(set, 5, -20000, SEM_UNDO); /* this process owes too, */
    change(set, 6, 3, SEM_UNDO);
    change(set, 6, -3, SEM_UNDO);     /* but here no more */
    check_freeze_here();
    struct semid_ds ds;
    MUST(semctl(set, 0, IPC_STAT, &ds));
    CHECK_EQ("key", key, ds.sem_perm.__key);
    CHECK_EQ("mode", 0640, ds.sem_perm.mode & 0777);
    CHECK_EQ("owner", geteuid(), ds.sem_perm.uid);
    CHECK_EQ("count", COUNT, ds.sem_nsems);
    CHECK(ds.sem_otime != 0, "time of the last operation, expected one");
    CHECK_EQ("id by key", set, MUST(semget(key, COUNT, 0)));
    MUST(semctl(unused, 0, IPC_STAT, &ds));
    CHECK(ds.sem_otime == 0, "time of the last operation of the unused set, expected none");
    CHECK_EQ("its second value", 9, semctl(unused, 1, GETVAL));
    CHECK_EQ("its last process", getpid(), semctl(unused, 1, GETPID));
    static const unsigned short now[COUNT] = {0, 1, 0, 305, 32030, 0, 0};
    MUST(semctl(set, 0, GETALL, got));
    for (int i = 0; i < COUNT; i++)
        CHECK(got[i] == now[i], "semaphore %d, expected %d, got %d", i, now[i], got[i]);
    for (int i = 0; i < COUNT; i++)
        CHECK_EQ("last process", i < 4 ? pid : getpid(), semctl(set, i, GETPID));
    MUST(write(go[1], "g", 1));
    check_child_ok(pid);
    static const unsigned short after[COUNT] = {1, 0, 32767, 5, 32100, 0, 0};
    MUST(semctl(set, 0, GETALL, got));
    for (int i = 0; i < COUNT; i++)
        CHECK(got[i] == after[i], "semaphore %d after the end of the child, expected %d, got %d", i, after[i], got[i]);
    /* A child waits for what the end of its parent would give back: 20000. */
    pid = CHECK_FORK(change(set, 5, -7, 0));
    change(set, 5, 7, 0);
    check_child_ok(pid);
    MUST(semctl(set, 0, IPC_RMID));
    MUST(semctl(unused, 0, IPC_RMID));
    return 0;
}
