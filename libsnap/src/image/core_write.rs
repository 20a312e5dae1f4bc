//! Writes the core file of one process.

use super::blocks::{Memory, PartFile};
use super::elf::{HEADER_BYTES, Kind, Phdr, Tables};
use super::lenders::{Base, Lenders};
use super::process::{Place, ProcessImage, Segment};
use super::records::Vma;
use super::{PAGE, limits, notes};
use crate::error::{Error, Kind as ErrorKind, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// A core file in the making: memory first, everything else with `finish`.
#[must_use = "a part counts once it is finished"]
#[derive(Debug)]
pub struct CoreWriter {
    part: PartFile,
    lenders: Arc<Lenders>,
    /// What is stored or borrowed, by address.
    runs: BTreeMap<u64, Run>,
    /// Another appshot's view of the process, whose pages are borrowed where they are equal.
    base: Option<Base>,
}

/// Where the pages of a core that is finished are.
#[derive(Debug)]
pub struct Layout {
    part: String,
    lenders: Arc<Lenders>,
    runs: BTreeMap<u64, Run>,
}

/// Pages that are next to each other, in memory and in the file that holds them, with
/// the same protection. Its part is 0, or the id of a lender.
#[derive(Clone, Copy, Debug)]
struct Run {
    segment: Segment,
    prot: u32,
}

/// The number of the file itself.
const OWN: usize = 0;

impl Run {
    fn span(&self) -> Range<u64> {
        self.segment.vaddr..self.segment.end()
    }
}

/// Cuts a span where runs begin and end, with their places.
fn places(runs: &BTreeMap<u64, Run>, mut span: Range<u64>) -> Vec<(Range<u64>, Option<Place>)> {
    let mut found = Vec::new();
    let before = runs.range(..=span.start).next_back();
    let mut after = before
        .into_iter()
        .chain(runs.range(span.start + 1..))
        .map(|(_, run)| run);
    while !span.is_empty() {
        let Some(run) = after
            .next()
            .map(|run| (run.span(), run.segment.place()))
            .filter(|(own, _)| own.start < span.end)
        else {
            found.push((span, None));
            break;
        };
        let (own, place) = run;
        if own.end <= span.start {
            continue;
        }
        if own.start > span.start {
            found.push((span.start..own.start, None));
            span.start = own.start;
        }
        let end = own.end.min(span.end);
        found.push((span.start..end, Some(place.ahead(span.start - own.start))));
        span.start = end;
    }
    found
}

/// Enters pages that are in no run yet.
fn join(runs: &mut BTreeMap<u64, Run>, span: Range<u64>, Place { part, offset }: Place, prot: u32) {
    if let Some((_, last)) = runs.range_mut(..span.start).next_back() {
        let segment = &mut last.segment;
        let meets = segment.end() == span.start && segment.part == part && segment.offset + segment.bytes == offset;
        if last.prot == prot && meets {
            segment.bytes += span.end - span.start;
            return;
        }
    }
    let (vaddr, bytes) = (span.start, span.end - span.start);
    let segment = Segment {
        vaddr,
        part,
        offset,
        bytes,
    };
    runs.insert(vaddr, Run { segment, prot });
}

/// Takes a span out.
fn cut(runs: &mut BTreeMap<u64, Run>, span: &Range<u64>) {
    let before = runs.range(..span.end).rev();
    let met: Vec<Run> = before
        .map(|(_, run)| *run)
        .take_while(|run| run.span().end > span.start)
        .collect();
    for Run { segment, prot } in met {
        runs.remove(&segment.vaddr);
        let head = segment.vaddr..span.start.max(segment.vaddr);
        let tail = span.end.min(segment.end())..segment.end();
        for part in [head, tail].into_iter().filter(|part| !part.is_empty()) {
            let place = segment.place().ahead(part.start - segment.vaddr);
            join(runs, part, place, prot);
        }
    }
}

impl CoreWriter {
    pub(super) fn new(mut part: PartFile, lenders: Arc<Lenders>, base: Option<Base>) -> Result<Self> {
        // The header is filled in last: it says where the tables are.
        part.put(&[0; HEADER_BYTES as usize])?;
        Ok(CoreWriter {
            part,
            lenders,
            runs: BTreeMap::new(),
            base,
        })
    }

    /// Adds pages that are not stored yet, behind the others.
    pub fn pages(&mut self, vaddr: u64, prot: u32, bytes: &[u8]) -> Result<()> {
        self.enter(vaddr, prot, bytes.len() as u64)?;
        self.part.put(bytes)
    }

    /// The same, with the pages that are at these addresses; where the parent has them
    /// too, they are borrowed.
    pub fn memory(&mut self, span: Range<u64>, prot: u32, memory: &Arc<dyn Memory>) -> Result<()> {
        let Some(mut base) = self.base.take() else {
            self.enter(span.start, prot, span.end - span.start)?;
            return self.part.put_memory(memory, span);
        };
        let lenders = Arc::clone(&self.lenders);
        let stored = base.compare(&lenders, span, memory, |part, content, place| match place {
            Some(place) => self.lend(part, place),
            None => self.pages(part.start, prot, content),
        });
        self.base = Some(base);
        stored
    }

    /// Adds pages that another core of the appshot holds at the same addresses, or
    /// borrows itself.
    pub fn borrow(&mut self, span: Range<u64>, from: &Layout) -> Result<()> {
        for (part, place) in from.places(span)? {
            self.lend(part, place)?;
        }
        Ok(())
    }

    fn lend(&mut self, span: Range<u64>, place: Place) -> Result<()> {
        self.vacate(&span)?;
        // Nobody asks for the protection of what has no header.
        join(&mut self.runs, span, place, 0);
        Ok(())
    }

    /// Waits until all memory that was added is read.
    pub fn settle(&mut self) -> Result<()> {
        self.part.settle()
    }

    /// Puts on disk what is [settled](Self::settle), and reads it back.
    pub fn prove(&self) -> Result<()> {
        self.part.prove()
    }

    /// Puts other pages in the place of those that were stored, and
    /// [settled](Self::settle), before; answers which were not.
    pub fn replace(&mut self, span: Range<u64>, memory: &Arc<dyn Memory>) -> Result<Vec<Range<u64>>> {
        let mut missing = Vec::new();
        for (part, place) in self.places(span) {
            match place {
                Some(Place { part: OWN, offset }) => self.part.rewrite(offset, memory, part)?,
                _ => missing.push(part),
            }
        }
        Ok(missing)
    }

    /// Of all that is stored or borrowed, only what lies in these ascending spans is to
    /// stay, with this protection. The rest becomes holes of the file.
    pub fn retain(&mut self, spans: &[(Range<u64>, u32)]) -> Result<()> {
        let mut kept = BTreeMap::new();
        for (span, prot) in spans {
            for (part, place) in self.places(span.clone()) {
                if let Some(place) = place {
                    join(&mut kept, part, place, *prot);
                }
            }
        }
        let before = std::mem::replace(&mut self.runs, kept);
        for run in before.into_values().filter(|run| run.segment.part == OWN) {
            for (part, place) in self.places(run.span()) {
                if place.is_none() {
                    let at = run.segment.offset + (part.start - run.segment.vaddr);
                    self.part.erase(at, part.end - part.start)?;
                }
            }
        }
        Ok(())
    }

    /// Memory stored so far.
    pub fn stored_bytes(&self) -> u64 {
        let own = self.runs.values().filter(|run| run.segment.part == OWN);
        own.map(|run| run.segment.bytes).sum()
    }

    /// Throws the part away.
    pub fn forget(self) {
        self.part.forget();
    }

    pub fn name(&self) -> &str {
        self.part.name()
    }

    fn enter(&mut self, vaddr: u64, prot: u32, bytes: u64) -> Result<()> {
        let end = vaddr.checked_add(bytes).unwrap_or(0);
        self.vacate(&(vaddr..end))?;
        let place = Place {
            part: OWN,
            offset: self.part.bytes(),
        };
        join(&mut self.runs, vaddr..end, place, prot);
        Ok(())
    }

    /// Nothing is borrowed for this span any more; nothing may be stored there.
    fn vacate(&mut self, span: &Range<u64>) -> Result<()> {
        let whole = span.start.is_multiple_of(PAGE) && span.end.is_multiple_of(PAGE) && span.start < span.end;
        let own = |place: &Option<Place>| place.is_some_and(|place| place.part == OWN);
        if !whole || self.places(span.clone()).iter().any(|(_, place)| own(place)) {
            let Range { start, end } = span;
            return Err(self.misuse(format!("memory at {start:#x} to {end:#x}, once more")));
        }
        cut(&mut self.runs, span);
        Ok(())
    }

    fn places(&self, span: Range<u64>) -> Vec<(Range<u64>, Option<Place>)> {
        places(&self.runs, span)
    }

    /// Writes the notes and tables; answers where the pages are. Fails if one lies in no
    /// mapping.
    pub fn finish(mut self, image: &ProcessImage) -> Result<Layout> {
        let runs = self.runs.values().copied();
        let (runs, borrowed): (Vec<Run>, Vec<Run>) = runs.partition(|run| run.segment.part == OWN);
        let mut borrowed = cut_at_mappings(&borrowed, &image.vmas).map_err(|detail| self.misuse(detail))?;
        for segment in &mut borrowed {
            segment.part = self.lenders.list(segment.part);
        }
        let notes = notes::encode(image, &borrowed)?;
        let note = Phdr {
            kind: Kind::Note,
            prot: 0,
            offset: self.part.bytes(),
            vaddr: 0,
            file_bytes: notes.len() as u64,
            memory_bytes: 0,
        };
        let loads = loads(&runs, &image.vmas, note.offset).map_err(|detail| self.misuse(detail))?;
        if loads.len() as u64 >= limits::SEGMENTS_PER_CORE || note.file_bytes > limits::NOTES_BYTES {
            return Err(self.misuse(format!("{} segments, {} bytes of notes", loads.len(), notes.len())));
        }
        self.write_end(&notes, note, &loads)?;
        let layout = Layout {
            part: self.part.name().to_owned(),
            lenders: self.lenders,
            runs: self.runs,
        };
        self.part.finish()?;
        Ok(layout)
    }

    fn write_end(&mut self, notes: &[u8], note: Phdr, loads: &[Phdr]) -> Result<()> {
        self.part.put(notes)?;
        let padding = self.part.bytes().next_multiple_of(8) - self.part.bytes();
        self.part.put(&[0; 8][..padding as usize])?;
        let phnum = loads.len() as u64 + 1;
        let mut tables = Tables {
            phoff: self.part.bytes(),
            phnum,
        };
        if Tables::extended(phnum) {
            self.part.put(&tables.section_header())?;
            tables.phoff = self.part.bytes();
        }
        self.part.put(&note.bytes())?;
        for load in loads {
            self.part.put(&load.bytes())?;
        }
        self.part.replace_start(&tables.header());
        Ok(())
    }

    fn misuse(&self, detail: String) -> Error {
        Error::new(
            ErrorKind::Failed,
            format!("cannot write appshot part {}", self.part.name()),
        )
        .because(format!("{detail}: the format does not allow this"))
    }
}

impl Layout {
    /// Where the pages of a span are, for another core of the same appshot. All of them
    /// must be somewhere.
    fn places(&self, span: Range<u64>) -> Result<Vec<(Range<u64>, Place)>> {
        let mut own = None;
        let place = |(span, place): (Range<u64>, Option<Place>)| match place {
            Some(Place { part: OWN, offset }) => {
                let part = *own.get_or_insert_with(|| self.lenders.id(None, &self.part));
                Ok((span, Place { part, offset }))
            }
            Some(place) => Ok((span, place)),
            None => Err(Error::failed(format!(
                "cannot borrow the memory at {:#x} from {}",
                span.start, self.part
            ))
            .because("nothing is stored there")),
        };
        places(&self.runs, span).into_iter().map(place).collect()
    }
}

/// Cuts runs where mappings begin and end.
fn cut_at_mappings(runs: &[Run], vmas: &[Vma]) -> Result<Vec<Segment>, String> {
    let mut segments = Vec::with_capacity(runs.len());
    let mut vmas = vmas.iter().peekable();
    for Run { segment, .. } in runs {
        let mut at = segment.vaddr;
        while at < segment.end() {
            while vmas.next_if(|vma| vma.end <= at).is_some() {}
            let own = vmas.peek().filter(|vma| vma.start <= at);
            let own = own.ok_or_else(|| format!("memory at {at:#x} lies in no mapping"))?;
            let end = own.end.min(segment.end());
            let Place { part, offset } = segment.place().ahead(at - segment.vaddr);
            segments.push(Segment {
                vaddr: at,
                part,
                offset,
                bytes: end - at,
            });
            at = end;
        }
    }
    Ok(segments)
}

/// Cuts the runs where mappings begin and end, and tiles every mapping with
/// headers, so that gdb shows absent pages as zeroes. A header without pages
/// has the offset of the next page: at offset 0 gdb would find this file's own
/// ELF header, take it for a mapped program, and read all notes once more.
fn loads(runs: &[Run], vmas: &[Vma], memory_end: u64) -> Result<Vec<Phdr>, String> {
    let mut loads: Vec<Phdr> = Vec::with_capacity(runs.len() + vmas.len());
    let mut rest = runs.iter().copied();
    let mut run = rest.next();
    for vma in vmas {
        let first = loads.len();
        let offset = run.map_or(memory_end, |run| run.segment.offset);
        while let Some(Run { segment, prot }) = run.filter(|run| run.segment.vaddr < vma.end) {
            if segment.vaddr < vma.start {
                break;
            }
            let bytes = segment.bytes.min(vma.end - segment.vaddr);
            loads.push(load(prot, segment.offset, segment.vaddr, bytes));
            run = if bytes < segment.bytes {
                let segment = Segment {
                    vaddr: segment.vaddr + bytes,
                    offset: segment.offset + bytes,
                    bytes: segment.bytes - bytes,
                    ..segment
                };
                Some(Run { segment, prot })
            } else {
                rest.next()
            };
        }
        if loads.get(first).is_none_or(|load| load.vaddr > vma.start) {
            loads.insert(first, load(vma.prot, offset, vma.start, 0));
        }
        stretch(&mut loads[first..], vma.end);
    }
    match run {
        Some(run) => Err(format!("memory at {:#x} lies in no mapping", run.segment.vaddr)),
        None => Ok(loads),
    }
}

fn load(prot: u32, offset: u64, vaddr: u64, file_bytes: u64) -> Phdr {
    Phdr {
        kind: Kind::Load,
        prot,
        offset,
        vaddr,
        file_bytes,
        memory_bytes: 0,
    }
}

/// Lets each header reach to the next one, the last to the end of the mapping.
fn stretch(loads: &mut [Phdr], end: u64) {
    let mut next = end;
    for load in loads.iter_mut().rev() {
        load.memory_bytes = next - load.vaddr;
        next = load.vaddr;
    }
}
