/* Blocked in msgrcv; a message of another type stays queued. */
#include "check.h"
#include <sys/ipc.h>
#include <sys/msg.h>

struct message {
    long type;
    char text[16];
};

static int queue;

static void feed(void)
{
    struct message m = {5, "five"};
    MUST(msgsnd(queue, &m, sizeof m.text, 0));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    queue = MUST(msgget(IPC_PRIVATE, 0600));
    struct message other = {9, "nine"}, got;
    MUST(msgsnd(queue, &other, sizeof other.text, 0));
    check_feed(SYS_msgrcv, feed);
    CHECK_BLOCKS(sizeof got.text, msgrcv(queue, &got, sizeof got.text, 5, 0));
    CHECK(!strcmp(got.text, "five"), "message, expected five, got %s", got.text);
    CHECK_EQ("the queued message", (long)sizeof got.text, msgrcv(queue, &got, sizeof got.text, 9, IPC_NOWAIT));
    MUST(msgctl(queue, IPC_RMID, NULL));
    return 0;
}
