//! Writes the core file of one process.

use super::blocks::{Memory, PartFile};
use super::elf::{HEADER_BYTES, Kind, Phdr, Tables};
use super::process::{ProcessImage, Segment};
use super::records::Vma;
use super::{PAGE, limits, notes};
use crate::error::{Error, Kind as ErrorKind, Result};
use std::ops::Range;
use std::sync::Arc;

/// A core file in the making: memory first, everything else with `finish`.
#[must_use = "a part counts once it is finished"]
#[derive(Debug)]
pub struct CoreWriter {
    part: PartFile,
    runs: Vec<Run>,
}

/// Stored pages that are next to each other with the same protection.
#[derive(Clone, Copy, Debug)]
struct Run {
    segment: Segment,
    prot: u32,
}

impl CoreWriter {
    pub(super) fn new(mut part: PartFile) -> Result<Self> {
        // The header is filled in last: it says where the tables are.
        part.put(&[0; HEADER_BYTES as usize])?;
        Ok(CoreWriter { part, runs: Vec::new() })
    }

    /// Adds pages, in ascending order of addresses.
    pub fn pages(&mut self, vaddr: u64, prot: u32, bytes: &[u8]) -> Result<()> {
        self.enter(vaddr, prot, bytes.len() as u64)?;
        self.part.put(bytes)
    }

    /// The same, with the pages that are at these addresses.
    pub fn memory(&mut self, span: Range<u64>, prot: u32, memory: &Arc<dyn Memory>) -> Result<()> {
        self.enter(span.start, prot, span.end - span.start)?;
        self.part.put_memory(memory, span)
    }

    /// Memory stored so far.
    pub fn stored_bytes(&self) -> u64 {
        self.part.bytes() - HEADER_BYTES
    }

    fn enter(&mut self, vaddr: u64, prot: u32, bytes: u64) -> Result<()> {
        let last = self.runs.last().map_or(0, |run| run.segment.vaddr + run.segment.bytes);
        let whole = vaddr.is_multiple_of(PAGE) && bytes.is_multiple_of(PAGE);
        let fits = vaddr.checked_add(bytes).is_some();
        if !(whole && fits && vaddr >= last) {
            return Err(self.misuse(format!("memory at {vaddr:#x}, {bytes} bytes, after {last:#x}")));
        }
        match self.runs.last_mut() {
            Some(Run { segment, prot: last }) if segment.vaddr + segment.bytes == vaddr && *last == prot => {
                segment.bytes += bytes;
            }
            _ => self.runs.push(Run {
                segment: Segment {
                    vaddr,
                    offset: self.part.bytes(),
                    bytes,
                },
                prot,
            }),
        }
        Ok(())
    }

    /// Writes the notes and tables. Fails if a stored page lies in no mapping.
    pub fn finish(mut self, image: &ProcessImage) -> Result<()> {
        let notes = notes::encode(image)?;
        let note = Phdr {
            kind: Kind::Note,
            prot: 0,
            offset: self.part.bytes(),
            vaddr: 0,
            file_bytes: notes.len() as u64,
            memory_bytes: 0,
        };
        let loads = loads(&self.runs, &image.vmas, note.offset).map_err(|detail| self.misuse(detail))?;
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
