//! io_uring_setup(2), io_uring_register(2) and the memory of rings.

use super::fd::owned;
use super::{Sys, check, memory};
use crate::ids::HostPid;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

pub const SETUP_SQPOLL: u32 = 1 << 1;
pub const SETUP_CQSIZE: u32 = 1 << 3;
pub const SETUP_CLAMP: u32 = 1 << 4;
pub const SETUP_ATTACH_WQ: u32 = 1 << 5;
pub const SETUP_R_DISABLED: u32 = 1 << 6;
pub const SETUP_SQE128: u32 = 1 << 10;
pub const SETUP_CQE32: u32 = 1 << 11;
pub const SETUP_SINGLE_ISSUER: u32 = 1 << 12;
pub const SETUP_DEFER_TASKRUN: u32 = 1 << 13;
pub const SETUP_NO_MMAP: u32 = 1 << 14;
pub const SETUP_NO_SQARRAY: u32 = 1 << 16;

/// IOSQE_CQE_SKIP_SUCCESS
pub const CQE_SKIP_SUCCESS: u8 = 1 << 6;

pub const OP_POLL_ADD: u8 = 6;
pub const OP_ACCEPT: u8 = 13;
pub const OP_READ: u8 = 22;
pub const OP_RECV: u8 = 27;

/// Where mmap(2) of a ring finds its memories.
pub const OFF_SQ_RING: u64 = 0;
pub const OFF_CQ_RING: u64 = 0x800_0000;
pub const OFF_SQES: u64 = 0x1000_0000;

pub const REGISTER_EVENTFD: u32 = 4;
pub const REGISTER_EVENTFD_ASYNC: u32 = 7;
pub const REGISTER_ENABLE_RINGS: u32 = 12;
pub const REGISTER_FILES2: u32 = 13;
pub const REGISTER_BUFFERS2: u32 = 15;
pub const REGISTER_IOWQ_MAX_WORKERS: u32 = 19;
pub const REGISTER_RING_FDS: u32 = 20;
pub const REGISTER_SYNC_CANCEL: u32 = 24;
pub const REGISTER_FILE_ALLOC_RANGE: u32 = 25;
pub const REGISTER_CLOCK: u32 = 29;

/// `struct io_uring_params`: what is asked for, and where things stand.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Params {
    pub sq_entries: u32,
    pub cq_entries: u32,
    pub flags: u32,
    pub sq_thread: [u32; 2],
    pub features: u32,
    pub wq_fd: u32,
    pub reserved: [u32; 3],
    /// head, tail, ring_mask, ring_entries, flags, dropped, array.
    pub sq_off: [u32; 10],
    /// head, tail, ring_mask, ring_entries, overflow, cqes, flags.
    pub cq_off: [u32; 10],
}

pub fn setup(entries: u32, params: &mut Params) -> Sys<OwnedFd> {
    // SAFETY: `params` is live, and laid out as the kernel's.
    let got = unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, &raw mut *params) };
    owned(check(got)? as i32)
}

/// Has the kernel take that many entries.
pub fn submit(ring: &impl AsRawFd, count: u32) -> Sys<u32> {
    // SAFETY: only numbers are passed.
    let got = unsafe { libc::syscall(libc::SYS_io_uring_enter, ring.as_raw_fd(), count, 0, 0, 0, 0) };
    check(got).map(|taken| taken as u32)
}

/// Has all requests end that wait, whoever they are of (Linux 6.0); not of a ring for one thread alone.
pub fn cancel_all(ring: &impl AsRawFd) -> Sys<()> {
    const ALL: u64 = 1;
    const ANY: u64 = 1 << 2;
    const MILLISECOND_NS: u64 = 1_000_000;
    const NO_FILE: u64 = u32::MAX as u64;
    // struct io_uring_sync_cancel_reg: of what, and how long they are waited for.
    let mut words = [0, NO_FILE | (ALL | ANY) << 32, 0, MILLISECOND_NS, 0, 0, 0, 0];
    register(ring, REGISTER_SYNC_CANCEL, &mut words, 1)
}

/// With an argument of as many words as the operation takes.
pub fn register(ring: &impl AsRawFd, operation: u32, words: &mut [u64], count: u32) -> Sys<()> {
    // SAFETY: callers pass operations that use no more than these words, and addresses in
    // them of memory that they have.
    check(unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            operation,
            words.as_mut_ptr(),
            count,
        )
    })
    .map(drop)
}

/// One memory of a ring, mapped to ours; the kernel and others change it meanwhile.
#[derive(Debug)]
pub struct Memory {
    at: *mut u8,
    len: usize,
}

impl Memory {
    pub fn map(ring: &impl AsRawFd, offset: u64, len: usize) -> Sys<Memory> {
        // SAFETY: a new mapping at an address the kernel chooses touches nothing of ours.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                ring.as_raw_fd(),
                offset as i64,
            )
        };
        match at == libc::MAP_FAILED {
            true => Err(Errno::last()),
            false => Ok(Memory { at: at.cast(), len }),
        }
    }

    pub fn address(&self) -> u64 {
        self.at.addr() as u64
    }

    /// EFAULT where the ring has become smaller: read by ourselves that would be a SIGBUS.
    pub fn bytes(&self) -> Sys<Vec<u8>> {
        let mut bytes = vec![0; self.len];
        memory::read(HostPid(std::process::id() as i32), self.address(), &mut bytes)?;
        Ok(bytes)
    }

    /// A word that the kernel writes.
    pub fn word(&self, offset: usize) -> Sys<u32> {
        if offset + 4 > self.len || !offset.is_multiple_of(4) {
            return Err(Errno::EFAULT);
        }
        // SAFETY: checked to lie within the mapping, at the place of an aligned word.
        let atomic = unsafe { std::sync::atomic::AtomicU32::from_ptr(self.at.add(offset).cast()) };
        Ok(atomic.load(std::sync::atomic::Ordering::Acquire))
    }

    pub fn write(&self, offset: usize, bytes: &[u8]) -> Sys<()> {
        if offset.checked_add(bytes.len()).is_none_or(|end| end > self.len) {
            return Err(Errno::EFAULT);
        }
        // SAFETY: checked to lie within the mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.add(offset), bytes.len()) };
        Ok(())
    }

    /// A word that the kernel looks at, with all that was written before it.
    pub fn publish(&self, offset: usize, word: u32) -> Sys<()> {
        if offset + 4 > self.len || !offset.is_multiple_of(4) {
            return Err(Errno::EFAULT);
        }
        // SAFETY: checked to lie within the mapping, at the place of an aligned word.
        let atomic = unsafe { std::sync::atomic::AtomicU32::from_ptr(self.at.add(offset).cast()) };
        atomic.store(word, std::sync::atomic::Ordering::Release);
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and no reference into it is left.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}
