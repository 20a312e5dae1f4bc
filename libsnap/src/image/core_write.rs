//! Writes the core file of one process.

use super::blocks::PartFile;
use super::elf::{HEADER_BYTES, Kind, Phdr, Tables};
use super::process::{ProcessImage, Segment};
use super::records::Vma;
use super::{PAGE, limits, notes};
use crate::error::{Error, Kind as ErrorKind, Result};

const PAGE_BYTES: usize = PAGE as usize;
static ZERO_PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

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

    /// Adds pages, in ascending order of addresses. Zero pages are left out:
    /// they must belong to mappings where absent pages read as zeroes. So a
    /// zero page over file content must be given to [`CoreWriter::pages_as_is`].
    pub fn pages(&mut self, vaddr: u64, prot: u32, bytes: &[u8]) -> Result<()> {
        self.check_order(vaddr, bytes)?;
        let mut pages = bytes.chunks_exact(PAGE_BYTES).map(|page| page == ZERO_PAGE).enumerate();
        let mut run_start = None;
        loop {
            let next = pages.next();
            match (next, run_start) {
                (Some((page, false)), None) => run_start = Some(page * PAGE_BYTES),
                (Some((_, false)), Some(_)) | (Some((_, true)), None) => {}
                (Some((_, true)) | None, Some(start)) => {
                    let end = next.map_or(bytes.len(), |(page, _)| page * PAGE_BYTES);
                    self.store(vaddr + start as u64, prot, &bytes[start..end])?;
                    run_start = None;
                }
                (None, None) => return Ok(()),
            }
        }
    }

    /// Adds pages without leaving out any: zero pages of a private file
    /// mapping differ from the file and must be kept.
    pub fn pages_as_is(&mut self, vaddr: u64, prot: u32, bytes: &[u8]) -> Result<()> {
        self.check_order(vaddr, bytes)?;
        if bytes.is_empty() {
            Ok(())
        } else {
            self.store(vaddr, prot, bytes)
        }
    }

    /// Memory stored so far.
    pub fn stored_bytes(&self) -> u64 {
        self.part.bytes() - HEADER_BYTES
    }

    fn check_order(&self, vaddr: u64, bytes: &[u8]) -> Result<()> {
        let last = self.runs.last().map_or(0, |run| run.segment.vaddr + run.segment.bytes);
        let whole = vaddr.is_multiple_of(PAGE) && bytes.len().is_multiple_of(PAGE_BYTES);
        let fits = vaddr.checked_add(bytes.len() as u64).is_some();
        if whole && fits && vaddr >= last {
            return Ok(());
        }
        Err(self.misuse(format!("memory at {vaddr:#x}, {} bytes, after {last:#x}", bytes.len())))
    }

    fn store(&mut self, vaddr: u64, prot: u32, bytes: &[u8]) -> Result<()> {
        let offset = self.part.bytes();
        let length = bytes.len() as u64;
        self.part.put(bytes)?;
        match self.runs.last_mut() {
            Some(Run { segment, prot: last }) if segment.vaddr + segment.bytes == vaddr && *last == prot => {
                segment.bytes += length;
            }
            _ => self.runs.push(Run {
                segment: Segment {
                    vaddr,
                    offset,
                    bytes: length,
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
