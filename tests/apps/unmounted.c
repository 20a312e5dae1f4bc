/* A file system in memory that the app has mounted among its own mounts and unmounted, and one that it has bound
 * and unmounted: as if nothing had been. */
#include "check.h"
#include <sys/mount.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char own[512];
    strcpy(own, check_path("own"));
    MUST(mkdir(own, 0700));
    MUST(mount("mine", own, "tmpfs", 0, NULL));
    MUST(umount(own));
    MUST(mount("/", own, NULL, MS_BIND, NULL));
    MUST(umount(own));
    check_freeze_here();
    MUST(mount("mine", own, "tmpfs", 0, NULL));
    MUST(umount(own));
    return 0;
}
