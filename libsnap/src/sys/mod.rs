//! The kernel's door: one wrapper a system call, and the only `unsafe` of the
//! project. Nothing here decides anything.

pub mod blob;
pub mod diag;
pub mod exec;
pub mod fd;
pub mod memory;
pub mod ptrace;
pub mod shm;
pub mod sysv;
pub mod task;

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

/// XCR0: the state components that the kernel saves.
pub fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the kernel sets CR4.OSXSAVE on every processor that has xsave,
    // which the caller has checked; register 0 always exists.
    unsafe { std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high) };
    u64::from(high) << 32 | u64::from(low)
}
