/* Sealed mappings (mseal): content, protection, and nobody can change them. */
#include "check.h"

#ifndef SYS_mseal
#define SYS_mseal 462
#endif

enum { PAGE = 4096 };

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char *data = MUST(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    char *fixed = MUST(mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    int file = MUST(open("/proc/self/exe", O_RDONLY));
    char *text = MUST(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, file, 0));
    check_fill(data, 4 * PAGE, 1);
    check_fill(fixed, 3 * PAGE, 2);
    MUST(mprotect(fixed, 3 * PAGE, PROT_READ));
    if (syscall(SYS_mseal, data, 4 * PAGE, 0) != 0)
        SKIP("mseal (Linux 6.10)");
    MUST(syscall(SYS_mseal, fixed, 3 * PAGE, 0));
    MUST(syscall(SYS_mseal, text, PAGE, 0));
    check_freeze_here();
    check_filled("data", data, 4 * PAGE, 1);
    check_filled("read-only data", fixed, 3 * PAGE, 2);
    CHECK(!memcmp(text, "\177ELF", 4), "the file, expected ELF");
    char *all[] = {data, fixed, text};
    for (int i = 0; i < 3; i++) {
        CHECK_EQ("mprotect", -1, mprotect(all[i], PAGE, PROT_NONE));
        CHECK_EQ("errno", EPERM, errno);
        CHECK_EQ("munmap", -1, munmap(all[i], PAGE));
        CHECK_EQ("errno", EPERM, errno);
    }
    CHECK_EQ("MADV_DONTNEED of what is read-only", -1, madvise(fixed, PAGE, MADV_DONTNEED));
    data[0]++;
    CHECK_EQ("a byte written", check_byte(1, 0) + 1, (unsigned char)data[0]);
    return 0;
}
