/* System V message queues: id, key, owner, mode, limit, and the messages in order. */
#include "check.h"
#include <sys/ipc.h>
#include <sys/msg.h>

struct message {
    long type;
    char text[3000];
};

static void put(int queue, long type, int len)
{
    struct message m = {.type = type};
    check_fill(m.text, len, type);
    MUST(msgsnd(queue, &m, len, IPC_NOWAIT));
}

static void get(int queue, long wanted, long type, int len)
{
    struct message m;
    CHECK_EQ("length", len, MUST(msgrcv(queue, &m, sizeof m.text, wanted, IPC_NOWAIT)));
    CHECK_EQ("type", type, m.type);
    check_filled("message", m.text, len, type);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    key_t key = 0x41700000 | (getpid() & 0xffff);
    for (int i = 0; i < 3; i++)
        MUST(msgctl(MUST(msgget(IPC_PRIVATE, 0600)), IPC_RMID, NULL));
    int queue = MUST(msgget(key, IPC_CREAT | IPC_EXCL | 0620));
    int empty = MUST(msgget(IPC_PRIVATE, 0600));
    put(queue, 7, 3000);
    put(queue, 5, 0);
    put(queue, 7, 10);
    put(queue, 0x7fffffffffffff, 2500);
    put(queue, 1, 1);
    struct msqid_ds ds;
    MUST(msgctl(queue, IPC_STAT, &ds));
    ds.msg_qbytes = 5000; /* less than what is in it */
    MUST(msgctl(queue, IPC_SET, &ds));
    check_freeze_here();
    MUST(msgctl(queue, IPC_STAT, &ds));
    CHECK_EQ("key", key, ds.msg_perm.__key);
    CHECK_EQ("mode", 0620, ds.msg_perm.mode & 0777);
    CHECK_EQ("owner", geteuid(), ds.msg_perm.uid);
    CHECK_EQ("messages", 5, ds.msg_qnum);
    CHECK_EQ("limit", 5000, ds.msg_qbytes);
    CHECK_EQ("id by key", queue, MUST(msgget(key, 0)));
    struct message m = {.type = 1};
    CHECK_EQ("one too many", -1, msgsnd(queue, &m, 1, IPC_NOWAIT));
    CHECK_EQ("errno of one too many", EAGAIN, errno);
    get(queue, -3, 1, 1);
    get(queue, 0, 7, 3000);
    get(queue, 7, 7, 10);
    get(queue, 0, 5, 0);
    get(queue, 0, 0x7fffffffffffff, 2500);
    CHECK_EQ("one more", -1, msgrcv(queue, &m, sizeof m.text, 0, IPC_NOWAIT));
    CHECK_EQ("errno of one more", ENOMSG, errno);
    MUST(msgctl(empty, IPC_STAT, &ds));
    CHECK_EQ("messages of the empty queue", 0, ds.msg_qnum);
    CHECK(ds.msg_stime == 0, "time of the last message of the empty queue, expected none");
    put(empty, 3, 4);
    get(empty, 0, 3, 4);
    MUST(msgctl(queue, IPC_RMID, NULL));
    MUST(msgctl(empty, IPC_RMID, NULL));
    return 0;
}
