/* Huge pages that were set aside (MAP_HUGETLB) */
#include "check.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    size_t len = 2 << 20;
    /* None need be there: what is mapped is not touched. */
    char *at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        SKIP("hugetlb (CONFIG_HUGETLBFS)");
    check_freeze_here();
    CHECK_EQ("unmap", 0, munmap(at, len));
    return 0;
}
