/* TCP connections inside the app, between two processes, over which bytes go both ways all the time. */
#include "tcp_pair.h"

enum { PAIRS = 2, CHUNK = 30011 };

/* One direction of one end: bytes that the other side can foretell. */
struct way {
    int fd, seed;
    uint64_t done;
};

static int *stop; /* shared by the processes */

static void *sends(void *arg)
{
    struct way *way = arg;
    unsigned char bytes[CHUNK];
    while (!__atomic_load_n(stop, __ATOMIC_SEQ_CST)) {
        size_t some = 1 + check_byte(way->seed, way->done) * (CHUNK - 1) / 255;
        for (size_t i = 0; i < some; i++)
            bytes[i] = check_byte(way->seed, way->done + i);
        for (size_t at = 0; at < some;)
            at += MUST(write(way->fd, bytes + at, some - at));
        way->done += some;
    }
    MUST(shutdown(way->fd, SHUT_WR));
    return NULL;
}

static void *receives(void *arg)
{
    struct way *way = arg;
    unsigned char bytes[CHUNK];
    for (ssize_t n; (n = MUST(read(way->fd, bytes, sizeof bytes))) > 0; way->done += n)
        for (ssize_t i = 0; i < n; i++)
            CHECK_EQ("byte", check_byte(way->seed, way->done + i), bytes[i]);
    return NULL;
}

static void run(int *fds, int side)
{
    static struct way ways[PAIRS][2];
    pthread_t threads[PAIRS][2];
    for (int i = 0; i < PAIRS; i++)
        for (int which = 0; which < 2; which++) {
            ways[i][which] = (struct way){.fd = fds[i], .seed = 10 * i + (which ? !side : side)};
            threads[i][which] = check_thread(which ? receives : sends, &ways[i][which]);
        }
    if (!side) {
        while (ways[0][1].done < 1000000 || ways[1][1].done < 1000000)
            check_pause();
        check_freeze_here();
        __atomic_store_n(stop, 1, __ATOMIC_SEQ_CST);
    }
    for (int i = 0; i < PAIRS; i++)
        for (int which = 0; which < 2; which++)
            MUST0(pthread_join(threads[i][which], NULL));
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    stop = MUST(mmap(NULL, sizeof *stop, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    int ends[2][PAIRS];
    for (int i = 0; i < PAIRS; i++) {
        struct tcp_pair pair;
        MUST(tcp_connect_pair(TCP_V4, &pair) - 1);
        MUST(close(pair.listener));
        /* Little enough for it to go back and forth. */
        int room = 60000;
        MUST(setsockopt(pair.client, SOL_SOCKET, SO_RCVBUF, &room, sizeof room));
        MUST(setsockopt(pair.client, SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
        MUST(setsockopt(pair.server, SOL_SOCKET, SO_RCVBUF, &room, sizeof room));
        MUST(setsockopt(pair.server, SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
        ends[0][i] = pair.client;
        ends[1][i] = pair.server;
    }
    pid_t child = CHECK_FORK(for (int i = 0; i < PAIRS; i++) MUST(close(ends[0][i])); run(ends[1], 1));
    for (int i = 0; i < PAIRS; i++)
        MUST(close(ends[1][i]));
    run(ends[0], 0);
    check_child_ok(child);
    return 0;
}
