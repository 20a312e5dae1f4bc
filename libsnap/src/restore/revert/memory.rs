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
use std::os::unix::fs::FileExt;

/// What ends a process's address space.
const TOP: u64 = 0x7fff_ffff_f000;
/// Mappings with fewer pages of their own need not be watched.
const WATCHED_PAGES_MIN: u64 = 4;
/// More than this is sooner had anew.
const PAGES_MAX: u64 = 16 << 10;
/// iovecs of one process_vm_writev (UIO_MAXIOV).
const PIECES_MAX: usize = 1024;
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
}

/// The address space of a process.
#[derive(Debug)]
pub struct Space {
    pid: HostPid,
    pagemap: File,
    mem: File,
    maps: Text,
    was: Vec<u8>,
    smaps: Text,
    before: Vec<Mapping>,
    areas: Vec<Area>,
    /// In the order of addresses.
    stored: Vec<Segment>,
    /// What may be owed.
    brought: Vec<Span>,
    /// Code of the kernel's, of which it has no pages of its own.
    vdso: Vec<Span>,
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

fn flags(mapping: &Mapping) -> impl Iterator<Item = &String> {
    const NEVER: [&str; 8] = ["um", "uw", "ui", "sl", "ht", "ss", "io", "pf"];
    let counts = |flag: &&String| VMA_FLAGS.contains(&flag.as_str()) || NEVER.contains(&flag.as_str());
    mapping.flags.iter().filter(counts)
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
            let span = Span::from(vma);
            let under = match &vma.kind {
                VmaKind::Anon => Under::Zeroes,
                VmaKind::PrivateFile { path, offset } => Under::File {
                    path: path.clone(),
                    offset: *offset,
                },
                VmaKind::SharedFile { .. } | VmaKind::Vvar | VmaKind::Vdso => continue,
                VmaKind::Shm { .. } => return Err(Why::anew("it has shared memory")),
            };
            let write = vma.prot & libc::PROT_WRITE as u32 != 0;
            areas.push(Area { span, under, write });
        }
        let vdso = core.image.vmas.iter().filter(|vma| vma.kind == VmaKind::Vdso);
        let vdso: Vec<Span> = vdso.map(Span::from).collect();
        let within = |address: u64| full.iter().any(|span| (span.start..span.end).contains(&address));
        let mut stored: Vec<Segment> = core.segments.iter().filter(|s| !within(s.vaddr)).copied().collect();
        stored.sort_unstable_by_key(|segment| segment.vaddr);
        let mut dirt = Vec::new();
        memory::scan_dirt(&pagemap, whole(), &mut dirt).map_err(|e| failed("its pages cannot be seen")(&e))?;
        // What the pager has registered is noted already.
        let before = proc::mappings(pid).map_err(|e| failed("its mappings cannot be read")(&e))?;
        for area in &areas {
            let known = before.iter().find(|mapping| mapping.start == area.span.start);
            let has = |flag| known.is_some_and(|mapping| mapping.has(flag));
            let there = dirt
                .iter()
                .filter(|(span, _)| area.span.start <= span.start && span.end <= area.span.end);
            let pages: u64 = there.map(|(span, _)| span.len() / PAGE).sum();
            if has("um") {
                brought.push(area.span);
            } else if pages >= WATCHED_PAGES_MIN && !has("gd") {
                // Where it cannot be, all of it counts as written.
                faults.watch(area.span).ok();
            }
        }
        memory::watch_again(&pagemap, whole()).map_err(|e| failed("its pages cannot be watched")(&e))?;
        let maps = Text::open(&format!("/proc/{pid}/maps")).map_err(opened)?;
        Ok(Space {
            pid,
            pagemap,
            mem: File::options()
                .read(true)
                .write(true)
                .open(format!("/proc/{pid}/mem"))
                .map_err(|e| failed("its memory cannot be opened")(&e))?,
            was: maps.read().map_err(|e| failed("its mappings cannot be read")(&e))?,
            maps,
            smaps: Text::open(&format!("/proc/{pid}/smaps")).map_err(opened)?,
            // With what has just been registered.
            before: proc::mappings(pid).map_err(|e| failed("its mappings cannot be read")(&e))?,
            vdso,
            areas,
            stored,
            brought,
        })
    }

    /// Flags of all mappings are what they were. This takes long: the kernel looks at
    /// every page to answer.
    pub fn compare_flags(&self) -> Result<(), Why> {
        let text = self
            .smaps
            .read()
            .map_err(|e| failed("its mappings cannot be read")(&e))?;
        let now = proc::parse_mappings(&String::from_utf8_lossy(&text));
        let mut had = self.before.iter().peekable();
        for mapping in &now {
            while had.next_if(|had| had.end <= mapping.start).is_some() {}
            let Some(had) = had.peek().filter(|had| had.start < mapping.end) else {
                continue;
            };
            if !flags(had).eq(flags(mapping)) {
                let range = format!("{:x}-{:x}", mapping.start, mapping.end);
                return Err(Why::anew(format!("its mapping {range} has other advice or locks")));
            }
        }
        Ok(())
    }

    /// What its mappings are now, as far as that can be undone.
    pub fn compare(&self) -> Result<Remapped, Why> {
        let text = self
            .maps
            .read()
            .map_err(|e| failed("its mappings cannot be read")(&e))?;
        let mut remapped = Remapped::default();
        if text == self.was {
            remapped.now = self.before.iter().map(Mapping::span).collect();
            return Ok(remapped);
        }
        let now = proc::parse_mappings(&String::from_utf8_lossy(&text));
        remapped.now = now.iter().map(Mapping::span).collect();
        let mut missing: Vec<Span> = self.before.iter().map(Mapping::span).collect();
        for mapping in &now {
            if mapping.name.starts_with("/[aio]") {
                return Err(Why::anew("it has begun to read and write asynchronously (aio)"));
            }
            let own = [mapping.span()];
            let mut new = own.to_vec();
            let first = self.before.partition_point(|had| had.end <= mapping.start);
            for had in self.before[first..].iter().take_while(|had| had.start < mapping.end) {
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
        let was = proc::parse_mappings(&String::from_utf8_lossy(&self.was));
        let mut now = proc::parse_mappings(&String::from_utf8_lossy(&text));
        now.retain(|mapping| mapping.end <= executor.start || executor.end <= mapping.start);
        match now == was {
            true => Ok(()),
            false => Err(Why::anew("its mappings were split or put together")),
        }
    }

    /// Puts every page back, from parts that are held; what was thrown away is owed again.
    /// Answers how many were written.
    pub fn put_back(&self, opened: &Opened, owed: &mut Owed) -> Result<u64, Why> {
        let cannot = |errno: nix::errno::Errno| failed("its memory cannot be put back")(&errno);
        let mut dirt: Vec<(Span, Dirt)> = Vec::new();
        memory::scan_dirt(&self.pagemap, whole(), &mut dirt).map_err(cannot)?;
        let spans = |wanted: fn(&Dirt) -> bool| {
            let some = dirt.iter().filter(|(_, dirt)| wanted(dirt));
            pages::union(&some.map(|(span, _)| *span).collect::<Vec<_>>(), &[])
        };
        let there = spans(|_| true);
        if !pages::within(&there, &self.vdso).is_empty() {
            return Err(Why::anew("it has written to its vdso"));
        }
        let changed = spans(|dirt| dirt.written || dirt.zero);
        let own = spans(|dirt| dirt.written && !dirt.zero);
        let stored: Vec<Span> = self.stored.iter().map(segment_span).collect();
        let stored = pages::union(&stored, &[]);
        let rewritten = pages::within(&changed, &stored);
        let foreign = self.by_area(&pages::without(&own, &stored));
        let absent = pages::without(&stored, &there);
        let owing = absent.iter().flat_map(|span| owed.within(*span).collect::<Vec<_>>());
        let absent = pages::without(&absent, &owing.collect::<Vec<_>>());
        let again = pages::within(&absent, &self.brought);
        let absent = pages::without(&absent, &self.brought);
        let count = |spans: &[Span]| spans.iter().map(Span::len).sum::<u64>() / PAGE;
        let pages = count(&rewritten) + count(&absent) + foreign.iter().map(|(span, _)| span.len() / PAGE).sum::<u64>();
        if pages > PAGES_MAX {
            return Err(Why::anew(format!("it has written {pages} pages")));
        }
        let mut files = Vec::new();
        let mut pieces: Vec<(u64, &[u8])> = Vec::new();
        for span in rewritten.iter().chain(&absent) {
            for (part, place) in self.segments(*span) {
                let held = opened.held(place.part);
                let held = held.ok_or_else(|| Why::anew("the appshot is not held"))?;
                pieces.push((part.start, &held[place.offset as usize..][..part.len() as usize]));
            }
        }
        for (span, area) in foreign {
            match &area.under {
                Under::File { path, offset } => {
                    let offset = offset + (span.start - area.span.start);
                    files.push((span.start, file_content(path, offset, span)?));
                }
                Under::Zeroes => {
                    let all = (span.start..span.end).step_by(PAGE as usize);
                    pieces.extend(all.map(|at| (at, &ZEROES[..])));
                }
            }
        }
        pieces.extend(files.iter().map(|(at, content)| (*at, content.as_slice())));
        self.write(&pieces).map_err(cannot)?;
        for span in again {
            for (part, place) in self.segments(span) {
                owed.owe(part, place);
            }
        }
        Ok(pages)
    }

    /// Parts of spans that lie in a private mapping, each with its own.
    fn by_area(&self, spans: &[Span]) -> Vec<(Span, &Area)> {
        let mut parts = Vec::new();
        for span in spans {
            let first = self.areas.partition_point(|area| area.span.end <= span.start);
            for area in self.areas[first..].iter().take_while(|area| area.span.start < span.end) {
                let part = Span {
                    start: span.start.max(area.span.start),
                    end: span.end.min(area.span.end),
                };
                parts.push((part, area));
            }
        }
        parts
    }

    /// Writes are noted from now on.
    pub fn watch(&self) -> Result<(), Why> {
        memory::watch_again(&self.pagemap, whole()).map_err(|e| failed("its pages cannot be watched")(&e))
    }

    /// Parts of a span that are stored in one row, and where.
    fn segments(&self, span: Span) -> impl Iterator<Item = (Span, Place)> {
        let first = self.stored.partition_point(|s| s.vaddr + s.bytes <= span.start);
        let own = self.stored[first..].iter().take_while(move |s| s.vaddr < span.end);
        own.map(move |segment| {
            let part = Span {
                start: segment.vaddr.max(span.start),
                end: (segment.vaddr + segment.bytes).min(span.end),
            };
            (part, segment.place().ahead(part.start - segment.vaddr))
        })
    }

    fn write(&self, pieces: &[(u64, &[u8])]) -> crate::sys::Sys<()> {
        let may_write = |address: u64| {
            let after = self.areas.partition_point(|area| area.span.end <= address);
            self.areas.get(after).is_some_and(|area| area.write)
        };
        let (plain, forced): (Vec<_>, Vec<_>) = pieces.iter().partition(|(address, _)| may_write(*address));
        for some in plain.chunks(PIECES_MAX) {
            memory::write_all(self.pid, some)?;
        }
        for (address, bytes) in forced {
            let written = self.mem.write_all_at(bytes, address);
            written.map_err(|error| nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        }
        Ok(())
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
