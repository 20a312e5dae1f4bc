/* Addresses of the vdso that a program has found out stay good, in threads and after fork and exec too. */
#include "check.h"
#include <elf.h>
#include <link.h>
#include <sys/auxv.h>

typedef int clock_function(clockid_t, struct timespec *);
typedef int getcpu_function(unsigned *, unsigned *, void *);

/* The function of this name in the vdso, found as a C library finds it. */
static void *found(const char *wanted)
{
    const char *base = (const char *)getauxval(AT_SYSINFO_EHDR);
    const ElfW(Ehdr) *header = (const void *)base;
    const ElfW(Phdr) *segments = (const void *)(base + header->e_phoff);
    const ElfW(Sym) *symbols = NULL;
    const char *strings = NULL;
    for (int i = 0; i < header->e_phnum; i++)
        if (segments[i].p_type == PT_DYNAMIC)
            for (const ElfW(Dyn) *d = (const void *)(base + segments[i].p_vaddr); d->d_tag; d++) {
                if (d->d_tag == DT_SYMTAB)
                    symbols = (const void *)(base + d->d_un.d_ptr);
                if (d->d_tag == DT_STRTAB)
                    strings = base + d->d_un.d_ptr;
            }
    /* The strings follow the symbols. */
    for (const ElfW(Sym) *s = symbols; (const char *)s < strings; s++)
        if (!strcmp(strings + s->st_name, wanted))
            return (void *)(base + s->st_value);
    return NULL;
}

static clock_function *get_time, *get_resolution;
static getcpu_function *get_cpu;
static volatile int stop;

static void look(void)
{
    struct timespec by_vdso, by_kernel, resolution, wanted;
    CHECK_EQ("vdso", 0, get_time(CLOCK_MONOTONIC, &by_vdso));
    MUST(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &by_kernel));
    int64_t apart = (by_kernel.tv_sec - by_vdso.tv_sec) * 1000000000LL + by_kernel.tv_nsec - by_vdso.tv_nsec;
    CHECK(apart >= 0 && apart < 2000000000, "the vdso's clock, expected just before the kernel's, got %lld ns", (long long)apart);
    if (get_resolution) {
        CHECK_EQ("vdso", 0, get_resolution(CLOCK_MONOTONIC, &resolution));
        MUST(syscall(SYS_clock_getres, CLOCK_MONOTONIC, &wanted));
        CHECK_EQ("resolution", wanted.tv_nsec, resolution.tv_nsec);
    }
    unsigned cpu;
    if (get_cpu)
        CHECK_EQ("vdso", 0, get_cpu(&cpu, NULL, NULL));
}

static void *body(void *arg)
{
    while (!stop) {
        look();
        check_pause();
    }
    return arg;
}

int main(int argc, char **argv)
{
    if (argc == 2) { /* executed by itself: has a vdso of its own */
        get_time = found("__vdso_clock_gettime");
        look();
        return 0;
    }
    check_start(argc, argv);
    get_time = found("__vdso_clock_gettime");
    get_resolution = found("__vdso_clock_getres");
    get_cpu = found("__vdso_getcpu");
    CHECK(get_time != NULL && get_time == found("clock_gettime"), "clock_gettime, expected in the vdso");
    pthread_t thread = check_thread(body, NULL);
    look();
    check_freeze_here();
    look();
    CHECK(found("__vdso_clock_gettime") == (void *)get_time, "clock_gettime, expected where it was");
    check_child_ok(CHECK_FORK(look()));
    check_child_ok(CHECK_FORK({ execl("/proc/self/exe", argv[0], "again", NULL); }));
    stop = 1;
    MUST0(pthread_join(thread, NULL));
    return 0;
}
