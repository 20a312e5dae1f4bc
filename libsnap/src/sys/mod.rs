//! The kernel's door: one wrapper a system call, and the only `unsafe` of the
//! project. Nothing here decides anything.

pub mod blob;
pub mod diag;
pub mod fd;
pub mod memory;
pub mod ptrace;
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
