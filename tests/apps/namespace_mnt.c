/* A child with mounts of its own. */
#include "namespace.h"

int main(int argc, char **argv)
{
    return own_namespace(argc, argv, CLONE_NEWNS, "mnt");
}
