//! Memory of another process: process_vm_readv(2), /proc/PID/mem, PAGEMAP_SCAN.

use super::{Sys, check};
use crate::ids::HostPid;
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;

pub const PAGE: u64 = 4096;

/// One stretch of another process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: u64,
    pub end: u64,
}

impl Span {
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.end <= self.start
    }
}

/// Reads the spans back to back into `buffer` (which is at least as long as
/// their sum); returns the bytes read, short at the first unreadable page.
/// At most 1024 spans. N.B. A page that is shared since a fork becomes the
/// process's own by this, as if written to (Linux 5.19: FAULT_FLAG_UNSHARE).
pub fn read_spans(pid: HostPid, spans: &[Span], buffer: &mut [u8]) -> Sys<usize> {
    let remote: Vec<libc::iovec> = spans
        .iter()
        .map(|span| libc::iovec {
            iov_base: std::ptr::without_provenance_mut(span.start as usize),
            iov_len: span.len() as usize,
        })
        .collect();
    let local = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: `local` is the caller's live buffer; remote addresses belong to
    // the other process and are checked by the kernel.
    let got = unsafe { libc::process_vm_readv(pid.0, &local, 1, remote.as_ptr(), remote.len() as u64, 0) };
    check(got as libc::c_long).map(|n| n as usize)
}

/// Fills `buffer` from `address`; a hole is an error (EFAULT).
pub fn read(pid: HostPid, address: u64, buffer: &mut [u8]) -> Sys<()> {
    let span = Span {
        start: address,
        end: address + buffer.len() as u64,
    };
    match read_spans(pid, &[span], buffer)? {
        n if n == buffer.len() => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

pub fn read_u64(pid: HostPid, address: u64) -> Sys<u64> {
    let mut word = [0; 8];
    read(pid, address, &mut word)?;
    Ok(u64::from_le_bytes(word))
}

/// Writes `bytes` at `address`, which must be writable there.
pub fn write(pid: HostPid, address: u64, bytes: &[u8]) -> Sys<()> {
    write_all(pid, &[(address, bytes)])
}

/// Writes each of up to 1024 slices at its address, which must be writable there.
pub fn write_all(pid: HostPid, pieces: &[(u64, &[u8])]) -> Sys<()> {
    let local: Vec<libc::iovec> = pieces
        .iter()
        .map(|(_, bytes)| libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        })
        .collect();
    let remote: Vec<libc::iovec> = pieces
        .iter()
        .map(|(address, bytes)| libc::iovec {
            iov_base: std::ptr::without_provenance_mut(*address as usize),
            iov_len: bytes.len(),
        })
        .collect();
    let count = pieces.len() as u64;
    // SAFETY: `local` only is read, and is the caller's live slices; remote
    // addresses belong to the other process and are checked by the kernel.
    let put = unsafe { libc::process_vm_writev(pid.0, local.as_ptr(), count, remote.as_ptr(), count, 0) };
    let wanted: usize = pieces.iter().map(|(_, bytes)| bytes.len()).sum();
    match check(put as libc::c_long)? as usize {
        n if n == wanted => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// Has our own pages there mapped, as reading each of them would (MADV_POPULATE_READ,
/// Linux 5.14).
pub fn populate(own: Span) -> Sys<()> {
    let start = std::ptr::without_provenance_mut(own.start as usize);
    // SAFETY: the advice changes no content and no mapping, whatever stands there.
    check(unsafe { libc::madvise(start, own.len() as usize, libc::MADV_POPULATE_READ) }.into()).map(drop)
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

impl PageRegion {
    fn span(&self) -> Span {
        Span {
            start: self.start,
            end: self.end,
        }
    }
}

#[repr(C)]
#[derive(Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const PM_SCAN_WP_MATCHING: u64 = 1;
const PM_SCAN_CHECK_WPASYNC: u64 = 2;
const PAGE_IS_WPALLOWED: u64 = 1 << 0;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

/// Which pages a scan is to tell, and what it does to them.
struct Wanted {
    flags: u64,
    inverted: u64,
    all: u64,
    any: u64,
    told: u64,
}

fn scan(pagemap: &File, span: Span, wanted: &Wanted, found: &mut Vec<Span>) -> Sys<()> {
    scan_each(pagemap, span, wanted, |region| push(found, region.start, region.end))
}

fn scan_each(pagemap: &File, span: Span, wanted: &Wanted, mut found: impl FnMut(&PageRegion)) -> Sys<()> {
    if super::lacks("pagemap_scan") {
        return Err(Errno::ENOTTY);
    }
    let mut regions = [PageRegion::default(); 512];
    let mut at = span.start;
    while at < span.end {
        let mut arg = PmScanArg {
            size: size_of::<PmScanArg>() as u64,
            flags: wanted.flags,
            start: at,
            end: span.end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            category_inverted: wanted.inverted,
            category_mask: wanted.all,
            category_anyof_mask: wanted.any,
            return_mask: wanted.told,
            ..PmScanArg::default()
        };
        // SAFETY: `arg` and the vector it names live across the call, with the
        // lengths stated in it.
        let got = check(unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) } as libc::c_long)?;
        regions[..got as usize].iter().for_each(&mut found);
        at = arg.walk_end;
    }
    Ok(())
}

/// Private pages that hold data of their own in `span`: present or swapped,
/// neither the zero page nor a page of the mapped file. `PAGEMAP_SCAN` (Linux
/// 6.7); ENOTTY before.
pub fn scan_pages(pagemap: &File, span: Span, found: &mut Vec<Span>) -> Sys<()> {
    let wanted = Wanted {
        flags: 0,
        inverted: PAGE_IS_FILE | PAGE_IS_PFNZERO,
        all: PAGE_IS_FILE | PAGE_IS_PFNZERO,
        any: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        told: PAGE_IS_PRESENT,
    };
    scan(pagemap, span, &wanted, found)
}

/// The same in anonymous memory, four times as fast: the kernel need not look at
/// what the pages are.
pub fn scan_anonymous(pagemap: &File, span: Span, found: &mut Vec<Span>) -> Sys<()> {
    scan(pagemap, span, &populated(0, 0), found)
}

/// The same in memory that [`super::uffd::WriteNotes`] watch: only pages that were not
/// told before, or were written to since. From now on writes to them are noted. EPERM
/// where nobody watches; what lies before that place was told all the same.
pub fn scan_and_watch(pagemap: &File, span: Span, found: &mut Vec<Span>) -> Sys<()> {
    let wanted = populated(PM_SCAN_CHECK_WPASYNC | PM_SCAN_WP_MATCHING, PAGE_IS_WRITTEN);
    scan(pagemap, span, &wanted, found)
}

fn populated(flags: u64, also: u64) -> Wanted {
    Wanted {
        flags,
        inverted: PAGE_IS_PFNZERO,
        all: PAGE_IS_PFNZERO | also,
        any: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        told: PAGE_IS_PRESENT,
    }
}

/// What is not as it was when [`scan_and_watch`] told it last: pages written to, made or
/// dropped since, and those that never were. N.B. Where a whole page table is gone (2 MiB
/// dropped at once), nothing is told. EPERM where nobody watches.
pub fn scan_written(pagemap: &File, span: Span, found: &mut Vec<Span>) -> Sys<()> {
    // Just this combination takes a short path in the kernel: 0.3 ms a GiB, not 3.6.
    // (It could watch again, too, but marks places without a page, which then look as if
    // they were swapped out.)
    let wanted = Wanted {
        flags: PM_SCAN_CHECK_WPASYNC,
        inverted: 0,
        all: PAGE_IS_WRITTEN,
        any: 0,
        told: PAGE_IS_WRITTEN,
    };
    scan(pagemap, span, &wanted, found)
}

/// A page of ours that nobody may touch.
#[derive(Debug)]
pub struct Guarded(*mut libc::c_void);

impl Guarded {
    /// EINVAL: this kernel has no guards (Linux 6.13).
    pub fn new() -> Sys<Guarded> {
        const MADV_GUARD_INSTALL: i32 = 102;
        let (access, kind) = (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: the kernel chooses a place where nothing is.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE as usize, access, kind, -1, 0) };
        if page == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let page = Guarded(page);
        // SAFETY: the page is our own, and nothing is in it.
        check(i64::from(unsafe {
            libc::madvise(page.0, PAGE as usize, MADV_GUARD_INSTALL)
        }))?;
        Ok(page)
    }

    pub fn address(&self) -> u64 {
        self.0 as u64
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: it was mapped by us, and nothing refers to it.
        unsafe { libc::munmap(self.0, PAGE as usize) };
    }
}

/// Pages that nobody may touch (MADV_GUARD_INSTALL). EINVAL where the kernel does not tell
/// them (before Linux 6.16).
pub fn scan_guards(pagemap: &File, span: Span, found: &mut Vec<Span>) -> Sys<()> {
    const PAGE_IS_GUARD: u64 = 1 << 8;
    let wanted = Wanted {
        flags: 0,
        inverted: 0,
        all: PAGE_IS_GUARD,
        any: 0,
        told: PAGE_IS_GUARD,
    };
    scan(pagemap, span, &wanted, found)
}

/// What a page of private memory has become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dirt {
    /// Written to since [`watch_again`], or nobody watched.
    pub written: bool,
    /// It is the kernel's page of zeroes: thrown away and only read since.
    pub zero: bool,
    /// It is swapped out, or a marker stands in its place.
    pub swapped: bool,
}

/// Private pages of their own in `span`, as [`scan_pages`] finds them and pages of zeroes
/// besides, with what became of them. Mappings that nobody watches count as written.
pub fn scan_dirt(pagemap: &File, span: Span, found: &mut Vec<(Span, Dirt)>) -> Sys<()> {
    scan_dirt_but(pagemap, span, PAGE_IS_FILE, found)
}

/// The same with pages of mapped files, which are told from others only by a look at what
/// each page is: several times as fast.
pub fn scan_dirt_and_files(pagemap: &File, span: Span, found: &mut Vec<(Span, Dirt)>) -> Sys<()> {
    scan_dirt_but(pagemap, span, 0, found)
}

fn scan_dirt_but(pagemap: &File, span: Span, but: u64, found: &mut Vec<(Span, Dirt)>) -> Sys<()> {
    let wanted = Wanted {
        flags: 0,
        inverted: but,
        all: but,
        any: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        told: PAGE_IS_WRITTEN | PAGE_IS_PFNZERO | PAGE_IS_SWAPPED,
    };
    scan_each(pagemap, span, &wanted, |region| {
        let has = |category| region.categories & category != 0;
        let dirt = Dirt {
            written: has(PAGE_IS_WRITTEN),
            zero: has(PAGE_IS_PFNZERO),
            swapped: has(PAGE_IS_SWAPPED),
        };
        match found.last_mut() {
            Some((last, same)) if last.end == region.start && *same == dirt => last.end = region.end,
            _ => found.push((region.span(), dirt)),
        }
    })
}

/// Pages of mapped files in `span` that the process has at hand.
pub fn scan_files(pagemap: &File, span: Span, found: &mut Vec<Span>) -> Sys<()> {
    let wanted = Wanted {
        flags: 0,
        inverted: 0,
        all: PAGE_IS_FILE | PAGE_IS_PRESENT,
        any: 0,
        told: PAGE_IS_PRESENT,
    };
    scan(pagemap, span, &wanted, found)
}

/// From now on writes to what is watched in `span` and is there are noted anew.
pub fn watch_again(pagemap: &File, span: Span) -> Sys<()> {
    let wanted = Wanted {
        flags: PM_SCAN_WP_MATCHING,
        inverted: 0,
        all: PAGE_IS_WPALLOWED | PAGE_IS_WRITTEN,
        any: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        told: PAGE_IS_WRITTEN,
    };
    scan_each(pagemap, span, &wanted, |_| {})
}

/// Words of proc_pid_pagemap(5).
const MAPPED_ONCE: u64 = 1 << 56;
const FILE_OR_SHARED: u64 = 1 << 61;
const PRESENT_OR_SWAPPED: u64 = 3 << 62;

/// The same from the plain pagemap words, for older kernels.
pub fn scan_pages_slowly(pagemap: &File, span: Span, found: &mut Vec<Span>) -> Sys<()> {
    pagemap_words(pagemap, span, |page, word| {
        if word & PRESENT_OR_SWAPPED != 0 && word & FILE_OR_SHARED == 0 {
            push(found, page, page + PAGE);
        }
    })
}

/// Anonymous pages that others may map as well, as they do after a fork. The kernel tells
/// it by each word only: 15 us a MiB.
pub fn scan_shared(pagemap: &File, span: Span, found: &mut Vec<Span>) -> Sys<()> {
    pagemap_words(pagemap, span, |page, word| {
        if word & PRESENT_OR_SWAPPED != 0 && word & (MAPPED_ONCE | FILE_OR_SHARED) == 0 {
            push(found, page, page + PAGE);
        }
    })
}

/// Shows the word of each page (proc_pid_pagemap(5)).
pub fn pagemap_words(pagemap: &File, span: Span, mut see: impl FnMut(u64, u64)) -> Sys<()> {
    use std::os::unix::fs::FileExt;
    let mut words = vec![0u8; (span.len() / PAGE * 8).min(1 << 16) as usize];
    let mut at = span.start;
    while at < span.end {
        let pages = ((span.end - at) / PAGE).min(words.len() as u64 / 8) as usize;
        let bytes = &mut words[..pages * 8];
        pagemap
            .read_exact_at(bytes, at / PAGE * 8)
            .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
        for word in bytes.as_chunks::<8>().0 {
            see(at, u64::from_le_bytes(*word));
            at += PAGE;
        }
    }
    Ok(())
}

fn push(found: &mut Vec<Span>, start: u64, end: u64) {
    match found.last_mut() {
        Some(last) if last.end == start => last.end = end,
        _ => found.push(Span { start, end }),
    }
}
/// Linux 6.1.
pub const MADV_COLLAPSE: i32 = 25;

/// Has the kernel make huge pages of these in another process, where it can
/// (process_madvise(2)). Whoever has the number now takes no harm.
pub fn collapse(pid: HostPid, spans: &[Span]) {
    let Ok(process) = super::task::pidfd_open(pid) else {
        return;
    };
    for span in spans {
        let piece = libc::iovec {
            iov_base: span.start as *mut libc::c_void,
            iov_len: span.len() as usize,
        };
        // SAFETY: the kernel reads one live iovec, which names memory of the other process.
        unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                process.as_raw_fd(),
                &raw const piece,
                1,
                MADV_COLLAPSE,
                0,
            );
        }
    }
}
