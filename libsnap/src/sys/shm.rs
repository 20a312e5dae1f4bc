//! Shared memory: anonymous (shmem(5) behind mmap), memfds, System V (shmget(2)).

use super::{Sys, check};
use nix::errno::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// The object behind a new MAP_SHARED|MAP_ANONYMOUS mapping, as a descriptor:
/// mappings made from it are of the same kind (`/dev/zero (deleted)`).
pub fn anonymous(bytes: u64) -> io::Result<OwnedFd> {
    let len = usize::try_from(bytes).map_err(io::Error::other)?.next_multiple_of(4096);
    // SAFETY: a new mapping at an address the kernel chooses touches nothing of ours.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = at as usize;
    let link = format!("/proc/self/map_files/{start:x}-{:x}", start + len);
    let opened = OpenOptions::new().read(true).write(true).open(link);
    // SAFETY: the range was mapped above and no reference into it exists.
    unsafe { libc::munmap(at, len) };
    opened.map(OwnedFd::from)
}

/// Another description of the same object, writable where it may be.
pub fn reopen(object: &OwnedFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", object.as_raw_fd());
    let both = OpenOptions::new().read(true).write(true).open(&path);
    both.or_else(|_| File::open(path)).map(OwnedFd::from)
}

/// Another description of the same object, for reading.
pub fn reopen_read_only(object: &OwnedFd) -> io::Result<OwnedFd> {
    File::open(format!("/proc/self/fd/{}", object.as_raw_fd())).map(OwnedFd::from)
}

/// A System V segment of the IPC namespace this thread is in.
#[derive(Debug)]
pub struct Segment {
    id: i32,
    len: usize,
}

impl Segment {
    /// Creates it under an id chosen beforehand (`shm_next_id`, Linux 3.8).
    pub fn create(id: i32, key: i32, bytes: u64, mode: u32) -> io::Result<Segment> {
        let len = usize::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: only numbers are passed.
        let got = check(i64::from(unsafe {
            libc::shmget(key, len, libc::IPC_CREAT | libc::IPC_EXCL | (mode & 0o777) as i32)
        }))?;
        if got as i32 != id {
            return Err(Errno::EEXIST.into());
        }
        Ok(Segment { id, len })
    }

    pub fn set_owner(&self, uid: u32, gid: u32, mode: u32) -> Sys<()> {
        // SAFETY: all zeroes is a valid shmid_ds, and it is live across the call.
        let got = unsafe {
            let mut ds: libc::shmid_ds = std::mem::zeroed();
            ds.shm_perm.uid = uid;
            ds.shm_perm.gid = gid;
            ds.shm_perm.mode = (mode & 0o777) as _;
            libc::shmctl(self.id, libc::IPC_SET, &mut ds)
        };
        check(i64::from(got)).map(drop)
    }

    pub fn attach(&self) -> Sys<Attached> {
        // SAFETY: the kernel chooses the address; nothing of ours is touched.
        let at = unsafe { libc::shmat(self.id, std::ptr::null(), 0) };
        if at.addr() == usize::MAX {
            return Err(Errno::last());
        }
        Ok(Attached {
            at: at.cast(),
            len: self.len,
        })
    }
}

/// A segment attached to our own memory; dropped, it is detached.
#[derive(Debug)]
pub struct Attached {
    at: *mut u8,
    len: usize,
}

impl Attached {
    pub fn write(&self, bytes: &[u8], offset: usize) -> io::Result<()> {
        if offset
            .checked_add(bytes.len())
            .is_none_or(|end| end > self.len.next_multiple_of(4096))
        {
            return Err(Errno::EFAULT.into());
        }
        // SAFETY: the range was checked to lie in the attached segment, whose
        // pages reach to the next page boundary; the slice is elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.add(offset), bytes.len()) };
        Ok(())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: attached by `attach`, and no reference into it is left.
        unsafe { libc::shmdt(self.at.cast()) };
    }
}
