/* System V objects of three IPC namespaces, all of the same keys and ids: shared memory, also removed, semaphores
 * with adjustments, messages, settings. */
#include "namespace.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

enum { KEY = 0x41707373, SIZE = 3 * 4096, LONG = 9000 };

struct objects {
    int segment, loose, removed, set, queue;
    char *memory, *of_removed;
};

struct message {
    long type;
    char text[LONG];
};

static int value(int set, int number)
{
    return MUST(semctl(set, number, GETVAL));
}

static void operate(int set, int number, int change)
{
    struct sembuf operation = {number, change, SEM_UNDO};
    MUST(semop(set, &operation, 1));
}

static void make(struct objects *to, int seed)
{
    struct message m = {.type = seed};
    to->segment = MUST(shmget(KEY, SIZE, IPC_CREAT | IPC_EXCL | 0640));
    to->memory = MUST(shmat(to->segment, NULL, 0));
    check_fill(to->memory, SIZE, seed);
    /* That nobody has attached. */
    to->loose = MUST(shmget(IPC_PRIVATE, 4096, 0600));
    char *memory = MUST(shmat(to->loose, NULL, 0));
    check_fill(memory, 4096, seed + 100);
    MUST(shmdt(memory));
    to->removed = MUST(shmget(IPC_PRIVATE, 4096, 0600));
    to->of_removed = MUST(shmat(to->removed, NULL, 0));
    check_fill(to->of_removed, 4096, seed + 50);
    MUST(shmctl(to->removed, IPC_RMID, NULL));
    to->set = MUST(semget(KEY, 2, IPC_CREAT | IPC_EXCL | 0600));
    MUST(semctl(to->set, 0, SETVAL, seed));
    operate(to->set, 1, seed);
    to->queue = MUST(msgget(KEY, IPC_CREAT | IPC_EXCL | 0600));
    check_fill(m.text, 100, seed);
    MUST(msgsnd(to->queue, &m, 100, IPC_NOWAIT));
}

static void are(const struct objects *was, int seed, int second)
{
    struct message m;
    struct shmid_ds ds;
    CHECK_EQ("segment", was->segment, MUST(shmget(KEY, 0, 0)));
    MUST(shmctl(was->segment, IPC_STAT, &ds));
    CHECK_EQ("mode of the segment", 0640, ds.shm_perm.mode & 0777);
    check_filled("segment", was->memory, SIZE, seed);
    char *memory = MUST(shmat(was->loose, NULL, 0));
    check_filled("segment that nobody has attached", memory, 4096, seed + 100);
    MUST(shmdt(memory));
    MUST(shmctl(was->removed, IPC_STAT, &ds));
    CHECK_EQ("mode of a removed segment", SHM_DEST | 0600, ds.shm_perm.mode);
    check_filled("removed segment", was->of_removed, 4096, seed + 50);
    CHECK_EQ("set", was->set, MUST(semget(KEY, 0, 0)));
    CHECK_EQ("semaphore", seed, value(was->set, 0));
    CHECK_EQ("semaphore with adjustments", second, value(was->set, 1));
    CHECK_EQ("who changed it last", getpid(), MUST(semctl(was->set, 1, GETPID)));
    CHECK_EQ("queue", was->queue, MUST(msgget(KEY, 0)));
    CHECK_EQ("message", 100, MUST(msgrcv(was->queue, &m, sizeof m.text, 0, IPC_NOWAIT)));
    CHECK_EQ("type", seed, m.type);
    check_filled("message", m.text, 100, seed);
}

static void set(const char *name, const char *value)
{
    int fd = MUST(open(name, O_WRONLY));
    CHECK_EQ(name, strlen(value), MUST(write(fd, value, strlen(value))));
    MUST(close(fd));
}

static int setting(const char *name)
{
    char text[32];
    text[check_read_file(name, text, sizeof text - 1)] = 0;
    return atoi(text);
}

int main(int argc, char **argv)
{
    static struct message m;
    const char *msgmax = "/proc/sys/kernel/msgmax";
    check_start(argc, argv);
    struct steps *steps = make_steps();
    struct objects own;
    pid_t third = CHECK_FORK({
        if (unshare(CLONE_NEWIPC))
            SKIP("IPC namespaces");
        make(&own, 3);
        step(steps, 1);
        check_wait();
        are(&own, 3, 3);
        CHECK_EQ("msgmax", 8192, setting(msgmax));
        stay(steps);
    });
    await_step(steps, 1);
    pid_t second = CHECK_FORK({
        if (unshare(CLONE_NEWIPC))
            SKIP("IPC namespaces");
        set(msgmax, "9000");
        make(&own, 2);
        m.type = 9;
        check_fill(m.text, LONG, 9);
        MUST(msgsnd(own.queue, &m, LONG, IPC_NOWAIT));
        pid_t shares = CHECK_FORK({
            operate(own.set, 0, 5);
            step(steps, 2);
            check_wait();
            same_namespace("ipc", getppid(), getpid());
            check_filled("segment", own.memory, SIZE, 2);
            CHECK_EQ("semaphore", 7, value(own.set, 0));
            own.memory[0] ^= 1;
        });
        await_step(steps, 2);
        check_wait();
        check_child_ok(shares);
        /* Its end has undone what it did, and what it wrote is seen. */
        own.memory[0] ^= 1;
        are(&own, 2, 2);
        CHECK_EQ("msgmax", 9000, setting(msgmax));
        CHECK_EQ("long message", LONG, MUST(msgrcv(own.queue, &m, LONG, 9, IPC_NOWAIT)));
        check_filled("long message", m.text, LONG, 9);
        stay(steps);
    });
    await_step(steps, 2);
    make(&own, 1);
    check_freeze_here();
    other_namespace("ipc", second, getpid());
    other_namespace("ipc", third, getpid());
    other_namespace("ipc", third, second);
    let_go(steps);
    are(&own, 1, 1);
    check_child_ok(second);
    check_child_ok(third);
    MUST(shmctl(own.segment, IPC_RMID, NULL));
    MUST(shmctl(own.loose, IPC_RMID, NULL));
    MUST(semctl(own.set, 0, IPC_RMID));
    MUST(msgctl(own.queue, IPC_RMID, NULL));
    return 0;
}
