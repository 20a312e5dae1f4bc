/* Memory protection keys (pkeys(7)): of mappings, of the process, rights of each thread; memory that can only be executed. */
#include "check.h"
#include <linux/futex.h>
#include <sys/rseq.h>

enum { PAGE = 4096, LEN = 3 * PAGE, KEYS = 16, THREADS = 3 };

static int before[KEYS], count_free;
static char *reading, *closed, *shared, *file, *freed, *none, *bare;
static unsigned char *code;
static int sink[2];
static volatile int go;

static unsigned rdpkru(void)
{
    unsigned rights, high;
    __asm__ volatile("rdpkru" : "=a"(rights), "=d"(high) : "c"(0));
    return rights;
}

static void wrpkru(unsigned rights)
{
    __asm__ volatile("wrpkru" : : "a"(rights), "c"(0), "d"(0) : "memory");
}

/* The key of the mapping at this address, by smaps. */
static int key_of(const void *at)
{
    FILE *smaps = fopen("/proc/self/smaps", "re");
    CHECK(smaps, "smaps");
    char line[512];
    int key = -1, inside = 0;
    while (fgets(line, sizeof line, smaps)) {
        unsigned long from, to;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2 && strchr(line, '-') < strchr(line, ' '))
            inside = from <= (unsigned long)at && (unsigned long)at < to;
        else if (inside && sscanf(line, "ProtectionKey: %d", &key) == 1)
            break;
    }
    fclose(smaps);
    return key;
}

/* Whether this thread may read, as the kernel judges. */
static int readable(const void *at)
{
    char byte;
    if (write(sink[1], at, 1) != 1) {
        CHECK_EQ("errno of a forbidden read", EFAULT, errno);
        return 0;
    }
    CHECK_EQ("sink", 1, MUST(read(sink[0], &byte, 1)));
    return 1;
}

static int writable(void *at)
{
    char byte;
    CHECK_EQ("sink", 1, MUST(write(sink[1], "x", 1)));
    if (read(sink[0], at, 1) != 1) {
        CHECK_EQ("errno of a forbidden write", EFAULT, errno);
        /* The byte is still there. */
        MUST(read(sink[0], &byte, 1));
        return 0;
    }
    return 1;
}

/* Every key that can be had, lowest first; they are free afterwards. */
static int take_all(int *keys)
{
    unsigned rights = rdpkru();
    int count = 0;
    for (int key; (key = pkey_alloc(0, 0)) >= 0;)
        keys[count++] = key;
    for (int i = 0; i < count; i++)
        MUST(pkey_free(keys[i]));
    wrpkru(rights);
    return count;
}

static void same_keys(const char *what, const int *keys, int count)
{
    int now[KEYS];
    CHECK_EQ(what, count, take_all(now));
    for (int i = 0; i < count; i++)
        CHECK_EQ(what, keys[i], now[i]);
}

static char *filled(int seed, int flags, int fd)
{
    char *at = MUST(mmap(NULL, LEN, PROT_READ | PROT_WRITE, flags, fd, 0));
    check_fill(at, LEN, seed);
    return at;
}

/* One word of `reading`'s kind that its thread alone may use. */
static int *word;
static unsigned rights_of[THREADS];
static volatile int ready[THREADS];

/* Sleeps on a word to which only this thread has the right. */
static void *sleeper(void *arg)
{
    int key = (int)(intptr_t)arg;
    wrpkru(0x55555554 & ~(3u << (2 * key)));
    rights_of[0] = rdpkru();
    ready[0] = 1;
    struct timespec long_time = {1000, 0};
    long slept = syscall(SYS_futex, word, FUTEX_WAIT, 7, &long_time, NULL, 0);
    CHECK(slept == 0 || errno == EAGAIN, "sleep on memory with a key, expected to be woken, got %s", strerror(errno));
    CHECK_EQ("word", 8, *(volatile int *)word);
    CHECK_EQ("rights of the sleeper", rights_of[0], rdpkru());
    return NULL;
}

/* Must not even write to its own stack while it waits. */
static void *hindered(void *arg)
{
    (void)arg;
    /* The kernel itself would write to its memory (rseq(2)). */
    MUST(syscall(SYS_rseq, (char *)__builtin_thread_pointer() + __rseq_offset, 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG));
    unsigned mine = rdpkru() | 2, found;
    rights_of[1] = mine;
    ready[1] = 1;
    __asm__ volatile("mov %%eax, %%ebx\n"
                     "mov %1, %%eax\n wrpkru\n"
                     "1: pause\n cmpl $0, (%3)\n je 1b\n"
                     "rdpkru\n mov %%eax, %%esi\n"
                     "mov %%ebx, %%eax\n wrpkru\n"
                     "mov %%esi, %0\n"
                     : "=&D"(found)
                     : "r"(mine), "a"(rdpkru()), "r"(&go), "c"(0), "d"(0)
                     : "rbx", "rsi", "memory");
    CHECK_EQ("rights of one that cannot write", mine, found);
    return NULL;
}

static void *generous(void *arg)
{
    (void)arg;
    wrpkru(0);
    rights_of[2] = 0;
    ready[2] = 1;
    while (!go)
        check_pause();
    CHECK_EQ("rights of one that may do all", 0, rdpkru());
    check_filled("closed to others", closed, LEN, 2);
    CHECK(writable(reading), "read-only to others");
    return NULL;
}

/* A child that once had memory of that kind: its key is taken for good. */
static void child(void)
{
    void *at = MUST(mmap(NULL, PAGE, PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    MUST(munmap(at, PAGE));
    MUST(pkey_free(key_of(closed)));
    int keys[KEYS], count = take_all(keys), key = key_of(closed);
    unsigned rights = rdpkru();
    ((volatile int *)shared)[PAGE / 4] = 1;
    while (!((volatile int *)shared)[PAGE / 4 + 1])
        check_pause();
    CHECK_EQ("rights of the child", rights, rdpkru());
    CHECK_EQ("key of the child's memory", key, key_of(closed));
    same_keys("keys of the child", keys, count);
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    int low = pkey_alloc(0, 0);
    if (low < 0)
        SKIP("a processor with protection keys (pku)");
    MUST(pipe(sink));
    int hole = MUST(pkey_alloc(0, 0)), read_key = MUST(pkey_alloc(0, PKEY_DISABLE_WRITE));
    int gone = MUST(pkey_alloc(0, 0)), own_key = MUST(pkey_alloc(0, 0));

    reading = filled(1, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    closed = filled(2, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    shared = filled(3, MAP_SHARED | MAP_ANONYMOUS, -1);
    const char *path = check_path("mapped");
    int fd = MUST(open(path, O_CREAT | O_RDWR, 0600));
    MUST(ftruncate(fd, LEN));
    file = filled(4, MAP_PRIVATE, fd);
    freed = filled(5, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    none = filled(6, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    bare = MUST(mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    word = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    *word = 7;
    code = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memcpy(code, "\xb8\x2a\x00\x00\x00\xc3", 6); /* mov eax, 42; ret */
    unsigned char *named = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memcpy(named, "\xb8\x2b\x00\x00\x00\xc3", 6);

    MUST(pkey_mprotect(reading, LEN, PROT_READ | PROT_WRITE, read_key));
    MUST(pkey_mprotect(closed + PAGE, PAGE, PROT_READ, low));
    MUST(pkey_mprotect(shared, PAGE, PROT_READ | PROT_WRITE, read_key));
    MUST(pkey_mprotect(file, LEN, PROT_READ, low));
    MUST(pkey_mprotect(freed, LEN, PROT_READ | PROT_WRITE, gone));
    MUST(pkey_mprotect(none, LEN, PROT_NONE, low));
    MUST(pkey_mprotect(bare, LEN, PROT_READ | PROT_WRITE, own_key));
    MUST(pkey_mprotect(word, PAGE, PROT_READ | PROT_WRITE, own_key));
    MUST(pkey_mprotect(named, PAGE, PROT_EXEC, low));
    MUST(pkey_free(hole));
    /* Takes the lowest that is free, and keeps it. */
    MUST(mprotect(code, PAGE, PROT_EXEC));
    int exec_key = key_of(code);
    CHECK_EQ("key of memory that can only be executed", hole, exec_key);
    MUST(pkey_free(gone));
    count_free = take_all(before);
    MUST(pkey_set(low, PKEY_DISABLE_ACCESS));
    MUST(pkey_set(own_key, PKEY_DISABLE_ACCESS));
    MUST(pkey_set(gone, PKEY_DISABLE_WRITE));
    unsigned rights = rdpkru();

    pthread_t threads[THREADS] = {
        check_thread(sleeper, (void *)(intptr_t)own_key),
        check_thread(hindered, NULL),
        check_thread(generous, NULL),
    };
    pid_t pid = CHECK_FORK(wrpkru(0); closed += PAGE; child());
    while (!ready[0] || !ready[1] || !ready[2] || !((volatile int *)shared)[PAGE / 4])
        check_pause();
    check_freeze_here();
    CHECK_EQ("rights", rights, rdpkru());
    struct {
        const char *what;
        void *at;
        int key, readable, writable;
    } all[] = {
        {"reading", reading, read_key, 1, 0},
        {"closed", closed + PAGE, low, 0, 0},
        {"before closed", closed, 0, 1, 1},
        {"behind closed", closed + 2 * PAGE, 0, 1, 1},
        {"shared", shared, read_key, 1, 0},
        {"file", file, low, 0, 0},
        {"freed", freed, gone, 1, 0},
        {"none", none, low, 0, 0},
        {"bare", bare, own_key, 0, 0},
        {"code", code, exec_key, 0, 0},
        {"named", named, low, 0, 0},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char had = all[i].writable ? *(char *)all[i].at : 0;
        CHECK(key_of(all[i].at) == all[i].key, "key of %s, expected %d, got %d", all[i].what, all[i].key,
              key_of(all[i].at));
        CHECK(readable(all[i].at) == all[i].readable, "%s: readable?", all[i].what);
        CHECK(writable(all[i].at) == all[i].writable, "%s: writable?", all[i].what);
        if (all[i].writable)
            *(char *)all[i].at = had;
    }
    CHECK_EQ("code", 42, ((int (*)(void))code)());
    CHECK_EQ("code with a key", 43, ((int (*)(void))named)());
    check_filled("reading", reading, LEN, 1);
    check_filled("freed", freed, LEN, 5);
    same_keys("keys", before, count_free);
    CHECK_EQ("a mapping by a key that is free", -1, pkey_mprotect(none, PAGE, PROT_NONE, gone));
    CHECK_EQ("a mapping by the key of what can only be executed", -1, pkey_mprotect(none, PAGE, PROT_NONE, exec_key));
    MUST(pkey_set(low, 0));
    MUST(pkey_set(own_key, 0));
    check_filled("closed", closed, LEN, 2);
    check_filled("file", file, LEN, 4);
    check_zero("bare", bare, LEN);
    MUST(mprotect(none, LEN, PROT_READ));
    CHECK_EQ("key after mprotect", low, key_of(none));
    check_filled("none", none, LEN, 6);
    *word = 8;
    MUST(syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0));
    go = 1;
    MUST(pkey_set(read_key, 0));
    ((volatile int *)shared)[PAGE / 4 + 1] = 1;
    for (int i = 0; i < THREADS; i++)
        MUST0(pthread_join(threads[i], NULL));
    check_child_ok(pid);
    /* No other one is taken for more of it. */
    void *more = MUST(mmap(NULL, PAGE, PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK_EQ("more that can only be executed", exec_key, key_of(more));
    return 0;
}
