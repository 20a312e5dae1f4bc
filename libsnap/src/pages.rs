//! Private memory of processes: which pages there are, and copies of them.
//!
//! ```text
//!   Pages   memory of a process as it is when it is read
//!   Held    copies, kept in a Stock that was made ready before the app stood still
//! ```

use crate::error::{Error, OrFail, Result};
use crate::ids::HostPid;
use crate::image::Memory;
use crate::polite;
use crate::sys::memory::{self as sys, PAGE, Span};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

/// What is read at once.
pub const PIECE: u64 = 1 << 20;
/// Spans of one process_vm_readv (UIO_MAXIOV).
const SPANS_MAX: usize = 1024;

/// Readable memory of a process.
///
/// process_vm_readv(2) is fast, but has the kernel give the process a copy of each page
/// that it shares since a fork (Linux 5.19, `gup_must_unshare`): the app would take more
/// memory afterwards. `/proc/PID/mem` leaves them as they are.
#[derive(Debug)]
pub struct Pages {
    pid: HostPid,
    /// To read pages that may be shared.
    mem: Option<File>,
    /// Where the process runs: pages that were gone when they were to be read.
    lost: Option<Mutex<Vec<Span>>>,
}

impl Pages {
    /// Of a process that stands still: all pages that are asked for are there.
    pub fn of_stopped(pid: HostPid) -> Pages {
        Pages {
            pid,
            mem: None,
            lost: None,
        }
    }

    /// Of one that runs, and may drop any page at any time.
    pub fn of_running(pid: HostPid) -> Pages {
        Pages {
            lost: Some(Mutex::default()),
            ..Pages::of_stopped(pid)
        }
    }

    /// The same pages, which others may share.
    pub fn shared(self) -> Result<Pages> {
        Ok(Pages {
            mem: Some(mem(self.pid)?),
            ..self
        })
    }

    /// What could not be read since this was asked last, ascending.
    pub fn take_lost(&self) -> Vec<Span> {
        let lost = self
            .lost
            .as_ref()
            .map(|lost| lost.lock().unwrap_or_else(PoisonError::into_inner));
        union(&lost.map_or_else(Vec::new, |mut lost| std::mem::take(&mut *lost)), &[])
    }
}

impl Memory for Pages {
    fn read(&self, spans: &[Range<u64>], buffer: &mut [u8]) -> Result<()> {
        let spans: Vec<Span> = spans.iter().map(|&Range { start, end }| Span { start, end }).collect();
        let missing = match &self.mem {
            Some(mem) => read_shared(mem, &spans, buffer),
            None => read(self.pid, &spans, buffer),
        };
        match &self.lost {
            _ if missing.is_empty() => Ok(()),
            Some(lost) => {
                lost.lock().unwrap_or_else(PoisonError::into_inner).extend(missing);
                Ok(())
            }
            None => Err(unreadable(self.pid)),
        }
    }
}

fn unreadable(pid: HostPid) -> Error {
    Error::failed(format!("cannot read the memory of pid {pid}")).because("a page of it cannot be read")
}

/// Reads the spans back to back into `buffer`; answers the pages that are not there,
/// which read as zeroes. Those that others share by now stay shared.
fn read(pid: HostPid, spans: &[Span], buffer: &mut [u8]) -> Vec<Span> {
    let shared = shared(pid, spans);
    if shared.is_empty() {
        return read_own(pid, spans, buffer);
    }
    let Ok(mem) = mem(pid) else {
        return read_own(pid, spans, buffer);
    };
    let (mut missing, mut own, mut rest) = (Vec::new(), Vec::new(), buffer);
    let bytes_of = |own: &[Span]| own.iter().map(Span::len).sum::<u64>() as usize;
    for (part, shared) in spans.iter().flat_map(|span| parted(*span, &shared)) {
        if !shared {
            own.push(part);
            continue;
        }
        let (before, others) = rest.split_at_mut(bytes_of(&own));
        missing.extend(read_own(pid, &std::mem::take(&mut own), before));
        let (place, others) = others.split_at_mut(part.len() as usize);
        missing.extend(read_shared(&mem, &[part], place));
        rest = others;
    }
    missing.extend(read_own(pid, &own, &mut rest[..bytes_of(&own)]));
    missing
}

/// Pages in these spans that the process may share with another, ascending.
fn shared(pid: HostPid, spans: &[Span]) -> Vec<Span> {
    // Asking once more takes longer than so many pages between.
    const BESIDE: u64 = 16 * PAGE;
    let Ok(pagemap) = pagemap(pid) else { return Vec::new() };
    let mut asked: Vec<Span> = Vec::new();
    for span in spans {
        match asked.last_mut() {
            Some(last) if (last.end..=last.end + BESIDE).contains(&span.start) => last.end = span.end,
            _ => asked.push(*span),
        }
    }
    let mut found = Vec::new();
    for span in asked {
        // What cannot be told is read as if it were its own.
        sys::scan_shared(&pagemap, span, &mut found).ok();
    }
    union(&found, &[])
}

/// The parts of a span, and whether each is one of these.
fn parted(span: Span, shared: &[Span]) -> Vec<(Span, bool)> {
    let whole = [span];
    let inside = within(&whole, shared);
    let outside = without(&whole, &inside).into_iter().map(|part| (part, false));
    let mut parts: Vec<_> = inside.iter().map(|part| (*part, true)).chain(outside).collect();
    parts.sort_unstable_by_key(|(part, _)| part.start);
    parts
}

/// The same by process_vm_readv(2).
fn read_own(pid: HostPid, spans: &[Span], buffer: &mut [u8]) -> Vec<Span> {
    let mut missing = Vec::new();
    let mut rest = spans.to_vec();
    let (mut at, mut filled) = (0, 0);
    while at < rest.len() {
        let end = rest.len().min(at + SPANS_MAX);
        let mut got = sys::read_spans(pid, &rest[at..end], &mut buffer[filled..]).unwrap_or(0);
        filled += got;
        while at < end && rest[at].len() as usize <= got {
            got -= rest[at].len() as usize;
            at += 1;
        }
        if at == end {
            continue;
        }
        let span = &mut rest[at];
        let start = span.start + got as u64;
        span.start = start + PAGE;
        push(&mut missing, Span { start, end: span.start });
        buffer[filled..filled + PAGE as usize].fill(0);
        filled += PAGE as usize;
        at += usize::from(span.is_empty());
    }
    missing
}

/// The same through `/proc/PID/mem`.
fn read_shared(mem: &File, spans: &[Span], mut buffer: &mut [u8]) -> Vec<Span> {
    let mut missing = Vec::new();
    for span in spans {
        let (own, rest) = buffer.split_at_mut(span.len() as usize);
        let mut at = 0;
        while at < own.len() {
            match mem.read_at(&mut own[at..], span.start + at as u64) {
                Ok(got) if got > 0 => at += got,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                _ => {
                    let page = at / PAGE as usize * PAGE as usize;
                    let start = span.start + page as u64;
                    let end = start + PAGE;
                    push(&mut missing, Span { start, end });
                    own[page..page + PAGE as usize].fill(0);
                    at = page + PAGE as usize;
                }
            }
        }
        buffer = rest;
    }
    missing
}

/// `/proc/PID/mem`
pub fn mem(pid: HostPid) -> Result<File> {
    File::open(format!("/proc/{pid}/mem")).or_fail(|| format!("cannot read the memory of pid {pid}"))
}

/// Adds what comes behind all others.
pub fn push(spans: &mut Vec<Span>, span: Span) {
    match spans.last_mut() {
        Some(last) if last.end == span.start => last.end = span.end,
        _ => spans.push(span),
    }
}

/// Memory for copies.
#[derive(Debug, Default)]
pub struct Stock {
    chunks: Vec<Vec<u8>>,
    /// Of the last chunk.
    used: usize,
}

const CHUNK: usize = 4 << 20;

impl Stock {
    /// Room for so many bytes, touched: nothing has to be found for it later.
    pub fn ready(bytes: u64) -> Stock {
        Stock {
            chunks: vec![vec![1; bytes as usize]],
            used: 0,
        }
    }

    fn room(&mut self, bytes: usize) -> Place {
        if self.chunks.last().is_none_or(|chunk| chunk.len() - self.used < bytes) {
            self.chunks.push(vec![0; bytes.max(CHUNK)]);
            self.used = 0;
        }
        self.used += bytes;
        Place {
            chunk: self.chunks.len() - 1,
            offset: self.used - bytes,
        }
    }

    fn at(&mut self, place: Place, bytes: u64) -> &mut [u8] {
        &mut self.chunks[place.chunk][place.offset..][..bytes as usize]
    }

    /// Copies ascending spans of a process; pages that are not there are left out.
    pub fn copy(&mut self, pid: HostPid, spans: &[Span], copies: &mut Copies) {
        self.copy_by(spans, copies, |spans, buffer| read(pid, spans, buffer));
    }

    fn copy_by(&mut self, spans: &[Span], copies: &mut Copies, read: impl Fn(&[Span], &mut [u8]) -> Vec<Span>) {
        for spans in groups(spans) {
            let bytes: u64 = spans.iter().map(Span::len).sum();
            let place = self.room(bytes as usize);
            let missing = polite::piece(polite::is_polite(), || read(&spans, self.at(place, bytes)));
            copies.enter(&spans, place);
            if !missing.is_empty() {
                copies.leave_out(&missing);
            }
        }
    }

    /// The same; every page must be there.
    pub fn copy_all(&mut self, pid: HostPid, spans: &[Span], copies: &mut Copies) -> Result<()> {
        let before = copies.bytes();
        self.copy(pid, spans, copies);
        all_there(pid, spans, copies, before)
    }

    /// The same of pages that others may share.
    pub fn copy_shared(&mut self, pid: HostPid, spans: &[Span], copies: &mut Copies) -> Result<()> {
        if spans.is_empty() {
            return Ok(());
        }
        let (mem, before) = (mem(pid)?, copies.bytes());
        self.copy_by(spans, copies, |spans, buffer| read_shared(&mem, spans, buffer));
        all_there(pid, spans, copies, before)
    }

    /// What the process itself may not read, /proc/PID/mem reads for its tracer: that
    /// is this thread alone (proc_mem.force_override).
    pub fn copy_by_tracer(&mut self, mem: &File, span: Span, copies: &mut Copies) -> std::io::Result<()> {
        let place = self.room(span.len() as usize);
        mem.read_exact_at(self.at(place, span.len()), span.start)?;
        copies.enter(&[span], place);
        Ok(())
    }

    /// Keeps everything that was copied as it is.
    pub fn close(self) -> Arc<Closed> {
        Arc::new(Closed(self.chunks))
    }
}

/// Whether so many bytes have been copied since there were `before`.
fn all_there(pid: HostPid, spans: &[Span], copies: &Copies, before: u64) -> Result<()> {
    let wanted: u64 = spans.iter().map(Span::len).sum();
    match copies.bytes() - before == wanted {
        true => Ok(()),
        false => Err(unreadable(pid)),
    }
}

/// A stock to which nothing comes any more.
#[derive(Debug)]
pub struct Closed(Vec<Vec<u8>>);

#[derive(Clone, Copy, Debug)]
struct Place {
    chunk: usize,
    offset: usize,
}

/// Cuts spans into groups of a piece at most.
fn groups(spans: &[Span]) -> Vec<Vec<Span>> {
    let mut groups: Vec<Vec<Span>> = Vec::new();
    let mut bytes = PIECE;
    for piece in spans.iter().flat_map(|span| pieces(*span)) {
        if bytes + piece.len() > PIECE {
            groups.push(Vec::new());
            bytes = 0;
        }
        bytes += piece.len();
        if let Some(group) = groups.last_mut() {
            group.push(piece);
        }
    }
    groups
}

/// Cuts a span into pieces.
pub fn pieces(span: Span) -> impl Iterator<Item = Span> {
    (span.start..span.end).step_by(PIECE as usize).map(move |start| Span {
        start,
        end: span.end.min(start + PIECE),
    })
}

/// Where in a stock pages are, by address.
#[derive(Clone, Debug, Default)]
pub struct Copies(Vec<(Span, Place)>);

impl Copies {
    fn enter(&mut self, spans: &[Span], mut place: Place) {
        for span in spans {
            self.0.push((*span, place));
            place.offset += span.len() as usize;
        }
    }

    fn leave_out(&mut self, missing: &[Span]) {
        let cut = |(span, place): &(Span, Place)| -> Vec<(Span, Place)> {
            let left = without(&[*span], missing);
            let offset = |part: &Span| place.offset + (part.start - span.start) as usize;
            let place = |part: &Span| Place {
                offset: offset(part),
                ..*place
            };
            left.iter().map(|part| (*part, place(part))).collect()
        };
        self.0 = self.0.iter().flat_map(cut).collect();
    }

    /// Ascending.
    pub fn spans(&self) -> Vec<Span> {
        let mut spans: Vec<Span> = self.0.iter().map(|(span, _)| *span).collect();
        spans.sort_unstable_by_key(|span| span.start);
        spans
    }

    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|(span, _)| span.len()).sum()
    }

    pub fn held(mut self, stock: &Arc<Closed>) -> Held {
        self.0.sort_unstable_by_key(|(span, _)| span.start);
        Held {
            stock: Arc::clone(stock),
            pages: self.0,
        }
    }
}

/// Copies of pages.
#[derive(Debug)]
pub struct Held {
    stock: Arc<Closed>,
    pages: Vec<(Span, Place)>,
}

impl Held {
    pub fn bytes(&self) -> u64 {
        self.pages.iter().map(|(span, _)| span.len()).sum()
    }

    pub fn spans(&self) -> Vec<Span> {
        self.pages.iter().map(|(span, _)| *span).collect()
    }
}

impl Memory for Held {
    fn read(&self, spans: &[Range<u64>], mut buffer: &mut [u8]) -> Result<()> {
        for span in spans {
            let mut at = span.start;
            while at < span.end {
                let next = self.pages.partition_point(|(own, _)| own.end <= at);
                let (own, place) = self
                    .pages
                    .get(next)
                    .filter(|(own, _)| own.start <= at)
                    .ok_or_else(|| Error::failed(format!("memory at {at:#x} is not held")))?;
                let end = own.end.min(span.end);
                let offset = place.offset + (at - own.start) as usize;
                let (to, rest) = buffer.split_at_mut((end - at) as usize);
                to.copy_from_slice(&self.stock.0[place.chunk][offset..][..to.len()]);
                buffer = rest;
                at = end;
            }
        }
        Ok(())
    }
}

/// Private pages that hold data of their own in a span of a process.
pub fn find(pagemap: &File, span: Span, anonymous: bool, found: &mut Vec<Span>) -> crate::sys::Sys<()> {
    let fast = match anonymous {
        true => sys::scan_anonymous(pagemap, span, found),
        false => sys::scan_pages(pagemap, span, found),
    };
    match fast {
        Err(nix::Error::ENOTTY | nix::Error::EINVAL) => sys::scan_pages_slowly(pagemap, span, found),
        other => other,
    }
}

/// `/proc/PID/pagemap`
pub fn pagemap(pid: HostPid) -> Result<File> {
    File::open(format!("/proc/{pid}/pagemap")).or_fail(|| format!("cannot read the memory of pid {pid}"))
}

/// What of `spans` lies in none of `others`; both ascend.
pub fn without(spans: &[Span], others: &[Span]) -> Vec<Span> {
    let mut left = Vec::with_capacity(spans.len());
    let mut next = 0;
    for span in spans {
        let mut start = span.start;
        while others.get(next).is_some_and(|other| other.end <= start) {
            next += 1;
        }
        for other in others[next..].iter().take_while(|other| other.start < span.end) {
            if other.start > start {
                left.push(Span {
                    start,
                    end: other.start,
                });
            }
            start = start.max(other.end);
        }
        if start < span.end {
            left.push(Span { start, end: span.end });
        }
    }
    left
}

/// What of `spans` lies in one of `others`; both ascend.
pub fn within(spans: &[Span], others: &[Span]) -> Vec<Span> {
    without(spans, &without(spans, others))
}

/// All of both, joined where they meet.
pub fn union(one: &[Span], other: &[Span]) -> Vec<Span> {
    let mut all = [one, other].concat();
    all.sort_unstable_by_key(|span| span.start);
    let mut joined: Vec<Span> = Vec::with_capacity(all.len());
    for span in all {
        match joined.last_mut() {
            Some(last) if last.end >= span.start => last.end = last.end.max(span.end),
            _ => joined.push(span),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(bounds: &[(u64, u64)]) -> Vec<Span> {
        bounds.iter().map(|&(start, end)| Span { start, end }).collect()
    }

    #[test]
    fn spans_are_cut_and_joined() {
        let some = spans(&[(0, 10), (20, 30), (40, 50)]);
        let others = spans(&[(5, 8), (9, 25), (28, 28), (30, 40), (45, 60)]);
        assert_eq!(
            without(&some, &others),
            spans(&[(0, 5), (8, 9), (25, 28), (28, 30), (40, 45)])
        );
        assert_eq!(within(&some, &spans(&[(5, 25), (50, 60)])), spans(&[(5, 10), (20, 25)]));
        assert_eq!(union(&some, &spans(&[(10, 20), (45, 60)])), spans(&[(0, 30), (40, 60)]));
    }

    /// Pages that are not there are left out, whatever lies around them.
    #[test]
    fn what_is_gone_is_left_out() {
        let own = HostPid(std::process::id() as i32);
        let pages = 3000u64;
        let map = vec![7u8; ((pages + 1) * PAGE) as usize];
        let start = (map.as_ptr() as u64).next_multiple_of(PAGE);
        let at = |from: u64, to: u64| Span {
            start: start + from * PAGE,
            end: start + to * PAGE,
        };
        // Two spans that nothing is mapped at lie between others.
        let nowhere = Span {
            start: PAGE,
            end: 3 * PAGE,
        };
        let mut wanted = vec![nowhere];
        wanted.extend((0..1500).map(|page| at(2 * page, 2 * page + 1)));
        let mut stock = Stock::ready(PAGE);
        let mut copies = Copies::default();
        stock.copy(own, &wanted, &mut copies);
        assert_eq!(copies.bytes(), 1500 * PAGE);
        assert!(stock.copy_all(own, &[nowhere], &mut Copies::default()).is_err());
        assert!(stock.copy_shared(own, &wanted, &mut Copies::default()).is_err());
        let mut shared = Copies::default();
        stock.copy_shared(own, &wanted[1..], &mut shared).unwrap();
        assert_eq!(shared.spans(), copies.spans());
        let pages = Pages::of_running(own).shared().unwrap();
        let ranges: Vec<_> = [nowhere, at(2, 3)].iter().map(|span| span.start..span.end).collect();
        let mut read = vec![1; 3 * PAGE as usize];
        pages.read(&ranges, &mut read).unwrap();
        assert_eq!(pages.take_lost(), [nowhere]);
        assert!(read[..2 * PAGE as usize].iter().all(|byte| *byte == 0));
        assert!(read[2 * PAGE as usize..].iter().all(|byte| *byte == 7));
        let held = copies.held(&stock.close());
        let mut buffer = vec![0; 2 * PAGE as usize];
        held.read(
            &[at(2, 3).start..at(2, 3).end, at(2998, 2999).start..at(2998, 2999).end],
            &mut buffer,
        )
        .unwrap();
        assert!(buffer.iter().all(|byte| *byte == 7));
        let outside = std::slice::from_ref(&(at(1, 2).start..at(1, 2).end)).to_vec();
        assert!(held.read(&outside, &mut buffer[..PAGE as usize]).is_err());
    }
}
