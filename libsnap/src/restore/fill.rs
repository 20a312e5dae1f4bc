//! The content of private memory, put in place while it is verified: every byte
//! is read once, into a buffer that stays in the processor's cache.
//!
//! ```text
//!   NAME.core --pread--> buffer --+--> BLAKE3
//!                                 +--> UFFDIO_COPY          fresh anonymous pages
//!                                 +--> process_vm_writev    everything else
//! ```
//!
//! UFFDIO_COPY saves what a fault costs: entering the kernel once a page, and
//! filling the page with zeroes first. Where a process cannot have a userfaultfd
//! (a kernel without it, a security module), its pages are written instead.
//! Nothing runs before all has been verified.

use super::vdso::Vdso;
use super::{Cancelled, go_on};
use crate::error::{OrFail, Result};
use crate::ids::HostPid;
use crate::image::records::{Life, VmaKind};
use crate::image::{Appshot, Core, Digests, Segment, data_runs, processors};
use crate::sys::Sys;
use crate::sys::memory::{self, PAGE, Span};
use crate::sys::task;
use crate::sys::uffd::Userfault;
use std::collections::HashMap;
use std::os::fd::AsFd;

/// Mappings with less than this are written: registering them would cost more.
const REGISTERED_BYTES_MIN: u64 = 64 << 10;
/// iovecs of one process_vm_writev (UIO_MAXIOV).
const PIECES_MAX: usize = 1024;

/// A process whose memory is mapped and empty.
#[derive(Debug)]
pub struct Empty<'a> {
    pid: HostPid,
    core: &'a Core,
    faults: Option<Userfault>,
    /// What `faults` has registered, in address order.
    registered: Vec<Span>,
    /// The kernel's own vdso: it is full.
    kept: Option<Span>,
}

impl<'a> Empty<'a> {
    /// `userfaultfd` is the number under which the process holds one, if it has
    /// been given one.
    pub fn new(pid: HostPid, userfaultfd: i32, core: &'a Core, vdso: &Vdso) -> Empty<'a> {
        let faults = take(pid, userfaultfd);
        let vmas = &core.image.vmas;
        let spans = vmas.iter().filter(|vma| vma.kind == VmaKind::Anon).map(Span::from);
        let worth_it = |span: &Span| stored(&core.segments, *span) >= REGISTERED_BYTES_MIN;
        let registered = match &faults {
            Some(faults) => spans
                .filter(worth_it)
                .filter(|span| faults.register(*span).is_ok())
                .collect(),
            None => Vec::new(),
        };
        Empty {
            pid,
            core,
            faults,
            registered,
            kept: vdso.kept(vmas).map(Span::from),
        }
    }

    /// Puts in place what of its memory lies in these bytes of its core file.
    fn take_in(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let failed = || format!("cannot put memory of process {} back", self.core.image.process.pid);
        let mut written = Vec::new();
        for (address, content) in pieces(&self.core.segments, offset, bytes) {
            if self.kept.is_some_and(|kept| (kept.start..kept.end).contains(&address)) {
                continue;
            }
            if !self.is_anonymous(address) {
                written.push((address, content));
                continue;
            }
            // Fresh anonymous memory is zero already.
            let mut runs = data_runs(content).map(|run| (address + run.start as u64, &content[run]));
            match &self.faults {
                Some(faults) if self.is_registered(address) => runs
                    .try_for_each(|(address, data)| self.copy(faults, address, data))
                    .or_fail(failed)?,
                _ => written.extend(runs),
            }
        }
        written
            .chunks(PIECES_MAX)
            .try_for_each(|some| memory::write_all(self.pid, some))
            .or_fail(failed)
    }

    fn copy(&self, faults: &Userfault, mut address: u64, mut data: &[u8]) -> Sys<()> {
        while !data.is_empty() {
            let mut done = faults.copy(address, data)?;
            if done < data.len() {
                // Someone has looked at this page (ps reads arguments): it is there.
                // Only it is written: a write to one that is not would wait for us.
                let page = done..data.len().min(done + PAGE as usize);
                memory::write(self.pid, address + done as u64, &data[page.clone()])?;
                done = page.end;
            }
            address += done as u64;
            data = &data[done..];
        }
        Ok(())
    }

    fn is_anonymous(&self, address: u64) -> bool {
        let vmas = &self.core.image.vmas;
        let after = vmas.partition_point(|vma| vma.end <= address);
        vmas.get(after).is_some_and(|vma| vma.kind == VmaKind::Anon)
    }

    fn is_registered(&self, address: u64) -> bool {
        let after = self.registered.partition_point(|span| span.end <= address);
        self.registered.get(after).is_some_and(|span| span.start <= address)
    }
}

fn take(pid: HostPid, number: i32) -> Option<Userfault> {
    let pidfd = task::pidfd_open(pid).ok()?;
    let fd = task::pidfd_getfd(pidfd.as_fd(), number).ok()?;
    Userfault::begin(fd).ok()
}

/// How much of the span is stored.
fn stored(segments: &[Segment], span: Span) -> u64 {
    let first = segments.partition_point(|s| s.vaddr < span.start);
    let own = segments[first..].iter().take_while(|s| s.vaddr < span.end);
    own.map(|s| s.bytes).sum()
}

/// The parts of segments that lie in these bytes of the file, with their
/// addresses. Segments ascend in both.
fn pieces<'b>(segments: &[Segment], offset: u64, bytes: &'b [u8]) -> impl Iterator<Item = (u64, &'b [u8])> {
    let end = offset + bytes.len() as u64;
    let first = segments.partition_point(|s| s.offset + s.bytes <= offset);
    let within = segments[first..].iter().take_while(move |s| s.offset < end);
    within.map(move |s| {
        let from = s.offset.max(offset);
        let to = (s.offset + s.bytes).min(end);
        let content = &bytes[(from - offset) as usize..(to - offset) as usize];
        (s.vaddr + (from - s.offset), content)
    })
}

/// Verifies the appshot and gives every process its memory.
pub fn all(shot: &Appshot, digests: &Digests, processes: &[Empty<'_>], cancelled: Cancelled<'_>) -> Result<()> {
    let names = shot.manifest.processes.iter().filter_map(|entry| match &entry.life {
        Life::Alive { part } => Some(part.as_str()),
        Life::Zombie { .. } => None,
    });
    let by_name: HashMap<&str, &Empty<'_>> = names.zip(processes).collect();
    digests.verify_and(processors(), |part, offset, bytes| {
        go_on(cancelled)?;
        by_name
            .get(part)
            .map_or(Ok(()), |process| process.take_in(offset, bytes))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments() -> Vec<Segment> {
        let runs = [(10, 1, 1), (12, 2, 3), (40, 5, 2)];
        runs.map(|(vaddr, offset, pages)| Segment {
            vaddr: vaddr * PAGE,
            offset: offset * PAGE,
            bytes: pages * PAGE,
        })
        .to_vec()
    }

    /// Wherever the file is cut, each page goes to its place once.
    #[test]
    fn every_page_finds_its_place() {
        let file: Vec<u8> = (0..9).flat_map(|page| vec![page; PAGE as usize]).collect();
        for step in 1..10 {
            let mut placed = Vec::new();
            for (at, bytes) in (0..).zip(file.chunks(step * PAGE as usize)) {
                for (address, content) in pieces(&segments(), at * step as u64 * PAGE, bytes) {
                    let pages = content.chunks(PAGE as usize).map(|page| page[0]);
                    placed.extend((address / PAGE..).zip(pages));
                }
            }
            assert_eq!(placed, [(10, 1), (12, 2), (13, 3), (14, 4), (40, 5), (41, 6)], "{step}");
        }
    }

    #[test]
    fn what_a_mapping_has_stored() {
        let span = |start, end| Span {
            start: start * PAGE,
            end: end * PAGE,
        };
        assert_eq!(stored(&segments(), span(10, 20)), 4 * PAGE);
        assert_eq!(stored(&segments(), span(15, 40)), 0);
        assert_eq!(stored(&segments(), span(40, 42)), 2 * PAGE);
    }
}
