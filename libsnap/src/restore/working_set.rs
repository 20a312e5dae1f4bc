//! What an app needed first, kept beside its appshot: the next instance gets it in
//! one sequential read.
//!
//! ```text
//! .NAME.working-set      0600, beside NAME
//!   APPSHOT-WORKING-SET 2 <appshot> <digest> <runs> <of files>\n
//!                          BLAKE3 of the appshot's manifest file, and of what follows
//!   3 x u64 LE a run       place of the process among the cores, address, bytes
//!   3 x u64 LE a run       the same of mapped files: what is to be in the page cache
//!   pages                  of the former runs, back to back
//! ```
//!
//! It is nothing but a help: one that is missing or damaged is as good as none. One of the
//! appshot that was here before, of the same app as a rule, tells where to look in this one.

use super::opened::Opened;
use super::owed::Owed;
use crate::beside::Note;
use crate::error::{Error, Result};
use crate::image::{LEAF, Segment};
use crate::sys::memory::{PAGE, Span};
use std::io::Read;
use std::path::{Path, PathBuf};

/// What comes before the app runs; more would hold it up.
const BYTES_MAX: u64 = 64 << 20;
/// That of one appshot is taken for the next up to this size; then it is found out anew.
const SUCCEEDS_MAX: u64 = 32 << 20;
/// Of a mapped file, what lies as near to each other is read in one go.
const NEAR: u64 = 64 << 10;
const MAGIC: &str = "APPSHOT-WORKING-SET";
const VERSION: &str = "2";
const HEADER_BYTES_MAX: usize = 256;
const RUN_BYTES: usize = 24;

/// A run of pages of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// The place of the process among the cores.
    pub core: usize,
    pub address: u64,
    pub bytes: u64,
}

impl Run {
    fn end(&self) -> u64 {
        self.address + self.bytes
    }
}

/// What an instance has touched first: pages by process and address.
#[derive(Debug, Default)]
pub struct Touched {
    pub pages: Vec<(usize, u64)>,
    /// Of mapped files.
    pub files: Vec<Run>,
}

/// A working set with its content.
#[derive(Debug)]
pub struct WorkingSet {
    runs: Vec<Run>,
    content: Vec<u8>,
    /// Of mapped files, which hold it themselves.
    files: Vec<Run>,
    /// From the one of the appshot before; not written for this one yet.
    pub inherited: bool,
}

/// Where that of an appshot is.
pub fn path(appshot: &Path) -> Option<PathBuf> {
    Note::WorkingSet.path(appshot)
}

impl WorkingSet {
    /// That of an appshot, if there is one.
    pub fn read(opened: &Opened) -> Option<WorkingSet> {
        let mut bytes = Vec::new();
        let file = Note::WorkingSet.open(&opened.shot.path)?;
        file.take(2 * BYTES_MAX).read_to_end(&mut bytes).ok()?;
        let (appshot, found) = parse(&bytes)?;
        match appshot == opened.shot.identity.to_hex().as_str() {
            true => Some(found),
            false => found.of_successor(opened),
        }
    }

    /// The same places in the appshot that came after. Not for ever: what is not needed any
    /// more is never found out.
    fn of_successor(&self, opened: &Opened) -> Option<WorkingSet> {
        if self.content.len() as u64 > SUCCEEDS_MAX {
            return None;
        }
        let pages = self.runs.iter().flat_map(|run| {
            let addresses = (run.address..run.end()).step_by(PAGE as usize);
            addresses.map(|address| (run.core, address))
        });
        let runs = stored(opened, pages);
        let content = content(opened, &runs).ok()?;
        (!runs.is_empty()).then_some(WorkingSet {
            runs,
            content,
            files: self.files.clone(),
            inherited: true,
        })
    }

    /// Its pages: process, address, content.
    pub fn pieces(&self) -> impl Iterator<Item = (usize, u64, &[u8])> {
        let mut rest = &self.content[..];
        self.runs.iter().map(move |run| {
            let (own, others) = rest.split_at(run.bytes as usize);
            rest = others;
            (run.core, run.address, own)
        })
    }

    /// Those of mapped files: nobody has looked whether the appshot has such mappings.
    pub fn files(&self) -> &[Run] {
        &self.files
    }

    /// What was known and what was touched besides, unless that is little and what is known
    /// has been written.
    pub fn grown(opened: &Opened, known: Option<&WorkingSet>, touched: Touched) -> Result<Option<WorkingSet>> {
        let (runs, files) = known.map_or((&[][..], &[][..]), |known| (&known.runs, &known.files));
        let little = |new: u64, known: u64| new == 0 || new < known / 8;
        let files = merged(files.iter().copied().chain(touched.files).collect(), NEAR);
        let more_files = sum(&files).saturating_sub(known.map_or(0, |known| sum(&known.files)));
        let is_little = little(touched.pages.len() as u64 * PAGE, sum(runs)) && little(more_files, sum(&files));
        if is_little && known.is_none_or(|known| !known.inherited) {
            return Ok(None);
        }
        // What the app has moved since is elsewhere in the appshot.
        let pages = stored(opened, touched.pages.into_iter());
        let runs = merged(runs.iter().copied().chain(pages).collect(), 0);
        let content = content(opened, &runs)?;
        Ok(Some(WorkingSet {
            runs,
            content,
            files,
            inherited: false,
        }))
    }

    /// Writes it for the next program that restores the appshot.
    pub fn write(&self, opened: &Opened) -> Result<()> {
        Note::WorkingSet.write(&opened.shot.path, &self.encode(&opened.shot.identity.to_hex()))
    }

    fn encode(&self, appshot: &str) -> Vec<u8> {
        let runs = self.runs.iter().chain(&self.files);
        let words = runs.flat_map(|run| [run.core as u64, run.address, run.bytes]);
        let mut body: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        body.extend_from_slice(&self.content);
        let (digest, counts) = (blake3::hash(&body).to_hex(), (self.runs.len(), self.files.len()));
        let mut bytes = format!("{MAGIC} {VERSION} {appshot} {digest} {} {}\n", counts.0, counts.1).into_bytes();
        bytes.append(&mut body);
        bytes
    }
}

/// Those of these pages, by process and address, that the appshot holds.
fn stored(opened: &Opened, pages: impl Iterator<Item = (usize, u64)>) -> Vec<Run> {
    let is_stored = |(core, address): &(usize, u64)| {
        let segments = opened.shot.cores.get(*core).map_or(&[][..], |core| &core.segments);
        Segment::at(segments, *address).is_some()
    };
    let runs = pages.filter(is_stored).map(|(core, address)| Run {
        core,
        address,
        bytes: PAGE,
    });
    merged(runs.collect(), 0)
}

fn sum(runs: &[Run]) -> u64 {
    runs.iter().map(|run| run.bytes).sum()
}

/// In order, without overlap, and not too much. So many bytes between two are no gap.
fn merged(mut runs: Vec<Run>, near: u64) -> Vec<Run> {
    runs.sort_unstable();
    let mut merged: Vec<Run> = Vec::new();
    for run in runs {
        match merged.last_mut() {
            Some(last) if last.core == run.core && last.end().saturating_add(near) >= run.address => {
                last.bytes = last.end().max(run.end()) - last.address;
            }
            _ => merged.push(run),
        }
    }
    let mut total = 0;
    merged.retain(|run| {
        total += run.bytes;
        total <= BYTES_MAX
    });
    merged
}

/// What the appshot holds there, verified.
fn content(opened: &Opened, runs: &[Run]) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut leaf = Vec::new();
    let mut loaded = None;
    for run in runs {
        let segments = &opened.shot.cores[run.core].segments;
        let stored = Owed::new(
            Segment::among(segments, run.address..run.end()),
            &[Span {
                start: 0,
                end: u64::MAX,
            }],
        );
        for page in (run.address..run.end()).step_by(PAGE as usize) {
            let Some((_, place)) = stored.at(page) else {
                return Err(Error::failed(format!("nothing is stored at {page:#x}")));
            };
            let start = place.offset / LEAF as u64 * LEAF as u64;
            if loaded != Some((place.part, start)) {
                opened.digests.read_leaf(&opened.pieces, place.part, start, &mut leaf)?;
                loaded = Some((place.part, start));
            }
            let at = (place.offset - start) as usize;
            content.extend_from_slice(&leaf[at..at + PAGE as usize]);
        }
    }
    Ok(content)
}

/// The appshot's manifest by its digest, and what was written for it. `None` for anything
/// else.
fn parse(bytes: &[u8]) -> Option<(&str, WorkingSet)> {
    let line = bytes.iter().take(HEADER_BYTES_MAX).position(|byte| *byte == b'\n')?;
    let words: Vec<&str> = str::from_utf8(&bytes[..line]).ok()?.split(' ').collect();
    let body = &bytes[line + 1..];
    let [MAGIC, VERSION, appshot, digest, count, of_files] = words[..] else {
        return None;
    };
    if digest != blake3::hash(body).to_hex().as_str() {
        return None;
    }
    let (count, of_files) = (count.parse::<usize>().ok()?, of_files.parse::<usize>().ok()?);
    let table = count.checked_add(of_files)?.checked_mul(RUN_BYTES)?;
    let (table, content) = body.split_at_checked(table)?;
    let runs = table.as_chunks::<RUN_BYTES>().0.iter().map(|run| {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| run[8 * at + i]));
        Run {
            core: word(0) as usize,
            address: word(1),
            bytes: word(2),
        }
    });
    let mut runs: Vec<Run> = runs.collect();
    let mut totals = [0u64; 2];
    for (at, run) in runs.iter().enumerate() {
        let aligned = run.address.is_multiple_of(PAGE) && run.bytes.is_multiple_of(PAGE);
        run.address.checked_add(run.bytes).filter(|_| aligned)?;
        let total = &mut totals[usize::from(at >= count)];
        *total = total.checked_add(run.bytes)?;
    }
    let files = runs.split_off(count);
    let found = WorkingSet {
        runs,
        content: content.to_vec(),
        files,
        inherited: false,
    };
    (totals[0] == content.len() as u64).then_some((appshot, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(core: usize, page: u64, pages: u64) -> Run {
        Run {
            core,
            address: page * PAGE,
            bytes: pages * PAGE,
        }
    }

    #[test]
    fn runs_are_merged() {
        let runs = vec![
            run(1, 5, 2),
            run(0, 9, 1),
            run(0, 3, 1),
            run(0, 4, 2),
            run(0, 5, 1),
            run(1, 7, 1),
        ];
        assert_eq!(merged(runs.clone(), 0), [run(0, 3, 3), run(0, 9, 1), run(1, 5, 3)]);
        assert_eq!(merged(runs, 3 * PAGE), [run(0, 3, 7), run(1, 5, 3)]);
        let large = BYTES_MAX / PAGE;
        assert_eq!(merged(vec![run(0, 0, 5), run(1, 0, large)], 0), [run(0, 0, 5)]);
    }

    #[test]
    fn what_is_damaged_or_anothers_is_none() {
        let runs = [run(0, 3, 1), run(2, 9, 2)];
        let content: Vec<u8> = (0..3 * PAGE).map(|i| i as u8).collect();
        let set = WorkingSet {
            runs: runs.to_vec(),
            content: content.clone(),
            files: vec![run(1, 40, 16)],
            inherited: false,
        };
        let good = set.encode("abc");
        let (appshot, read) = parse(&good).unwrap();
        assert_eq!(appshot, "abc");
        assert_eq!(read.runs, runs);
        let pieces: Vec<_> = read
            .pieces()
            .map(|(core, address, bytes)| (core, address, bytes.len() as u64))
            .collect();
        assert_eq!(pieces, runs.map(|run| (run.core, run.address, run.bytes)));
        assert_eq!((read.content.clone(), read.files), (content, set.files));
        for at in (0..good.len()).step_by(7) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(parse(&bad).is_none_or(|(appshot, _)| appshot != "abc"), "{at}");
            assert!(parse(&good[..at]).is_none(), "{at}");
        }
    }
}
