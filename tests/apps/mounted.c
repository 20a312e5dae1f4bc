/* A file system in memory that the app has mounted among its own mounts: it would not be there. */
#include "check.h"
#include <sys/mount.h>

int main(int argc, char **argv)
{
    check_start(argc, argv);
    char own[512];
    strcpy(own, check_path("own"));
    MUST(mkdir(own, 0700));
    MUST(mount("mine", own, "tmpfs", 0, NULL));
    check_freeze_here();
    MUST(umount(own));
    return 0;
}
