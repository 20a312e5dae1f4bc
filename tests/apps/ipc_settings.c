/* Settings of the app's own IPC namespace (kernel.sem, kernel.msgmax, fs.mqueue.msg_max, ...), and a message and a
 * set of semaphores that only they allow; ones that allow less than there is; a segment that ends with its last
 * attachment. */
#include "check.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

static const char *const settings[][2] = {
    {"kernel/sem", "40000\t32000\t100\t128"},
    {"kernel/msgmax", "20000"},
    {"kernel/msgmnb", "30000"},
    {"kernel/shmmax", "65536"},
    {"kernel/shmmni", "5000"},
    {"kernel/shm_rmid_forced", "1"},
    {"fs/mqueue/msg_max", "20"},
    {"fs/mqueue/queues_max", "100"},
};
enum { COUNT = sizeof settings / sizeof *settings, LONG = 15000, MANY = 300, MOST = 40000, LARGE = 33000 };

static struct {
    long type;
    char text[LONG];
} message = {.type = 1};

static int setting(const char *name, int flags)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/sys/%s", name);
    return MUST(open(path, flags | O_CLOEXEC));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    /* Those of the host are left alone. */
    int own = getpid() == 2 && getppid() == 1;
    int queue = -1, set = MUST(semget(IPC_PRIVATE, MANY, 0600));
    int large = -1;
    char had[COUNT][64];
    if (own) {
        const char *roomy = "40000\t1024000000\t500\t32000";
        int fd = setting("kernel/sem", O_WRONLY);
        CHECK_EQ("kernel/sem", (long)strlen(roomy), MUST(write(fd, roomy, strlen(roomy))));
        MUST(close(fd));
        large = MUST(semget(IPC_PRIVATE, LARGE, 0600));
        MUST(semctl(large, LARGE - 1, SETVAL, 5));
    }
    for (int i = 0; i < COUNT; i++) {
        const char *value = settings[i][1];
        if (own) {
            int fd = setting(settings[i][0], O_WRONLY);
            CHECK_EQ(settings[i][0], (long)strlen(value), MUST(write(fd, value, strlen(value))));
            MUST(close(fd));
        }
        int fd = setting(settings[i][0], O_RDONLY);
        ssize_t length = MUST(read(fd, had[i], sizeof had[i] - 1));
        had[i][length] = 0;
        MUST(close(fd));
    }
    if (own) {
        queue = MUST(msgget(IPC_PRIVATE, 0600));
        check_fill(message.text, LONG, 7);
        MUST(msgsnd(queue, &message, LONG, IPC_NOWAIT));
    }
    int segment = MUST(shmget(IPC_PRIVATE, 4096, 0600));
    char *attached = MUST(shmat(segment, NULL, 0));
    check_fill(attached, 4096, 8);
    check_freeze_here();
    for (int i = 0; i < COUNT; i++) {
        char now[64];
        int fd = setting(settings[i][0], O_RDONLY);
        ssize_t length = MUST(read(fd, now, sizeof now - 1));
        now[length] = 0;
        MUST(close(fd));
        CHECK(!strcmp(had[i], now), "%s: expected %s, got %s", settings[i][0], had[i], now);
    }
    struct shmid_ds shm;
    MUST(shmctl(segment, IPC_STAT, &shm));
    CHECK_EQ("attachments", 1, shm.shm_nattch);
    check_filled("segment", attached, 4096, 8);
    MUST(shmdt(attached));
    CHECK_EQ("a segment that nobody has", own ? -1 : 0, shmctl(segment, IPC_STAT, &shm));
    if (!own)
        MUST(shmctl(segment, IPC_RMID, NULL));
    struct semid_ds ds;
    union {
        struct semid_ds *buf;
    } as = {&ds};
    MUST(semctl(set, 0, IPC_STAT, as));
    CHECK_EQ("semaphores", MANY, (long)ds.sem_nsems);
    if (own) {
        CHECK_EQ("length", LONG, MUST(msgrcv(queue, &message, LONG, 0, IPC_NOWAIT)));
        check_filled("message", message.text, LONG, 7);
        MUST(semctl(large, 0, IPC_STAT, as));
        CHECK_EQ("semaphores of the large set", LARGE, (long)ds.sem_nsems);
        CHECK_EQ("the last of them", 5, MUST(semctl(large, LARGE - 1, GETVAL)));
        CHECK_EQ("more than there may be", -1, semget(IPC_PRIVATE, MANY, 0600));
        MUST(semctl(large, 0, IPC_RMID));
        CHECK_EQ("a set of more than there may be", -1, semget(IPC_PRIVATE, MOST + 1, 0600));
        MUST(msgctl(queue, IPC_RMID, NULL));
    }
    MUST(semctl(set, 0, IPC_RMID));
    return 0;
}
