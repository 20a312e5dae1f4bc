//! From fork to exec: what a new process does before it is another program.
//!
//! The child of a raw clone3 in a program with threads may not allocate: all
//! strings and arrays are prepared beforehand, and only plain system calls are
//! made.

use super::{Sys, check};
use nix::errno::Errno;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::null;

/// A program with arguments and environment, ready for execve(2).
#[derive(Debug)]
pub struct Program {
    path: CString,
    _strings: Vec<CString>,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
}

impl Program {
    /// Strings with a NUL inside are refused (EINVAL).
    pub fn new(path: &str, args: &[String], env: &[String]) -> Sys<Program> {
        let c = |text: &str| CString::new(text).map_err(|_| Errno::EINVAL);
        let args = args.iter().map(|a| c(a)).collect::<Sys<Vec<_>>>()?;
        let env = env.iter().map(|e| c(e)).collect::<Sys<Vec<_>>>()?;
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).chain([null()]).collect();
        Ok(Program {
            path: c(path)?,
            argv: pointers(&args),
            envp: pointers(&env),
            _strings: args.into_iter().chain(env).collect(),
        })
    }

    /// execve(2); returns only on failure.
    pub fn exec(&self) -> Errno {
        // SAFETY: the arrays end with null and point into strings that `self` owns.
        unsafe { libc::execve(self.path.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr()) };
        Errno::last()
    }

    /// execveat(2) of an open file, with this argv; returns only on failure.
    pub fn exec_fd(&self, fd: BorrowedFd<'_>) -> Errno {
        let (argv, envp) = (self.argv.as_ptr(), self.envp.as_ptr());
        // SAFETY: as above; the empty path with AT_EMPTY_PATH names the descriptor.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                fd.as_raw_fd(),
                c"".as_ptr(),
                argv,
                envp,
                libc::AT_EMPTY_PATH,
            )
        };
        Errno::last()
    }
}

/// Marks every descriptor from `first` on close-on-exec.
pub fn close_on_exec_from(first: u32) -> Sys<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: only numbers are passed.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// dup2(2), for placing descriptors before exec.
pub fn place(from: i32, to: i32) -> Sys<()> {
    // SAFETY: only numbers are passed.
    check(i64::from(unsafe { libc::dup2(from, to) })).map(drop)
}

/// Every signal to its default action, none blocked.
pub fn reset_signals() {
    // The kernel's own struct: handler, flags, restorer, mask. The C library would
    // leave out the two signals that it uses itself.
    let default = [libc::SIG_DFL as u64, 0, 0, 0];
    for signal in 1..=64 {
        // SAFETY: the action is live, of the kernel's size, and SIG_DFL is a valid one;
        // failures (SIGKILL, SIGSTOP) change nothing.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), null::<u64>(), 8);
        }
    }
    // SAFETY: an all-zero mask at a live address.
    unsafe {
        let none = 0u64;
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, 0, 8);
    }
}

/// Raw setgroups/setresgid/setresuid of this task.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> Sys<()> {
    // SAFETY: the list is live and its length is passed; the rest are numbers.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    Ok(())
}
