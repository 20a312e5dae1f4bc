/*
 * Changes its memory without pause, in every way in which pages come, go and
 * move, while it is frozen. What each page holds stands in a table, written
 * after the page: a page that is older or newer in the appshot than the table,
 * or than another page, is found sooner or later, by the thread that owns it or
 * by a forked child.
 */
#include "check.h"

enum { WORKERS = 2, PAGES = 3072, PAGE = 4096, TABLE = 512, WORDS = PAGE / 8 };

struct worker {
    char *base, *aside;
    /* What the first, a middle and the last word of each page are. */
    uint64_t *expected;
    uint64_t seq, random, operations;
    int pipe[2];
    pthread_t thread;
};

static struct worker workers[WORKERS];
/* Written one after the other: the second is never ahead, nor more than one behind. */
static struct {
    volatile uint64_t first __attribute__((aligned(PAGE)));
    volatile uint64_t second __attribute__((aligned(PAGE)));
} order;

static uint64_t pick(struct worker *w, uint64_t below)
{
    w->random = w->random * 6364136223846793005u + 1442695040888963407u;
    return (w->random >> 33) % below;
}

static volatile uint64_t *page(struct worker *w, long at)
{
    return (volatile uint64_t *)(w->base + at * PAGE);
}

static void check_page(struct worker *w, long at, const char *when)
{
    static const int words[] = {0, WORDS / 2, WORDS - 1};
    for (int i = 0; i < 3; i++)
        if (page(w, at)[words[i]] != w->expected[at])
            FAIL("%s: word %d of page %ld of worker %d after %llu operations, expected %llu, got %llu", when, words[i],
                 at, (int)(w - workers), (unsigned long long)w->operations, (unsigned long long)w->expected[at],
                 (unsigned long long)page(w, at)[words[i]]);
}

static void check_all(struct worker *w, const char *when)
{
    for (long at = 0; at < PAGES; at++)
        check_page(w, at, when);
}

static void write_page(struct worker *w, long at)
{
    uint64_t seq = ++w->seq;
    page(w, at)[0] = page(w, at)[WORDS / 2] = page(w, at)[WORDS - 1] = seq;
    w->expected[at] = seq;
}

/* The kernel writes it. */
static void read_page(struct worker *w, long at)
{
    uint64_t words[WORDS] = {0}, seq = ++w->seq;
    words[0] = words[WORDS / 2] = words[WORDS - 1] = seq;
    CHECK_EQ("write to a pipe", PAGE, write(w->pipe[1], words, PAGE));
    CHECK_EQ("read from a pipe", PAGE, read(w->pipe[0], (void *)page(w, at), PAGE));
    w->expected[at] = seq;
}

static void emptied(struct worker *w, long at, long pages)
{
    memset(w->expected + at, 0, pages * sizeof *w->expected);
    check_page(w, at, "emptied");
    check_page(w, at + pages - 1, "emptied");
}

static void map(char *at, long pages, int more)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | more;
    MUST(mmap(at, pages * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0));
}

static void run(struct worker *w)
{
    long at = pick(w, PAGES), pages = 1 + pick(w, 64);
    int what = pick(w, 1000);
    w->operations++;
    if (what < 20) {
        /* Whole page tables go. */
        at = at / TABLE * TABLE;
        pages = TABLE;
    }
    if (at + pages > PAGES)
        pages = PAGES - at;
    char *start = w->base + at * PAGE;
    switch (what) {
    case 0 ... 29:
        MUST(madvise(start, pages * PAGE, MADV_DONTNEED));
        emptied(w, at, pages);
        break;
    case 30 ... 44:
        MUST(munmap(start, pages * PAGE));
        map(start, pages, MAP_FIXED_NOREPLACE);
        emptied(w, at, pages);
        break;
    case 45 ... 54:
        map(start, pages, 0);
        emptied(w, at, pages);
        break;
    case 55 ... 79:
        /* Aside and back; what is in between stands at its place meanwhile. One
         * mapping: mremap takes no more, and a snapshot may keep old and new apart. */
        map(start, pages, 0);
        emptied(w, at, pages);
        for (long i = 0; i < pages; i += 1 + pick(w, 4))
            write_page(w, at + i);
        MUST(mremap(start, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, w->aside));
        map(start, pages, 0);
        *(volatile uint64_t *)start = 1;
        MUST(mremap(w->aside, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, start));
        check_page(w, at, "moved");
        break;
    case 80 ... 99:
        MUST(mprotect(start, pages * PAGE, PROT_READ));
        check_page(w, at, "protected");
        MUST(mprotect(start, pages * PAGE, PROT_NONE));
        MUST(mprotect(start, pages * PAGE, PROT_READ | PROT_WRITE));
        break;
    case 100: {
        pid_t child = CHECK_FORK({
            check_all(w, "in a child");
            _exit(0);
        });
        for (long i = 0; i < 64; i++)
            write_page(w, (at + i) % PAGES);
        int status;
        CHECK_EQ("waitpid", child, MUST(waitpid(child, &status, 0)));
        CHECK_EQ("status of a child", 0, status);
        break;
    }
    case 101 ... 199:
        read_page(w, at);
        break;
    case 200 ... 399:
        check_page(w, at, "at random");
        break;
    default:
        write_page(w, at);
    }
}

static void *body(void *arg)
{
    struct worker *w = arg;
    do {
        for (int i = 0; i < 400; i++)
            run(w);
        check_all(w, "all");
        if (w == workers) {
            CHECK(order.first - order.second <= 1, "two counters, expected the same or one more, got %llu and %llu",
                  (unsigned long long)order.first, (unsigned long long)order.second);
            order.first++;
            order.second++;
        }
        check_pause();
    } while (!check_go() || w->operations < 4000);
    return NULL;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    /* Memory that nobody may read is kept too. */
    char *hidden = MUST(mmap(NULL, 40 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    check_fill(hidden, 40 * PAGE, 9);
    MUST(mprotect(hidden, 40 * PAGE, PROT_NONE));
    for (int i = 0; i < WORKERS; i++) {
        struct worker *w = &workers[i];
        w->random = i + 1;
        char *room = MUST(mmap(NULL, (PAGES + 3 * TABLE) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        w->base = (char *)(((uintptr_t)room + TABLE * PAGE - 1) / (TABLE * PAGE) * (TABLE * PAGE));
        w->aside = w->base + (PAGES + 64) * PAGE;
        w->expected = MUST(mmap(NULL, PAGES * sizeof *w->expected, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        map(w->base, PAGES, 0);
        for (long at = 0; at < PAGES; at++)
            write_page(w, at);
        MUST(pipe(w->pipe));
    }
    for (int i = 0; i < WORKERS; i++)
        workers[i].thread = check_thread(body, &workers[i]);
    check_ready();
    for (int i = 0; i < WORKERS; i++)
        MUST0(pthread_join(workers[i].thread, NULL));
    MUST(mprotect(hidden, 40 * PAGE, PROT_READ));
    check_filled("memory that nobody may read", hidden, 40 * PAGE, 9);
    return 0;
}
