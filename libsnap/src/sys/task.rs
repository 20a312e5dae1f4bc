//! Making and naming tasks: clone3(2), pidfds, kcmp(2).

use super::{Sys, check};
use crate::ids::HostPid;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `struct clone_args` (Linux 5.7 size: with `cgroup`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneArgs {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
    pub cgroup: u64,
}

impl CloneArgs {
    pub const SIZE: u64 = size_of::<CloneArgs>() as u64;

    pub fn to_bytes(self) -> Vec<u8> {
        [
            self.flags,
            self.pidfd,
            self.child_tid,
            self.parent_tid,
            self.exit_signal,
            self.stack,
            self.stack_size,
            self.tls,
            self.set_tid,
            self.set_tid_size,
            self.cgroup,
        ]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
    }
}

pub const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What a fork returned.
#[derive(Debug)]
pub enum Forked {
    Child,
    Parent(HostPid),
}

/// clone3 as fork: no CLONE_VM. In a process with several threads the child
/// may only make plain system calls until it executes another program.
pub fn fork(args: &CloneArgs) -> Sys<Forked> {
    assert_eq!(args.flags & libc::CLONE_VM as u64, 0, "a fork has its own memory");
    // SAFETY: without CLONE_VM the child runs on a copy of this stack; `args`
    // is a live struct of the size passed.
    let got = check(unsafe { libc::syscall(libc::SYS_clone3, std::ptr::from_ref(args), size_of::<CloneArgs>()) })?;
    Ok(match i32::try_from(got).unwrap_or(0) {
        0 => Forked::Child,
        pid => Forked::Parent(HostPid(pid)),
    })
}

/// Room for what a [`spawn`]ed process does before it executes its program.
const SPAWN_STACK: usize = 256 << 10;

/// clone3 as posix_spawn(3) does it: the child runs `act` in our memory, on a stack of its
/// own, and this thread waits until it executes a program or ends. Nothing is copied, so
/// that nobody has to pay for that later, by a fault at each page that he writes to. It
/// ends when this thread does, until it says otherwise; no signal reaches it before it
/// allows them. When `act` comes back it ends with 127.
pub fn spawn(args: CloneArgs, act: &mut dyn FnMut()) -> Sys<HostPid> {
    extern "C" fn begin(act: *mut &mut dyn FnMut()) -> ! {
        // SAFETY: only a number is passed.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // SAFETY: it lives in the frame of a thread that waits for us.
        unsafe { (*act)() };
        exit_now(127)
    }
    let mut act: &mut dyn FnMut() = act;
    // Far more than is needed; what is not touched takes no memory.
    let mut stack: Vec<u128> = Vec::with_capacity(SPAWN_STACK / size_of::<u128>());
    let args = CloneArgs {
        flags: args.flags | (libc::CLONE_VM | libc::CLONE_VFORK) as u64,
        stack: stack.as_mut_ptr() as u64,
        stack_size: SPAWN_STACK as u64,
        ..args
    };
    let got: i64;
    let before = set_mask(u64::MAX);
    // SAFETY: the child begins on a stack of its own, which is aligned, and never comes back to
    // this frame; this thread goes on when the child has left our memory, and finds its
    // registers as the kernel keeps them. `args` and `act` are live until then.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => got,
            in("rdi") &raw const args,
            in("rsi") size_of::<CloneArgs>(),
            in("r12") &raw mut act,
            in("r13") begin as extern "C" fn(*mut &mut dyn FnMut()) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    set_mask(before);
    match got {
        ..0 => Err(nix::Error::from_raw(-got as i32)),
        pid => Ok(HostPid(pid as i32)),
    }
}

/// The signals that this thread blocks; answers what it blocked before.
fn set_mask(mask: u64) -> u64 {
    let mut before = 0;
    // SAFETY: both masks are live words of the kernel's size.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            &raw mut before,
            8,
        )
    };
    before
}

/// Runs `act` in a copy of this process, which may be made what this one must not become for a moment:
/// somebody's, who may then signal it. Only SIGKILL and SIGSTOP get through, and cost the copy (ECANCELED).
/// It may make plain system calls only, and nothing of it is left but what these did.
pub fn in_copy(act: impl FnOnce() -> Sys<()>) -> Sys<()> {
    let before = set_mask(u64::MAX);
    // Its end is told to nobody but who waits for it (__WALL).
    let forked = fork(&CloneArgs::default());
    if let Ok(Forked::Child) = forked {
        // SAFETY: only a number is passed.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        exit_now(act().map_or_else(|errno| errno as i32, |()| 0));
    }
    set_mask(before);
    match forked? {
        Forked::Parent(copy) => outcome(copy),
        Forked::Child => Ok(()),
    }
}

/// Of a copy that ends with an error number or 0.
fn outcome(copy: HostPid) -> Sys<()> {
    loop {
        let mut status = 0;
        // SAFETY: the status is a live word.
        let got = unsafe { libc::waitpid(copy.0, &raw mut status, libc::__WALL | libc::WUNTRACED) };
        match check(i64::from(got)) {
            Ok(_) if libc::WIFSTOPPED(status) => {
                // SAFETY: only numbers are passed, of a child that was not waited for.
                check(i64::from(unsafe { libc::kill(copy.0, libc::SIGKILL) }))?;
            }
            Ok(_) if libc::WIFEXITED(status) => {
                return match libc::WEXITSTATUS(status) {
                    0 => Ok(()),
                    errno => Err(nix::Error::from_raw(errno)),
                };
            }
            Ok(_) => return Err(nix::Error::ECANCELED),
            Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// fork(2) of a process that has one thread: the child may do all that this
/// one may. `None` where there are more: the child would lack them, and keep
/// the locks that they hold.
pub fn fork_alone() -> Sys<Option<Forked>> {
    // The directory has a link for itself, its parent and every thread.
    let links = nix::sys::stat::stat("/proc/self/task")?.st_nlink;
    if links != 3 {
        return Ok(None);
    }
    // SAFETY: this is the only thread, and only it could start another.
    let got = check(i64::from(unsafe { libc::fork() }))?;
    Ok(Some(match i32::try_from(got).unwrap_or(0) {
        0 => Forked::Child,
        pid => Forked::Parent(HostPid(pid)),
    }))
}

/// setgroups(2) of the calling thread alone: the C library gives all threads the same.
pub fn set_groups(groups: &[u32]) -> Sys<()> {
    // SAFETY: reads so many words of a live slice.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// Of this thread (capabilities(7)).
pub fn securebits() -> Sys<u32> {
    // SAFETY: only numbers are passed.
    check(i64::from(unsafe { libc::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) })).map(|bits| bits as u32)
}

pub fn pidfd_open(pid: HostPid) -> Sys<OwnedFd> {
    pidfd_open_as(pid, 0)
}

/// Puts a rule of Landlock on the calling thread (Linux 5.13): it may make no sockets by name
/// any more. It cannot be taken back.
pub fn landlock_self() -> Sys<()> {
    const MAKE_SOCK: u64 = 1 << 9;
    let handled = MAKE_SOCK;
    // SAFETY: all arguments are numbers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
    // SAFETY: the attribute is eight bytes at a live address.
    let rules = check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const handled, 8, 0) })?;
    // SAFETY: the kernel just gave us this descriptor.
    let rules = unsafe { OwnedFd::from_raw_fd(rules as i32) };
    // SAFETY: only numbers are passed.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) }).map(drop)
}

/// Whether a process can have its timers made under ids of its choice
/// (PR_TIMER_CREATE_RESTORE_IDS, Linux 6.15).
pub fn chooses_timer_ids() -> bool {
    const GET: i32 = 2;
    // SAFETY: only numbers are passed.
    unsafe { libc::prctl(PR_TIMER_CREATE_RESTORE_IDS as i32, GET, 0, 0, 0) >= 0 }
}

/// `prctl` option that libc does not name.
pub const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;

/// Waits until all processors are done with what they were at in the kernel (MEMBARRIER_CMD_GLOBAL,
/// membarrier(2), Linux 4.3).
pub fn membarrier_global() -> Sys<()> {
    const GLOBAL: i32 = 1;
    // SAFETY: only numbers are passed.
    check(unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) }).map(drop)
}

/// The commands of membarrier(2) that this kernel has, as bits.
pub fn membarrier_commands() -> u64 {
    const QUERY: i32 = 0;
    // SAFETY: only numbers are passed.
    let had = check(unsafe { libc::syscall(libc::SYS_membarrier, QUERY, 0, 0) });
    had.map_or(0, |bits| bits as u64)
}

/// For a thread, not its process (Linux 6.9); it shows among the flags of the file.
pub const PIDFD_THREAD: i32 = libc::O_EXCL;

pub fn pidfd_open_thread(tid: HostPid) -> Sys<OwnedFd> {
    pidfd_open_as(tid, PIDFD_THREAD)
}

fn pidfd_open_as(pid: HostPid, flags: i32) -> Sys<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.0, flags) })?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A duplicate of descriptor `fd` of another process (Linux 5.6).
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: i32) -> Sys<OwnedFd> {
    // SAFETY: no memory is passed.
    let got = check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(got as i32) })
}

/// To this thread alone.
pub fn tgkill(pid: HostPid, tid: HostPid, signal: i32) -> Sys<()> {
    // SAFETY: only numbers are passed.
    check(unsafe { libc::syscall(libc::SYS_tgkill, pid.0, tid.0, signal) }).map(drop)
}

pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Sys<()> {
    // SAFETY: a null siginfo asks the kernel to fill in the usual one.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

/// What two tasks are asked to compare.
#[derive(Clone, Copy, Debug)]
pub enum Compare {
    File,
    Vm,
    Files,
    Fs,
    SigHand,
    /// The list of semaphore adjustments (SEM_UNDO).
    SemUndo,
}

/// kcmp(2): order of two kernel objects; `Equal` means they are the same one.
pub fn kcmp(a: HostPid, b: HostPid, what: Compare, fa: i32, fb: i32) -> Sys<std::cmp::Ordering> {
    let kind = match what {
        Compare::File => 0,
        Compare::Vm => 1,
        Compare::Files => 2,
        Compare::Fs => 3,
        Compare::SigHand => 4,
        Compare::SemUndo => 6,
    };
    if super::lacks("kcmp") {
        return Err(nix::Error::ENOSYS);
    }
    // SAFETY: only numbers are passed.
    let got = check(unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, kind, fa, fb) })?;
    Ok(order(got))
}

fn order(compared: i64) -> std::cmp::Ordering {
    match compared {
        0 => std::cmp::Ordering::Equal,
        1 => std::cmp::Ordering::Less,
        _ => std::cmp::Ordering::Greater,
    }
}

/// kcmp(2) of descriptor `fd` with what an epoll instance watches: the watch made
/// with number `target.0`, the `target.1`th of those.
pub fn kcmp_epoll(pid: HostPid, fd: i32, holder: HostPid, epoll: i32, target: (i32, u32)) -> Sys<std::cmp::Ordering> {
    const KCMP_EPOLL_TFD: i32 = 7;
    // struct kcmp_epoll_slot: efd, tfd, toff.
    let slot = [epoll as u32, target.0 as u32, target.1];
    // SAFETY: the slot is three live words, as the kernel reads them.
    let got = check(unsafe { libc::syscall(libc::SYS_kcmp, pid.0, holder.0, KCMP_EPOLL_TFD, fd, slot.as_ptr()) })?;
    Ok(order(got))
}

/// Address and length of a thread's robust futex list.
pub fn robust_list(tid: HostPid) -> Sys<(u64, u64)> {
    let mut head = 0u64;
    let mut len = 0u64;
    // SAFETY: both out pointers are live words.
    check(unsafe { libc::syscall(libc::SYS_get_robust_list, tid.0, &raw mut head, &raw mut len) })?;
    Ok((head, len))
}

/// `struct sched_attr` (48 bytes).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SchedAttr {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

pub fn sched_getattr(tid: HostPid) -> Sys<SchedAttr> {
    let mut attr = SchedAttr::default();
    // SAFETY: `attr` is live and of the size passed.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, tid.0, &raw mut attr, size_of::<SchedAttr>(), 0) })?;
    Ok(attr)
}

/// CPU mask of a thread, in words of 64 CPUs.
pub fn sched_getaffinity(tid: HostPid) -> Sys<Vec<u64>> {
    let mut mask = [0u64; 128];
    // SAFETY: `mask` is live and of the size passed.
    let bytes = check(unsafe {
        libc::syscall(
            libc::SYS_sched_getaffinity,
            tid.0,
            size_of_val(&mask),
            mask.as_mut_ptr(),
        )
    })?;
    Ok(mask[..(bytes as usize).div_ceil(8)].to_vec())
}

pub fn ioprio_get(tid: HostPid) -> Sys<i32> {
    // SAFETY: only numbers are passed.
    check(unsafe { libc::syscall(libc::SYS_ioprio_get, 1, tid.0) }).map(|v| v as i32)
}

/// `_exit` without running anything of Rust or libc.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: exit_group does not return.
    unsafe {
        libc::syscall(libc::SYS_exit_group, code);
        std::hint::unreachable_unchecked()
    }
}

/// Resource limit of another process: soft and hard.
pub fn prlimit_get(pid: HostPid, which: u32) -> Sys<(u64, u64)> {
    let mut limit = [0u64; 2];
    let none = std::ptr::null::<u64>();
    // SAFETY: struct rlimit64 is two words, which `limit` provides.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, pid.0, which, none, limit.as_mut_ptr()) })?;
    Ok((limit[0], limit[1]))
}

pub fn prlimit_set(pid: HostPid, which: u32, limit: (u64, u64)) -> Sys<()> {
    let limit = [limit.0, limit.1];
    let none = std::ptr::null_mut::<u64>();
    // SAFETY: struct rlimit64 is two words, which `limit` provides.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, pid.0, which, limit.as_ptr(), none) }).map(drop)
}

pub fn sched_setattr(tid: HostPid, attr: &SchedAttr) -> Sys<()> {
    // SAFETY: `attr` is live and states its own size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, tid.0, std::ptr::from_ref(attr), 0) }).map(drop)
}

pub fn sched_setaffinity(tid: HostPid, mask: &[u64]) -> Sys<()> {
    // SAFETY: `mask` is live and its length is passed.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid.0, size_of_val(mask), mask.as_ptr()) }).map(drop)
}

pub fn ioprio_set(tid: HostPid, value: i32) -> Sys<()> {
    // SAFETY: only numbers are passed.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, 1, tid.0, value) }).map(drop)
}

pub fn setdomainname(name: &str) -> Sys<()> {
    // SAFETY: the bytes are live and their length is passed.
    check(i64::from(unsafe {
        libc::setdomainname(name.as_ptr().cast(), name.len())
    }))
    .map(drop)
}

/// Children made from now on live in a new time namespace.
pub fn unshare_time() -> Sys<()> {
    const CLONE_NEWTIME: i32 = 0x80;
    // SAFETY: only a number is passed.
    check(i64::from(unsafe { libc::unshare(CLONE_NEWTIME) })).map(drop)
}

/// How this thread's system calls are restricted: 0 for not at all (prctl(2)).
pub fn seccomp_mode() -> Sys<i64> {
    // SAFETY: only numbers are passed.
    check(i64::from(unsafe { libc::prctl(libc::PR_GET_SECCOMP) }))
}

/// How willingly a task (0: this thread) lets others go first (getpriority(2)).
pub fn nice(tid: HostPid) -> Sys<i32> {
    // SAFETY: only numbers are passed. The bare call answers 20 - nice.
    let got = check(unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, tid.0) })?;
    Ok(20 - got as i32)
}

/// To less than it was needs CAP_SYS_NICE.
pub fn set_nice(tid: HostPid, nice: i32) -> Sys<()> {
    // SAFETY: only numbers are passed.
    check(unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, tid.0, nice) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_tells_how_it_went() {
        let signal = |signal| {
            // SAFETY: only numbers are passed.
            check(i64::from(unsafe { libc::kill(libc::getpid(), signal) })).map(drop)
        };
        assert_eq!(in_copy(|| Ok(())), Ok(()));
        assert_eq!(in_copy(|| Err(nix::Error::EMFILE)), Err(nix::Error::EMFILE));
        assert_eq!(in_copy(|| signal(libc::SIGTERM)), Ok(()));
        for ends in [libc::SIGSTOP, libc::SIGKILL] {
            assert_eq!(in_copy(|| signal(ends)), Err(nix::Error::ECANCELED));
        }
    }
}
