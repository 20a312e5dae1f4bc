/* All that can be done to memory, by several threads at once, right after the
 * restore: where memory comes lazily, most of it is still owed then. */
#include "check.h"
#include <linux/futex.h>

enum { PAGE = 4096, BLOCK = 64 * PAGE, BLOCKS = 16, REGION = BLOCKS * BLOCK, REGIONS = 9 };

static unsigned char *region[REGIONS];
static char *self;

static unsigned char *anon(size_t len)
{
    return MUST(mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

/* Part of a region. */
static void holds(const char *what, const volatile unsigned char *mem, size_t from, size_t len, int seed)
{
    for (size_t i = 0; i < len; i++)
        if (mem[i] != check_byte(seed, from + i))
            FAIL("%s at %zu, expected %d, got %d", what, from + i, check_byte(seed, from + i), mem[i]);
}

static void *in_order(void *arg)
{
    (void)arg;
    holds("in order", region[0], 0, REGION, 0);
    return NULL;
}

static void *at_random(void *arg)
{
    (void)arg;
    unsigned at = 12345;
    for (int i = 0; i < 600; i++) {
        at = at * 1103515245 + 12345;
        size_t page = (at >> 8) % (REGION / PAGE) * PAGE;
        holds("at random", region[1] + page, page, PAGE, 1);
    }
    MUST(mprotect(region[1], BLOCK, PROT_NONE));
    MUST(mprotect(region[1], BLOCK, PROT_READ));
    MUST(mlock(region[1] + BLOCK, BLOCK));
    holds("all of it", region[1], 0, REGION, 1);
    return NULL;
}

static void *thrown_away(void *arg)
{
    (void)arg;
    unsigned char *mem = region[2];
    for (int block = 0; block < BLOCKS; block++) {
        unsigned char *at = mem + block * BLOCK;
        switch (block % 4) {
        case 0:
            MUST(madvise(at, BLOCK / 2, MADV_DONTNEED));
            check_zero("MADV_DONTNEED", at, BLOCK / 2);
            check_fill(at, BLOCK / 2, 77);
            break;
        case 1:
            holds("before MADV_DONTNEED", at, block * BLOCK, PAGE, 2);
            MUST(madvise(at, BLOCK, MADV_DONTNEED));
            check_zero("MADV_DONTNEED of all", at, BLOCK);
            break;
        case 2:
            MUST(madvise(at, BLOCK, MADV_FREE));
            for (size_t page = 0; page < BLOCK; page += PAGE)
                if (at[page + 7])
                    CHECK_EQ("MADV_FREE", check_byte(2, block * BLOCK + page + 7), at[page + 7]);
        }
    }
    for (int block = 0; block < BLOCKS; block++) {
        unsigned char *at = mem + block * BLOCK;
        if (block % 4 == 0) {
            check_filled("written after MADV_DONTNEED", at, BLOCK / 2, 77);
            holds("behind MADV_DONTNEED", at + BLOCK / 2, block * BLOCK + BLOCK / 2, BLOCK / 2, 2);
        } else if (block % 4 == 3) {
            holds("beside it", at, block * BLOCK, BLOCK, 2);
        }
    }
    return NULL;
}

/* As realloc(3) does it: one thread's mapping goes to where another's has just been. */
static void *moved(void *arg)
{
    int seed = (intptr_t)arg;
    unsigned char *block[BLOCKS];
    for (int i = 0; i < BLOCKS; i++)
        block[i] = region[seed] + i * BLOCK;
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < BLOCKS; i++) {
            size_t larger = BLOCK * (1 + (i + round) % 3 + 1);
            block[i] = MUST(mremap(block[i], BLOCK, larger, MREMAP_MAYMOVE));
            holds("moved", block[i] + PAGE * round, i * BLOCK + PAGE * round, PAGE, seed);
            CHECK_EQ("grown", 0, block[i][larger - 1]);
            block[i] = MUST(mremap(block[i], larger, BLOCK, 0));
        }
        for (int i = 0; i < BLOCKS; i++) {
            unsigned char *to = anon(BLOCK);
            to[0] = 99;
            block[i] = MUST(mremap(block[i], BLOCK, BLOCK, MREMAP_MAYMOVE | MREMAP_FIXED, to));
        }
        unsigned char *left = block[round];
        block[round] = MUST(mremap(left, BLOCK, BLOCK, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0));
        check_zero("what a move leaves", left, BLOCK);
        MUST(munmap(left, BLOCK));
    }
    for (int i = 0; i < BLOCKS; i++)
        holds("moved often", block[i], i * BLOCK, BLOCK, seed);
    return NULL;
}

static void *mapped_anew(void *arg)
{
    (void)arg;
    for (int i = 0; i < BLOCKS; i += 2) {
        unsigned char *at = region[5] + i * BLOCK;
        MUST(mmap(at, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
        check_zero("mapped anew", at, BLOCK);
        MUST(munmap(at + PAGE, PAGE));
        /* Others look for room too. */
        unsigned char *again = mmap(at + PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        if (again != MAP_FAILED)
            check_zero("mapped again", again, PAGE);
        holds("beside", at + BLOCK, (i + 1) * BLOCK, BLOCK, 5);
    }
    return NULL;
}

static void grandchild(void)
{
    holds("a grandchild's", region[6] + REGION / 2, REGION / 2, REGION / 2, 6);
    check_zero("thrown away by its parent", region[6], BLOCK);
    char *args[] = {self, "executed", NULL};
    execv("/proc/self/exe", args);
    FAIL("execv: %s", strerror(errno));
}

static void child(void)
{
    MUST(madvise(region[6], BLOCK, MADV_DONTNEED));
    pid_t pid = CHECK_FORK(grandchild());
    unsigned char *to = MUST(mremap(region[6] + BLOCK, BLOCK, 2 * BLOCK, MREMAP_MAYMOVE));
    holds("moved by a child", to, BLOCK, BLOCK, 6);
    check_zero("grown by a child", to + BLOCK, BLOCK);
    check_zero("thrown away by a child", region[6], BLOCK);
    holds("a child's", region[6] + 2 * BLOCK, 2 * BLOCK, REGION - 2 * BLOCK, 6);
    check_child_ok(pid);
}

static void *forked(void *arg)
{
    (void)arg;
    pid_t pids[4];
    for (int i = 0; i < 4; i++) {
        pids[i] = CHECK_FORK(child());
        holds("after a fork", region[6] + i * BLOCK, i * BLOCK, BLOCK, 6);
    }
    for (int i = 0; i < 4; i++)
        check_child_ok(pids[i]);
    holds("after all forks", region[6], 0, REGION, 6);
    return NULL;
}

/* The kernel itself reads and writes what is owed. */
static void *by_the_kernel(void *arg)
{
    (void)arg;
    unsigned char *mem = region[7];
    char path[512];
    snprintf(path, sizeof path, "%s.XXXXXX", check_path("storm"));
    int fd = MUST(mkstemp(path));
    CHECK_EQ("write", 4 * BLOCK, MUST(write(fd, mem, 4 * BLOCK)));
    CHECK_EQ("pread", 4 * BLOCK, MUST(pread(fd, mem + 4 * BLOCK, 4 * BLOCK, 0)));
    holds("written and read", mem + 4 * BLOCK, 0, 4 * BLOCK, 7);
    int direct = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (direct >= 0) {
        CHECK_EQ("O_DIRECT write", 2 * BLOCK, MUST(pwrite(direct, mem + 8 * BLOCK, 2 * BLOCK, 0)));
        CHECK_EQ("O_DIRECT read", 2 * BLOCK, MUST(pread(direct, mem + 10 * BLOCK, 2 * BLOCK, 0)));
        holds("by O_DIRECT", mem + 10 * BLOCK, 8 * BLOCK, 2 * BLOCK, 7);
        MUST(close(direct));
    }
    MUST(close(fd));
    MUST(unlink(path));
    int ends[2];
    MUST(pipe(ends));
    CHECK_EQ("pipe in", PAGE, MUST(write(ends[1], mem + 12 * BLOCK, PAGE)));
    CHECK_EQ("pipe out", PAGE, MUST(read(ends[0], mem + 12 * BLOCK + PAGE, PAGE)));
    holds("through a pipe", mem + 12 * BLOCK + PAGE, 12 * BLOCK, PAGE, 7);
    MUST(close(ends[0]));
    MUST(close(ends[1]));
    for (size_t page = 13 * BLOCK; page < 14 * BLOCK; page += PAGE) {
        unsigned char bytes[4];
        for (int i = 0; i < 4; i++)
            bytes[i] = check_byte(7, page + i);
        unsigned expected;
        memcpy(&expected, bytes, 4);
        struct timespec soon = {0, 1};
        long got = syscall(SYS_futex, mem + page, FUTEX_WAIT_PRIVATE, expected, &soon, NULL, 0);
        CHECK(got == -1 && errno == ETIMEDOUT, "futex, expected the value and a time-out, got %s", strerror(errno));
    }
    holds("the rest", mem + 14 * BLOCK, 14 * BLOCK, 2 * BLOCK, 7);
    return NULL;
}

static volatile sig_atomic_t handled;

static void handler(int number)
{
    (void)number;
    char here;
    CHECK((unsigned char *)&here >= region[8] && (unsigned char *)&here < region[8] + BLOCK,
          "handler, expected on the alternate stack, got %p", (void *)&here);
    handled++;
}

int main(int argc, char **argv)
{
    if (argc == 2)
        return 0;
    check_start(argc, argv);
    self = argv[0];
    for (int i = 0; i < REGIONS; i++) {
        region[i] = anon(REGION);
        check_fill(region[i], REGION, i);
    }
    stack_t stack = {.ss_sp = region[8], .ss_size = BLOCK};
    MUST(sigaltstack(&stack, NULL));
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
    MUST(sigaction(SIGUSR1, &action, NULL));
    check_freeze_here();
    void *(*parts[])(void *) = {in_order, at_random, thrown_away, moved, moved, mapped_anew, forked, by_the_kernel};
    enum { PARTS = sizeof parts / sizeof *parts };
    pthread_t threads[PARTS];
    for (intptr_t i = 0; i < PARTS; i++)
        threads[i] = check_thread(parts[i], (void *)i);
    for (int i = 0; i < 10; i++)
        MUST(raise(SIGUSR1));
    CHECK_EQ("signals", 10, handled);
    for (int i = 0; i < PARTS; i++)
        MUST0(pthread_join(threads[i], NULL));
    holds("beside the alternate stack", region[8] + BLOCK, BLOCK, REGION - BLOCK, 8);
    return 0;
}
