/* A child in a network of its own. */
#include "namespace.h"

int main(int argc, char **argv)
{
    return own_namespace(argc, argv, CLONE_NEWNET, "net");
}
