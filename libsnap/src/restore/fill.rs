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
use crate::image::{Core, DIGESTS, LEAF, Place, Segment, data_runs, processors};
use crate::pages;
use crate::sys::Sys;
use crate::sys::memory::{self, PAGE, Span};
use crate::sys::task;
use crate::sys::uffd::Userfault;
use std::collections::BTreeSet;
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
    /// Cut into what lies in one leaf each, by their places.
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
        Empty {
            pid,
            core,
            faults,
            noted,
            later: registered.iter().filter(may_wait).copied().collect(),
            registered,
            kept: untouched(core, vdso, new),
            segments: by_leaf(&core.segments),
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

    /// Puts in place what of its memory lies in these bytes of a part: whole leaves.
    fn take_in(&self, place: Place, bytes: &[u8]) -> Result<()> {
        let failed = || format!("cannot put memory of process {} back", self.core.image.process.pid);
        let mut written = Vec::new();
        for (address, content) in pieces(&self.segments, place, bytes) {
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
pub(crate) fn stored(segments: &[Segment], span: Span) -> u64 {
    let own = Segment::among(segments, span.start..span.end).iter();
    own.map(|s| s.end().min(span.end) - s.vaddr.max(span.start)).sum()
}

/// Cuts segments where leaves begin, and sorts them by their places.
fn by_leaf(segments: &[Segment]) -> Vec<Segment> {
    let leaf = LEAF as u64;
    let cut = |segment: &Segment| {
        let Segment {
            vaddr,
            part,
            offset,
            bytes,
        } = *segment;
        let end = offset + bytes;
        (offset / leaf..end.div_ceil(leaf)).map(move |number| {
            let start = offset.max(number * leaf);
            Segment {
                vaddr: vaddr + (start - offset),
                part,
                offset: start,
                bytes: end.min((number + 1) * leaf) - start,
            }
        })
    };
    let mut cut: Vec<Segment> = segments.iter().flat_map(cut).collect();
    cut.sort_unstable_by_key(Segment::place);
    cut
}

/// The segments that lie in these bytes of a part, whole leaves, with their content.
fn pieces<'b>(segments: &[Segment], place: Place, bytes: &'b [u8]) -> impl Iterator<Item = (u64, &'b [u8])> {
    let end = place.ahead(bytes.len() as u64);
    let first = segments.partition_point(|s| s.place() < place);
    let within = segments[first..].iter().take_while(move |s| s.place() < end);
    within.map(move |s| {
        let from = (s.offset - place.offset) as usize;
        (s.vaddr, &bytes[from..from + s.bytes as usize])
    })
}

/// What of a part of so many bytes must be read now: leaves that hold anything but
/// memory that may come later. Of a parent's part nothing else is looked at.
fn needed(bytes: u64, is_lent: bool, later: &[Range<u64>], now: &[Range<u64>]) -> Vec<Range<u64>> {
    let span = |range: &Range<u64>| Span {
        start: range.start,
        end: range.end,
    };
    let spans = |ranges: &[Range<u64>]| pages::union(&ranges.iter().map(span).collect::<Vec<_>>(), &[]);
    let whole = Span { start: 0, end: bytes };
    let rest = match is_lent {
        true => Vec::new(),
        false => pages::without(&[whole], &spans(later)),
    };
    let leaf = LEAF as u64;
    let leaves = pages::union(&rest, &spans(now)).into_iter().map(|span| Span {
        start: span.start / leaf * leaf,
        end: span.end.next_multiple_of(leaf).min(bytes),
    });
    let leaves = pages::union(&leaves.collect::<Vec<_>>(), &[]);
    leaves.into_iter().map(|span| span.start..span.end).collect()
}

/// Verifies the appshot and gives every process its memory, besides what is left
/// for later.
pub fn all(opened: &Opened, processes: &[Empty<'_>], cancelled: Cancelled<'_>) -> Result<()> {
    let digests = &opened.digests;
    let count = digests.parts().count();
    // By part: who has pages of it, and which must come now.
    let mut users: Vec<Vec<&Empty<'_>>> = vec![Vec::new(); count];
    let mut later: Vec<Vec<Range<u64>>> = vec![Vec::new(); count];
    let mut now = later.clone();
    for process in processes {
        for segment in &process.core.segments {
            let kind = match within(&process.later, segment.vaddr) {
                true => &mut later,
                false => &mut now,
            };
            kind[segment.part].push(segment.offset..segment.offset + segment.bytes);
        }
        let parts: BTreeSet<usize> = process.core.segments.iter().map(|segment| segment.part).collect();
        parts.into_iter().for_each(|part| users[part].push(process));
    }
    let mut wanted = Vec::new();
    for (at, part) in digests.parts().enumerate().filter(|(_, part)| part.name != DIGESTS) {
        let needed = needed(part.bytes, at >= digests.own(), &later[at], &now[at]);
        wanted.extend(needed.into_iter().map(|range| (at, range)));
    }
    let take_in = |part: usize, offset: u64, bytes: &[u8]| {
        go_on(cancelled)?;
        let place = Place { part, offset };
        users[part].iter().try_for_each(|process| process.take_in(place, bytes))
    };
    // What is held in memory has been verified.
    let (held, wanted): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(at, _)| opened.held(*at).is_some());
    for (at, range) in held {
        if let Some(whole) = opened.held(at) {
            take_in(at, range.start, &whole[range.start as usize..range.end as usize])?;
        }
    }
    let bytes: u64 = wanted.iter().map(|(_, range)| range.end - range.start).sum();
    let threads = if bytes < SHARED_BYTES_MIN { 1 } else { processors() };
    digests.read_leaves(&opened.pieces, &wanted, threads, take_in)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments() -> Vec<Segment> {
        let runs = [(10, 1, 1), (12, 2, 3), (40, 5, 2)];
        runs.map(|(vaddr, offset, pages)| Segment {
            vaddr: vaddr * PAGE,
            part: 3,
            offset: offset * PAGE,
            bytes: pages * PAGE,
        })
        .to_vec()
    }

    /// Wherever the file is read, each page goes to its places: one is borrowed twice,
    /// and one run lies in two leaves.
    #[test]
    fn every_page_finds_its_place() {
        const PAGES: u64 = LEAF as u64 / PAGE;
        let file: Vec<u8> = (0..3 * PAGES)
            .flat_map(|page| vec![page as u8; PAGE as usize])
            .collect();
        let twice = [(60, 3, 1), (80, PAGES - 1, 2)].map(|(vaddr, offset, pages)| Segment {
            vaddr: vaddr * PAGE,
            part: 3,
            offset: offset * PAGE,
            bytes: pages * PAGE,
        });
        let elsewhere = Segment {
            part: 2,
            ..segments()[0]
        };
        let all = by_leaf(&[&segments()[..], &twice, &[elsewhere]].concat());
        for step in [LEAF, 2 * LEAF, 3 * LEAF] {
            let mut placed = Vec::new();
            for (at, bytes) in (0..).zip(file.chunks(step)) {
                let place = Place {
                    part: 3,
                    offset: at * step as u64,
                };
                for (address, content) in pieces(&all, place, bytes) {
                    let pages = content.chunks(PAGE as usize).map(|page| page[0]);
                    placed.extend((address / PAGE..).zip(pages));
                }
            }
            placed.sort_unstable();
            let last = PAGES as u8;
            let expected = [
                (10, 1),
                (12, 2),
                (13, 3),
                (14, 4),
                (40, 5),
                (41, 6),
                (60, 3),
                (80, last - 1),
                (81, last),
            ];
            assert_eq!(placed, expected, "{step}");
        }
    }

    /// What may wait for one process may be needed by another.
    #[test]
    fn what_must_be_read() {
        let leaf = LEAF as u64;
        let one = |start: u64, end: u64| Vec::from_iter(std::iter::once(start..end));
        let (later, now) = (one(leaf, 5 * leaf), one(3 * leaf + PAGE, 3 * leaf + 2 * PAGE));
        let bytes = 6 * leaf + 8;
        assert_eq!(
            needed(bytes, false, &later, &now),
            [0..leaf, 3 * leaf..4 * leaf, 5 * leaf..bytes]
        );
        assert_eq!(needed(bytes, true, &later, &now), one(3 * leaf, 4 * leaf));
        assert_eq!(needed(bytes, false, &[], &now), one(0, bytes));
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
