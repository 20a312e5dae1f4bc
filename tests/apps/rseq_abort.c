/*
 * A thread frozen inside a restartable sequence goes on at its abort handler,
 * as after any preemption; never in the middle.
 */
#include "check.h"
#include <sys/rseq.h>

static uint64_t aborts __attribute__((used));
static volatile int leave __attribute__((used));

static int left;
static pthread_t spinner;

static void *waiter(void *arg)
{
    (void)arg;
    check_freeze_here();
    leave = 1;
    /* A lone thread on its cpu may never be preempted; a signal aborts as well. */
    while (!__atomic_load_n(&left, __ATOMIC_SEQ_CST)) {
        MUST0(pthread_kill(spinner, SIGUSR1));
        check_pause();
    }
    return NULL;
}

static void nothing(int sig)
{
    (void)sig;
}

int main(int argc, char **argv)
{
    check_start(argc, argv);
    if (__rseq_size == 0)
        SKIP("rseq registered by the C library");
    volatile uint64_t *section =
        (uint64_t *)((char *)__builtin_thread_pointer() + __rseq_offset + 8);
    struct sigaction action = {.sa_handler = nothing};
    MUST(sigaction(SIGUSR1, &action, NULL));
    spinner = pthread_self();
    pthread_t thread = check_thread(waiter, NULL);
    /* The sequence spins; each preemption aborts it and it is entered again.
     * Only the waiter's `leave`, seen outside, ends the loop. */
    __asm__ volatile(
        ".pushsection .data.rel, \"aw\"\n"
        ".balign 32\n"
        "rseq_cs_here: .long 0, 0\n .quad 1f, 2f - 1f, 4f\n"
        ".popsection\n"
        "3:\n"
        "  lea rseq_cs_here(%%rip), %%rax\n"
        "  mov %%rax, (%0)\n"
        "1:\n"
        "  pause\n"
        "  jmp 1b\n"
        "2:\n"
        "  ud2\n"
        /* The signature that the kernel wants in front of an abort handler. */
        "  .byte 0x0f, 0xb9, 0x3d\n .long 0x53053053\n"
        "4:\n"
        "  incq aborts(%%rip)\n"
        "  cmpl $0, leave(%%rip)\n"
        "  je 3b\n"
        "  movq $0, (%0)\n"
        :
        : "r"(section)
        : "rax", "memory", "cc");
    __atomic_store_n(&left, 1, __ATOMIC_SEQ_CST);
    CHECK(aborts > 0, "aborted sequences, expected some, got none");
    MUST0(pthread_join(thread, NULL));
    return 0;
}
