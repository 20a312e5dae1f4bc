/* An open directory keeps its place in the listing. */
#include "check.h"
#include <dirent.h>

enum { ENTRIES = 2000 };

/* One batch of names into the set; 0 at the end. */
static int batch(int fd, char *seen)
{
    static char buf[2048] __attribute__((aligned(8)));
    long n = MUST(syscall(SYS_getdents64, fd, buf, sizeof buf));
    for (long at = 0; at < n;) {
        struct dirent64 *entry = (struct dirent64 *)(buf + at);
        int number;
        if (sscanf(entry->d_name, "entry-%d", &number) == 1) {
            CHECK(!seen[number], "entry %d, expected once, got twice", number);
            seen[number] = 1;
        }
        at += entry->d_reclen;
    }
    return n > 0;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    static char seen[ENTRIES];
    const char *dir = check_path("directory");
    MUST(mkdir(dir, 0755));
    int fd = MUST(open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    for (int i = 0; i < ENTRIES; i++) {
        char name[32];
        snprintf(name, sizeof name, "entry-%d", i);
        MUST(close(MUST(openat(fd, name, O_CREAT | O_WRONLY, 0644))));
    }
    for (int i = 0; i < 5; i++)
        CHECK(batch(fd, seen), "listing, expected more");
    check_freeze_here();
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(fd, F_GETFD));
    MUST(faccessat(fd, "entry-1999", F_OK, 0));
    while (batch(fd, seen))
        ;
    for (int i = 0; i < ENTRIES; i++)
        CHECK(seen[i], "entry %d, expected in the listing, got none", i);
    return 0;
}
