//! The machine code that enters other processes.
//!
//! *Executor*: walks an array of [`Entry`]s and makes the system call each
//! names. It uses no stack, no memory besides the array, and is position
//! independent. `rbx` points at the first entry. It ends at the entry whose
//! number is -1, or at one that failed and was marked so: with `int3` where
//! `r12` is 0; otherwise it writes 1 to the word that `r12` points at and parks
//! in pause(2) for ever. A thread that is let go anywhere in the second kind
//! waits there, with all signals blocked, until someone comes for it.
//! An entry that is marked to make a thread gives it a stack that points at such a word,
//! behind which, 16 bytes on, stand the thread's own entries: it begins with those.
//!
//! *Init*: process 1 of an instance. It reaps what the app leaves behind and
//! ends with the app's own exit status (128 + N after signal N), which makes
//! the kernel end whatever is left in the PID namespace. `rbx` holds the PID
//! (as init sees it) of the app's first process.
//!
//! As long as the app's memory is filled by another process (`restore::pager`),
//! init holds what keeps unfilled pages from being read as zeroes: `r13` is a socket
//! in whose queue the userfaultfds lie. `r14` is a pipe from that process, `r15` a
//! signalfd of SIGCHLD. A byte in the pipe says that all is filled; its end, that the
//! process died before: then init kills all the app, and holds on until it is gone,
//! as it does when the app's first process ends: a process that ends lets go of its
//! descriptors before the kernel ends the others of its namespace.
//!
//! As a *husk* it begins elsewhere: it gives way to others until a tracer comes.

use std::arch::global_asm;

global_asm!(
    ".pushsection .rodata",
    // Seen from all of this crate's object files, and from nowhere else.
    ".globl appshot_executor_start, appshot_executor_end",
    ".globl appshot_init_start, appshot_init_loop, appshot_init_holding, appshot_init_end",
    ".globl appshot_init_waiting",
    ".hidden appshot_executor_start, appshot_executor_end",
    ".hidden appshot_init_start, appshot_init_loop, appshot_init_holding, appshot_init_end",
    ".hidden appshot_init_waiting",
    ".balign 16",
    "appshot_executor_start:",
    "2: mov rax, [rbx]",
    "cmp rax, -1",
    "je 5f",
    "mov rdi, [rbx + 8]",
    "mov rsi, [rbx + 16]",
    "mov rdx, [rbx + 24]",
    "mov r10, [rbx + 32]",
    "mov r8, [rbx + 40]",
    "mov r9, [rbx + 48]",
    "syscall",
    "test rax, rax",
    "jnz 12f",
    "test qword ptr [rbx + 72], 2",
    "jz 12f",
    "mov r12, rsp", // in the new thread
    "lea rbx, [rsp + 16]",
    "jmp 2b",
    "12: mov [rbx + 56], rax",
    "mov rcx, [rbx + 64]",
    "test rcx, rcx",
    "jz 3f",
    "mov [rcx], rax",
    "3: test qword ptr [rbx + 72], 1",
    "jz 4f",
    "cmp rax, -4095",
    "jae 5f",
    "4: add rbx, 80",
    "jmp 2b",
    "5: test r12, r12",
    "jz 11f",
    "mov qword ptr [r12], 1",
    "10: mov eax, 34", // pause
    "syscall",
    "jmp 10b",
    "11: int3",
    "appshot_executor_end:",
    ".balign 16",
    "appshot_init_start:",
    "mov ebx, [rip + 7f]",
    "appshot_init_loop:",
    "6: mov edi, -1",
    "lea rsi, [rsp - 64]",
    "mov edx, 0x40000000", // __WALL: whatever signal the child was to send
    "xor r10d, r10d",
    "mov eax, 61", // wait4
    "syscall",
    "cmp rax, rbx",
    "je 8f",
    "cmp rax, -10", // ECHILD: the app's first process was never ours
    "jne 6b",
    "xor edi, edi",
    "jmp 9f",
    "8: mov edi, [rsp - 64]",
    "mov ecx, edi",
    "shr edi, 8",
    "and edi, 255",
    "and ecx, 127",
    "jz 9f",
    "lea edi, [rcx + 128]",
    "9: mov eax, 231", // exit_group
    "syscall",
    "appshot_init_holding:",
    "20: mov [rsp - 80], r14d", // struct pollfd: descriptor, events, revents
    "mov dword ptr [rsp - 76], 1",
    "mov [rsp - 72], r15d",
    "mov dword ptr [rsp - 68], 1",
    "lea rdi, [rsp - 80]",
    "mov esi, 2",
    "mov rdx, -1",
    "mov eax, 7", // poll
    "syscall",
    "test word ptr [rsp - 66], 1",
    "jz 22f",
    "mov edi, r15d",
    "lea rsi, [rsp - 256]",
    "mov edx, 128", // struct signalfd_siginfo
    "xor eax, eax", // read
    "syscall",
    "21: mov edi, -1",
    "lea rsi, [rsp - 64]",
    "mov edx, 0x40000001", // __WALL | WNOHANG
    "xor r10d, r10d",
    "mov eax, 61", // wait4
    "syscall",
    "cmp rax, rbx",
    "je 26f",
    "cmp rax, 0",
    "jg 21b",
    "22: cmp word ptr [rsp - 74], 0",
    "je 20b",
    "mov edi, r14d",
    "lea rsi, [rsp - 64]",
    "mov edx, 1",
    "xor eax, eax", // read
    "syscall",
    "cmp rax, 1",
    "jne 24f",
    "mov edi, r13d",
    "mov eax, 3", // close
    "syscall",
    "mov edi, r15d",
    "mov eax, 3",
    "syscall",
    "mov edi, r14d",
    "mov eax, 3",
    "syscall",
    "jmp 6b",
    "26: mov ecx, [rsp - 64]", // the app's status: its end is that of all the others
    "mov r12d, ecx",
    "shr r12d, 8",
    "and r12d, 255",
    "and ecx, 127",
    "jz 27f",
    "lea r12d, [rcx + 128]",
    "jmp 27f",
    "24: mov r12d, 137",
    "27: mov edi, -1",
    "mov esi, 9",
    "mov eax, 62", // kill
    "syscall",
    "25: mov edi, -1",
    "lea rsi, [rsp - 64]",
    "mov edx, 0x40000000",
    "xor r10d, r10d",
    "mov eax, 61", // wait4
    "syscall",
    "cmp rax, 0",
    "jg 25b",
    "mov edi, r12d",
    "jmp 9b",
    "appshot_init_waiting:",
    "30: mov eax, 24", // sched_yield
    "syscall",
    "jmp 30b",
    ".balign 4",
    "7: .long 0",
    "appshot_init_end:",
    ".popsection",
);

unsafe extern "C" {
    static appshot_executor_start: u8;
    static appshot_executor_end: u8;
    static appshot_init_start: u8;
    static appshot_init_loop: u8;
    static appshot_init_holding: u8;
    static appshot_init_waiting: u8;
    static appshot_init_end: u8;
}

fn between(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: both labels stand in one read-only section of this program, in
    // this order, so the bytes between them are initialised and never change.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

pub fn executor() -> &'static [u8] {
    between(&raw const appshot_executor_start, &raw const appshot_executor_end)
}

pub fn init() -> &'static [u8] {
    between(&raw const appshot_init_start, &raw const appshot_init_end)
}

/// Where in [`init`] the loop begins that expects the PID in `rbx`, and the one
/// that expects descriptors as well.
fn init_loop_offset(holding: bool) -> u64 {
    let label = match holding {
        true => &raw const appshot_init_holding,
        false => &raw const appshot_init_loop,
    };
    between(&raw const appshot_init_start, label).len() as u64
}

/// One system call of a batch, as the executor reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry {
    pub number: u64,
    pub args: [u64; 6],
    pub result: u64,
    /// Address (in the target) where the result is stored as well; 0 for none.
    pub copy_to: u64,
    /// [`MUST`], [`MAKES_THREAD`].
    pub flags: u64,
}

/// The batch ends at this call when it fails.
pub const MUST: u64 = 1;
/// The call makes a thread that has entries of its own.
pub const MAKES_THREAD: u64 = 2;

pub const ENTRY_BYTES: usize = size_of::<Entry>();

impl Entry {
    pub fn to_words(self) -> [u64; 10] {
        let a = self.args;
        [
            self.number,
            a[0],
            a[1],
            a[2],
            a[3],
            a[4],
            a[5],
            self.result,
            self.copy_to,
            self.flags,
        ]
    }
}

/// Before the code of an [`init_program`].
const HEADERS: usize = 64 + 2 * 56;

/// What an [`init_program`] is executed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The init of the app process of this number.
    Init(i32),
    /// An almost empty process to build another one in: it waits for a tracer.
    Husk,
}

/// A static ELF program of one page, loaded at `address`.
pub fn init_program(address: u64, role: Role) -> Vec<u8> {
    let mut code = init().to_vec();
    let at = code.len() - 4;
    let begin = match role {
        Role::Init(root) => {
            code[at..].copy_from_slice(&root.to_le_bytes());
            0
        }
        Role::Husk => between(&raw const appshot_init_start, &raw const appshot_init_waiting).len(),
    };
    let entry = address + (HEADERS + begin) as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    elf.extend_from_slice(&2u16.to_le_bytes()); // ET_EXEC
    elf.extend_from_slice(&62u16.to_le_bytes()); // x86-64
    elf.extend_from_slice(&1u32.to_le_bytes());
    elf.extend_from_slice(&entry.to_le_bytes());
    elf.extend_from_slice(&64u64.to_le_bytes()); // program headers
    elf.extend_from_slice(&0u64.to_le_bytes());
    elf.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 2, 64, 0, 0] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    let size = (HEADERS + code.len()) as u64;
    program_header(&mut elf, 1, 5, address, size); // PT_LOAD, read and execute
    program_header(&mut elf, 0x6474_e551, 6, 0, 0); // PT_GNU_STACK, not executable
    elf.extend_from_slice(&code);
    elf
}

fn program_header(elf: &mut Vec<u8>, kind: u32, flags: u32, address: u64, size: u64) {
    elf.extend_from_slice(&kind.to_le_bytes());
    elf.extend_from_slice(&flags.to_le_bytes());
    for word in [0, address, address, size, size, 4096] {
        elf.extend_from_slice(&u64::to_le_bytes(word));
    }
}

/// Address of a loop of an [`init_program`] loaded at `address`.
pub fn init_program_loop(address: u64, holding: bool) -> u64 {
    address + HEADERS as u64 + init_loop_offset(holding)
}
