/* A tree of 100 processes, each tied to its parent by a pipe in either direction. */
#include "check.h"

enum { WIDTH = 3, PROCESSES = 100 };

/* Nodes are numbered as in a heap: the children of n are 3n+1 to 3n+3. */
static volatile int *ready_count;

static void node(int n, int down, int up)
{
    int to[WIDTH], from[WIDTH], pids[WIDTH], children = 0;
    pid_t pid = getpid(), ppid = getppid();
    for (int child = WIDTH * n + 1; child <= WIDTH * n + WIDTH && child < PROCESSES; child++) {
        int a[2], b[2];
        MUST(pipe(a));
        MUST(pipe(b));
        pids[children] = CHECK_FORK({
            close(a[1]);
            close(b[0]);
            node(child, a[0], b[1]);
        });
        close(a[0]);
        close(b[1]);
        to[children] = a[1];
        from[children++] = b[0];
    }
    __atomic_add_fetch(ready_count, 1, __ATOMIC_SEQ_CST);
    long token = 0, sum = 1;
    if (n == 0) {
        while (*ready_count < PROCESSES)
            check_pause();
        check_freeze_here();
        token = 1000;
    } else {
        CHECK_EQ("token from the parent", sizeof token, MUST(read(down, &token, sizeof token)));
    }
    CHECK_EQ("pid", pid, getpid());
    CHECK_EQ("parent", ppid, getppid());
    for (int i = 0; i < children; i++) {
        long next = token + 1, answer;
        CHECK_EQ("write", sizeof next, MUST(write(to[i], &next, sizeof next)));
        CHECK_EQ("answer", sizeof answer, MUST(read(from[i], &answer, sizeof answer)));
        sum += answer;
        check_child_ok(pids[i]);
    }
    if (n == 0)
        CHECK_EQ("processes that answered", PROCESSES, sum);
    else
        CHECK_EQ("write", sizeof sum, MUST(write(up, &sum, sizeof sum)));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    ready_count = MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    node(0, -1, -1);
    return 0;
}
