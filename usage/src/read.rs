//! Reading the ledger: nothing is believed that does not follow by its hash.

use crate::record::{Body, Hash, Head, LINE_BYTES_MAX, Line, Record, Sealed, hex, unhex};
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::store::stems;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

pub const SUFFIX: &str = ".ledger";
/// Of a segment that is complete, compressed by zstd.
pub const PACKED: &str = ".ledger.zst";
pub const DIRECTORY: &str = "ledger";

/// Where something stands: `00000001.ledger, line 3`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub segment: u64,
    /// From 1.
    pub line: u64,
    /// Of its first byte.
    pub offset: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:08}{SUFFIX}, line {} (byte {})",
            self.segment, self.line, self.offset
        )
    }
}

/// A record that follows the one before it.
#[derive(Clone, Debug)]
pub struct Entry {
    pub place: Place,
    pub record: Record,
    pub before: Hash,
    pub hash: Hash,
}

/// How a segment begins.
#[derive(Clone, Debug)]
pub struct Begin {
    pub head: Head,
    pub seq: u64,
    pub unix_ms: u64,
}

/// How far the ledger could be read.
#[derive(Clone, Debug, Default)]
pub struct Reached {
    pub segments: u64,
    pub records: u64,
    pub node: Option<String>,
    /// The public key that its checkpoints are signed for, in hexadecimal.
    pub key: String,
    pub hash: Hash,
    pub next_seq: u64,
    /// The end of the last whole line.
    pub end: Place,
    /// Bytes behind it, of a line that is torn or being written.
    pub torn_bytes: u64,
    /// Segments that were compacted.
    pub compacted: u64,
    /// In one of them, and what it ended in, once that was read.
    is_compacted: bool,
    sealed: Option<Sealed>,
}

pub fn segment_path(usage: &Path, number: u64) -> PathBuf {
    usage.join(DIRECTORY).join(format!("{number:08}{SUFFIX}"))
}

pub fn packed_path(usage: &Path, number: u64) -> PathBuf {
    usage.join(DIRECTORY).join(format!("{number:08}{PACKED}"))
}

/// The numbers of all segments: they must follow one another.
pub fn segments(usage: &Path) -> Result<Vec<u64>> {
    let dir = usage.join(DIRECTORY);
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut numbers = Vec::new();
    for suffix in [SUFFIX, PACKED] {
        for stem in stems(&dir, suffix)? {
            let named = format!("{stem}{suffix}");
            let foreign = || Error::failed(format!("{named} is no segment of a ledger")).fix("move it elsewhere");
            let number: u64 = stem.parse().map_err(|_| foreign())?;
            if named != format!("{number:08}{suffix}") {
                return Err(foreign());
            }
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    // One that was just being packed is there twice.
    numbers.dedup();
    for pair in numbers.windows(2) {
        if pair[1] != pair[0] + 1 {
            return Err(damaged(
                Place {
                    segment: pair[0] + 1,
                    ..Place::default()
                },
                "the segment is missing",
            ));
        }
    }
    Ok(numbers)
}

/// Tells each record from the segment `from` on to `take`, in order.
pub fn read(usage: &Path, from: u64, take: &mut dyn FnMut(&Entry) -> Result<()>) -> Result<Reached> {
    let numbers: Vec<u64> = segments(usage)?.into_iter().filter(|number| *number >= from).collect();
    let mut reached = Reached::default();
    for (index, number) in numbers.iter().enumerate() {
        let is_last = index + 1 == numbers.len();
        segment(usage, *number, index == 0, is_last, &mut reached, take)?;
        unseal(&mut reached)?;
    }
    if from <= 1 && numbers.first().is_some_and(|first| *first != 1) {
        return Err(damaged(
            Place {
                segment: 1,
                ..Place::default()
            },
            "the segment is missing",
        ));
    }
    Ok(reached)
}

/// What follows a segment that was compacted follows what it was before.
fn unseal(reached: &mut Reached) -> Result<()> {
    if !reached.is_compacted {
        return Ok(());
    }
    let cut = |because: &str| damaged(reached.end, because);
    let sealed = reached
        .sealed
        .take()
        .ok_or_else(|| cut("what was compacted does not end in its seal"))?;
    reached.hash = unhex(&sealed.hash).ok_or_else(|| cut("its seal names no hash"))?;
    reached.next_seq = sealed.next_seq;
    Ok(())
}

/// How a segment begins; whether it follows is not looked at.
pub fn head(usage: &Path, number: u64) -> Result<Begin> {
    let mut bytes = Vec::new();
    let place = Place {
        segment: number,
        line: 1,
        offset: 0,
    };
    let limit = LINE_BYTES_MAX as u64 + 1;
    let read = open(usage, number)?.take(limit).read_until(b'\n', &mut bytes);
    read.map_err(|error| damaged(place, error))?;
    bytes.pop();
    let record = Line::parse(&bytes)
        .map_err(|error| damaged(place, error.because.unwrap_or(error.what)))?
        .record;
    match record.body {
        Body::Head(head) => Ok(Begin {
            head,
            seq: record.seq,
            unix_ms: record.unix_ms,
        }),
        _ => Err(damaged(place, "the segment does not begin with its head")),
    }
}

/// Tells each record of one segment, of what follows by its hash.
pub fn one(usage: &Path, number: u64, take: &mut dyn FnMut(&Entry) -> Result<()>) -> Result<Reached> {
    let mut reached = Reached::default();
    segment(usage, number, true, false, &mut reached, take)?;
    Ok(reached)
}

fn segment(
    usage: &Path,
    number: u64,
    is_first: bool,
    is_last: bool,
    reached: &mut Reached,
    take: &mut dyn FnMut(&Entry) -> Result<()>,
) -> Result<()> {
    let mut file = open(usage, number)?;
    let mut place = Place {
        segment: number,
        line: 1,
        offset: 0,
    };
    reached.segments += 1;
    reached.torn_bytes = 0;
    reached.sealed = None;
    let mut bytes = Vec::new();
    loop {
        reached.end = place;
        bytes.clear();
        let limit = LINE_BYTES_MAX as u64 + 1;
        let length = (&mut file).take(limit).read_until(b'\n', &mut bytes);
        // Also what cannot be unpacked.
        let length = length.map_err(|error| damaged(place, error))?;
        if length == 0 {
            return match place.line {
                1 => Err(damaged(place, "the segment has no head")),
                _ => Ok(()),
            };
        }
        if bytes.pop() != Some(b'\n') {
            if is_last && length <= LINE_BYTES_MAX && place.line > 1 {
                reached.torn_bytes = length as u64;
                return Ok(());
            }
            return Err(damaged(place, "the line is cut off, or too long"));
        }
        let line = Line::parse(&bytes).map_err(|error| match error.kind {
            Kind::Unavailable => Error {
                what: format!("{place}: {}", error.what),
                ..error
            },
            _ => damaged(place, error.because.unwrap_or(error.what)),
        })?;
        let entry = judge(line, place, is_first, reached)?;
        reached.hash = entry.hash;
        reached.records += 1;
        reached.next_seq = entry.record.seq + 1;
        place.line += 1;
        place.offset += length as u64;
        take(&entry)?;
    }
}

fn open(usage: &Path, number: u64) -> Result<Box<dyn BufRead>> {
    let (path, packed) = (segment_path(usage, number), packed_path(usage, number));
    if path.exists() || !packed.exists() {
        let file = File::open(&path).or_fail(|| format!("cannot read {}", path.display()))?;
        return Ok(Box::new(BufReader::with_capacity(1 << 20, file)));
    }
    let what = || format!("cannot read {}", packed.display());
    let unpacked = zstd::Decoder::new(File::open(&packed).or_fail(what)?).or_fail(what)?;
    Ok(Box::new(BufReader::with_capacity(1 << 20, unpacked)))
}

/// Whether the line may stand where it does.
fn judge(line: Line, place: Place, is_first: bool, reached: &mut Reached) -> Result<Entry> {
    let mut before = reached.hash;
    match (&line.record.body, place.line) {
        (Body::Head(head), 1) => before = begins(head, place, is_first, reached)?,
        (Body::Head(_), _) => return Err(damaged(place, "the head of a segment in the midst of one")),
        (_, 1) => return Err(damaged(place, "the segment does not begin with its head")),
        _ => {}
    }
    let seq = line.record.seq;
    let hash = line.follows(&before).ok_or_else(|| {
        damaged(
            place,
            "its hash does not follow: it, or the record before it, was changed",
        )
    })?;
    if let Body::Sealed(sealed) = &line.record.body {
        if !reached.is_compacted || reached.sealed.is_some() || sealed.next_seq < seq {
            return Err(damaged(place, "a seal where none may stand"));
        }
        reached.sealed = Some(sealed.clone());
    }
    // The seal, and what signs it, have the number of the last line that there was.
    let is_end = matches!(line.record.body, Body::Sealed(_) | Body::Checkpoint(_));
    let goes_on = match reached.is_compacted && place.line > 1 {
        true => seq + u64::from(is_end) >= reached.next_seq,
        false => seq == reached.next_seq,
    };
    let is_begin = is_first && place.line == 1;
    if !(goes_on || is_begin) {
        return Err(damaged(
            place,
            format!("it has number {seq} where {} follows", reached.next_seq),
        ));
    }
    Ok(Entry {
        place,
        record: line.record,
        before,
        hash,
    })
}

fn begins(head: &Head, place: Place, is_first: bool, reached: &mut Reached) -> Result<Hash> {
    if head.segment != place.segment {
        return Err(damaged(place, format!("it is the head of segment {}", head.segment)));
    }
    if let Some(node) = reached.node.as_ref().filter(|node| **node != head.node) {
        return Err(damaged(
            place,
            format!("it is of node {}, the segment before it of node {node}", head.node),
        ));
    }
    reached.node = Some(head.node.clone());
    reached.key.clone_from(&head.key);
    (reached.is_compacted, reached.sealed) = (head.kept.is_some(), None);
    reached.compacted += u64::from(head.kept.is_some());
    let prev = unhex(&head.prev).ok_or_else(|| damaged(place, "it names no segment before it"))?;
    if !is_first && prev != reached.hash {
        return Err(damaged(
            place,
            format!("it follows {}, not {}", head.prev, hex(&reached.hash)),
        ));
    }
    if head.segment == 1 && prev != Hash::default() {
        return Err(damaged(place, "the first segment follows another one"));
    }
    Ok(prev)
}

pub fn damaged(place: Place, because: impl std::fmt::Display) -> Error {
    Error::failed(format!("the ledger is damaged at {place}"))
        .because(because)
        .fix("get this segment from a copy; `appshot usage verify` names the first bad record")
}

/// "There is no ledger."
pub fn no_ledger(usage: &Path) -> Error {
    Error::new(Kind::NotFound, format!("there is no ledger in {}", usage.display())).fix("`perfd --serve` keeps one")
}
