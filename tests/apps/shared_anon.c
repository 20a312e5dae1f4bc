/* Shared anonymous memory stays one and the same for parent and children. */
#include "check.h"

enum { PAGE = 4096, LEN = 32 * PAGE, CHILDREN = 3 };

static char *shared, *holey, *inherited;

/* Children answer in turn: each changes what the next one expects. */
static void child(int i)
{
    volatile char *turn = shared + LEN - 1;
    check_wait();
    while (*turn != i)
        check_pause();
    check_filled("shared memory in the child", shared, PAGE, i == 0 ? 1 : 50 + i - 1);
    check_fill(shared, PAGE, 50 + i);
    CHECK_EQ("private copy", 'p', inherited[0]);
    *turn = i + 1;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    shared = MUST(mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    holey = MUST(mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    inherited = MUST(mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    inherited[0] = 'p';
    check_fill(shared, LEN - 1, 1);
    check_fill(holey + 5 * PAGE, PAGE, 2);
    pid_t pids[CHILDREN];
    for (int i = 0; i < CHILDREN; i++)
        pids[i] = CHECK_FORK(child(i));
    inherited[0] = 'q';
    check_freeze_here();
    for (int i = 0; i < CHILDREN; i++)
        check_child_ok(pids[i]);
    check_filled("shared memory after the children", shared, PAGE, 50 + CHILDREN - 1);
    CHECK_EQ("turn", CHILDREN, shared[LEN - 1]);
    CHECK_EQ("own private copy", 'q', inherited[0]);
    check_zero("hole", holey, 5 * PAGE);
    check_filled("data after a hole", holey + 5 * PAGE, PAGE, 2);
    check_zero("hole at the end", holey + 6 * PAGE, LEN - 6 * PAGE);
    return 0;
}
