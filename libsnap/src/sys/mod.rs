//! The kernel's door: one wrapper a system call, and the only `unsafe` of the
//! project. Nothing here decides anything.

pub mod blob;
pub mod bpf;
pub mod diag;
pub mod exec;
pub mod fd;
pub mod memory;
pub mod mounts;
pub mod mqueue;
pub mod ptrace;
pub mod shm;
pub mod sysv;
pub mod task;
pub mod uffd;
pub mod uring;

use nix::errno::Errno;

/// Result of a bare system call.
pub type Sys<T> = Result<T, Errno>;

/// Turns a raw return value of libc's `syscall` or a wrapper into a result.
pub(crate) fn check(value: libc::c_long) -> Sys<i64> {
    if value == -1 { Err(Errno::last()) } else { Ok(value) }
}

/// Turns a value as the kernel leaves it in rax (`-errno` on failure) into a result.
pub fn check_raw(value: i64) -> Sys<i64> {
    if (-4095..0).contains(&value) {
        Err(Errno::from_raw(i32::try_from(-value).unwrap_or(libc::EIO)))
    } else {
        Ok(value)
    }
}

/// For trials: in a debug build the features that `APPSHOT_LACKS=NAME,...` names are as if this kernel had
/// them not: `pagemap_scan`, `userfaultfd`, `bpf`, `kcmp`, `rseq_configuration`.
#[cfg(debug_assertions)]
pub fn lacks(feature: &str) -> bool {
    static LACKS: std::sync::OnceLock<Vec<String>> = std::sync::OnceLock::new();
    let lacks = LACKS.get_or_init(|| {
        let named = std::env::var("APPSHOT_LACKS").unwrap_or_default();
        named.split(',').map(str::to_owned).collect()
    });
    lacks.iter().any(|lacked| lacked == feature)
}

#[cfg(not(debug_assertions))]
pub const fn lacks(_: &str) -> bool {
    false
}

/// For trials: a moment at which this process may be killed. In a debug build
/// `APPSHOT_DIE_AT=LIFE:N,...` ends the program whose life, first argument or, where it has
/// none, name is LIFE by SIGKILL at its Nth moment; moments stand before every ptrace
/// request, every change of a cgroup, every kill and every step of a protocol.
#[cfg(debug_assertions)]
pub fn moment() {
    use std::sync::atomic::Ordering::Relaxed;
    if moments::LAST.load(Relaxed) == moments::UNKNOWN {
        moments::LAST.store(moments::last().unwrap_or(moments::NEVER), Relaxed);
    }
    if moments::PASSED.fetch_add(1, Relaxed) + 1 == moments::LAST.load(Relaxed) {
        nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::SIGKILL).ok();
    }
}

#[cfg(debug_assertions)]
mod moments {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU64;

    pub const UNKNOWN: u64 = u64::MAX;
    pub const NEVER: u64 = 0;
    pub static LAST: AtomicU64 = AtomicU64::new(UNKNOWN);
    pub static PASSED: AtomicU64 = AtomicU64::new(0);
    /// What a fork has become; otherwise the first argument says it.
    pub static LIFE: Mutex<Option<&'static str>> = Mutex::new(None);

    pub fn last() -> Option<u64> {
        let wanted = std::env::var("APPSHOT_DIE_AT").ok()?;
        let named = LIFE.lock().ok()?.map(str::to_owned);
        let mut words = std::env::args();
        let program = words.next()?;
        let ours = named.or_else(|| words.next()).unwrap_or(program);
        let ours = ours.rsplit('/').next()?;
        let mut lives = wanted.split(',').filter_map(|life| life.split_once(':'));
        lives.find(|(life, _)| *life == ours)?.1.parse().ok()
    }
}

/// For trials: this process, a fork, is of that kind from now on.
#[cfg(debug_assertions)]
pub fn live_as(life: &'static str) {
    use std::sync::atomic::Ordering::Relaxed;
    if let Ok(mut now) = moments::LIFE.lock() {
        *now = Some(life);
    }
    moments::PASSED.store(0, Relaxed);
    moments::LAST.store(moments::UNKNOWN, Relaxed);
}

#[cfg(not(debug_assertions))]
pub fn live_as(_life: &'static str) {}

#[cfg(not(debug_assertions))]
pub fn moment() {}

/// Fills these bytes, 256 at most, with random numbers (getrandom(2)).
pub fn random(bytes: &mut [u8]) -> Sys<()> {
    // SAFETY: the buffer is live and as long as said.
    let got = check(unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) } as libc::c_long)?;
    // So few come whole, unless the machine has just begun and a signal came.
    if got as usize == bytes.len() {
        Ok(())
    } else {
        Err(Errno::EINTR)
    }
}

/// XCR0: the state components that the kernel saves.
pub fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the kernel sets CR4.OSXSAVE on every processor that has xsave,
    // which the caller has checked; register 0 always exists.
    unsafe { std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high) };
    u64::from(high) << 32 | u64::from(low)
}

/// Where a state component stands in an xsave area.
pub fn xsave_offset(component: u32) -> u32 {
    const LEAF: u32 = 0xd;
    std::arch::x86_64::__cpuid_count(LEAF, component).ebx
}
