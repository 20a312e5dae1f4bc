/* Holds values in every register of a thread while it waits. */
#ifndef REGISTERS_H
#define REGISTERS_H
#include "check.h"
#include <asm/prctl.h>

#ifndef __x86_64__
#error "these programs know the registers of x86_64"
#endif

/* rax rbx rcx rdx rsi rdi rbp r8-r15 */
enum { GPRS = 15, VECTORS = 32, VECTOR_BYTES = 64, MASKS = 8 };

struct registers {
    uint64_t gpr[GPRS];
    uint64_t flags;
    uint32_t mxcsr;
    uint16_t x87_control, pad;
    double x87[8];
    uint8_t vector[VECTORS][VECTOR_BYTES] __attribute__((aligned(64)));
    uint64_t mask[MASKS];
};

/* Read and written by the assembly below. `level`: 0 sse, 1 avx, 2 avx512. */
struct registers regs_in __attribute__((used)), regs_out __attribute__((used));
volatile int regs_go __attribute__((used));
int regs_level __attribute__((used));
uint64_t regs_rsp[2] __attribute__((used));
struct timespec regs_pause __attribute__((used)) = {0, 1000000};

/* Offsets into struct registers, as the assembler needs them. */
#define OFF_FLAGS 120
#define OFF_MXCSR 128
#define OFF_CW 132
#define OFF_X87 136
#define OFF_VECTOR 256
#define OFF_MASK 2304
_Static_assert(__builtin_offsetof(struct registers, flags) == OFF_FLAGS, "flags");
_Static_assert(__builtin_offsetof(struct registers, mxcsr) == OFF_MXCSR, "mxcsr");
_Static_assert(__builtin_offsetof(struct registers, x87_control) == OFF_CW, "control word");
_Static_assert(__builtin_offsetof(struct registers, x87) == OFF_X87, "x87");
_Static_assert(__builtin_offsetof(struct registers, vector) == OFF_VECTOR, "vector");
_Static_assert(__builtin_offsetof(struct registers, mask) == OFF_MASK, "mask");

/* Loads regs_in, waits until regs_go is set, stores regs_out. */
void regs_hold(void);

#define STR_(x) #x
#define STR(x) STR_(x)

__asm__(
    ".text\n"
    ".globl regs_hold\n"
    ".type regs_hold, @function\n"
    "regs_hold:\n"
    "  push %rbx\n  push %rbp\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
    "  sub $16, %rsp\n  stmxcsr (%rsp)\n  fnstcw 8(%rsp)\n"
    "  mov %rsp, regs_rsp(%rip)\n"
    "  cmpl $1, regs_level(%rip)\n"
    "  jl 10f\n  je 11f\n"
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
    "  vmovdqu64 regs_in+" STR(OFF_VECTOR) "+64*\\n(%rip), %zmm\\n\n"
    ".endr\n"
    ".irp n,0,1,2,3,4,5,6,7\n"
    "  kmovw regs_in+" STR(OFF_MASK) "+8*\\n(%rip), %k\\n\n"
    ".endr\n"
    "  jmp 12f\n"
    "11:\n"
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
    "  vmovdqu regs_in+" STR(OFF_VECTOR) "+64*\\n(%rip), %ymm\\n\n"
    ".endr\n"
    "  jmp 12f\n"
    "10:\n"
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
    "  movdqu regs_in+" STR(OFF_VECTOR) "+64*\\n(%rip), %xmm\\n\n"
    ".endr\n"
    "12:\n"
    "  ldmxcsr regs_in+" STR(OFF_MXCSR) "(%rip)\n"
    "  fninit\n  fldcw regs_in+" STR(OFF_CW) "(%rip)\n"
    ".irp n,7,6,5,4,3,2,1,0\n"
    "  fldl regs_in+" STR(OFF_X87) "+8*\\n(%rip)\n"
    ".endr\n"
    "  std\n"
    "  mov regs_in+8(%rip), %rbx\n  mov regs_in+24(%rip), %rdx\n"
    "  mov regs_in+32(%rip), %rsi\n  mov regs_in+40(%rip), %rdi\n"
    "  mov regs_in+48(%rip), %rbp\n  mov regs_in+56(%rip), %r8\n"
    "  mov regs_in+64(%rip), %r9\n  mov regs_in+72(%rip), %r10\n"
    "  mov regs_in+80(%rip), %r11\n  mov regs_in+88(%rip), %r12\n"
    "  mov regs_in+96(%rip), %r13\n  mov regs_in+104(%rip), %r14\n"
    "  mov regs_in+112(%rip), %r15\n"
    "  mov regs_in+16(%rip), %rcx\n  mov regs_in+0(%rip), %rax\n"
#ifdef REGISTERS_IN_SYSCALL
    /* nanosleep(&regs_pause, 0) again and again; the kernel keeps all but rax, rcx, r11. */
    "1:\n"
    "  lea regs_pause(%rip), %rdi\n  xor %esi, %esi\n  mov $35, %eax\n  syscall\n"
    "  mov %rax, %r11\n  test %eax, %eax\n  jnz 2f\n"
#else
    "1:\n"
    "  pause\n"
#endif
    "  cmpl $0, regs_go(%rip)\n"
    "  je 1b\n"
    "2:\n"
    "  mov %rax, regs_out+0(%rip)\n  mov %rbx, regs_out+8(%rip)\n"
    "  mov %rcx, regs_out+16(%rip)\n  mov %rdx, regs_out+24(%rip)\n"
    "  mov %rsi, regs_out+32(%rip)\n  mov %rdi, regs_out+40(%rip)\n"
    "  mov %rbp, regs_out+48(%rip)\n  mov %r8, regs_out+56(%rip)\n"
    "  mov %r9, regs_out+64(%rip)\n  mov %r10, regs_out+72(%rip)\n"
    "  mov %r11, regs_out+80(%rip)\n  mov %r12, regs_out+88(%rip)\n"
    "  mov %r13, regs_out+96(%rip)\n  mov %r14, regs_out+104(%rip)\n"
    "  mov %r15, regs_out+112(%rip)\n  mov %rsp, regs_rsp+8(%rip)\n"
    "  pushfq\n  pop regs_out+" STR(OFF_FLAGS) "(%rip)\n"
    "  cld\n"
    "  stmxcsr regs_out+" STR(OFF_MXCSR) "(%rip)\n"
    "  fnstcw regs_out+" STR(OFF_CW) "(%rip)\n"
    ".irp n,0,1,2,3,4,5,6,7\n"
    "  fstpl regs_out+" STR(OFF_X87) "+8*\\n(%rip)\n"
    ".endr\n"
    "  cmpl $1, regs_level(%rip)\n"
    "  jl 20f\n  je 21f\n"
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
    "  vmovdqu64 %zmm\\n, regs_out+" STR(OFF_VECTOR) "+64*\\n(%rip)\n"
    ".endr\n"
    ".irp n,0,1,2,3,4,5,6,7\n"
    "  kmovw %k\\n, regs_out+" STR(OFF_MASK) "+8*\\n(%rip)\n"
    ".endr\n"
    "  vzeroupper\n  jmp 22f\n"
    "21:\n"
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
    "  vmovdqu %ymm\\n, regs_out+" STR(OFF_VECTOR) "+64*\\n(%rip)\n"
    ".endr\n"
    "  vzeroupper\n  jmp 22f\n"
    "20:\n"
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
    "  movdqu %xmm\\n, regs_out+" STR(OFF_VECTOR) "+64*\\n(%rip)\n"
    ".endr\n"
    "22:\n"
    "  fninit\n  fldcw 8(%rsp)\n  ldmxcsr (%rsp)\n  add $16, %rsp\n"
    "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbp\n  pop %rbx\n"
    "  ret\n"
    ".size regs_hold, .-regs_hold\n");

static void regs_set(void)
{
    regs_level = __builtin_cpu_supports("avx512f") ? 2 : __builtin_cpu_supports("avx") ? 1 : 0;
    check_fill(&regs_in.gpr, sizeof regs_in.gpr, 11);
    check_fill(&regs_in.vector, sizeof regs_in.vector, 12);
    for (int i = 0; i < MASKS; i++)
        regs_in.mask[i] = 0xa5a0 + i;
    for (int i = 0; i < 8; i++)
        regs_in.x87[i] = 1.5 + i * 3.25;
    regs_in.mxcsr = 0x7fc0;       /* round to zero, denormals are zero */
    regs_in.x87_control = 0x0e7f; /* round to zero, double precision */
}

static void regs_verify(unsigned unchecked)
{
    static const char *names[GPRS] = {"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8",
                                      "r9", "r10", "r11", "r12", "r13", "r14", "r15"};
    for (int i = 0; i < GPRS; i++)
        if (!(unchecked & 1u << i))
            CHECK_EQ(names[i], regs_in.gpr[i], regs_out.gpr[i]);
    CHECK_EQ("rsp", regs_rsp[0], regs_rsp[1]);
    CHECK_EQ("direction flag", 0x400, regs_out.flags & 0x400);
    CHECK_EQ("mxcsr", regs_in.mxcsr, regs_out.mxcsr);
    CHECK_EQ("x87 control word", regs_in.x87_control, regs_out.x87_control);
    for (int i = 0; i < 8; i++)
        CHECK(regs_in.x87[i] == regs_out.x87[i], "st(%d), expected %g, got %g", i, regs_in.x87[i],
              regs_out.x87[i]);
    int count = regs_level == 2 ? 32 : 16, bytes = 16 << regs_level;
    for (int i = 0; i < count; i++)
        CHECK(!memcmp(regs_in.vector[i], regs_out.vector[i], bytes),
              "vector register %d (%d bytes), expected unchanged, got changed", i, bytes);
    for (int i = 0; regs_level == 2 && i < MASKS; i++)
        CHECK_EQ("mask register", regs_in.mask[i], regs_out.mask[i]);
}

static void *regs_waiter(void *arg)
{
    (void)arg;
    check_freeze_here();
    regs_go = 1;
    return NULL;
}
#endif
