//! POSIX message queues (mq_overview(7)) of the IPC namespace that the calling thread is in.
//! Names are the kernel's, without the slash that libc begins them with.

use super::fd::owned;
use super::{Sys, check};
use std::ffi::CStr;
use std::os::fd::{AsRawFd, OwnedFd};

/// A new queue, to be closed by execve(2) as all of them, for so many messages of at most so many bytes.
pub fn create(name: &CStr, flags: i32, (messages_max, bytes_max): (i64, i64)) -> Sys<OwnedFd> {
    // struct mq_attr: flags, the two, how many there are, four reserved.
    let attr = [0, messages_max, bytes_max, 0, 0, 0, 0, 0];
    open_with(name, flags | libc::O_CREAT | libc::O_EXCL, attr.as_ptr())
}

/// Another description. O_CLOEXEC says nothing but that its flags show it.
pub fn open(name: &CStr, flags: i32) -> Sys<OwnedFd> {
    open_with(name, flags, std::ptr::null())
}

fn open_with(name: &CStr, flags: i32, attr: *const i64) -> Sys<OwnedFd> {
    const MODE: libc::mode_t = 0o600;
    // SAFETY: the name is a live C string; `attr` is null, or leads to eight words that live across the call.
    let opened = unsafe { libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, MODE, attr) };
    owned(check(opened)? as i32)
}

pub fn unlink(name: &CStr) -> Sys<()> {
    // SAFETY: the name is a live C string.
    check(unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) }).map(drop)
}

pub fn send(queue: &impl AsRawFd, data: &[u8], priority: u32) -> Sys<()> {
    let no_time = std::ptr::null::<libc::timespec>();
    // SAFETY: the buffer is live and of the length passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mq_timedsend,
            queue.as_raw_fd(),
            data.as_ptr(),
            data.len(),
            priority,
            no_time,
        )
    })
    .map(drop)
}
