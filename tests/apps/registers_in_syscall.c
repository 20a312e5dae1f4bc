/* Every register that a system call preserves, frozen inside system calls. */
#define REGISTERS_IN_SYSCALL
#include "registers.h"

int main(int argc, char **argv)
{
    check_start(argc, argv);
    regs_set();
    pthread_t thread = check_thread(regs_waiter, NULL);
    regs_hold();
    MUST0(pthread_join(thread, NULL));
    CHECK_EQ("nanosleep in the loop", 0, regs_out.gpr[0]);
    /* rax, rcx, rsi, rdi and r11 serve the call. */
    regs_verify(1 << 0 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 10);
    return 0;
}
