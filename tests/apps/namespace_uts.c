/* A child in a UTS namespace of its own. */
#include "namespace.h"

int main(int argc, char **argv)
{
    return own_namespace(argc, argv, CLONE_NEWUTS, "uts");
}
