/*
 * steadfast, and one thread of each process forks and reaps without pause.
 */
#define FORKS
#include "steadfast.c"
