//! Reads the core file of one process.

use super::elf::{HEADER_BYTES, Kind, PHDR_BYTES, Phdr, SHDR_BYTES, Tables};
use super::fault::{corrupt, ensure, unreadable};
use super::process::{ProcessImage, Segment};
use super::source::Source;
use super::{PAGE, limits, notes, validate_process};
use crate::error::Result;

/// Reads everything but memory, and checks all that can be said about one
/// process by itself. `part` is for errors. Nothing in the file is left over:
/// each byte belongs to the one layout that the writer makes.
pub fn parse(part: &str, source: &(impl Source + ?Sized)) -> Result<(ProcessImage, Vec<Segment>)> {
    let size = source.bytes().map_err(|e| unreadable(part, e))?;
    let tables = read_tables(part, source, size)?;
    let headers = read_headers(part, source, tables)?;
    let (note, loads) = headers.split_first().expect("at least one header");
    let segments = check_loads(part, loads)?;
    check_note(part, note, loads, tables)?;
    let notes = source
        .read_range(note.offset, note.file_bytes)
        .map_err(|e| unreadable(part, e))?;
    let (image, borrowed) = notes::decode(part, &notes)?;
    drop(notes);
    let segments = merged(part, segments, borrowed)?;
    validate_process::process(part, &image, &segments)?;
    Ok((image, segments))
}

/// Own and borrowed pages together. No page is both.
fn merged(part: &str, own: Vec<Segment>, borrowed: Vec<Segment>) -> Result<Vec<Segment>> {
    let mut segments = own;
    if borrowed.is_empty() {
        return Ok(segments);
    }
    segments.extend(borrowed);
    segments.sort_unstable_by_key(|segment| segment.vaddr);
    if let Some(pair) = segments.windows(2).find(|pair| pair[0].end() > pair[1].vaddr) {
        let both = format_args!("the memory at {:#x} is both stored and borrowed", pair[1].vaddr);
        return Err(corrupt(part, both));
    }
    Ok(segments)
}

/// The header must be exactly the one for these tables, and the program
/// headers must end the file.
fn read_tables(part: &str, source: &(impl Source + ?Sized), size: u64) -> Result<Tables> {
    let read = |at, bytes| source.read_range(at, bytes).map_err(|e| unreadable(part, e));
    ensure(size >= HEADER_BYTES, part, || {
        format!("{size} bytes are too few for a core file")
    })?;
    let page = read(0, HEADER_BYTES)?.try_into().expect("a page was read");
    let mut section = None;
    let tables = Tables::read(&page, |at| {
        section = Some(read(at, SHDR_BYTES)?);
        Ok(section.clone().unwrap_or_default())
    })?;
    let Tables { phoff, phnum } = tables;
    ensure((1..=limits::SEGMENTS_PER_CORE).contains(&phnum), part, || {
        format!("{phnum} program headers")
    })?;
    ensure(
        phoff >= HEADER_BYTES + SHDR_BYTES && phoff.checked_add(phnum * PHDR_BYTES) == Some(size),
        part,
        || format!("program headers at byte {phoff} do not end the file"),
    )?;
    ensure(
        page[..] == tables.header(),
        part,
        || "the ELF header (bytes 0 to 4095) is malformed",
    )?;
    ensure(
        section.is_none_or(|found| found == tables.section_header()),
        part,
        || format!("the section header at byte {} is malformed", phoff - SHDR_BYTES),
    )?;
    Ok(tables)
}

/// The note header comes first, then only loads.
fn read_headers(part: &str, source: &(impl Source + ?Sized), tables: Tables) -> Result<Vec<Phdr>> {
    let bytes = source
        .read_range(tables.phoff, tables.phnum * PHDR_BYTES)
        .map_err(|e| unreadable(part, e))?;
    let (headers, _) = bytes.as_chunks::<{ PHDR_BYTES as usize }>();
    headers
        .iter()
        .enumerate()
        .map(|(index, bytes)| {
            let kind = if index == 0 { Kind::Note } else { Kind::Load };
            Phdr::read(bytes)
                .filter(|header| header.kind == kind)
                .ok_or_else(|| corrupt(part, format_args!("program header {index} is malformed")))
        })
        .collect()
}

/// Loads ascend in memory without overlap. In the file they lie anywhere behind the
/// header, without overlap too.
fn check_loads(part: &str, loads: &[Phdr]) -> Result<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut address = 0;
    for load in loads {
        let end = load.vaddr.checked_add(load.memory_bytes).unwrap_or(0);
        let aligned = [load.vaddr, load.file_bytes, load.memory_bytes, load.offset]
            .iter()
            .all(|n| n.is_multiple_of(PAGE));
        let ordered = load.vaddr >= address && end > load.vaddr && end <= limits::ADDRESS_END;
        let behind = load.offset >= HEADER_BYTES && load.offset.checked_add(load.file_bytes).is_some();
        ensure(
            aligned && ordered && behind && load.file_bytes <= load.memory_bytes,
            part,
            || format!("the segment at address {:#x} is out of place", load.vaddr),
        )?;
        address = end;
        if load.file_bytes > 0 {
            segments.push(Segment {
                vaddr: load.vaddr,
                part: 0,
                offset: load.offset,
                bytes: load.file_bytes,
            });
        }
    }
    let mut places: Vec<(u64, u64)> = segments.iter().map(|s| (s.offset, s.offset + s.bytes)).collect();
    places.sort_unstable();
    let apart = places.windows(2).all(|pair| pair[0].1 <= pair[1].0);
    ensure(apart, part, || "two segments have the same bytes of the file")?;
    Ok(segments)
}

/// Notes follow memory, the tables follow the notes.
fn check_note(part: &str, note: &Phdr, loads: &[Phdr], tables: Tables) -> Result<()> {
    let ends = loads.iter().map(|load| load.offset + load.file_bytes);
    let memory_end = ends.max().unwrap_or(HEADER_BYTES);
    let tables_start = if Tables::extended(tables.phnum) {
        tables.phoff - SHDR_BYTES
    } else {
        tables.phoff
    };
    let notes_end = note
        .offset
        .checked_add(note.file_bytes)
        .and_then(|end| end.checked_next_multiple_of(8));
    let plain = (note.vaddr, note.memory_bytes, note.prot) == (0, 0, 0);
    let behind = note.offset >= memory_end.max(HEADER_BYTES) && note.offset.is_multiple_of(PAGE);
    ensure(
        plain && behind && notes_end == Some(tables_start) && note.file_bytes <= limits::NOTES_BYTES,
        part,
        || format!("the notes at byte {} are out of place", note.offset),
    )
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use std::path::PathBuf;
    use std::process::Command;

    fn core() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        sample::write(&dir.path().join("sample.appshot"));
        let path = dir.path().join("sample.appshot/2.core");
        (dir, path)
    }

    /// Without the digest in front, damage is found or harmless, and never panics.
    #[test]
    fn damage_never_panics() {
        let (_dir, path) = core();
        let good = std::fs::read(path).unwrap();
        assert!(parse("core", &good[..]).is_ok());
        for at in (0..good.len()).filter(|at| *at < 100 || at % 3 == 0) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            let parsed = parse("core", &bad[..]);
            assert!(at >= 64 || parsed.is_err(), "ELF header flip at {at}");
            if at % 16 == 0 {
                assert!(parse("core", &good[..at]).is_err(), "cut at {at}");
            }
        }
    }

    #[test]
    fn goblin_agrees() {
        let (_dir, path) = core();
        let bytes = std::fs::read(path).unwrap();
        let (_, segments) = parse("core", &bytes[..]).unwrap();
        let elf = goblin::elf::Elf::parse(&bytes).unwrap();
        let loads = elf
            .program_headers
            .iter()
            .filter(|header| header.p_filesz > 0 && header.p_type == 1);
        let loads: Vec<_> = loads
            .map(|load| Segment {
                vaddr: load.p_vaddr,
                part: 0,
                offset: load.p_offset,
                bytes: load.p_filesz,
            })
            .collect();
        assert_eq!(loads, segments);
        let notes = elf.iter_note_headers(&bytes).unwrap().filter(Result::is_ok).count();
        assert_eq!(notes, 2 * 4 + 5);
    }

    #[test]
    fn readelf_lists_the_notes() {
        let (_dir, path) = core();
        let Ok(output) = Command::new("readelf").args(["-lnW"]).arg(path).output() else {
            eprintln!("skipped: needs readelf");
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        for note in [
            "NT_PRSTATUS",
            "NT_FPREGSET",
            "NT_X86_XSTATE",
            "NT_PRPSINFO",
            "NT_AUXV",
            "NT_FILE",
            "0x41505301",
        ] {
            assert!(text.contains(note), "{note} in {text}");
        }
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn gdb_opens_it() {
        let (_dir, path) = core();
        let output = Command::new("gdb")
            .args(["-nx", "-batch", "-ex", "info threads", "-ex", "p $rip"])
            .args([
                "-ex",
                "x/xg 0x555555551000",
                "-ex",
                "x/xb 0x555555552000",
                "-ex",
                "x/xg 0x555555560000",
            ])
            .arg("-c")
            .arg(path)
            .output();
        let Ok(output) = output else {
            eprintln!("skipped: needs gdb");
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text.matches("[New LWP").count(), 2, "{text}");
        for expected in ["LWP 2", "LWP 20", "0x401000", "0x0000000000000000", "0x03"] {
            assert!(
                text.contains(expected),
                "{expected} in {text}{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
}
