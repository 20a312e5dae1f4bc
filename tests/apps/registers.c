/* Every register of a thread that is frozen in user code. */
#include "registers.h"

static uint64_t base_area[8];

int main(int argc, char **argv)
{
    check_start(argc, argv);
    regs_set();
    base_area[1] = 0x1234567890abcdef;
    MUST(syscall(SYS_arch_prctl, ARCH_SET_GS, base_area));
    unsigned long fs, gs, fs_now;
    MUST(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs));
    pthread_t thread = check_thread(regs_waiter, NULL);
    regs_hold();
    MUST0(pthread_join(thread, NULL));
    regs_verify(0);
    MUST(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs_now));
    MUST(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs));
    CHECK_EQ("fs base", fs, fs_now);
    CHECK_EQ("gs base", (uint64_t)base_area, gs);
    uint64_t through;
    __asm__ volatile("mov %%gs:8, %0" : "=r"(through));
    CHECK_EQ("gs:8", base_area[1], through);
    return 0;
}
