/*
 * Waits, spinning, until the file that it shares with its watcher says so, writes
 * the time there with its next instruction, and sleeps for ever.
 *
 *   instant FILE
 */
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct shared {
    volatile uint64_t ready, armed, realtime_ns;
};

int main(int argc, char **argv)
{
    struct timespec now;
    int fd = argc == 2 ? open(argv[1], O_RDWR) : -1;
    struct shared *shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || shared == MAP_FAILED)
        return 2;
    close(fd);
    shared->ready = 1;
    while (!shared->armed)
        ;
    clock_gettime(CLOCK_REALTIME, &now);
    shared->realtime_ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    for (;;)
        pause();
}
