//! Huge pages that were set aside (hugetlbfs): MAP_HUGETLB, memfd_create(MFD_HUGETLB),
//! shmget(SHM_HUGETLB).
//!
//! Of what kind an object is tells statfs(2). It has pages that no process has mapped, and a hole
//! reads as zeroes but may be none of them: which pages there are nobody tells. So the object is
//! mapped here, and its pages are asked for (MADV_POPULATE_READ) where a userfaultfd has the kernel
//! fail rather than make one (UFFD_FEATURE_SIGBUS). Nothing can be written to its descriptor: content
//! comes through a mapping, once the pages are there (fallocate(2)).
//!
//! A restore needs as many free pages as the app is to have or to have reserved; it is refused
//! beforehand where there are less. What processes share since a fork each has for itself then.
//!
//! A System V segment is as long as its pages; the size that was asked for is kept beside. Who makes one
//! has the right to it (CAP_IPC_LOCK), whatever its creator had (vm.hugetlb_shm_group).
//!
//! Refused: private mappings of files of hugetlbfs, such files that have no name any more.

use crate::error::{Error, Result};
use crate::image::Appshot;
use crate::image::records::{ShmKind, ShmRecord, Vma, VmaKind};
use crate::pages;
use crate::restore::fill;
use crate::sys::memory::{self as sys, Span};
use crate::sys::shm::Attached;
use crate::sys::uffd::{self, Userfault};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::sync::OnceLock;

/// How /proc calls the file behind memory that was mapped without one.
pub const ANONYMOUS: &str = "/anon_hugepage (deleted)";
/// The flag of smaps.
pub const FLAG: &str = "ht";

/// The page size of an object, by a path to it; 0: its pages are ordinary ones.
pub fn page_bytes(path: &str) -> u64 {
    let told = nix::sys::statfs::statfs(path).ok();
    let told = told.filter(|told| told.filesystem_type() == nix::sys::statfs::HUGETLBFS_MAGIC);
    told.map_or(0, |told| told.block_size() as u64)
}

/// The pages that an object has, as runs.
pub fn runs(file: &File, bytes: u64, page_bytes: u64) -> io::Result<Vec<(u64, u64)>> {
    if bytes == 0 {
        return Ok(Vec::new());
    }
    let mapped = Attached::to_look(file, bytes)?;
    let all = mapped.span();
    let faults = Userfault::begin_failing(uffd::create()?)?;
    faults.register(all)?;
    let mut found = Vec::new();
    for start in (all.start..all.end).step_by(page_bytes as usize) {
        let end = start + page_bytes;
        match sys::populate(Span { start, end }) {
            Ok(()) => pages::push(&mut found, Span { start, end }),
            Err(Errno::EFAULT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(found.iter().map(|span| (span.start - all.start, span.len())).collect())
}

/// Whether it can be told here which pages an object has.
pub fn are_told() -> bool {
    static TOLD: OnceLock<bool> = OnceLock::new();
    *TOLD.get_or_init(|| {
        let own = [0_u8; 1];
        let start = own.as_ptr().addr() as u64 / sys::PAGE * sys::PAGE;
        let end = start + sys::PAGE;
        let fails = uffd::create().and_then(Userfault::begin_failing);
        fails.is_ok() && sys::populate(Span { start, end }).is_ok()
    })
}

/// Gives a new object its pages, and answers where their content is to be put.
pub fn make_pages(file: &File, record: &ShmRecord) -> io::Result<Attached> {
    for (offset, bytes) in &record.runs {
        fallocate(file, FallocateFlags::empty(), *offset as i64, *bytes as i64)?;
    }
    Ok(Attached::to_write(file, record.bytes)?)
}

/// Finds the pages that mappings have, of a process that stands still.
pub fn find(pagemap: &File, vma: &mut Vma) -> crate::sys::Sys<()> {
    let whole = Span::from(&*vma);
    if let VmaKind::Huge { had, .. } = &mut vma.kind {
        let mut found = Vec::new();
        pages::find(pagemap, whole, true, &mut found)?;
        *had = found.iter().map(|span| (span.start, span.end)).collect();
    }
    Ok(())
}

/// Pages by size.
type Pages = BTreeMap<u64, u64>;

/// What the app has, and what is reserved for it.
fn needed(shot: &Appshot) -> Pages {
    let mut needed = Pages::new();
    let mut add = |page_bytes: u64, bytes: u64| *needed.entry(page_bytes).or_default() += bytes.div_ceil(page_bytes);
    let shmem = shot.manifest.shmem.iter();
    let shmem: Vec<&ShmRecord> = shmem.filter(|record| record.page_bytes != 0).collect();
    // Of objects: pages that they have, and parts that some mapping has reserved.
    let mut taken: Vec<Vec<Span>> = shmem.iter().map(|record| runs_of(record)).collect();
    let vmas = shot.cores.iter();
    for (core, vma) in vmas.flat_map(|core| core.image.vmas.iter().map(move |vma| (core, vma))) {
        let whole = Span::from(vma);
        let or_reserved = |bytes: u64| if is_reserved(vma) { whole.len() } else { bytes };
        match &vma.kind {
            VmaKind::Huge { page_bytes, had } => {
                let there = had.iter().map(|(start, end)| end - start).sum();
                add(*page_bytes, or_reserved(there));
            }
            VmaKind::Shm {
                shm, offset, private, ..
            } => {
                let Some(at) = shmem.iter().position(|record| record.id == *shm) else {
                    continue;
                };
                match private {
                    true => add(shmem[at].page_bytes, or_reserved(fill::stored(&core.segments, whole))),
                    false if is_reserved(vma) => taken[at].push(Span {
                        start: *offset,
                        end: offset + whole.len(),
                    }),
                    false => {}
                }
            }
            _ => {}
        }
    }
    for (record, spans) in shmem.iter().zip(&taken) {
        add(record.page_bytes, pages::union(spans, &[]).iter().map(Span::len).sum());
    }
    needed
}

/// All of a System V segment is reserved when it is made.
fn runs_of(record: &ShmRecord) -> Vec<Span> {
    let span = |(start, bytes): (u64, u64)| Span {
        start,
        end: start + bytes,
    };
    match record.kind {
        ShmKind::Sysv { .. } => vec![span((0, record.bytes))],
        _ => record.runs.iter().copied().map(span).collect(),
    }
}

fn is_reserved(vma: &Vma) -> bool {
    !vma.flags.iter().any(|flag| flag == "nr")
}

/// Pages of this size that can be had; `None` where there are no such pages.
fn there(page_bytes: u64) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/{name}", page_bytes / 1024);
        let number: u64 = fs::read_to_string(path).ok()?.trim().parse().ok()?;
        // Less than none is reserved where a child outlives who has reserved its pages.
        Some(number.cast_signed().max(0).cast_unsigned())
    };
    let free = number("free_hugepages")?.saturating_sub(number("resv_hugepages")?);
    let more = number("nr_overcommit_hugepages")?.saturating_sub(number("surplus_hugepages")?);
    Some(free + more)
}

/// Refuses what this machine has not enough pages for.
pub fn fits(shot: &Appshot) -> Result<()> {
    for (page_bytes, count) in needed(shot) {
        let size = page_bytes / 1024;
        let refused = |because: String| {
            Err(Error::refused("cannot restore this appshot")
                .because(because)
                .needs(format!("{count} free huge pages of {size} kB"))
                .state("nothing was started"))
        };
        match there(page_bytes) {
            None => return refused(format!("this machine has no huge pages of {size} kB")),
            Some(free) if free < count => {
                let setting = format!("/sys/kernel/mm/hugepages/hugepages-{size}kB/nr_hugepages");
                return refused(format!("{free} huge pages of {size} kB are free here"))
                    .map_err(|error| error.fix(format!("set more aside (sysctl vm.nr_hugepages, or {setting})")));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Whether an app has any.
pub fn has_any(shot: &Appshot) -> bool {
    !needed(shot).is_empty()
}
