//! Copying memory while the app runs, so that it stands still only for what is left.
//!
//! ```text
//!   plant: a short stop; each process makes a userfaultfd, which we take over
//!   watch: the kernel notes writes to its anonymous memory (WP_ASYNC)      app runs
//!   copy everything, into the appshot                                      app runs
//!   again: what was written meanwhile, into memory; until it is little     app runs
//!   the stop of the snapshot: compare -> what is as it was copied, what is not
//!   afterwards: the userfaultfds are closed, the copies go to their places app runs
//! ```
//!
//! The descriptor exists in the app only while it stands still in `plant`; the journal
//! covers that moment. When we die the kernel closes ours, and nothing is left.
//!
//! A page counts as copied only where nothing else is possible: it lies in a mapping
//! that is watched still, it was read after its last noted write, and its page table
//! is there. Mappings made, moved or grown meanwhile, children forked, another program:
//! none of these is watched, and all of it is copied in the stop. Which mapping is
//! watched says the kernel (`uw` in smaps, CHECK_WPASYNC), not its address.
//!
//! A watched mapping does not become one with another that is made beside it: an app
//! that puts mappings together and then calls mremap(2) over several of them gets EFAULT
//! where it otherwise would not, as long as it is watched. No allocator is known to do so.
//!
//! Not watched at all: what the app shares or maps from files; processes that read with
//! O_DIRECT or by aio, whose pages a device writes without a fault; processes that use
//! userfaultfds themselves.

use crate::error::{OrFail, Result};
use crate::executor::{self, Gate};
use crate::files::uring;
use crate::freeze::{self, Frozen, FrozenProcess};
use crate::ids::{HostPid, VirtualPid};
use crate::image::{CoreWriter, Memory, Writer};
use crate::journal::{Entered, Journal};
use crate::pages::{self, Copies, Held, Pages, Stock};
use crate::polite;
use crate::proc::{self, Fields, Mapping};
use crate::survey;
use crate::sys::memory::{self as sys, PAGE, Span};
use crate::sys::task;
use crate::sys::uffd::{self, WriteNotes};
use crate::target::Target;
use crate::urgent::Urgent;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Mappings with less are copied in the stop, unless even smaller processes are wanted:
/// watching them would cost more.
const WATCHED_BYTES_MIN: u64 = 64 << 10;
/// What is written again so often is left to the stop.
const ROUNDS_MAX: usize = 12;
const TIME_MAX: Duration = Duration::from_secs(20);
/// What is little enough for the stop: 0.1 ms.
const LITTLE: u64 = 256 << 10;
/// Copies of more go to the appshot at once instead of into memory.
const HELD_MAX: u64 = 256 << 20;
/// What one page table maps.
const TABLE: u64 = 2 << 20;
const O_DIRECT: u32 = libc::O_DIRECT as u32;

/// Memory of the app that was copied while it ran.
#[derive(Debug)]
pub struct Precopy {
    processes: Vec<Watched>,
    begun: Instant,
    /// What was copied in the last round.
    last_bytes: u64,
}

/// A process whose writes are noted.
#[derive(Debug)]
pub struct Watched {
    pub pid: HostPid,
    start_time: u64,
    notes: Option<WriteNotes>,
    /// What `notes` has registered, ascending.
    registered: Vec<Span>,
    core: CoreWriter,
    /// Where `core` reads from.
    live: Arc<Pages>,
    /// Copies that are newer than those in `core`, the newest last.
    rounds: Vec<Arc<Held>>,
    /// What is copied as it was when its last write was noted, ascending.
    copied: Vec<Span>,
    /// Writes to it may have been told to nobody, or it could not be read after they
    /// were told: it is copied again whatever the kernel says.
    doubtful: Vec<Span>,
}

/// What became of a watched mapping.
#[derive(Debug, Default)]
pub struct Compared {
    /// As it was copied.
    pub same: Vec<Span>,
    /// To be copied again; some of it may be no more.
    pub changed: Vec<Span>,
}

/// How much anonymous memory these processes have: what they share counts once.
pub fn anonymous_bytes(pids: &[HostPid]) -> u64 {
    match pids {
        [one] => anonymous(*one),
        many => many.iter().map(|pid| anonymous_part(*pid)).sum(),
    }
}

/// The process's part of it, each page shared out among those that have it.
fn anonymous_part(pid: HostPid) -> u64 {
    let rollup = proc::text(pid, "smaps_rollup").map(Fields::new);
    let kilobytes = rollup.ok().and_then(|fields| fields.number("Pss_Anon"));
    kilobytes.map_or_else(|| anonymous(pid), |kb| kb as u64 * 1024)
}

fn anonymous(pid: HostPid) -> u64 {
    let kilobytes = Fields::status(pid).ok().and_then(|status| status.number("RssAnon"));
    kilobytes.map_or(0, |kb| kb as u64 * 1024)
}

/// Whether this kernel can note writes for us.
pub fn works() -> bool {
    fn note() -> crate::sys::Sys<bool> {
        let mut memory = vec![1u8; 1 << 20];
        let first = memory.as_ptr() as u64;
        let start = first.next_multiple_of(PAGE);
        let page = Span {
            start,
            end: start + PAGE,
        };
        let notes = WriteNotes::begin(uffd::create()?)?;
        notes.register(page)?;
        let own = HostPid(std::process::id() as i32);
        let pagemap = pages::pagemap(own).map_err(|_| nix::Error::EACCES)?;
        let mut found = [Vec::new(), Vec::new(), Vec::new()];
        sys::scan_and_watch(&pagemap, page, &mut found[0])?;
        sys::scan_written(&pagemap, page, &mut found[1])?;
        memory[(start - first) as usize] = 2;
        std::hint::black_box(&memory);
        sys::scan_written(&pagemap, page, &mut found[2])?;
        Ok(found.map(|spans| spans.len()) == [1, 0, 1])
    }
    note() == Ok(true)
}

impl Precopy {
    /// Plants a userfaultfd in the processes that are large and can be watched. `None`
    /// where there is none. Answers how long the app stood still, too.
    pub fn plant(
        target: &Target,
        bytes_min: u64,
        writer: &Writer,
        journal: &mut Journal,
    ) -> Result<Option<(Precopy, Duration)>> {
        let begun = Instant::now();
        let pids = freeze::members(target)?;
        let chosen: HashMap<HostPid, Vec<Mapping>> = pids
            .into_iter()
            .filter(|pid| anonymous(*pid) >= bytes_min && can_be_watched(*pid))
            .map(|pid| (pid, worth_it(pid, bytes_min.clamp(PAGE, WATCHED_BYTES_MIN))))
            .filter(|(_, maps)| !maps.is_empty())
            .collect();
        if chosen.is_empty() {
            return Ok(None);
        }
        let before = freeze::before(target)?;
        journal.before(&before)?;
        // N.B. Nothing but two calls a process happens in this stop.
        let (urgent, ()) = Urgent::begin(survey::root(target), || ());
        let frozen = freeze::freeze_with(target, &[], before)?;
        let planted = plant_all(&frozen, &chosen, journal);
        let is_tree = frozen.processes.len() > 1;
        journal.left()?;
        let took = frozen.thaw();
        drop(urgent);
        tracing::debug!(micros = took.as_micros(), "planted");
        let mut processes = Vec::new();
        for planted in planted? {
            processes.extend(planted.watched(writer, is_tree)?);
        }
        let precopy = Precopy {
            processes,
            begun,
            last_bytes: 0,
        };
        Ok((!precopy.processes.is_empty()).then_some((precopy, took)))
    }

    /// Copies all that is watched into the appshot.
    pub fn copy(&mut self, go_on: &dyn Fn() -> Result<()>) -> Result<()> {
        for process in &mut self.processes {
            process.copy(go_on)?;
        }
        for process in &mut self.processes {
            process.settle()?;
        }
        Ok(())
    }

    /// Copies what was written meanwhile, again and again, until it is little or does
    /// not get less.
    pub fn again(&mut self, go_on: &dyn Fn() -> Result<()>) -> Result<()> {
        let mut before = u64::MAX;
        for round in 0..ROUNDS_MAX {
            go_on()?;
            self.once()?;
            tracing::debug!(round, bytes = self.last_bytes, "copied again");
            let is_little = self.last_bytes <= LITTLE;
            if is_little || self.last_bytes > before / 4 * 3 || self.begun.elapsed() > TIME_MAX {
                break;
            }
            before = self.last_bytes;
        }
        Ok(())
    }

    /// One such round.
    pub fn once(&mut self) -> Result<()> {
        self.last_bytes = 0;
        for process in &mut self.processes {
            self.last_bytes += process.again()?;
        }
        Ok(())
    }

    /// What may have to be copied in the stop.
    pub fn expected_bytes(&self) -> u64 {
        2 * self.last_bytes
    }

    /// Puts all copies into the appshot, on disk, and reads them back: what stands still
    /// for its appshot to be sealed need not wait for them.
    pub fn prove(&mut self) -> Result<()> {
        for process in &mut self.processes {
            process.store(&[])?;
            process.core.prove()?;
        }
        Ok(())
    }

    /// The process, unless another has its number by now.
    pub fn of(&self, pid: HostPid) -> Option<&Watched> {
        let found = self.processes.iter().find(|process| process.pid == pid)?;
        // It may have come to that since the last round.
        (found.lives() && !reads_directly(pid)).then_some(found)
    }

    /// Whether a mapping with the flag `uw` has it from us.
    pub fn watches(&self, pid: HostPid, mapping: &Mapping) -> bool {
        let process = self.processes.iter().find(|process| process.pid == pid);
        process.is_some_and(|process| process.overlaps(mapping.span()))
    }

    /// Nothing is watched any more. The kernel takes 30 ms a GiB for it, in which an app
    /// would get no page: it is done in parts that take none from anybody, and what is left
    /// for the end is only to be gone through.
    pub fn let_go(&mut self) {
        for process in &mut self.processes {
            let notes = process.notes.take();
            for part in process.registered.iter().flat_map(tables) {
                // EAGAIN, ENOENT: what has changed meanwhile is left for the end.
                polite::piece(polite::is_polite(), || notes.as_ref().map(|notes| notes.forget(part)));
            }
        }
    }

    pub fn into_processes(self) -> Vec<Watched> {
        self.processes
    }
}

fn can_be_watched(pid: HostPid) -> bool {
    let maps = proc::text(pid, "maps").unwrap_or_default();
    !maps.contains("/[aio]")
        && !maps.contains(uring::LINK)
        && !has_descriptor(pid, |link, _| link == "anon_inode:[userfaultfd]")
        && !reads_directly(pid)
}

/// Whether a device may be writing to its memory, or an io_uring, which writes to registered
/// buffers without a fault.
fn reads_directly(pid: HostPid) -> bool {
    has_descriptor(pid, |link, info| {
        link == uring::LINK || link.starts_with('/') && info().octal("flags") & O_DIRECT != 0
    })
}

fn has_descriptor(pid: HostPid, wanted: impl Fn(&str, &dyn Fn() -> Fields) -> bool) -> bool {
    let fds = proc::numbered(&format!("/proc/{pid}/fd")).unwrap_or_default();
    fds.into_iter().any(|fd| {
        let link = proc::link(pid, &format!("fd/{fd}")).unwrap_or_default();
        wanted(&link, &|| {
            Fields::new(proc::text(pid, &format!("fdinfo/{fd}")).unwrap_or_default())
        })
    })
}

/// Descriptors of the process that are userfaultfds.
pub fn userfaultfds(pid: HostPid) -> Vec<i32> {
    let fds = proc::numbered(&format!("/proc/{pid}/fd")).unwrap_or_default();
    let is_one = |fd: &i32| proc::link(pid, &format!("fd/{fd}")).is_ok_and(|link| link == "anon_inode:[userfaultfd]");
    fds.into_iter().filter(is_one).collect()
}

struct Planted {
    pid: HostPid,
    vpid: VirtualPid,
    start_time: u64,
    notes: WriteNotes,
    registered: Vec<Span>,
}

/// Leaves the processes as they were, but that their memory is watched.
fn plant_all(frozen: &Frozen, chosen: &HashMap<HostPid, Vec<Mapping>>, journal: &mut Journal) -> Result<Vec<Planted>> {
    let mut beds = Vec::new();
    for process in frozen.processes.iter().filter(|p| chosen.contains_key(&p.pid)) {
        // One of its own would be taken for ours, should we die now.
        if userfaultfds(process.pid).is_empty() {
            let gate = executor::find_held_gate(process.pid, &code(process.pid)?)?;
            beds.push((process, Entered::of_gate(process, gate)?));
        }
    }
    journal.enter(beds.iter().map(|(_, entered)| entered.clone()).collect())?;
    beds.iter()
        .filter_map(|(process, entered)| match plant(process, entered.gate) {
            Ok(Some(notes)) => Some(Ok(Planted {
                pid: process.pid,
                vpid: process.vpid,
                start_time: entered.start_time,
                registered: register(process.pid, &notes, &chosen[&process.pid]),
                notes,
            })),
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        })
        .collect()
}

/// The vdso comes first in what can be executed, and has a gate.
fn code(pid: HostPid) -> Result<Vec<Span>> {
    let maps = proc::maps(pid).or_fail(|| format!("cannot read the mappings of pid {pid}"))?;
    let mut code: Vec<&Mapping> = maps.iter().filter(|map| map.exec && map.name != "[vsyscall]").collect();
    code.sort_by_key(|map| map.name != "[vdso]");
    Ok(code.into_iter().map(Mapping::span).collect())
}

/// Has the main thread make a userfaultfd, and close it once it is ours too. `None`
/// where the kernel does not let it, or cannot note writes.
fn plant(process: &FrozenProcess, gate: Gate) -> Result<Option<WriteNotes>> {
    let main = process.main();
    let pidfd = task::pidfd_open(process.pid).or_fail(|| format!("cannot open pid {}", process.pid))?;
    let call =
        |number, argument: u64| executor::call_through(main.tid, &main.regs, gate, number, [argument, 0, 0, 0, 0, 0]);
    main.prepare()?;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | uffd::USER_MODE_ONLY;
    let planted = call(uffd::number(), flags as u64).and_then(|made| {
        let Ok(fd) = made else { return Ok(None) };
        let taken = task::pidfd_getfd(pidfd.as_fd(), fd as i32);
        call(libc::SYS_close, fd)?.or_fail(|| format!("cannot close a descriptor of ours in pid {}", process.pid))?;
        Ok(taken.and_then(WriteNotes::begin).ok())
    });
    main.recover()?;
    planted
}

/// The anonymous memory of a process that is worth watching.
fn worth_it(pid: HostPid, bytes_min: u64) -> Vec<Mapping> {
    let Ok(pagemap) = pages::pagemap(pid) else {
        return Vec::new();
    };
    let mut maps = proc::maps(pid).unwrap_or_default();
    maps.retain(|map| {
        let mut found = Vec::new();
        is_anonymous(map)
            && map.span().len() >= bytes_min
            && sys::scan_anonymous(&pagemap, map.span(), &mut found).is_ok()
            && found.iter().map(Span::len).sum::<u64>() >= bytes_min
    });
    maps
}

/// Has the kernel watch these mappings as far as they are the same, in the stop: part of
/// one would become a mapping of its own, and mremap(2) takes only one at a time.
fn register(pid: HostPid, notes: &WriteNotes, chosen: &[Mapping]) -> Vec<Span> {
    let now = proc::maps(pid).unwrap_or_default();
    let same = now.iter().filter(|map| chosen.contains(map)).map(Mapping::span);
    let mut registered = Vec::new();
    for span in same.filter(|span| notes.register(*span).is_ok()) {
        pages::push(&mut registered, span);
    }
    registered
}

impl Planted {
    /// What others may share since a fork is read so that they still do.
    /// `None` of one that has ended meanwhile.
    fn watched(self, writer: &Writer, is_tree: bool) -> Result<Option<Watched>> {
        let live = match is_tree.then(|| Pages::of_running(self.pid).shared()) {
            // It has ended meanwhile, and may wait to be reaped.
            Some(Err(_)) if proc::maps(self.pid).unwrap_or_default().is_empty() => return Ok(None),
            Some(shared) => shared?,
            None => Pages::of_running(self.pid),
        };
        Ok(Some(Watched {
            core: writer.core(self.vpid)?,
            live: Arc::new(live),
            pid: self.pid,
            start_time: self.start_time,
            notes: Some(self.notes),
            registered: self.registered,
            rounds: Vec::new(),
            copied: Vec::new(),
            doubtful: Vec::new(),
        }))
    }
}

/// Heap, stacks and their like, readable.
fn is_anonymous(map: &Mapping) -> bool {
    let named = map.name.starts_with("[v") || map.name.starts_with('/');
    map.read && !map.shared && map.ino == 0 && !named
}

impl Watched {
    /// What was copied into the appshot, newer copies, and what ends the watching.
    pub fn into_parts(self) -> (CoreWriter, Vec<Arc<Held>>, Option<WriteNotes>) {
        (self.core, self.rounds, self.notes)
    }

    fn lives(&self) -> bool {
        proc::stat(self.pid).is_ok_and(|stat| stat.start_time == self.start_time)
    }

    fn overlaps(&self, span: Span) -> bool {
        self.registered
            .iter()
            .any(|own| own.start < span.end && span.start < own.end)
    }

    /// The mappings that may be watched, as they are now.
    fn mappings(&self) -> Vec<Mapping> {
        let mut maps = proc::maps(self.pid).unwrap_or_default();
        maps.retain(|map| is_anonymous(map) && self.overlaps(map.span()));
        maps
    }

    fn copy(&mut self, go_on: &dyn Fn() -> Result<()>) -> Result<()> {
        let Ok(pagemap) = pages::pagemap(self.pid) else {
            return Ok(());
        };
        let live: Arc<dyn Memory> = Arc::clone(&self.live) as _;
        for map in self.mappings() {
            let mut found = Vec::new();
            // A part of a huge page that is watched by itself would break it up.
            for part in tables(&map.span()) {
                found.clear();
                // EPERM: another mapping is in between by now; what lies before it was
                // told all the same.
                if sys::scan_and_watch(&pagemap, part, &mut found).is_err() {
                    self.doubtful = pages::union(&self.doubtful, &[part]);
                    break;
                }
                for span in &found {
                    go_on()?;
                    // What changes while it is read, /proc/PID/maps may list twice.
                    let copied = self.copied.last().map_or(0, |last| last.end);
                    let span = Span {
                        start: span.start.max(copied).min(span.end),
                        ..*span
                    };
                    self.core.memory(span.start..span.end, map.prot(), &live)?;
                    pages::push(&mut self.copied, span);
                }
            }
        }
        Ok(())
    }

    /// Waits until all is read; what was gone by then is not copied.
    fn settle(&mut self) -> Result<()> {
        self.core.settle()?;
        let lost = self.live.take_lost();
        self.copied = pages::without(&self.copied, &lost);
        self.doubtful = pages::union(&self.doubtful, &lost);
        if reads_directly(self.pid) {
            self.copied.clear();
            self.registered.clear();
        }
        Ok(())
    }

    /// Copies what was written since; answers how much.
    fn again(&mut self) -> Result<u64> {
        let Ok(pagemap) = pages::pagemap(self.pid) else {
            return Ok(0);
        };
        let mut there = Vec::new();
        for map in self.mappings() {
            let (whole, mut written) = ([map.span()], Vec::new());
            if sys::scan_and_watch(&pagemap, map.span(), &mut written).is_err() {
                self.doubtful = pages::union(&self.doubtful, &whole);
                continue;
            }
            let doubtful = populated(&pagemap, map.span(), pages::within(&self.doubtful, &whole));
            self.doubtful = pages::without(&self.doubtful, &whole);
            there.extend(pages::union(&written, &doubtful));
        }
        let bytes: u64 = there.iter().map(Span::len).sum();
        let held: u64 = self.rounds.iter().map(|round| round.bytes()).sum();
        let mut read = there.clone();
        if held + bytes > HELD_MAX {
            self.store(&there)?;
            read = pages::without(&there, &self.live.take_lost());
        } else if !there.is_empty() {
            let mut stock = Stock::default();
            let mut copies = Copies::default();
            stock.copy(self.pid, &there, &mut copies);
            read = copies.spans();
            self.rounds.push(Arc::new(copies.held(&stock.close())));
        }
        let kept = pages::without(&self.copied, &there);
        self.copied = pages::union(&kept, &read);
        self.doubtful = pages::union(&self.doubtful, &pages::without(&there, &read));
        if reads_directly(self.pid) {
            self.copied.clear();
            self.registered.clear();
        }
        Ok(bytes)
    }

    /// All copies go to the appshot, these as the app has them now.
    fn store(&mut self, now: &[Span]) -> Result<()> {
        for round in std::mem::take(&mut self.rounds) {
            let spans = pages::without(&round.spans(), now);
            let memory: Arc<dyn Memory> = round;
            self.replace(&spans, &memory)?;
        }
        let live: Arc<dyn Memory> = Arc::clone(&self.live) as _;
        self.replace(now, &live)
    }

    fn replace(&mut self, spans: &[Span], memory: &Arc<dyn Memory>) -> Result<()> {
        let mut missing = Vec::new();
        for span in spans {
            missing.extend(self.core.replace(span.start..span.end, memory)?);
        }
        for span in missing {
            self.core.memory(span, 0, memory)?;
        }
        self.core.settle()
    }

    /// What of a mapping of the stopped process is as it was copied. `None`: it is not
    /// watched.
    pub fn compare(&self, pagemap: &File, span: Span) -> Option<Compared> {
        if !self.overlaps(span) {
            return None;
        }
        let mut written = Vec::new();
        sys::scan_written(pagemap, span, &mut written).ok()?;
        let written = pages::union(&written, &pages::within(&self.doubtful, &[span]));
        let stored = pages::within(&self.copied, &[span]);
        let mut same = Vec::new();
        let mut table = (u64::MAX, false);
        for part in pages::without(&stored, &written).iter().flat_map(tables) {
            // Where the whole page table is gone, no page of it was told.
            if table.0 != part.start / TABLE {
                table = (part.start / TABLE, is_there(pagemap, part.start));
            }
            if table.1 {
                pages::push(&mut same, part);
            }
        }
        Some(Compared {
            same,
            changed: populated(pagemap, span, written),
        })
    }
}

/// Cuts a span at the bounds of page tables.
fn tables(span: &Span) -> impl Iterator<Item = Span> + use<> {
    let Span { start, end } = *span;
    (start / TABLE..end.div_ceil(TABLE)).map(move |table| Span {
        start: start.max(table * TABLE),
        end: end.min((table + 1) * TABLE),
    })
}

/// Whether anything stands in the page table for this address.
fn is_there(pagemap: &File, address: u64) -> bool {
    const PRESENT_OR_SWAPPED: u64 = 3 << 62;
    let mut word = [0; 8];
    let read = pagemap.read_exact_at(&mut word, address / PAGE * 8);
    read.is_ok() && u64::from_le_bytes(word) & PRESENT_OR_SWAPPED != 0
}

/// Leaves out of these parts of a mapping what is not there. Where looking takes longer
/// than reading, it is read: what never was reads as zeroes, as it does in a restored app
/// that has not got it.
fn populated(pagemap: &File, whole: Span, parts: Vec<Span>) -> Vec<Span> {
    // Nanoseconds: a page read, a look, and each page looked at.
    const READ: u64 = 300;
    const LOOK: u64 = 600;
    const LOOKED: u64 = 13;
    let look = |span: &Span| LOOK + span.len() / PAGE * LOOKED;
    let read = |span: &Span| span.len() / PAGE * READ;
    let each: u64 = parts.iter().map(|part| look(part).min(read(part))).sum();
    let mut there = Vec::new();
    if each > look(&whole) && sys::scan_anonymous(pagemap, whole, &mut there).is_ok() {
        return pages::within(&parts, &there);
    }
    there.clear();
    for part in parts {
        if read(&part) < look(&part) || sys::scan_anonymous(pagemap, part, &mut there).is_err() {
            there.push(part);
        }
    }
    pages::union(&there, &[])
}
