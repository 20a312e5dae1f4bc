/* A POSIX message queue, with messages in it, open and without a name any more. */
#include "check.h"
#include <mqueue.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char name[64], got[64];
    snprintf(name, sizeof name, "/appshot-mqueue-%d", getpid());
    struct mq_attr attr = {.mq_maxmsg = 5, .mq_msgsize = 64};
    mqd_t queue = mq_open(name, O_CREAT | O_EXCL | O_RDWR | O_NONBLOCK, 0600, &attr);
    if (queue < 0)
        SKIP("POSIX message queues");
    MUST(mq_send(queue, "low", 4, 1));
    MUST(mq_send(queue, "high", 5, 9));
    MUST(mq_unlink(name));
    check_freeze_here();
    unsigned priority;
    CHECK_EQ("length", 5, MUST(mq_receive(queue, got, sizeof got, &priority)));
    CHECK_EQ("priority", 9, priority);
    CHECK_EQ("length", 4, MUST(mq_receive(queue, got, sizeof got, &priority)));
    return 0;
}
