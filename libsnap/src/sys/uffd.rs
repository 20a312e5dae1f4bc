//! userfaultfd(2), Linux 4.3: pages put into another process's memory.

use super::fd::owned;
use super::memory::Span;
use super::{Sys, check};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

const API: u64 = 0xaa;
const REGISTER_MODE_MISSING: u64 = 1;
/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `_IOWR(0xaa, 0x00, struct uffdio_register)`
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
/// `_IOWR(0xaa, 0x03, struct uffdio_copy)`
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;

/// The userfaultfd of a process, held by another one. Closed by its last holder,
/// what was registered is ordinary memory again.
#[derive(Debug)]
pub struct Userfault(OwnedFd);

/// userfaultfd(2) for this process.
pub fn create() -> Sys<OwnedFd> {
    // SAFETY: only numbers are passed.
    owned(check(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) })? as i32)
}

impl Userfault {
    /// Takes a descriptor that userfaultfd(2) has just made.
    pub fn begin(fd: OwnedFd) -> Sys<Userfault> {
        // struct uffdio_api: api, features, ioctls
        let mut api = [API, 0, 0];
        // SAFETY: the structure is three words, which `api` provides.
        check(i64::from(unsafe {
            libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr())
        }))?;
        Ok(Userfault(fd))
    }

    /// From now on `span`, private anonymous mappings, can be filled.
    pub fn register(&self, span: Span) -> Sys<()> {
        // struct uffdio_register: start, length, mode, ioctls
        let mut register = [span.start, span.len(), REGISTER_MODE_MISSING, 0];
        // SAFETY: the structure is four words, which `register` provides.
        check(i64::from(unsafe {
            libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr())
        }))
        .map(drop)
    }

    /// Makes the whole pages from `address` on hold `bytes`; answers how many bytes
    /// were copied: fewer where a page is there already. May be called by several
    /// threads at once.
    pub fn copy(&self, address: u64, bytes: &[u8]) -> Sys<usize> {
        let mut done = 0;
        while done < bytes.len() {
            let left = &bytes[done..];
            // struct uffdio_copy: destination, source, length, mode, bytes copied
            let mut copy = [address + done as u64, left.as_ptr() as u64, left.len() as u64, 0, 0];
            // SAFETY: the structure is five words, which `copy` provides; `left` only is read.
            let copied = check(i64::from(unsafe {
                libc::ioctl(self.0.as_raw_fd(), UFFDIO_COPY, copy.as_mut_ptr())
            }));
            match (copied, copy[4] as i64) {
                (Ok(_), _) => return Ok(bytes.len()),
                (Err(Errno::EAGAIN), part @ 1..) => done += part as usize,
                (Err(Errno::EAGAIN), _) => std::thread::yield_now(),
                (Err(Errno::EEXIST), _) => return Ok(done),
                (Err(errno), _) => return Err(errno),
            }
        }
        Ok(done)
    }
}
