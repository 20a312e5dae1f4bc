/* A child that is to have its children in a PID namespace of their own, and has none yet. */
#include "namespace.h"

int main(int argc, char **argv)
{
    return own_namespace(argc, argv, CLONE_NEWPID, "pid_for_children");
}
