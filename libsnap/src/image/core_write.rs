//! Writes the core file of one process.

use super::blocks::{Memory, PartFile};
use super::elf::{HEADER_BYTES, Kind, Phdr, Tables};
use super::process::{ProcessImage, Segment};
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
    /// What is stored, by address.
    runs: BTreeMap<u64, Run>,
}

/// Stored pages that are next to each other, in memory and in the file, with the
/// same protection.
#[derive(Clone, Copy, Debug)]
struct Run {
    segment: Segment,
    prot: u32,
}

impl Run {
    fn span(&self) -> Range<u64> {
        self.segment.vaddr..self.segment.vaddr + self.segment.bytes
    }
}

/// Cuts a span where stored pages begin and end, with their places in the file.
fn places(runs: &BTreeMap<u64, Run>, mut span: Range<u64>) -> Vec<(Range<u64>, Option<u64>)> {
    let mut found = Vec::new();
    let before = runs.range(..=span.start).next_back();
    let mut after = before
        .into_iter()
        .chain(runs.range(span.start + 1..))
        .map(|(_, run)| run);
    while !span.is_empty() {
        let Some(run) = after
            .next()
            .map(|run| (run.span(), run.segment.offset))
            .filter(|(own, _)| own.start < span.end)
        else {
            found.push((span, None));
            break;
        };
        let (own, offset) = run;
        if own.end <= span.start {
            continue;
        }
        if own.start > span.start {
            found.push((span.start..own.start, None));
            span.start = own.start;
        }
        let end = own.end.min(span.end);
        found.push((span.start..end, Some(offset + (span.start - own.start))));
        span.start = end;
    }
    found
}

/// Enters pages that are in no run yet.
fn join(runs: &mut BTreeMap<u64, Run>, span: Range<u64>, offset: u64, prot: u32) {
    if let Some((_, last)) = runs.range_mut(..span.start).next_back() {
        let segment = &mut last.segment;
        if last.prot == prot && segment.vaddr + segment.bytes == span.start && segment.offset + segment.bytes == offset
        {
            segment.bytes += span.end - span.start;
            return;
        }
    }
    let (vaddr, bytes) = (span.start, span.end - span.start);
    let segment = Segment { vaddr, offset, bytes };
    runs.insert(vaddr, Run { segment, prot });
}

impl CoreWriter {
    pub(super) fn new(mut part: PartFile) -> Result<Self> {
        // The header is filled in last: it says where the tables are.
        part.put(&[0; HEADER_BYTES as usize])?;
        let runs = BTreeMap::new();
        Ok(CoreWriter { part, runs })
    }

    /// Adds pages that are not stored yet, behind the others.
    pub fn pages(&mut self, vaddr: u64, prot: u32, bytes: &[u8]) -> Result<()> {
        self.enter(vaddr, prot, bytes.len() as u64)?;
        self.part.put(bytes)
    }

    /// The same, with the pages that are at these addresses.
    pub fn memory(&mut self, span: Range<u64>, prot: u32, memory: &Arc<dyn Memory>) -> Result<()> {
        self.enter(span.start, prot, span.end - span.start)?;
        self.part.put_memory(memory, span)
    }

    /// Waits until all memory that was added is read.
    pub fn settle(&mut self) -> Result<()> {
        self.part.settle()
    }

    /// Puts other pages in the place of those that were stored, and
    /// [settled](Self::settle), before; answers which were not.
    pub fn replace(&mut self, span: Range<u64>, memory: &Arc<dyn Memory>) -> Result<Vec<Range<u64>>> {
        let mut missing = Vec::new();
        for (part, offset) in self.places(span) {
            match offset {
                Some(offset) => self.part.rewrite(offset, memory, part)?,
                None => missing.push(part),
            }
        }
        Ok(missing)
    }

    /// Of all that is stored, only what lies in these ascending spans is to stay, with
    /// this protection. The rest becomes holes of the file.
    pub fn retain(&mut self, spans: &[(Range<u64>, u32)]) -> Result<()> {
        let mut kept = BTreeMap::new();
        for (span, prot) in spans {
            for (part, offset) in self.places(span.clone()) {
                if let Some(offset) = offset {
                    join(&mut kept, part, offset, *prot);
                }
            }
        }
        for run in std::mem::replace(&mut self.runs, kept).into_values() {
            for (part, offset) in self.places(run.span()) {
                if offset.is_none() {
                    let at = run.segment.offset + (part.start - run.segment.vaddr);
                    self.part.erase(at, part.end - part.start)?;
                }
            }
        }
        Ok(())
    }

    /// Memory stored so far.
    pub fn stored_bytes(&self) -> u64 {
        self.runs.values().map(|run| run.segment.bytes).sum()
    }

    /// Throws the part away.
    pub fn forget(self) {
        self.part.forget();
    }

    pub fn name(&self) -> &str {
        self.part.name()
    }

    fn enter(&mut self, vaddr: u64, prot: u32, bytes: u64) -> Result<()> {
        let whole = vaddr.is_multiple_of(PAGE) && bytes.is_multiple_of(PAGE);
        let end = vaddr.checked_add(bytes).filter(|_| whole);
        let free = |end: &u64| self.places(vaddr..*end).iter().all(|(_, offset)| offset.is_none());
        let Some(end) = end.filter(free) else {
            return Err(self.misuse(format!("memory at {vaddr:#x}, {bytes} bytes, once more")));
        };
        join(&mut self.runs, vaddr..end, self.part.bytes(), prot);
        Ok(())
    }

    fn places(&self, span: Range<u64>) -> Vec<(Range<u64>, Option<u64>)> {
        places(&self.runs, span)
    }

    /// Writes the notes and tables. Fails if a stored page lies in no mapping.
    pub fn finish(mut self, image: &ProcessImage) -> Result<()> {
        let notes = notes::encode(image)?;
        let runs: Vec<Run> = self.runs.values().copied().collect();
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
        self.part.finish()
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
