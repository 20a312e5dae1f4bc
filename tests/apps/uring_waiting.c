/* Requests of an io_uring that wait for their file to be ready: polls, once and again and again, an
 * accept, a receive, reads; and a thread that waits for any of them. */
#include "uring.h"
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>

#ifndef FLAGS
#define FLAGS 0
#define WITH_ACCEPT
#endif

enum { POLL = 11, POLLS, ACCEPT, RECV, READ_PIPE, READ_EVENTS, SILENT, PAST = 1000 };

static int done;

static void expect(struct ring *r, uint64_t data, int res, unsigned flags)
{
    CHECK_EQ("wait", 0, MUST(ring_enter(r, 0, 1)));
    struct io_uring_cqe *cqe = ring_peek(r);
    CHECK(cqe, "completion %lld, expected, got none", (long long)data);
    CHECK_EQ("more to come", flags, cqe->flags & IORING_CQE_F_MORE);
    ring_expect(r, data, res);
    done++;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    struct ring r = ring_make(16, FLAGS, 0);
    int empty[2], other[2], pair[2], silent[2];
    unsigned requests = 6;
    MUST(pipe(empty)), MUST(pipe(other)), MUST(pipe(silent));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    int events = MUST(eventfd(0, 0)), many = MUST(eventfd(0, EFD_NONBLOCK));
#ifdef WITH_ACCEPT
    struct sockaddr_un name = {.sun_family = AF_UNIX}, peer;
    socklen_t len = sizeof peer;
    unsigned long long any;
    CHECK_EQ("getrandom", sizeof any, MUST(getrandom(&any, sizeof any, 0)));
    snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "appshot-uring-%llx", any);
    int listener = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(bind(listener, (struct sockaddr *)&name, sizeof name));
    MUST(listen(listener, 4));
#endif
    static char got_pipe[4], got_pair[4];
    static uint64_t got_events;

    /* Requests that waited and are done, and some that never did. */
    for (unsigned n = 0; n < 21; n++) {
        ring_next(&r, IORING_OP_NOP, PAST + n);
        ring_once(&r, PAST + n, 0);
    }
    struct io_uring_sqe *sqe = ring_next(&r, IORING_OP_READ, 5);
    sqe->fd = empty[0], sqe->addr = (uintptr_t)got_pipe, sqe->len = 1, sqe->off = -1;
    CHECK_EQ("submitted", 1, MUST(ring_enter(&r, 1, 0)));
    CHECK_EQ("write", 1, MUST(write(empty[1], "y", 1)));
    CHECK_EQ("wait", 0, MUST(ring_enter(&r, 0, 1)));
    ring_expect(&r, 5, 1);

    sqe = ring_next(&r, IORING_OP_POLL_ADD, POLL);
    sqe->fd = other[0], sqe->poll32_events = POLLIN;
    sqe = ring_next(&r, IORING_OP_POLL_ADD, POLLS);
    sqe->fd = many, sqe->poll32_events = POLLIN, sqe->len = IORING_POLL_ADD_MULTI;
#ifdef WITH_ACCEPT
    sqe = ring_next(&r, IORING_OP_ACCEPT, ACCEPT);
    sqe->fd = listener, sqe->addr = (uintptr_t)&peer, sqe->addr2 = (uintptr_t)&len, sqe->accept_flags = SOCK_CLOEXEC;
    requests++;
#endif
    sqe = ring_next(&r, IORING_OP_RECV, RECV);
    sqe->fd = pair[0], sqe->addr = (uintptr_t)got_pair, sqe->len = sizeof got_pair;
    sqe = ring_next(&r, IORING_OP_READ, READ_PIPE);
    sqe->fd = empty[0], sqe->addr = (uintptr_t)got_pipe, sqe->len = sizeof got_pipe, sqe->off = -1;
    sqe = ring_next(&r, IORING_OP_READ, READ_EVENTS);
    sqe->fd = events, sqe->addr = (uintptr_t)&got_events, sqe->len = sizeof got_events;
    /* Tells nothing where it does what it was to do. */
    sqe = ring_next(&r, IORING_OP_POLL_ADD, SILENT);
    sqe->fd = silent[0], sqe->poll32_events = POLLIN, sqe->flags = IOSQE_CQE_SKIP_SUCCESS;
    CHECK_EQ("submitted", requests, MUST(ring_enter(&r, requests, 0)));
    unsigned head = 22 + requests;
    /* What stood there is of nobody any more; one is not submitted yet. */
    memset(r.sqes, 0x55, 16 * sizeof *r.sqes);
    ring_next(&r, IORING_OP_NOP, 77);
    check_freeze_here();

    CHECK(!ring_peek(&r), "completions, expected none, got %lld", (long long)ring_peek(&r)->user_data);
    CHECK_EQ("submission head", head, ring_load(&r, r.p.sq_off.head));
    CHECK_EQ("what nobody submitted", 77, r.sqes[head & 15].user_data);
    CHECK_EQ("an entry of before", 0x5555555555555555, r.sqes[(head - 1) & 15].user_data);
    ring_once(&r, 77, 0);
    CHECK_EQ("write", 1, MUST(write(other[1], "a", 1)));
    expect(&r, POLL, POLLIN, 0);
    for (uint64_t n = 1; n < 4; n++) {
        CHECK_EQ("write", 8, MUST(write(many, &n, 8)));
        expect(&r, POLLS, POLLIN, IORING_CQE_F_MORE);
        uint64_t counted;
        CHECK_EQ("read", 8, MUST(read(many, &counted, 8)));
        CHECK_EQ("counted", n, counted);
    }
#ifdef WITH_ACCEPT
    int client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(connect(client, (struct sockaddr *)&name, sizeof name));
    CHECK_EQ("wait", 0, MUST(ring_enter(&r, 0, 1)));
    CHECK(ring_peek(&r), "an accepted connection, expected, got none");
    int accepted = ring_peek(&r)->res;
    CHECK(accepted >= 0, "accept, expected a connection, got %s", strerror(-accepted));
    ring_expect(&r, ACCEPT, accepted);
    CHECK_EQ("its address", AF_UNIX, peer.sun_family);
    CHECK_EQ("its flags", FD_CLOEXEC, MUST(fcntl(accepted, F_GETFD)));
    CHECK_EQ("write", 3, MUST(write(client, "abc", 3)));
    char told[4] = "";
    CHECK_EQ("read", 3, MUST(read(accepted, told, 4)));
#endif
    CHECK_EQ("write", 2, MUST(write(pair[1], "hi", 2)));
    expect(&r, RECV, 2, 0);
    CHECK(!memcmp(got_pair, "hi", 2), "what was received, expected hi, got %.2s", got_pair);
    CHECK_EQ("write", 2, MUST(write(empty[1], "zz", 2)));
    expect(&r, READ_PIPE, 2, 0);
    CHECK(!memcmp(got_pipe, "zz", 2), "what was read, expected zz, got %.2s", got_pipe);
    uint64_t seven = 7;
    CHECK_EQ("write", 8, MUST(write(events, &seven, 8)));
    expect(&r, READ_EVENTS, 8, 0);
    CHECK_EQ("events", 7, got_events);
    CHECK_EQ("write", 1, MUST(write(silent[1], "s", 1)));
    /* The poll that goes on is cancelled, and tells that it has ended. */
    ring_next(&r, IORING_OP_ASYNC_CANCEL, 99)->addr = POLLS;
    CHECK_EQ("submitted", 1, MUST(ring_enter(&r, 1, 2)));
    for (int n = 0; n < 2; n++) {
        struct io_uring_cqe *cqe = ring_peek(&r);
        CHECK(cqe && (cqe->user_data == 99 || cqe->user_data == POLLS), "the end of a poll, expected, got %lld",
              cqe ? (long long)cqe->user_data : -1);
        CHECK_EQ("its result", cqe->user_data == 99 ? 0 : -ECANCELED, cqe->res);
        ring_seen(&r);
    }
    CHECK(!ring_peek(&r), "completions, expected no more, got %lld", (long long)ring_peek(&r)->user_data);
    CHECK_EQ("done", 7, done);
    return 0;
}
