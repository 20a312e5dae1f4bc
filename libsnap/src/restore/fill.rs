//! The content of private memory, put in place once it is verified: every byte
//! is read once, into a buffer that stays in the processor's cache.
//!
//! ```text
//!   NAME.core --pread--> buffer --> BLAKE3 --+--> UFFDIO_COPY          fresh anonymous pages
//!                                            +--> process_vm_writev    everything else
//! ```
//!
//! UFFDIO_COPY saves what a fault costs: entering the kernel once a page, and
//! filling the page with zeroes first. Where a process cannot have a userfaultfd
//! (a kernel without it, a security module), its pages are written instead.
//!
//! What need not be there at once is left to [`super::pager`]; nothing runs before
//! all the rest has been verified.

use super::opened::Opened;
use super::owed::Owed;
use super::vdso::Vdso;
use super::{Cancelled, go_on};
use crate::error::{OrFail, Result};
use crate::identity;
use crate::ids::HostPid;
use crate::image::records::{Vma, VmaKind};
use crate::image::{Core, DIGESTS, LEAF, Segment, data_runs, processors};
use crate::sys::Sys;
use crate::sys::memory::{self, PAGE, Span};
use crate::sys::task;
use crate::sys::uffd::Userfault;
use std::ops::Range;
use std::os::fd::AsFd;

/// Mappings with less than this are written: registering them would cost more.
const REGISTERED_BYTES_MIN: u64 = 16 << 10;
/// iovecs of one process_vm_writev (UIO_MAXIOV).
const PIECES_MAX: usize = 1024;
/// Less than this is not worth a thread.
const SHARED_BYTES_MIN: u64 = 4 << 20;

/// How a process is to get its memory.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Not all must come before it runs.
    pub lazy: bool,
    /// What must not be the same in two instances does not come at all.
    pub new: bool,
    /// Writes are noted, and the descriptor stays where all has come.
    pub noted: bool,
}

/// A process whose memory is mapped and empty.
#[derive(Debug)]
pub struct Empty<'a> {
    pid: HostPid,
    core: &'a Core,
    faults: Option<Userfault>,
    noted: bool,
    /// What `faults` has registered, in address order.
    registered: Vec<Span>,
    /// What may come later, if not all of it: registered too.
    later: Vec<Span>,
    /// The kernel's own vdso, which is full; and what stays empty.
    kept: Vec<Span>,
    /// By their place in the file.
    segments: Vec<Segment>,
}

impl<'a> Empty<'a> {
    /// `userfaultfd` is the number under which the process holds one, if it has
    /// been given one.
    pub fn new(pid: HostPid, userfaultfd: i32, core: &'a Core, vdso: &Vdso, wanted: Wanted) -> Empty<'a> {
        let Wanted { lazy, new, noted } = wanted;
        let faults = take(pid, userfaultfd, wanted);
        let vmas = &core.image.vmas;
        let spans = vmas
            .iter()
            .filter(|vma| vma.kind == VmaKind::Anon && !(new && is_unique(vma)));
        let spans = spans.map(Span::from);
        let worth_it = |span: &Span| stored(&core.segments, *span) >= REGISTERED_BYTES_MIN;
        let registered: Vec<Span> = match &faults {
            Some(faults) => spans
                .filter(worth_it)
                .filter(|span| faults.register(*span).is_ok())
                .collect(),
            None => Vec::new(),
        };
        let may_wait = |span: &&Span| lazy && vmas.iter().any(|vma| vma.start == span.start && may_wait(vma));
        let mut segments = core.segments.clone();
        segments.sort_unstable_by_key(|segment| segment.offset);
        Empty {
            pid,
            core,
            faults,
            noted,
            later: registered.iter().filter(may_wait).copied().collect(),
            registered,
            kept: untouched(core, vdso, new),
            segments,
        }
    }

    /// What is left for later, with the descriptor through which it comes.
    pub fn left(self) -> Option<(Userfault, Owed)> {
        let owed = Owed::new(&self.core.segments, &self.later);
        let faults = self.faults?;
        let is_full = |span: &&Span| owed.is_empty() || !self.later.contains(span);
        for span in self.registered.iter().filter(is_full) {
            // To close the descriptor is not enough where a process is being forked off
            // this one, which has a copy.
            faults.unregister(*span).ok();
        }
        (self.noted || !owed.is_empty()).then_some((faults, owed))
    }

    /// What of its core file must be read now: whole leaves that hold anything but
    /// memory that may come later.
    fn wanted(&self, bytes: u64) -> Vec<Range<u64>> {
        let leaf = LEAF as u64;
        let mut wanted: Vec<Range<u64>> = Vec::new();
        let mut at = 0;
        let later = self
            .segments
            .iter()
            .filter(|segment| within(&self.later, segment.vaddr));
        let ends = later.map(|segment| (segment.offset, segment.offset + segment.bytes));
        for (start, end) in ends.chain([(bytes, bytes)]) {
            // What lies between two stretches that may wait, in leaves.
            let needed = at / leaf * leaf..start.next_multiple_of(leaf).min(bytes);
            match wanted.last_mut() {
                _ if at >= start => {}
                Some(last) if last.end >= needed.start => last.end = last.end.max(needed.end),
                _ => wanted.push(needed),
            }
            at = at.max(end);
        }
        wanted
    }

    /// Puts in place what of its memory lies in these bytes of its core file.
    fn take_in(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let failed = || format!("cannot put memory of process {} back", self.core.image.process.pid);
        let mut written = Vec::new();
        for (address, content) in pieces(&self.segments, offset, bytes) {
            if within(&self.kept, address) || within(&self.later, address) {
                continue;
            }
            if !is_anonymous(self.core, address) {
                written.push((address, content));
                continue;
            }
            // Fresh anonymous memory is zero already.
            let mut runs = data_runs(content).map(|run| (address + run.start as u64, &content[run]));
            match &self.faults {
                Some(faults) if within(&self.registered, address) => runs
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
}

/// Whether the mapping at this address, which is one of the core's, is anonymous.
pub fn is_anonymous(core: &Core, address: u64) -> bool {
    let vmas = &core.image.vmas;
    let after = vmas.partition_point(|vma| vma.end <= address);
    vmas.get(after).is_some_and(|vma| vma.kind == VmaKind::Anon)
}

/// Spans ascend.
fn within(spans: &[Span], address: u64) -> bool {
    let after = spans.partition_point(|span| span.end <= address);
    spans.get(after).is_some_and(|span| span.start <= address)
}

/// Mappings that get no content, in address order: the kernel's own vdso has it, and
/// what must not be the same in two instances is empty in a new one.
pub fn untouched(core: &Core, vdso: &Vdso, new: bool) -> Vec<Span> {
    let vmas = &core.image.vmas;
    let kept = vdso.kept(vmas);
    let untouched = vmas.iter().filter(|vma| kept == Some(*vma) || new && is_unique(vma));
    untouched.map(Span::from).collect()
}

/// Gives a process new random bytes (AT_RANDOM, getauxval(3)).
pub fn renew(husk: HostPid, core: &Core) -> Result<()> {
    let process = &core.image.process;
    let auxv = process.mm.auxv.as_chunks::<2>().0;
    let at = auxv.iter().find(|[kind, _]| *kind == libc::AT_RANDOM);
    let Some([_, at]) = at else { return Ok(()) };
    let fresh: [u8; 16] = identity::random()?;
    memory::write(husk, *at, &fresh).or_fail(|| format!("cannot give process {} new random bytes", process.pid))
}

/// Memory that a forked process would not inherit, because it must not be used twice.
pub fn is_unique(vma: &Vma) -> bool {
    vma.flags.iter().any(|flag| ["wf", "dp"].contains(&flag.as_str()))
}

/// Whether the mapping's pages may come while the process runs. What is locked has
/// to be there; the kernel itself looks at stacks (arguments for `ps`) in ways
/// that do not wait; a forked child has the mapping wiped on fork too, but empty.
fn may_wait(vma: &Vma) -> bool {
    let at_once = ["lo", "gd", "dp", "wf"];
    !vma.flags.iter().any(|flag| at_once.contains(&flag.as_str()))
}

fn take(pid: HostPid, number: i32, wanted: Wanted) -> Option<Userfault> {
    let pidfd = task::pidfd_open(pid).ok()?;
    let fd = task::pidfd_getfd(pidfd.as_fd(), number).ok()?;
    match (wanted.lazy, wanted.noted) {
        (true, true) => Userfault::begin_with_notes(fd).ok(),
        (true, false) => Userfault::begin_with_events(fd).ok(),
        (false, _) => Userfault::begin(fd).ok(),
    }
}

/// How much of the span is stored.
fn stored(segments: &[Segment], span: Span) -> u64 {
    let first = segments.partition_point(|s| s.vaddr < span.start);
    let own = segments[first..].iter().take_while(|s| s.vaddr < span.end);
    own.map(|s| s.bytes).sum()
}

/// The parts of segments that lie in these bytes of the file, with their
/// addresses. Segments ascend in the file.
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

/// Verifies the appshot and gives every process its memory, besides what is left
/// for later.
pub fn all(opened: &Opened, processes: &[Empty<'_>], cancelled: Cancelled<'_>) -> Result<()> {
    let mut parts: Vec<Option<&Empty<'_>>> = opened.digests.parts().map(|_| None).collect();
    for (part, process) in opened.core_parts().into_iter().zip(processes) {
        parts[part] = Some(process);
    }
    let mut wanted = Vec::new();
    for (at, part) in opened.digests.parts().enumerate() {
        match parts[at] {
            Some(process) => wanted.extend(process.wanted(part.bytes).into_iter().map(|range| (at, range))),
            None if part.name == DIGESTS => {}
            None => wanted.push((at, 0..part.bytes)),
        }
    }
    // What is held in memory has been verified.
    let (held, wanted): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(at, _)| opened.held(*at).is_some());
    for (at, range) in held {
        go_on(cancelled)?;
        if let (Some(process), Some(whole)) = (parts[at], opened.held(at)) {
            process.take_in(range.start, &whole[range.start as usize..range.end as usize])?;
        }
    }
    let bytes: u64 = wanted.iter().map(|(_, range)| range.end - range.start).sum();
    let threads = if bytes < SHARED_BYTES_MIN { 1 } else { processors() };
    opened
        .digests
        .read_leaves(&opened.pieces, &wanted, threads, |at, offset, bytes| {
            go_on(cancelled)?;
            parts[at].map_or(Ok(()), |process| process.take_in(offset, bytes))
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
