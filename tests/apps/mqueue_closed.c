/* A POSIX message queue that no descriptor leads to: it is there by its name. */
#include "check.h"
#include <mqueue.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct mq_attr attr = {.mq_maxmsg = 5, .mq_msgsize = 64};
    mqd_t queue = mq_open("/appshot-mqueue-closed", O_CREAT | O_RDWR, 0600, &attr);
    if (queue < 0)
        SKIP("POSIX message queues");
    MUST(mq_send(queue, "kept", 5, 1));
    MUST(mq_close(queue));
    check_freeze_here();
    char got[64];
    queue = MUST(mq_open("/appshot-mqueue-closed", O_RDWR | O_NONBLOCK));
    CHECK_EQ("length", 5, MUST(mq_receive(queue, got, sizeof got, NULL)));
    MUST(mq_unlink("/appshot-mqueue-closed"));
    return 0;
}
