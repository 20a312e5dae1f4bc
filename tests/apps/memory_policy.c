/* On which nodes mappings are to be (mbind): of parts of anonymous and of shared memory. */
#include "check.h"
#include <sys/mman.h>

enum { DEFAULT, PREFERRED, BIND, INTERLEAVE, F_ADDR = 2, STATIC_NODES = 1 << 15, PAGE = 4096, PAGES = 12 };

static int policy(void *at, unsigned long *nodes)
{
    int mode = -1;
    unsigned long all[16] = {0};
    MUST(syscall(SYS_get_mempolicy, &mode, all, 1024, at, F_ADDR));
    *nodes = all[0];
    return mode;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    static const int modes[PAGES] = {DEFAULT, BIND, BIND, DEFAULT, PREFERRED, INTERLEAVE, BIND | STATIC_NODES, DEFAULT};
    unsigned long node = 1, nodes;
    char *own = MUST(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    char *shared = MUST(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    check_fill(own, PAGES * PAGE, 1);
    for (int i = 0; i < PAGES; i++)
        if (modes[i] && syscall(SYS_mbind, own + i * PAGE, PAGE, modes[i], &node, 64, 0) != 0)
            SKIP("mbind (CONFIG_NUMA)");
    MUST(syscall(SYS_mbind, shared, PAGES * PAGE, BIND, &node, 64, 0));
    check_freeze_here();
    check_filled("content", own, PAGES * PAGE, 1);
    for (int i = 0; i < PAGES; i++) {
        CHECK_EQ("policy", modes[i], policy(own + i * PAGE, &nodes));
        CHECK_EQ("nodes", modes[i] ? node : 0, nodes);
    }
    CHECK_EQ("policy of shared memory", BIND, policy(shared, &nodes));
    return 0;
}
