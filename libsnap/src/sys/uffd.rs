//! userfaultfd(2), Linux 4.3: pages put into another process's memory.

use super::fd::owned;
use super::memory::{PAGE, Span};
use super::{Sys, check};
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const API: u64 = 0xaa;
const REGISTER_MODE_MISSING: u64 = 1;
const REGISTER_MODE_WP: u64 = 2;
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1;
/// Linux 6.4 and 6.7; the headers of older systems name neither.
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
/// Faults of system calls are not told: whoever has no right to more may ask for it.
pub const USER_MODE_ONLY: i32 = 1;
/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `_IOWR(0xaa, 0x00, struct uffdio_register)`
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
/// `_IOWR(0xaa, 0x03, struct uffdio_copy)`
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
/// `_IOWR(0xaa, 0x04, struct uffdio_zeropage)`
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
/// `_IOWR(0xaa, 0x06, struct uffdio_writeprotect)`
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
/// `_IOR(0xaa, 0x01, struct uffdio_range)`
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
/// `_IOR(0xaa, 0x02, struct uffdio_range)`
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
/// UFFD_FEATURE_EVENT_FORK, _REMAP, _REMOVE and _UNMAP (Linux 4.11).
const EVENTS: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;
/// Writes are noted, and waited for by nobody.
const NOTES: u64 = FEATURE_PAGEFAULT_FLAG_WP | FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC;
/// Messages read at once.
const MESSAGES: usize = 16;

/// The userfaultfd of a process, held by another one. Closed by its last holder,
/// what was registered is ordinary memory again.
#[derive(Debug)]
pub struct Userfault {
    fd: OwnedFd,
    /// Writes are noted too, as by [`WriteNotes`]: a page that was brought counts as
    /// written once the process has written to it.
    notes: bool,
}

/// Of the memory behind a userfaultfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its process has ended or executed another program.
    Gone,
    /// Something was done to it that has not been read yet, or is not over.
    Changing,
    /// All that was done has been read.
    Quiet,
}

/// What a process did to memory that is registered. All but a fault wait until
/// they are read, and are done by then or at once after.
#[derive(Debug)]
pub enum Event {
    /// A thread waits for this page.
    Fault { page: u64, write: bool },
    /// It has forked: the child's memory, as it was in the parent.
    Fork(Userfault),
    /// mremap(2) has moved `len` bytes.
    Remap { from: u64, to: u64, len: u64 },
    /// What was there is gone by madvise(2), or will be at once.
    Remove(Span),
    /// What was there is gone by munmap(2), or whatever else ends a mapping.
    Unmap(Span),
}

/// Of userfaultfd(2).
pub fn number() -> libc::c_long {
    const NONE: libc::c_long = 0x7fff;
    match super::lacks("userfaultfd") {
        true => NONE,
        false => libc::SYS_userfaultfd,
    }
}

/// userfaultfd(2) for this process.
pub fn create() -> Sys<OwnedFd> {
    // SAFETY: only numbers are passed.
    owned(check(unsafe { libc::syscall(number(), libc::O_CLOEXEC) })? as i32)
}

/// The first call on a new userfaultfd.
fn enable(fd: &OwnedFd, features: u64) -> Sys<()> {
    // struct uffdio_api: api, features, ioctls
    let mut api = [API, features, 0];
    // SAFETY: the structure is three words, which `api` provides.
    check(i64::from(unsafe {
        libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr())
    }))
    .map(drop)
}

fn register(fd: &OwnedFd, span: Span, mode: u64) -> Sys<()> {
    // struct uffdio_register: start, length, mode, ioctls
    let mut register = [span.start, span.len(), mode, 0];
    // SAFETY: the structure is four words, which `register` provides.
    check(i64::from(unsafe {
        libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr())
    }))
    .map(drop)
}

impl Userfault {
    /// Takes a descriptor that userfaultfd(2) has just made.
    pub fn begin(fd: OwnedFd) -> Sys<Userfault> {
        enable(&fd, 0)?;
        Ok(Userfault { fd, notes: false })
    }

    /// The same; nobody answers faults, which fail (UFFD_FEATURE_SIGBUS, Linux 4.14).
    pub fn begin_failing(fd: OwnedFd) -> Sys<Userfault> {
        const FEATURE_SIGBUS: u64 = 1 << 7;
        enable(&fd, FEATURE_SIGBUS)?;
        Ok(Userfault { fd, notes: false })
    }

    /// The same, for a process that will run: what it does to its memory is told.
    /// Needs CAP_SYS_PTRACE. The descriptor must not block.
    pub fn begin_with_events(fd: OwnedFd) -> Sys<Userfault> {
        enable(&fd, EVENTS)?;
        Ok(Userfault { fd, notes: false })
    }

    /// The same, and writes are noted (Linux 6.7; EINVAL before).
    pub fn begin_with_notes(fd: OwnedFd) -> Sys<Userfault> {
        enable(&fd, EVENTS | NOTES)?;
        Ok(Userfault { fd, notes: true })
    }

    /// From now on `span`, private anonymous mappings, can be filled.
    pub fn register(&self, span: Span) -> Sys<()> {
        let notes = if self.notes { REGISTER_MODE_WP } else { 0 };
        register(&self.fd, span, REGISTER_MODE_MISSING | notes)
    }

    /// From now on writes to `span`, private mappings of any kind, are noted; the kernel
    /// fills it as ever. Only of one that takes notes.
    pub fn watch(&self, span: Span) -> Sys<()> {
        register(&self.fd, span, REGISTER_MODE_WP)
    }

    /// What is mapped in `span` is ordinary memory again.
    pub fn unregister(&self, span: Span) -> Sys<()> {
        let mut range = [span.start, span.len()];
        // SAFETY: the structure is two words, which `range` provides.
        check(i64::from(unsafe {
            libc::ioctl(self.fd.as_raw_fd(), UFFDIO_UNREGISTER, range.as_mut_ptr())
        }))
        .map(drop)
    }

    /// Makes the whole pages from `address` on hold `bytes`; answers how many bytes
    /// were copied: fewer where a page is there already. May be called by several
    /// threads at once.
    pub fn copy(&self, address: u64, bytes: &[u8]) -> Sys<usize> {
        let mut done = 0;
        while done < bytes.len() {
            match self.try_copy(address + done as u64, &bytes[done..]) {
                Ok(copied) => done += copied,
                Err(Errno::EAGAIN) => std::thread::yield_now(),
                Err(Errno::EEXIST) => return Ok(done),
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    /// As [`Userfault::copy`], once: EAGAIN where the process is just changing its
    /// mappings, EEXIST where the first page is there.
    pub fn try_copy(&self, address: u64, bytes: &[u8]) -> Sys<usize> {
        // struct uffdio_copy: destination, source, length, mode, bytes copied
        const COPY_MODE_WP: u64 = 1 << 1;
        let mode = if self.notes { COPY_MODE_WP } else { 0 };
        let mut copy = [address, bytes.as_ptr() as u64, bytes.len() as u64, mode, 0];
        // SAFETY: the structure is five words, which `copy` provides; `bytes` only is read.
        let copied = check(i64::from(unsafe {
            libc::ioctl(self.fd.as_raw_fd(), UFFDIO_COPY, copy.as_mut_ptr())
        }));
        match (copied, copy[4] as i64) {
            (Ok(_), _) => Ok(bytes.len()),
            (Err(Errno::EAGAIN), part @ 1..) => Ok(part as usize),
            (Err(errno), _) => Err(errno),
        }
    }

    /// Has this page and up to `pages` pages be zero, as far as they are not there.
    pub fn zero(&self, address: u64, pages: u64) -> Sys<()> {
        // struct uffdio_zeropage: start, length, mode, bytes zeroed
        let mut zero = [address, pages * PAGE, 0, 0];
        // SAFETY: the structure is four words, which `zero` provides.
        let zeroed = check(i64::from(unsafe {
            libc::ioctl(self.fd.as_raw_fd(), UFFDIO_ZEROPAGE, zero.as_mut_ptr())
        }));
        match zeroed {
            // Somebody else was faster: who waits for it must be told.
            Err(Errno::EEXIST) => self.wake(address),
            zeroed => zeroed.map(drop),
        }
    }

    /// What it does to this memory at this moment.
    pub fn state(&self) -> State {
        // Only a stack may reach up to there; stacks are not registered.
        const TOP: u64 = 0x7fff_ffff_e000;
        match self.zero(TOP, 1) {
            Err(Errno::ESRCH) => State::Gone,
            Err(Errno::EAGAIN) => State::Changing,
            _ => State::Quiet,
        }
    }

    /// Wakes whoever waits for this page.
    pub fn wake(&self, page: u64) -> Sys<()> {
        let mut range = [page, PAGE];
        // SAFETY: the structure is two words, which `range` provides.
        check(i64::from(unsafe {
            libc::ioctl(self.fd.as_raw_fd(), UFFDIO_WAKE, range.as_mut_ptr())
        }))
        .map(drop)
    }

    /// What has happened, without waiting; faults before all else.
    pub fn events(&self) -> Sys<Vec<Event>> {
        // struct uffd_msg: an event in the first byte, three words behind
        let mut messages = [[0u64; 4]; MESSAGES];
        let room = size_of_val(&messages);
        // SAFETY: `messages` is live and as long as said.
        let got = unsafe { libc::read(self.fd.as_raw_fd(), messages.as_mut_ptr().cast(), room) };
        let bytes = match check(got as libc::c_long) {
            Err(Errno::EAGAIN) => 0,
            got => got? as usize,
        };
        let messages = &messages[..bytes / size_of::<[u64; 4]>()];
        messages.iter().map(|message| event(message, self.notes)).collect()
    }
}

fn event(message: &[u64; 4], notes: bool) -> Sys<Event> {
    const FAULT_WRITE: u64 = 1;
    let [kind, a, b, c] = *message;
    Ok(match kind as u8 {
        0x12 => Event::Fault {
            page: b & !(PAGE - 1),
            write: a & FAULT_WRITE != 0,
        },
        // The kernel has just made the descriptor.
        0x13 => Event::Fork(Userfault {
            fd: owned(a as u32 as i32)?,
            notes,
        }),
        0x14 => Event::Remap { from: a, to: b, len: c },
        0x15 => Event::Remove(Span { start: a, end: b }),
        0x16 => Event::Unmap(Span { start: a, end: b }),
        _ => return Err(Errno::ENOTSUP),
    })
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A userfaultfd by which the kernel notes which pages are written to, and tells
/// nobody else (Linux 6.7): [`super::memory::scan_written`] reads the notes. Closed
/// by its last holder, pages are protected no more.
#[derive(Debug)]
pub struct WriteNotes(OwnedFd);

impl WriteNotes {
    /// Takes a descriptor that userfaultfd(2) has just made; EINVAL on older kernels.
    pub fn begin(fd: OwnedFd) -> Sys<WriteNotes> {
        enable(&fd, NOTES)?;
        Ok(WriteNotes(fd))
    }

    /// From now on `span`, whole mappings, can be watched. EBUSY where another
    /// userfaultfd watches it, ESRCH when the process has another address space by now.
    pub fn register(&self, span: Span) -> Sys<()> {
        register(&self.0, span, REGISTER_MODE_WP)
    }

    /// Writes to `span` are not noted any more, until it is looked at anew. Unlike the end of
    /// it all, for which the kernel goes through everything that is registered at once, this
    /// keeps nobody from a page fault.
    pub fn forget(&self, span: Span) -> Sys<()> {
        // struct uffdio_writeprotect: start, length, mode
        let mut protect = [span.start, span.len(), 0];
        // SAFETY: the structure is three words, which `protect` provides.
        check(i64::from(unsafe {
            libc::ioctl(self.0.as_raw_fd(), UFFDIO_WRITEPROTECT, protect.as_mut_ptr())
        }))
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::HostPid;
    use crate::sys::memory::{self, Dirt};

    /// Anonymous memory that nobody has touched, until the test ends.
    fn pages(count: u64) -> u64 {
        use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
        let bytes = std::num::NonZero::new((count * PAGE) as usize).unwrap();
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: new memory, at a place of the kernel's choice.
        let made = unsafe { mmap_anonymous(None, bytes, prot, MapFlags::MAP_PRIVATE) };
        made.unwrap().as_ptr() as u64
    }

    /// What is brought is not written, until it is written to; and again, once it has
    /// been looked at.
    #[test]
    fn pages_are_brought_and_writes_noted_by_one_descriptor() {
        let start = pages(600);
        let at = |page: u64| start + page * PAGE;
        let faults = Userfault::begin_with_notes(create().unwrap()).unwrap();
        let whole = Span { start, end: at(600) };
        faults.register(whole).unwrap();
        assert_eq!(faults.copy(at(1), &[7; 3 * PAGE as usize]), Ok(3 * PAGE as usize));
        let own = HostPid(std::process::id() as i32);
        let pagemap = crate::pages::pagemap(own).unwrap();
        let look = || {
            let mut found = Vec::new();
            memory::scan_dirt(&pagemap, whole, &mut found).unwrap();
            found
        };
        let clean = |from, to| {
            let span = Span {
                start: at(from),
                end: at(to),
            };
            (span, Dirt::default())
        };
        assert_eq!(look(), [clean(1, 4)]);
        // SAFETY: this page is there, and nobody else's.
        unsafe { (at(2) as *mut u8).write_volatile(9) };
        let written = (
            Span {
                start: at(2),
                end: at(3),
            },
            Dirt {
                written: true,
                ..Dirt::default()
            },
        );
        assert_eq!(look(), [clean(1, 2), written, clean(3, 4)]);
        memory::write(own, at(2), &[7; PAGE as usize]).unwrap();
        memory::watch_again(&pagemap, whole).unwrap();
        assert_eq!(look(), [clean(1, 4)]);
    }
}
