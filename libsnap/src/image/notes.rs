//! The notes of a core file: threads, then the process.
//!
//! The standard notes are laid out as the kernel's `fs/binfmt_elf.c` does.
//! Registers and ids are read back from them. NT_PRPSINFO, NT_AUXV and
//! NT_FILE repeat what our records say; they are for gdb and never read back.

use super::elf::{HEADER_BYTES, u32_at, u64_at};
use super::fault::{corrupt, ensure};
use super::limits;
use super::process::{ProcessImage, REGISTERS, Segment, ThreadImage};
use super::records::{ThreadRecord, Vma, VmaKind};
use crate::error::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};

const NT_PRSTATUS: u32 = 1;
const NT_FPREGSET: u32 = 2;
const NT_PRPSINFO: u32 = 3;
const NT_AUXV: u32 = 6;
const NT_FILE: u32 = 0x4649_4c45;
const NT_X86_XSTATE: u32 = 0x202;
/// `APS` and 1, 2, 3, 4: see the module above for why these are large.
const PROCESS: u32 = 0x4150_5301;
const THREAD: u32 = 0x4150_5302;
const VMAS: u32 = 0x4150_5303;
const BORROWED: u32 = 0x4150_5304;

const PRSTATUS_BYTES: usize = 336;
const PRSTATUS_IDS: usize = 32;
const PRSTATUS_REGISTERS: usize = 112;
const PRPSINFO_BYTES: usize = 136;
const FPREGSET_BYTES: usize = 512;
/// Address, bytes, lender from 1 on, offset.
const BORROWED_BYTES: usize = 32;

/// All notes of a process. `borrowed`: its segments that other parts hold.
pub fn encode(image: &ProcessImage, borrowed: &[Segment]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for thread in &image.threads {
        put(&mut out, "CORE", NT_PRSTATUS, &prstatus(image, thread))?;
        let legacy = thread.xsave.get(..FPREGSET_BYTES).ok_or_else(|| {
            let tid = thread.record.tid;
            Error::failed(format!(
                "cannot write the notes of thread {tid}: its xsave area is too small"
            ))
        })?;
        put(&mut out, "CORE", NT_FPREGSET, legacy)?;
        put(&mut out, "LINUX", NT_X86_XSTATE, &thread.xsave)?;
        put(&mut out, "APPSHOT", THREAD, &json(&thread.record)?)?;
    }
    put(&mut out, "CORE", NT_PRPSINFO, &prpsinfo(image))?;
    let auxv: Vec<u8> = image.process.mm.auxv.iter().flat_map(|w| w.to_le_bytes()).collect();
    put(&mut out, "CORE", NT_AUXV, &auxv)?;
    put(&mut out, "CORE", NT_FILE, &mapped_files(&image.vmas))?;
    put(&mut out, "APPSHOT", PROCESS, &json(&image.process)?)?;
    put(&mut out, "APPSHOT", VMAS, &json(&image.vmas)?)?;
    if !borrowed.is_empty() {
        let words = borrowed
            .iter()
            .flat_map(|s| [s.vaddr, s.bytes, s.part as u64, s.offset]);
        let table: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        put(&mut out, "APPSHOT", BORROWED, &table)?;
    }
    Ok(out)
}

fn json(record: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(record).map_err(|e| Error::failed("cannot write a record").because(e))
}

fn put(out: &mut Vec<u8>, name: &str, kind: u32, content: &[u8]) -> Result<()> {
    if content.len() > limits::NOTE_BYTES {
        return Err(Error::failed(format!(
            "cannot write note {name} {kind:#x}: {} bytes are more than the format allows",
            content.len()
        )));
    }
    for word in [name.len() as u32 + 1, content.len() as u32, kind] {
        out.extend(word.to_le_bytes());
    }
    out.extend(name.as_bytes());
    out.push(0);
    pad(out);
    out.extend(content);
    pad(out);
    Ok(())
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

/// `struct elf_prstatus`.
fn prstatus(image: &ProcessImage, thread: &ThreadImage) -> [u8; PRSTATUS_BYTES] {
    let mut out = [0; PRSTATUS_BYTES];
    out[24..32].copy_from_slice(&thread.record.sigmask.to_le_bytes());
    let ids = [thread.record.tid, image.ppid, image.pgid, image.sid];
    for (slot, id) in out[PRSTATUS_IDS..].chunks_exact_mut(4).zip(ids) {
        slot.copy_from_slice(&id.0.to_le_bytes());
    }
    for (slot, word) in out[PRSTATUS_REGISTERS..].chunks_exact_mut(8).zip(thread.regs) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    out[328] = 1; // pr_fpvalid
    out
}

/// `struct elf_prpsinfo`. gdb shows pr_psargs as the command.
fn prpsinfo(image: &ProcessImage) -> [u8; PRPSINFO_BYTES] {
    let mut out = [0; PRPSINFO_BYTES];
    out[1] = b'T';
    if let Some(main) = image.threads.first() {
        out[16..20].copy_from_slice(&main.record.creds.uid[0].to_le_bytes());
        out[20..24].copy_from_slice(&main.record.creds.gid[0].to_le_bytes());
    }
    let ids = [image.process.pid, image.ppid, image.pgid, image.sid];
    for (slot, id) in out[24..40].chunks_exact_mut(4).zip(ids) {
        slot.copy_from_slice(&id.0.to_le_bytes());
    }
    copy_text(&mut out[40..55], &image.comm);
    copy_text(&mut out[56..135], &image.process.exe);
    out
}

fn copy_text(to: &mut [u8], text: &str) {
    let length = text.len().min(to.len());
    to[..length].copy_from_slice(&text.as_bytes()[..length]);
}

/// Count, page size, `start end page-offset` of each mapping, then all names.
fn mapped_files(vmas: &[Vma]) -> Vec<u8> {
    let files: Vec<_> = vmas
        .iter()
        .filter_map(|vma| match &vma.kind {
            VmaKind::PrivateFile { path, offset } | VmaKind::SharedFile { path, offset, .. } => {
                Some((vma, path, offset / super::PAGE))
            }
            _ => None,
        })
        .collect();
    let mut out = Vec::new();
    let mut word = |word: u64| out.extend(word.to_le_bytes());
    word(files.len() as u64);
    word(super::PAGE);
    for (vma, _, page) in &files {
        word(vma.start);
        word(vma.end);
        word(*page);
    }
    for (_, path, _) in &files {
        out.extend(path.as_bytes());
        out.push(0);
    }
    out
}

/// Reads what [`encode`] wrote, in that order. `part` is for errors.
pub fn decode(part: &str, bytes: &[u8]) -> Result<(ProcessImage, Vec<Segment>)> {
    let mut notes = Notes { part, bytes, at: 0 };
    let (threads, ids) = decode_threads(&mut notes)?;
    notes.sized("CORE", NT_PRPSINFO, PRPSINFO_BYTES)?;
    notes.expect("CORE", NT_AUXV)?;
    notes.expect("CORE", NT_FILE)?;
    let process = notes.record("APPSHOT", PROCESS)?;
    let vmas = notes.record("APPSHOT", VMAS)?;
    let borrowed = match notes.next_is("APPSHOT", BORROWED) {
        true => decode_borrowed(part, notes.expect("APPSHOT", BORROWED)?)?,
        false => Vec::new(),
    };
    ensure(notes.at == bytes.len(), part, || {
        format!("note at byte {} is unknown", notes.at)
    })?;
    let comm = threads.first().map(|t| t.record.comm.clone()).unwrap_or_default();
    let [ppid, pgid, sid] = ids;
    let image = ProcessImage {
        process,
        comm,
        ppid,
        pgid,
        sid,
        threads,
        vmas,
    };
    Ok((image, borrowed))
}

/// Ascending pages that others hold, behind the header of their file.
fn decode_borrowed(part: &str, table: &[u8]) -> Result<Vec<Segment>> {
    let (entries, rest) = table.as_chunks::<BORROWED_BYTES>();
    ensure(
        rest.is_empty() && !entries.is_empty(),
        part,
        || "the table of borrowed pages is malformed",
    )?;
    let mut borrowed = Vec::with_capacity(entries.len());
    let mut address = 0;
    for entry in entries {
        let [vaddr, bytes, lender, offset] = [0, 8, 16, 24].map(|at| u64_at(entry, at));
        let end = vaddr.checked_add(bytes).filter(|end| *end <= limits::ADDRESS_END);
        let aligned = [vaddr, bytes, offset].iter().all(|n| n.is_multiple_of(super::PAGE));
        let behind = offset >= HEADER_BYTES && offset.checked_add(bytes).is_some();
        let known = (1..=limits::LENDERS as u64).contains(&lender);
        let end = end.filter(|_| aligned && bytes > 0 && vaddr >= address && behind && known);
        address =
            end.ok_or_else(|| corrupt(part, format_args!("the borrowed pages at {vaddr:#x} are out of place")))?;
        borrowed.push(Segment {
            vaddr,
            part: lender as usize,
            offset,
            bytes,
        });
    }
    Ok(borrowed)
}

type Ids = [crate::ids::VirtualPid; 3];

/// Threads until the first note that is not a thread's.
fn decode_threads(notes: &mut Notes) -> Result<(Vec<ThreadImage>, Ids)> {
    let mut threads = Vec::new();
    let mut process_ids: Option<Ids> = None;
    while threads.is_empty() || notes.next_is("CORE", NT_PRSTATUS) {
        let number = threads.len() + 1;
        ensure(number <= limits::THREADS_PER_PROCESS, notes.part, || "too many threads")?;
        let (thread, ids) = decode_thread(notes)?;
        let expected = *process_ids.get_or_insert(ids);
        ensure(ids == expected, notes.part, || {
            format!(
                "thread {}: parent, group or session differ from its process's",
                thread.record.tid
            )
        })?;
        threads.push(thread);
    }
    let ids = process_ids.ok_or_else(|| corrupt(notes.part, "no threads"))?;
    Ok((threads, ids))
}

fn decode_thread(notes: &mut Notes) -> Result<(ThreadImage, Ids)> {
    let status = notes.sized("CORE", NT_PRSTATUS, PRSTATUS_BYTES)?;
    let legacy = notes.sized("CORE", NT_FPREGSET, FPREGSET_BYTES)?;
    let xsave = notes.expect("LINUX", NT_X86_XSTATE)?;
    let record: ThreadRecord = notes.record("APPSHOT", THREAD)?;
    let tid = record.tid;
    let id = |index: usize| crate::ids::VirtualPid(u32_at(status, PRSTATUS_IDS + 4 * index).cast_signed());
    ensure(id(0) == tid, notes.part, || {
        format!("thread {tid}: NT_PRSTATUS is of thread {}", id(0))
    })?;
    ensure(limits::XSAVE_BYTES.contains(&xsave.len()), notes.part, || {
        format!("thread {tid}: an xsave area of {} bytes", xsave.len())
    })?;
    ensure(xsave[..FPREGSET_BYTES] == *legacy, notes.part, || {
        format!("thread {tid}: NT_FPREGSET and NT_X86_XSTATE differ")
    })?;
    let mut regs = [0; REGISTERS];
    for (index, word) in regs.iter_mut().enumerate() {
        *word = u64_at(status, PRSTATUS_REGISTERS + 8 * index);
    }
    let ids = [id(1), id(2), id(3)];
    Ok((
        ThreadImage {
            record,
            regs,
            xsave: xsave.to_vec(),
        },
        ids,
    ))
}

struct Notes<'a> {
    part: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Notes<'a> {
    /// The note at the current place: name, type, content, end.
    fn peek(&self) -> Option<(&'a [u8], u32, &'a [u8], usize)> {
        let rest = &self.bytes[self.at..];
        let header = rest.get(..12)?;
        let name_bytes = usize::try_from(u32_at(header, 0)).ok()?;
        let content_bytes = usize::try_from(u32_at(header, 4)).ok()?;
        if name_bytes > 16 || content_bytes > limits::NOTE_BYTES {
            return None;
        }
        let name = rest.get(12..12 + name_bytes)?;
        let start = (12 + name_bytes).next_multiple_of(4);
        let content = rest.get(start..start + content_bytes)?;
        let end = (start + content_bytes).next_multiple_of(4);
        let padding = rest.get(start + content_bytes..end)?;
        let zeroes = rest[12 + name_bytes..start]
            .iter()
            .chain(padding)
            .all(|byte| *byte == 0);
        zeroes.then_some((name.strip_suffix(b"\0")?, u32_at(header, 8), content, self.at + end))
    }

    fn next_is(&self, name: &str, kind: u32) -> bool {
        self.peek()
            .is_some_and(|(n, k, _, _)| n == name.as_bytes() && k == kind)
    }

    /// The next note must be this one.
    fn expect(&mut self, name: &str, kind: u32) -> Result<&'a [u8]> {
        let (found_name, found_kind, content, end) = self
            .peek()
            .ok_or_else(|| corrupt(self.part, format_args!("note at byte {} is malformed", self.at)))?;
        ensure(found_name == name.as_bytes() && found_kind == kind, self.part, || {
            let found = found_name.escape_ascii();
            format!(
                "note at byte {} is {found} {found_kind:#x} instead of {name} {kind:#x}",
                self.at
            )
        })?;
        self.at = end;
        Ok(content)
    }

    fn sized(&mut self, name: &str, kind: u32, bytes: usize) -> Result<&'a [u8]> {
        let at = self.at;
        let content = self.expect(name, kind)?;
        ensure(content.len() == bytes, self.part, || {
            format!("note at byte {at} has {} bytes instead of {bytes}", content.len())
        })?;
        Ok(content)
    }

    fn record<T: DeserializeOwned>(&mut self, name: &str, kind: u32) -> Result<T> {
        let at = self.at;
        serde_json::from_slice(self.expect(name, kind)?)
            .map_err(|e| corrupt(self.part, format_args!("record in the note at byte {at}: {e}")))
    }
}
