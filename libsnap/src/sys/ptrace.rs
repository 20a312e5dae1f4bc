//! ptrace(2), one request a function. All need the calling thread to be the
//! tracer and, unless said otherwise, the task to be in a ptrace stop.

use super::{Sys, check};
use crate::ids::HostPid;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::time::Duration;

/// General registers in the order of `user_regs_struct` (and of NT_PRSTATUS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(transparent)]
pub struct Regs(pub [u64; 27]);

/// Positions in [`Regs`].
pub mod reg {
    pub const R15: usize = 0;
    pub const R14: usize = 1;
    pub const R13: usize = 2;
    pub const R12: usize = 3;
    pub const RBX: usize = 5;
    pub const R10: usize = 7;
    pub const R9: usize = 8;
    pub const R8: usize = 9;
    pub const RAX: usize = 10;
    pub const RDX: usize = 12;
    pub const RSI: usize = 13;
    pub const RDI: usize = 14;
    pub const ORIG_RAX: usize = 15;
    pub const RIP: usize = 16;
    pub const CS: usize = 17;
    pub const EFLAGS: usize = 18;
    pub const RSP: usize = 19;
    pub const SS: usize = 20;
    pub const FS_BASE: usize = 21;
    pub const GS_BASE: usize = 22;
}

impl Regs {
    pub fn get(&self, at: usize) -> u64 {
        self.0[at]
    }

    #[must_use]
    pub fn with(mut self, at: usize, value: u64) -> Self {
        self.0[at] = value;
        self
    }

    /// Without what a system call has left in them.
    #[must_use]
    pub fn out_of_call(self) -> Self {
        const RCX: usize = 11;
        const R11: usize = 6;
        [reg::RAX, RCX, R11]
            .iter()
            .fold(self.with(reg::ORIG_RAX, u64::MAX), |regs, at| regs.with(*at, 0))
    }
}

pub const NT_PRSTATUS: usize = 1;
pub const NT_X86_XSTATE: usize = 0x202;

const PTRACE_GETSIGMASK: u32 = 0x420a;
const PTRACE_SETSIGMASK: u32 = 0x420b;
const PTRACE_SECCOMP_GET_FILTER: u32 = 0x420c;
const PTRACE_SECCOMP_GET_METADATA: u32 = 0x420d;
const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;

/// What a wait reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// PTRACE_EVENT_STOP after SEIZE/INTERRUPT, or the birth of a traced child.
    Trap,
    /// A group stop (job control) by this signal.
    Group(i32),
    /// About to be given this signal.
    Signal(i32),
    /// Entry to or exit from a system call (with PTRACE_O_TRACESYSGOOD).
    Syscall,
    /// PTRACE_EVENT_*: the event number.
    Event(i32),
    Exited(i32),
    Killed(i32),
}

fn request(request: u32, pid: HostPid, addr: usize, data: *mut c_void) -> Sys<i64> {
    super::moment();
    // SAFETY: every caller passes, in `data`, null, a plain number or a pointer
    // to a live buffer of the size that this request reads or writes.
    check(unsafe { libc::ptrace(request, pid.0, addr as *mut c_void, data) })
}

fn number(value: usize) -> *mut c_void {
    std::ptr::without_provenance_mut(value)
}

/// Attaches without stopping. The task need not be stopped.
pub fn seize(pid: HostPid, options: i32) -> Sys<()> {
    request(libc::PTRACE_SEIZE, pid, 0, number(options as usize)).map(drop)
}

pub fn interrupt(pid: HostPid) -> Sys<()> {
    request(libc::PTRACE_INTERRUPT, pid, 0, null_mut()).map(drop)
}

pub fn set_options(pid: HostPid, options: i32) -> Sys<()> {
    request(libc::PTRACE_SETOPTIONS, pid, 0, number(options as usize)).map(drop)
}

pub fn cont(pid: HostPid, signal: i32) -> Sys<()> {
    request(libc::PTRACE_CONT, pid, 0, number(signal as usize)).map(drop)
}

/// Goes on to the next entry to or exit from a system call.
pub fn to_syscall(pid: HostPid, signal: i32) -> Sys<()> {
    request(libc::PTRACE_SYSCALL, pid, 0, number(signal as usize)).map(drop)
}

pub fn single_step(pid: HostPid) -> Sys<()> {
    request(libc::PTRACE_SINGLESTEP, pid, 0, null_mut()).map(drop)
}

pub fn detach(pid: HostPid, signal: i32) -> Sys<()> {
    request(libc::PTRACE_DETACH, pid, 0, number(signal as usize)).map(drop)
}

/// Keeps a group-stopped task stopped while it is traced.
pub fn listen(pid: HostPid) -> Sys<()> {
    request(libc::PTRACE_LISTEN, pid, 0, null_mut()).map(drop)
}

pub fn get_regs(pid: HostPid) -> Sys<Regs> {
    let mut regs = Regs([0; 27]);
    get_regset(pid, NT_PRSTATUS, bytes_of_mut(&mut regs.0)).map(|_| regs)
}

pub fn set_regs(pid: HostPid, regs: &Regs) -> Sys<()> {
    let mut copy = regs.0;
    set_regset(pid, NT_PRSTATUS, bytes_of_mut(&mut copy))
}

/// The whole xsave area (NT_X86_XSTATE).
pub fn get_xsave(pid: HostPid) -> Sys<Vec<u8>> {
    let mut area = vec![0u8; 16384];
    let size = get_regset(pid, NT_X86_XSTATE, &mut area)?;
    area.truncate(size);
    Ok(area)
}

pub fn set_xsave(pid: HostPid, area: &[u8]) -> Sys<()> {
    set_regset(pid, NT_X86_XSTATE, &mut area.to_vec())
}

fn get_regset(pid: HostPid, which: usize, buffer: &mut [u8]) -> Sys<usize> {
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    request(libc::PTRACE_GETREGSET, pid, which, (&raw mut iov).cast())?;
    Ok(iov.iov_len)
}

fn set_regset(pid: HostPid, which: usize, buffer: &mut [u8]) -> Sys<()> {
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    request(libc::PTRACE_SETREGSET, pid, which, (&raw mut iov).cast()).map(drop)
}

fn bytes_of_mut(words: &mut [u64; 27]) -> &mut [u8] {
    // SAFETY: 27 words are 216 initialised bytes, any bytes are valid words,
    // and the borrow is passed on.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), 216) }
}

pub fn get_sigmask(pid: HostPid) -> Sys<u64> {
    let mut mask = 0u64;
    request(PTRACE_GETSIGMASK, pid, 8, (&raw mut mask).cast())?;
    Ok(mask)
}

pub fn set_sigmask(pid: HostPid, mask: u64) -> Sys<()> {
    let mut mask = mask;
    request(PTRACE_SETSIGMASK, pid, 8, (&raw mut mask).cast()).map(drop)
}

/// New child of a fork or clone event.
pub fn event_message(pid: HostPid) -> Sys<u64> {
    let mut message = 0u64;
    request(libc::PTRACE_GETEVENTMSG, pid, 0, (&raw mut message).cast())?;
    Ok(message)
}

/// Pending signals without taking them, at most `limit`. `shared`: those of the
/// whole process, else those of the thread.
pub fn peek_signals(pid: HostPid, shared: bool, limit: usize) -> Sys<Vec<[u64; 16]>> {
    let mut found: Vec<[u64; 16]> = Vec::new();
    while found.len() < limit {
        let mut batch = [[0u64; 16]; 32];
        let args = libc::ptrace_peeksiginfo_args {
            off: found.len() as u64,
            flags: u32::from(shared),
            nr: 32,
        };
        let got = request(
            libc::PTRACE_PEEKSIGINFO,
            pid,
            (&raw const args) as usize,
            batch.as_mut_ptr().cast(),
        )?;
        if got == 0 {
            break;
        }
        found.extend_from_slice(&batch[..usize::try_from(got).unwrap_or(0)]);
    }
    Ok(found)
}

/// Writes one word of memory, whatever its protection.
pub fn poke(pid: HostPid, address: u64, word: u64) -> Sys<()> {
    request(libc::PTRACE_POKEDATA, pid, address as usize, number(word as usize)).map(drop)
}

/// Instructions (`struct sock_filter` as words) of one of a task's seccomp
/// filters; ENOENT behind the last. Number 0 is the *oldest* one: the manual
/// says the opposite. EMEDIUMTYPE: the kernel has not kept the program.
pub fn seccomp_filter(pid: HostPid, number: usize) -> Sys<Vec<u64>> {
    let mut code = vec![0u64; SECCOMP_CODE_MAX];
    let len = request(PTRACE_SECCOMP_GET_FILTER, pid, number, code.as_mut_ptr().cast())?;
    code.truncate(usize::try_from(len).unwrap_or(0));
    Ok(code)
}

/// BPF_MAXINSNS: no program is longer.
const SECCOMP_CODE_MAX: usize = 4096;

/// Flags that a filter was installed with, as far as the kernel tells them
/// (SECCOMP_FILTER_FLAG_LOG; Linux 4.16).
pub fn seccomp_flags(pid: HostPid, number: usize) -> Sys<u64> {
    let mut metadata = [number as u64, 0];
    request(PTRACE_SECCOMP_GET_METADATA, pid, 16, metadata.as_mut_ptr().cast())?;
    Ok(metadata[1])
}

/// `struct ptrace_rseq_configuration` (Linux 5.13): pointer, size, signature, flags.
pub fn rseq(pid: HostPid) -> Sys<(u64, u32, u32)> {
    #[repr(C)]
    #[derive(Default)]
    struct Config {
        pointer: u64,
        size: u32,
        signature: u32,
        flags: u32,
        pad: u32,
    }
    if super::lacks("rseq_configuration") {
        return Err(Errno::EIO);
    }
    let mut config = Config::default();
    let size = size_of::<Config>();
    request(PTRACE_GET_RSEQ_CONFIGURATION, pid, size, (&raw mut config).cast())?;
    Ok((config.pointer, config.size, config.signature))
}

/// Whether syscall user dispatch is on (Linux 6.4; EIO before).
pub fn user_dispatch(pid: HostPid) -> Sys<bool> {
    let mut config = [0u64; 4];
    request(
        PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG,
        pid,
        32,
        config.as_mut_ptr().cast(),
    )?;
    Ok(config[0] != 0)
}

/// Waits for the next report of this one task (`__WALL`). With `block` false
/// answers `None` at once when there is none.
///
/// A main thread that is killed reports nothing until all other threads of its
/// process have been reaped, which is the caller's own business: so a blocking
/// wait looks whether the task is a zombie, and says `Killed` then.
pub fn wait(pid: HostPid, block: bool) -> Sys<Option<Stop>> {
    let mut rounds = 0u32;
    loop {
        let dead = rounds > SPINS && rounds.is_multiple_of(16) && is_dead(pid);
        if let Some(stop) = wait_once(pid)? {
            return Ok(Some(stop));
        }
        if dead {
            return Ok(Some(Stop::Killed(libc::SIGKILL)));
        }
        if !block {
            return Ok(None);
        }
        pause(&mut rounds);
    }
}

/// Rounds of a wait in which others are merely let go first.
pub const SPINS: u32 = 200;

/// Between two looks at a task: most reports come within some 20 us; after that
/// others want this CPU.
pub fn pause(rounds: &mut u32) {
    *rounds += 1;
    match HEARS.get() {
        // To be woken takes longer than most reports do.
        true if *rounds <= HEARING_SPINS => std::hint::spin_loop(),
        true => await_report(LOOK_AGAIN),
        false if *rounds <= SPINS => std::thread::yield_now(),
        false => std::thread::sleep(LOOK_AGAIN),
    }
}

/// Looks of a thread that hears of reports: some 20 us, in which what runs on its own
/// processor has to wait.
const HEARING_SPINS: u32 = 50;

/// The same where no report is to come, but the task works.
pub fn pause_briefly(rounds: &mut u32) {
    const SHORT: u32 = 100;
    match HEARS.get() {
        true if *rounds < SHORT => {
            *rounds += 1;
            std::hint::spin_loop();
        }
        true => {
            *rounds += 1;
            await_report(LOOK_AGAIN / 8);
        }
        false => pause(rounds),
    }
}

const LOOK_AGAIN: Duration = Duration::from_micros(50);

thread_local! {
    static HEARS: Cell<bool> = const { Cell::new(false) };
}

/// As long as it lives, waits of this thread sleep until a report comes (SIGCHLD), and
/// let everybody run meanwhile: one that comes before all others would keep tasks from
/// coming to their stops by looking for them.
#[derive(Debug)]
#[must_use]
pub struct Hearing {
    before: SigSet,
}

impl Hearing {
    pub fn begin() -> Option<Hearing> {
        let before = report().thread_swap_mask(SigmaskHow::SIG_BLOCK).ok()?;
        HEARS.set(true);
        Some(Hearing { before })
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        HEARS.set(false);
        self.before.thread_set_mask().ok();
    }
}

fn report() -> SigSet {
    SigSet::from(Signal::SIGCHLD)
}

/// At most for that time: another thread may take the signal.
fn await_report(at_most: Duration) {
    let timeout = libc::timespec {
        tv_sec: 0,
        tv_nsec: i64::from(at_most.subsec_nanos()),
    };
    // SAFETY: the set and the time-out live across the call; nothing else is written.
    unsafe { libc::sigtimedwait(report().as_ref(), null_mut(), &timeout) };
}

/// Whether the task is a zombie or gone.
pub fn is_dead(pid: HostPid) -> bool {
    crate::proc::stat(pid).map_or(true, |stat| matches!(stat.state, b'Z' | b'X'))
}

fn wait_once(pid: HostPid) -> Sys<Option<Stop>> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a live integer.
        let got = unsafe { libc::waitpid(pid.0, &mut status, libc::__WALL | libc::WNOHANG) };
        match got {
            0 => return Ok(None),
            -1 if Errno::last() == Errno::EINTR => {}
            -1 => return Err(Errno::last()),
            _ => return Ok(Some(decode(status))),
        }
    }
}

/// Waits until a child of ours has ended, and leaves its status to be taken.
pub fn wait_ended(pid: HostPid) {
    let flags = libc::WEXITED | libc::WNOWAIT | libc::__WALL;
    // SAFETY: all zeroes is a valid siginfo, and it is live across the call.
    while unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(libc::P_PID, pid.0 as libc::id_t, &mut info, flags)
    } == -1
        && Errno::last() == Errno::EINTR
    {}
}

fn decode(status: i32) -> Stop {
    if libc::WIFEXITED(status) {
        return Stop::Exited(libc::WEXITSTATUS(status));
    }
    if libc::WIFSIGNALED(status) {
        return Stop::Killed(libc::WTERMSIG(status));
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        0 => Stop::Signal(signal),
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Trap,
        libc::PTRACE_EVENT_STOP => Stop::Group(signal),
        event => Stop::Event(event),
    }
}
