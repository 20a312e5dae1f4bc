/* Renews OpenSSL's random numbers in a program that was not made for it, by a thread
 * that takes part in its snapshots and restores:
 *
 *     cc -shared -fPIC -O2 -o reseed.so reseed.c
 *     appshot run --env LD_PRELOAD=$PWD/reseed.so -- node server.js
 *
 * Works with what exports OpenSSL 3 (libcrypto.so.3, node). The thread runs with the app,
 * not before it: with --hook-required the restore is done when it has answered.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#define OWN "/run/appshot-instance/"

/* Copies `phase` into our file: that is the answer. */
static void answer(const char *phase)
{
    char next[64], file[64];
    snprintf(next, sizeof next, OWN "hooks/.openssl-%d", (int)getpid());
    snprintf(file, sizeof file, OWN "hooks/openssl-%d", (int)getpid());
    FILE *out = fopen(next, "we");
    if (out) {
        fputs(phase, out);
        fclose(out);
        rename(next, file);
    }
}

static void renew(void)
{
    int (*poll_seed)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "RAND_poll");
    void *own = poll_seed ? NULL : dlopen("libcrypto.so.3", RTLD_NOW | RTLD_NOLOAD);
    if (own)
        poll_seed = (int (*)(void))dlsym(own, "RAND_poll");
    if (poll_seed)
        poll_seed();
    if (own)
        dlclose(own);
}

static void *watch(void *unused)
{
    (void)unused;
    char events[4096], phase[128], seen[128] = "";
    int fd = inotify_init1(IN_CLOEXEC);
    if (fd < 0 || inotify_add_watch(fd, OWN, IN_MOVED_TO) < 0)
        return NULL;
    for (;;) {
        FILE *in = fopen(OWN "phase", "re");
        if (in && fgets(phase, sizeof phase, in) && strcmp(phase, seen)) {
            if (!strncmp(phase, "restored ", 9))
                renew();
            strcpy(seen, phase);
            answer(phase);
        }
        if (in)
            fclose(in);
        if (read(fd, events, sizeof events) < 0)
            usleep(1000);
    }
}

static void begin(void)
{
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the program's */
    if (!pthread_create(&thread, NULL, watch, NULL))
        pthread_detach(thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

__attribute__((constructor)) static void start(void)
{
    pthread_atfork(NULL, NULL, begin); /* a child has no such thread */
    begin();
}
