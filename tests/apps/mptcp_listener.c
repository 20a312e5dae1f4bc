/* Listening Multipath TCP sockets, as Go makes them by default: address, options, and they accept. */
#include <netinet/in.h>
#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif
#define PROTOCOL IPPROTO_MPTCP
#include "tcp_listener.c"
