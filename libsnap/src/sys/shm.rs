//! Shared memory: anonymous (shmem(5) behind mmap), memfds, System V (shmget(2)).

use super::memory::Span;
use super::{Sys, check};
use nix::errno::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Flags of mmap(2), memfd_create(2) or shmget(2) for huge pages of this size: `flag` is what that call
/// has for them. 0: ordinary ones.
pub fn huge(flag: i32, page_bytes: u64) -> i32 {
    const SHIFT: u32 = 26;
    match page_bytes.checked_ilog2() {
        None => 0,
        Some(size) => flag | (size << SHIFT).cast_signed(),
    }
}

/// The object behind a new MAP_SHARED|MAP_ANONYMOUS mapping, as a descriptor:
/// mappings made from it are of the same kind (`/dev/zero (deleted)`).
/// `page_bytes`: of huge pages that were set aside (`/anon_hugepage (deleted)`); 0: of ordinary ones.
pub fn anonymous(bytes: u64, page_bytes: u64) -> io::Result<OwnedFd> {
    let len = usize::try_from(bytes).map_err(io::Error::other)?.next_multiple_of(4096);
    let huge = huge(libc::MAP_HUGETLB, page_bytes);
    // SAFETY: a new mapping at an address the kernel chooses touches nothing of ours.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | huge,
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
    /// Of its object.
    len: usize,
}

impl Segment {
    /// Creates it under an id chosen beforehand (`shm_next_id`, Linux 3.8).
    pub fn create(id: i32, key: i32, bytes: u64, mode: u32, page_bytes: u64) -> io::Result<Segment> {
        let len = usize::try_from(bytes).map_err(io::Error::other)?;
        let page_len = usize::try_from(page_bytes).map_err(io::Error::other)?;
        let huge = huge(libc::SHM_HUGETLB, page_bytes);
        let flags = libc::IPC_CREAT | libc::IPC_EXCL | huge | (mode & 0o777) as i32;
        // SAFETY: only numbers are passed.
        let got = check(i64::from(unsafe { libc::shmget(key, len, flags) }))?;
        if got as i32 != id {
            return Err(Errno::EEXIST.into());
        }
        Ok(Segment {
            id,
            len: len.next_multiple_of(page_len.max(1)),
        })
    }

    /// Marks it to end with its last attachment. Until then it can be attached by its id.
    pub fn remove(&self) -> Sys<()> {
        self.control(libc::IPC_RMID)
    }

    /// Keeps it in memory.
    pub fn lock(&self) -> Sys<()> {
        self.control(libc::SHM_LOCK)
    }

    fn control(&self, what: i32) -> Sys<()> {
        // SAFETY: these commands look at no memory of ours.
        let got = unsafe { libc::shmctl(self.id, what, std::ptr::null_mut()) };
        check(i64::from(got)).map(drop)
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
        let attached = Attached {
            at: at.cast(),
            len: self.len,
            is_segment: true,
        };
        // Processes that are forked off ours meanwhile would count among those that have it.
        // SAFETY: this is a mapping of our own, which stays as it is.
        check(i64::from(unsafe { libc::madvise(at, self.len, libc::MADV_DONTFORK) }))?;
        Ok(attached)
    }
}

/// An object attached to our own memory; dropped, it is detached.
#[derive(Debug)]
pub struct Attached {
    at: *mut u8,
    len: usize,
    /// By shmat(2), else by mmap(2).
    is_segment: bool,
}

impl Attached {
    /// A file of which the pages are there: what is written stands in it.
    pub fn to_write(file: &impl AsRawFd, bytes: u64) -> Sys<Attached> {
        Attached::map(file, bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)
    }

    /// A file that may be sealed: nothing of ours comes into it.
    pub fn to_look(file: &impl AsRawFd, bytes: u64) -> Sys<Attached> {
        Attached::map(file, bytes, libc::PROT_READ, libc::MAP_PRIVATE)
    }

    fn map(file: &impl AsRawFd, bytes: u64, prot: i32, how: i32) -> Sys<Attached> {
        let len = usize::try_from(bytes).map_err(|_| Errno::EFBIG)?;
        let flags = how | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address the kernel chooses touches nothing of ours.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, file.as_raw_fd(), 0) };
        match at == libc::MAP_FAILED {
            true => Err(Errno::last()),
            false => Ok(Attached {
                at: at.cast(),
                len,
                is_segment: false,
            }),
        }
    }

    pub fn span(&self) -> Span {
        let start = self.at.addr() as u64;
        let end = start + self.len as u64;
        Span { start, end }
    }

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
        // SAFETY: attached by us in this way, and no reference into it is left.
        unsafe {
            match self.is_segment {
                true => libc::shmdt(self.at.cast()),
                false => libc::munmap(self.at.cast(), self.len),
            };
        }
    }
}
