//! Memory of a process that stands still, put back to what the appshot holds.
//!
//! ```text
//!   pages of the process        stored in the appshot         not stored
//!   written since               written back                  zeroes, or the file's content
//!   not written                 stay                          stay
//!   not there, not owed         owed again, or written back   -
//!   owed by the pager           stay owed                     -
//! ```
//!
//! The kernel notes writes (userfaultfd WP_ASYNC) where there are enough pages to be worth
//! it; elsewhere every page counts as written. Mappings must be those that it had: what is
//! new is unmapped, other protection taken back. Anything else is not undone in place.
//!
//! Most pages of mapped files are nobody's own, and to tell them from those that are takes
//! the kernel long. Where a mapping had none of its own, `smaps` says whether it has now.
//! It also tells of pages that were given back (MADV_FREE) and are still there: the kernel
//! may take them at any time, unless they are written to.

use super::Why;
use super::look::Text;
use crate::error::Result;
use crate::executor::Batch;
use crate::ids::HostPid;
use crate::image::records::{VMA_FLAGS, VmaKind};
use crate::image::{Core, Place, Segment};
use crate::pages;
use crate::proc::{self, Mapping};
use crate::restore::opened::Opened;
use crate::restore::owed::Owed;
use crate::sys::memory::{self, Dirt, PAGE, Span};
use crate::sys::uffd::Userfault;
use std::fs::File;
use std::io::BufRead;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What ends a process's address space.
const TOP: u64 = 0x7fff_ffff_f000;
/// Mappings with fewer pages of their own need not be watched.
const WATCHED_PAGES_MIN: u64 = 4;
/// More than this is sooner had anew.
const PAGES_MAX: u64 = 16 << 10;
/// Bytes that are copied in one piece, and pieces that are copied by one call.
const PIECE: usize = 8 * PAGE as usize;
const PIECES_AT_ONCE: usize = 64;
static ZEROES: [u8; PAGE as usize] = [0; PAGE as usize];

/// What a mapping's pages are made of that the appshot does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Under {
    Zeroes,
    /// A file, from this offset on.
    File {
        path: String,
        offset: u64,
    },
}

/// A private mapping.
#[derive(Clone, Debug)]
struct Area {
    span: Span,
    under: Under,
    write: bool,
    /// It had no page of its own: none but those of its file.
    bare: bool,
    /// Writes to it are noted.
    watched: bool,
}

/// A mapping as the kernel tells it right before the process runs.
#[derive(Debug)]
struct Known {
    /// Its line in `maps`.
    line: Vec<u8>,
    /// Its `VmFlags` in `smaps`.
    flags: Vec<u8>,
    mapping: Mapping,
}

/// The address space of a process.
#[derive(Debug)]
pub struct Space {
    pid: HostPid,
    pagemap: File,
    mem: File,
    maps: Text,
    smaps: Text,
    before: Vec<Known>,
    areas: Vec<Area>,
    /// In the order of addresses.
    stored: Vec<Segment>,
    /// What these are, put together.
    stored_spans: Vec<Span>,
    /// What may be owed.
    brought: Vec<Span>,
    /// Code of the kernel's, of which it has no pages of its own.
    vdso: Vec<Span>,
}

/// Mappings that have to be looked at once more.
#[derive(Debug, Default)]
pub struct Found {
    /// They have pages of their own, and had none.
    grown: Vec<Span>,
    /// They may have pages that were given back.
    given_back: Vec<Span>,
}

impl Found {
    pub fn is_empty(&self) -> bool {
        self.grown.is_empty() && self.given_back.is_empty()
    }
}

/// Mappings that differ, where that can be undone.
#[derive(Debug, Default)]
pub struct Remapped {
    pub now: Vec<Span>,
    unmap: Vec<Span>,
    protect: Vec<(Span, u32)>,
    /// Whether the whole has to be looked at again afterwards.
    doubt: bool,
}

/// Those of `VmFlags` that count.
fn flags(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    const NEVER: [&str; 8] = ["um", "uw", "ui", "sl", "ht", "ss", "io", "pf"];
    let counts = |flag: &&[u8]| VMA_FLAGS.iter().chain(&NEVER).any(|known| known.as_bytes() == *flag);
    line.split(|byte| byte.is_ascii_whitespace()).filter(counts)
}

/// Takes the first line, its end included.
fn take_line<'t>(rest: &mut &'t [u8]) -> Option<&'t [u8]> {
    let all = *rest;
    let len = rest.skip_until(b'\n').unwrap_or(0);
    (len > 0).then(|| &all[..len])
}

/// What a line of `smaps` is about.
enum Told<'t> {
    Mapping(Span),
    /// How much it has of its own: in memory, or swapped out.
    Own {
        any: bool,
    },
    /// How much it has for itself, and has not been written to since it was read or given
    /// back.
    Clean {
        any: bool,
    },
    /// It has a protection key.
    Key,
    Flags(&'t [u8]),
}

/// The lines of `smaps` that count; all but the first of a mapping begin with a capital.
fn told(smaps: &[u8]) -> impl Iterator<Item = Told<'_>> {
    let mut rest = smaps;
    let lines = std::iter::from_fn(move || take_line(&mut rest));
    let any = |kilobytes: &[u8]| kilobytes.iter().any(|byte| (b'1'..=b'9').contains(byte));
    lines.filter_map(move |line| match line.first()? {
        b'A' | b'S' => {
            let kilobytes = line.strip_prefix(b"Anonymous:").or(line.strip_prefix(b"Swap:"))?;
            Some(Told::Own { any: any(kilobytes) })
        }
        b'P' => match line.strip_prefix(b"ProtectionKey:") {
            Some(key) => any(key).then_some(Told::Key),
            None => {
                let kilobytes = line.strip_prefix(b"Private_Clean:")?;
                Some(Told::Clean { any: any(kilobytes) })
            }
        },
        b'V' => line.strip_prefix(b"VmFlags:").map(Told::Flags),
        b'0'..=b'9' | b'a'..=b'f' => range(line).map(Told::Mapping),
        _ => None,
    })
}

/// The addresses with which the line of a mapping begins.
fn range(line: &[u8]) -> Option<Span> {
    let text = std::str::from_utf8(line.split(|byte| *byte == b' ').next()?).ok()?;
    let (start, end) = text.split_once('-')?;
    let address = |hex| u64::from_str_radix(hex, 16).ok();
    Some(Span {
        start: address(start)?,
        end: address(end)?,
    })
}

/// Mappings with their lines and flags, from `smaps`.
fn known(smaps: &[u8]) -> Vec<Known> {
    let mut found: Vec<Known> = Vec::new();
    let mut rest = smaps;
    while let Some(line) = take_line(&mut rest) {
        if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            found
                .iter_mut()
                .last()
                .into_iter()
                .for_each(|last| last.flags = flags.to_vec());
        } else if let Some(mapping) = mapping(line) {
            found.push(Known {
                line: line.to_vec(),
                flags: Vec::new(),
                mapping,
            });
        }
    }
    found
}

fn mapping(line: &[u8]) -> Option<Mapping> {
    proc::parse_mappings(&String::from_utf8_lossy(line)).pop()
}

fn failed(what: &'static str) -> impl Fn(&dyn std::fmt::Display) -> Why {
    move |because| Why::anew(format!("{what}: {because}"))
}

impl Space {
    /// Right before the process runs. `full`: mappings that the appshot does not fill.
    pub fn new(pid: HostPid, core: &Core, full: &[Span], faults: &Userfault) -> Result<Space, Why> {
        let opened = |error: crate::error::Error| Why::anew(error.to_string());
        let pagemap = pages::pagemap(pid).map_err(opened)?;
        let mut areas = Vec::new();
        let mut brought = Vec::new();
        for vma in &core.image.vmas {
            if vma.flags.iter().any(|flag| flag == "sl") || !vma.guards.is_empty() {
                return Err(Why::anew("it has memory that is sealed or guarded"));
            }
            if vma.key != 0 {
                return Err(Why::anew("it has memory with protection keys"));
            }
            let span = Span::from(vma);
            let under = match &vma.kind {
                VmaKind::Anon => Under::Zeroes,
                VmaKind::PrivateFile { path, offset } => Under::File {
                    path: path.clone(),
                    offset: *offset,
                },
                VmaKind::SharedFile { .. } | VmaKind::Vvar | VmaKind::Vdso => continue,
                VmaKind::Uring { .. } => return Err(Why::anew("it has an io_uring")),
                VmaKind::Shm { .. } => return Err(Why::anew("it has shared memory")),
                VmaKind::Huge { .. } => return Err(Why::anew("it has huge pages that were set aside")),
            };
            areas.push(Area {
                span,
                under,
                write: vma.prot & libc::PROT_WRITE as u32 != 0,
                bare: false,
                watched: false,
            });
        }
        let vdso = core.image.vmas.iter().filter(|vma| vma.kind == VmaKind::Vdso);
        let vdso: Vec<Span> = vdso.map(Span::from).collect();
        let within = |address: u64| full.iter().any(|span| (span.start..span.end).contains(&address));
        let mut stored: Vec<Segment> = core.segments.iter().filter(|s| !within(s.vaddr)).copied().collect();
        stored.sort_unstable_by_key(|segment| segment.vaddr);
        let stored_spans = pages::union(&stored.iter().map(segment_span).collect::<Vec<_>>(), &[]);
        let mut dirt = Vec::new();
        memory::scan_dirt(&pagemap, whole(), &mut dirt).map_err(|e| failed("its pages cannot be seen")(&e))?;
        // What the pager has registered is noted already.
        let before = proc::mappings(pid).map_err(|e| failed("its mappings cannot be read")(&e))?;
        let there = pages::union(&dirt.iter().map(|(span, _)| *span).collect::<Vec<_>>(), &[]);
        for area in &mut areas {
            let known = before.iter().find(|mapping| mapping.start == area.span.start);
            let has = |flag| known.is_some_and(|mapping| mapping.has(flag));
            let pages = pages_of(&pages::within(&there, &[area.span]));
            let is_stored = !pages::within(&stored_spans, &[area.span]).is_empty();
            area.bare = area.under != Under::Zeroes && pages == 0 && !is_stored;
            if has("um") {
                brought.push(area.span);
                area.watched = true;
            } else if pages >= WATCHED_PAGES_MIN && !has("gd") {
                // Where it cannot be, all of it counts as written.
                area.watched = faults.watch(area.span).is_ok();
            }
        }
        memory::watch_again(&pagemap, whole()).map_err(|e| failed("its pages cannot be watched")(&e))?;
        let smaps = Text::open_rows(&format!("/proc/{pid}/smaps")).map_err(opened)?;
        Ok(Space {
            pid,
            pagemap,
            mem: File::options()
                .read(true)
                .write(true)
                .open(format!("/proc/{pid}/mem"))
                .map_err(|e| failed("its memory cannot be opened")(&e))?,
            maps: Text::open_rows(&format!("/proc/{pid}/maps")).map_err(opened)?,
            // With what has just been registered.
            before: known(&smaps.read().map_err(|e| failed("its mappings cannot be read")(&e))?),
            smaps,
            vdso,
            areas,
            stored,
            stored_spans,
            brought,
        })
    }

    /// What was mapped.
    pub fn mapped(&self) -> Vec<Span> {
        self.before.iter().map(|known| known.mapping.span()).collect()
    }

    /// Flags of all mappings are what they were. Answers what [`Space::put_back`]
    /// does not look at. This takes long: the kernel looks at every page to answer.
    pub fn compare_flags(&self) -> Result<Found, Why> {
        let text = self
            .smaps
            .read()
            .map_err(|e| failed("its mappings cannot be read")(&e))?;
        let mut had = &self.before[..];
        let mut areas = &self.areas[..];
        let (mut now, mut owns, mut clean) = (Span { start: 0, end: 0 }, false, false);
        let mut found = Found::default();
        for line in told(&text) {
            match line {
                Told::Mapping(span) => (now, owns, clean) = (span, false, false),
                Told::Own { any } => owns |= any,
                Told::Clean { any } => clean |= any,
                Told::Key => return Err(Why::anew("it has memory with a protection key")),
                Told::Flags(flags_now) => {
                    had = &had[had.partition_point(|had| had.mapping.end <= now.start)..];
                    for had in had.iter().take_while(|had| had.mapping.start < now.end) {
                        if had.flags != flags_now && !flags(&had.flags).eq(flags(flags_now)) {
                            let range = format!("{:x}-{:x}", now.start, now.end);
                            return Err(Why::anew(format!("its mapping {range} has other advice or locks")));
                        }
                    }
                    areas = &areas[areas.partition_point(|area| area.span.end <= now.start)..];
                    if owns && !pages::within(&[now], &self.vdso).is_empty() {
                        return Err(Why::anew("it has written to its vdso"));
                    }
                    for area in areas.iter().take_while(|area| area.span.start < now.end) {
                        if owns && area.bare {
                            found.grown.push(area.span);
                        }
                        if clean && area.under == Under::Zeroes {
                            found.given_back.push(area.span);
                        }
                    }
                }
            }
        }
        found.grown.dedup();
        found.given_back.dedup();
        Ok(found)
    }

    /// What its mappings are now, as far as that can be undone.
    pub fn compare(&self) -> Result<Remapped, Why> {
        let text = self
            .maps
            .read()
            .map_err(|e| failed("its mappings cannot be read")(&e))?;
        let mut remapped = Remapped::default();
        let (had, now) = self.others(&text, &mut remapped.now);
        let mut missing: Vec<Span> = had.iter().map(|had| had.span()).collect();
        for mapping in &now {
            if mapping.name.starts_with("/[aio]") {
                return Err(Why::anew("it has begun to read and write asynchronously (aio)"));
            }
            let own = [mapping.span()];
            let mut new = own.to_vec();
            let first = had.partition_point(|had| had.end <= mapping.start);
            for had in had[first..].iter().take_while(|had| had.start < mapping.end) {
                let both = pages::within(&[had.span()], &own);
                missing = pages::without(&missing, &both);
                new = pages::without(&new, &both);
                if !is_same(had, mapping) {
                    let range = format!("{:x}-{:x} ({})", had.start, had.end, had.name);
                    return Err(Why::anew(format!("its mapping {range} is another one")));
                }
                if had.prot() != mapping.prot() {
                    remapped.doubt = true;
                    remapped.protect.extend(both.into_iter().map(|span| (span, had.prot())));
                }
            }
            remapped.unmap.extend(new);
        }
        match missing.first() {
            Some(span) => Err(Why::anew(format!("it has unmapped {:x}-{:x}", span.start, span.end))),
            None => Ok(remapped),
        }
    }

    /// Mappings that are not told by the same line in both texts of `maps`; no other can
    /// overlap them. `mapped` gets all that are there now.
    fn others(&self, text: &[u8], mapped: &mut Vec<Span>) -> (Vec<&Mapping>, Vec<Mapping>) {
        let mut had = self.before.iter().peekable();
        let (mut only_had, mut only_now) = (Vec::new(), Vec::new());
        let mut rest = text;
        while let Some(line) = take_line(&mut rest) {
            if let Some(same) = had.next_if(|had| had.line == line) {
                mapped.push(same.mapping.span());
                continue;
            }
            let Some(now) = mapping(line) else { continue };
            mapped.push(now.span());
            while let Some(gone) = had.next_if(|had| had.mapping.start < now.start) {
                only_had.push(&gone.mapping);
            }
            if had.next_if(|had| had.line == line).is_none() {
                only_now.push(now);
            }
        }
        only_had.extend(had.map(|had| &had.mapping));
        (only_had, only_now)
    }

    /// Undoes that.
    pub fn put_back_mappings(&self, remapped: &Remapped, batch: &mut Batch) {
        for span in &remapped.unmap {
            batch.must("munmap", libc::SYS_munmap, &[span.start, span.len()]);
        }
        for (span, prot) in &remapped.protect {
            let args = [span.start, span.len(), u64::from(*prot)];
            batch.must("mprotect", libc::SYS_mprotect, &args);
        }
    }

    /// Whether that has made them what they were.
    pub fn is_put_back(&self, remapped: &Remapped, executor: Span) -> Result<(), Why> {
        if !remapped.doubt {
            return Ok(());
        }
        let text = self
            .maps
            .read()
            .map_err(|e| failed("its mappings cannot be read")(&e))?;
        let mut mapped = Vec::new();
        let (had, mut now) = self.others(&text, &mut mapped);
        now.retain(|mapping| mapping.end <= executor.start || executor.end <= mapping.start);
        match had.is_empty() && now.is_empty() {
            true => Ok(()),
            false => Err(Why::anew("its mappings were split or put together")),
        }
    }

    /// Puts every page back, from parts that are held; what was thrown away is owed again.
    /// What [`Space::compare_flags`] may find besides is not looked at. Answers what is
    /// still to be copied, and which pages are written then.
    pub fn put_back<'a>(&'a self, opened: &'a Opened, owed: &mut Owed) -> Result<(Copies<'a>, Vec<Span>), Why> {
        let dirt = self.look()?;
        let spans = |wanted: fn(&Dirt) -> bool| {
            let some = dirt.iter().filter(|(_, dirt)| wanted(dirt));
            pages::union(&some.map(|(span, _)| *span).collect::<Vec<_>>(), &[])
        };
        let stored = &self.stored_spans;
        let changed = spans(|dirt| dirt.written || dirt.zero);
        let own = spans(|dirt| dirt.written && !dirt.zero);
        let rewritten = pages::within(&changed, stored);
        let foreign = pages::without(&own, stored);
        let absent = pages::without(stored, &spans(|_| true));
        let absent = pages::without(&absent, &owed.within(whole()).collect::<Vec<_>>());
        let again = pages::within(&absent, &self.brought);
        let absent = pages::without(&absent, &self.brought);
        let rewritten = pages::union(&rewritten, &absent);
        let written = pages::union(&rewritten, &foreign);
        let count = pages_of(&written);
        if count > PAGES_MAX {
            return Err(Why::anew(format!("it has written {count} pages")));
        }
        let mut pieces: Vec<(u64, &[u8])> = Vec::with_capacity(count as usize);
        self.add_stored(opened, &rewritten, &mut pieces)?;
        self.take_own(&foreign, &mut pieces)?;
        for span in again {
            for (part, place) in self.segments(span) {
                owed.owe(part, place);
            }
        }
        let copies = self.copies(pieces)?;
        Ok((copies, written))
    }

    /// Takes pages of their own from mappings that had none, and writes to what was given
    /// back. Answers which were written.
    pub fn put_back_found(&self, opened: &Opened, found: &Found) -> Result<Vec<Span>, Why> {
        type Scan = fn(&File, Span, &mut Vec<(Span, Dirt)>) -> crate::sys::Sys<()>;
        let scan = |spans: &[Span], scan: Scan| {
            let mut dirt = Vec::new();
            let mut scanned = spans.iter().map(|span| scan(&self.pagemap, *span, &mut dirt));
            scanned.try_for_each(|scanned| scanned).map_err(cannot)?;
            Ok::<_, Why>(pages::union(
                &dirt.iter().map(|(span, _)| *span).collect::<Vec<_>>(),
                &[],
            ))
        };
        let own = scan(&found.grown, memory::scan_dirt)?;
        let there = scan(&found.given_back, memory::scan_dirt_and_files)?;
        // What the appshot does not store has just been written to.
        let stored = pages::within(&there, &self.stored_spans);
        let count = pages_of(&own) + pages_of(&stored);
        if count > PAGES_MAX {
            return Err(Why::anew(format!("it has written to or given back {count} pages")));
        }
        let mut pieces = Vec::new();
        self.add_stored(opened, &stored, &mut pieces)?;
        self.take_own(&own, &mut Vec::new())?;
        self.copies(pieces)?.make()?;
        Ok(pages::union(&own, &stored))
    }

    /// Adds what the appshot stores in these spans.
    fn add_stored<'a>(&self, opened: &'a Opened, spans: &[Span], pieces: &mut Vec<(u64, &'a [u8])>) -> Result<(), Why> {
        for span in spans {
            for (part, place) in self.segments(*span) {
                let held = opened.held(place.part);
                let held = held.ok_or_else(|| Why::anew("the appshot is not held"))?;
                let content = &held[place.offset as usize..][..part.len() as usize];
                let addresses = (part.start..).step_by(PIECE);
                pieces.extend(addresses.zip(content.chunks(PIECE)));
            }
        }
        Ok(())
    }

    /// What of these is not written here and now.
    fn copies<'a>(&self, pieces: Vec<(u64, &'a [u8])>) -> Result<Copies<'a>, Why> {
        Ok(Copies {
            pid: self.pid,
            pieces: self.write_forced(pieces)?,
            taken: AtomicUsize::new(0),
        })
    }

    /// Pages of their own in private mappings, but those that are bare. Pages of a file
    /// may be among them that are to be written anyway.
    fn look(&self) -> Result<Vec<(Span, Dirt)>, Why> {
        let mut seen: Vec<(Span, Dirt)> = Vec::new();
        memory::scan_dirt_and_files(&self.pagemap, whole(), &mut seen).map_err(cannot)?;
        let mut seen = &seen[..];
        let mut dirt = Vec::with_capacity(seen.len());
        for area in &self.areas {
            seen = &seen[seen.partition_point(|(span, _)| span.end <= area.span.start)..];
            let own = seen.iter().take_while(|(span, _)| span.start < area.span.end);
            let own = own.map(|(span, dirt)| (part_of(*span, area.span), *dirt));
            let of_file = area.under != Under::Zeroes;
            let is_clear = match (area.bare, area.watched) {
                _ if !of_file => true,
                (true, _) => !own.clone().any(|(_, dirt)| dirt.swapped),
                // Thrown away, and read since: it counts as not written, and is the file's.
                (false, true) => false,
                (false, false) => own.clone().all(|(span, _)| self.is_stored(span)),
            };
            if !is_clear {
                let first = dirt.len();
                memory::scan_dirt(&self.pagemap, area.span, &mut dirt).map_err(cannot)?;
                // Thrown away, and not read since, it leaves a marker.
                dirt[first..]
                    .iter_mut()
                    .for_each(|(_, dirt)| dirt.written |= dirt.swapped);
            } else if !area.bare {
                dirt.extend(own);
            }
        }
        Ok(dirt)
    }

    fn is_stored(&self, span: Span) -> bool {
        let after = self.stored_spans.partition_point(|stored| stored.end <= span.start);
        let stored = self.stored_spans.get(after);
        stored.is_some_and(|stored| stored.start <= span.start && span.end <= stored.end)
    }

    /// Has pages that the appshot does not store hold what is under them. Zeroes are added to
    /// what is to be copied.
    fn take_own(&self, foreign: &[Span], pieces: &mut Vec<(u64, &[u8])>) -> Result<(), Why> {
        for (span, area) in self.by_area(foreign) {
            match &area.under {
                Under::File { path, offset } => {
                    let offset = offset + (span.start - area.span.start);
                    self.force(span.start, &file_content(path, offset, span)?)?;
                }
                Under::Zeroes => {
                    let all = (span.start..span.end).step_by(PAGE as usize);
                    pieces.extend(all.map(|at| (at, &ZEROES[..])));
                }
            }
        }
        Ok(())
    }

    /// Parts of spans that lie in a private mapping, each with its own.
    fn by_area(&self, spans: &[Span]) -> Vec<(Span, &Area)> {
        let mut parts = Vec::new();
        for span in spans {
            let first = self.areas.partition_point(|area| area.span.end <= span.start);
            for area in self.areas[first..].iter().take_while(|area| area.span.start < span.end) {
                parts.push((part_of(*span, area.span), area));
            }
        }
        parts
    }

    /// Writes to these pages, which were just written, are noted from now on.
    pub fn watch(&self, written: &[Span]) -> Result<(), Why> {
        // A call takes as long as a look at so many pages.
        const APART_PAGES: u64 = 512;
        let mut spans = written.iter().copied();
        let Some(mut next) = spans.next() else { return Ok(()) };
        let again = |span| memory::watch_again(&self.pagemap, span);
        let failed = |errno| failed("its pages cannot be watched")(&errno);
        for span in spans {
            if span.start - next.end > APART_PAGES * PAGE {
                again(next).map_err(failed)?;
                next.start = span.start;
            }
            next.end = span.end;
        }
        again(next).map_err(failed)
    }

    /// Parts of a span that are stored in one row, and where.
    fn segments(&self, span: Span) -> impl Iterator<Item = (Span, Place)> {
        let own = Segment::among(&self.stored, span.start..span.end);
        own.iter().map(move |segment| {
            let part = Span {
                start: segment.vaddr.max(span.start),
                end: (segment.vaddr + segment.bytes).min(span.end),
            };
            (part, segment.place().ahead(part.start - segment.vaddr))
        })
    }

    /// Writes what the process itself may not write to; answers the rest.
    fn write_forced<'a>(&self, mut pieces: Vec<(u64, &'a [u8])>) -> Result<Vec<(u64, &'a [u8])>, Why> {
        let may_write = |address: u64| {
            let after = self.areas.partition_point(|area| area.span.end <= address);
            self.areas.get(after).is_some_and(|area| area.write)
        };
        for (address, bytes) in pieces.extract_if(.., |(address, _)| !may_write(*address)) {
            self.force(address, bytes)?;
        }
        Ok(pieces)
    }

    fn force(&self, address: u64, bytes: &[u8]) -> Result<(), Why> {
        let written = self.mem.write_all_at(bytes, address);
        written.map_err(|error| failed("its memory cannot be put back")(&error))
    }
}

/// What is to be copied into a process, by several threads at once.
#[derive(Debug)]
pub struct Copies<'a> {
    pid: HostPid,
    pieces: Vec<(u64, &'a [u8])>,
    /// So many of them somebody has taken on.
    taken: AtomicUsize,
}

impl Copies<'_> {
    /// Copies what nobody else does.
    pub fn make(&self) -> Result<(), Why> {
        loop {
            let first = self.taken.fetch_add(PIECES_AT_ONCE, Ordering::Relaxed);
            let Some(own) = self.pieces.get(first..).filter(|rest| !rest.is_empty()) else {
                return Ok(());
            };
            memory::write_all(self.pid, &own[..own.len().min(PIECES_AT_ONCE)]).map_err(cannot)?;
        }
    }
}

fn cannot(errno: nix::errno::Errno) -> Why {
    failed("its memory cannot be put back")(&errno)
}

pub fn pages_of(spans: &[Span]) -> u64 {
    spans.iter().map(Span::len).sum::<u64>() / PAGE
}

fn part_of(span: Span, of: Span) -> Span {
    Span {
        start: span.start.max(of.start),
        end: span.end.min(of.end),
    }
}

fn whole() -> Span {
    Span { start: 0, end: TOP }
}

fn segment_span(segment: &Segment) -> Span {
    Span {
        start: segment.vaddr,
        end: segment.vaddr + segment.bytes,
    }
}

/// What a page of a private file mapping holds before it is written to: zeroes behind the
/// end of the file.
fn file_content(path: &str, offset: u64, span: Span) -> Result<Vec<u8>, Why> {
    let cannot = |e: std::io::Error| failed("a mapped file cannot be read")(&e);
    let file = File::open(path).map_err(cannot)?;
    let mut bytes = vec![0; span.len() as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        match file
            .read_at(&mut bytes[filled..], offset + filled as u64)
            .map_err(cannot)?
        {
            0 => break,
            got => filled += got,
        }
    }
    Ok(bytes)
}

/// Whether what is mapped now belongs to what was mapped there, but for protection.
fn is_same(had: &Mapping, now: &Mapping) -> bool {
    let shift = now.start.wrapping_sub(had.start);
    let aligned = had.ino == 0 || now.offset == had.offset.wrapping_add(shift);
    had.shared == now.shared && had.dev == now.dev && had.ino == now.ino && had.name == now.name && aligned
}
