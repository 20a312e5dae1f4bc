//! An appshot that stays in memory: read once, verified once, restored many times.
//!
//! ```text
//!   directory --read--> sealed memfds --BLAKE3--> verified --parse--> Appshot
//!                            |                                 |
//!                            +-- preadv by each new process <--+-- where its pages go
//! ```
//!
//! What is restored is the copy, so that nothing has to be verified again. Whether
//! the directory is still the one that was read, its files tell.

use super::fill;
use crate::error::{OrFail, Result};
use crate::image::{self, Appshot, Core, MANIFEST, PAGE, Place, data_runs};
use crate::sys::fd as sysfd;
use crate::sys::memory::Span;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What tells one content of a file from another.
type Mark = (u64, u64, u64, i64, i64, i64, i64);

fn mark(meta: &Metadata) -> Mark {
    let written = (meta.mtime(), meta.mtime_nsec());
    let changed = (meta.ctime(), meta.ctime_nsec());
    let (dev, ino, size) = (meta.dev(), meta.ino(), meta.len());
    (dev, ino, size, written.0, written.1, changed.0, changed.1)
}

/// Pages that stand in one row in a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub place: Place,
    /// Address and length of each piece.
    pub pieces: Vec<(u64, u64)>,
}

impl Row {
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// A verified appshot in memory.
#[derive(Debug)]
pub struct Kept {
    pub shot: Appshot,
    /// For each core: what goes where.
    pub rows: Vec<Vec<Row>>,
    marks: Marks,
    bytes: u64,
}

/// What an appshot's directory looked like.
#[derive(Debug)]
pub struct Marks(Vec<(PathBuf, Mark)>);

impl Marks {
    /// Those of its parents too, as far as they are found.
    pub fn of(path: &Path) -> Marks {
        let mut marks = directory(path);
        let parents = image::needed(path).unwrap_or_default();
        marks.extend(
            parents
                .into_iter()
                .filter_map(|parent| parent.path)
                .flat_map(|path| directory(&path)),
        );
        Marks(marks)
    }

    /// Whether the directory still holds these files.
    pub fn are_current(&self) -> bool {
        let same = |(path, known): &(PathBuf, Mark)| fs::symlink_metadata(path).is_ok_and(|now| mark(&now) == *known);
        self.0.iter().all(same)
    }
}

impl Kept {
    /// `None` where its parts have more than `bytes_max`.
    pub fn load(path: &Path, bytes_max: u64) -> Result<Option<Kept>> {
        let before = Marks::of(path);
        let bytes = before.0.iter().map(|(_, mark)| mark.2).sum();
        if bytes > bytes_max {
            return Ok(None);
        }
        let shot = Appshot::open_copy(path, copied)?;
        let rows = shot
            .cores
            .iter()
            .map(|core| rows(&shot, core))
            .collect::<io::Result<_>>();
        Ok(Some(Kept {
            rows: rows.or_fail(|| format!("cannot read the memory of {}", path.display()))?,
            shot,
            marks: before,
            bytes,
        }))
    }

    /// Whether the directory still holds the files that were read.
    pub fn is_current(&self) -> bool {
        self.marks.are_current()
    }

    /// What it takes of this machine's memory.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The files of the directory, and the directory itself.
fn directory(path: &Path) -> Vec<(PathBuf, Mark)> {
    // The manifest first: where there is none, that is told.
    let names = fs::read_dir(path).map(|entries| entries.flatten().map(|entry| entry.path()).collect());
    let names: Vec<PathBuf> = names.unwrap_or_else(|_| vec![path.join(MANIFEST)]);
    let all = names.into_iter().chain([path.to_owned()]);
    let marks = all.filter_map(|file| Some((file.clone(), mark(&fs::symlink_metadata(&file).ok()?))));
    marks.collect()
}

/// A copy that nobody can change.
fn copied(name: &str, file: &File, bytes: u64) -> io::Result<File> {
    const F_ADD_SEALS: i32 = 1033;
    const ALL: i64 = 1 | 2 | 4 | 8; // seal, shrink, grow, write
    let copy = sysfd::memfd(name, libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)?;
    let copy = File::from(copy);
    copy.set_len(bytes)?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < bytes {
        let step = (bytes - at).min(buffer.len() as u64) as usize;
        file.read_exact_at(&mut buffer[..step], at)?;
        // Zeroes stay holes.
        for run in data_runs(&buffer[..step]) {
            copy.write_all_at(&buffer[run.clone()], at + run.start as u64)?;
        }
        at += step as u64;
    }
    sysfd::fcntl(copy.as_fd().as_raw_fd(), F_ADD_SEALS, ALL)?;
    Ok(copy)
}

/// Fresh anonymous memory is zero already; elsewhere zeroes count.
fn rows(shot: &Appshot, core: &Core) -> io::Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    let mut next = None;
    let mut page = Vec::new();
    for segment in &core.segments {
        let anonymous = fill::is_anonymous(core, segment.vaddr);
        page.resize(segment.bytes as usize, 0);
        shot.file(segment.part).read_exact_at(&mut page, segment.offset)?;
        let whole = std::iter::once(0..page.len()).filter(|_| !anonymous);
        let runs = data_runs(&page).filter(|_| anonymous);
        for run in whole.chain(runs) {
            let (place, bytes) = (segment.place().ahead(run.start as u64), run.len() as u64);
            let piece = (segment.vaddr + run.start as u64, bytes);
            match rows
                .last_mut()
                .filter(|row| next == Some(place) && row.pieces.len() < PIECES_MAX)
            {
                Some(row) => row.pieces.push(piece),
                None => rows.push(Row {
                    place,
                    pieces: vec![piece],
                }),
            }
            next = Some(place.ahead(bytes));
        }
    }
    Ok(rows)
}

/// iovecs of one preadv(2).
const PIECES_MAX: usize = 1024;
const _: () = assert!(PAGE == crate::sys::memory::PAGE);

/// The rows without what lies in these mappings, which get their content elsewhere or none.
pub fn without(rows: &[Row], full: &[Span]) -> Vec<Row> {
    let mut left = Vec::with_capacity(rows.len());
    for row in rows {
        let mut place = row.place;
        let mut parts: Vec<Row> = Vec::new();
        let mut open = false;
        for (address, bytes) in &row.pieces {
            if full.iter().any(|span| (span.start..span.end).contains(address)) {
                open = false;
            } else {
                match parts.last_mut().filter(|_| open) {
                    Some(part) => part.pieces.push((*address, *bytes)),
                    None => parts.push(Row {
                        place,
                        pieces: vec![(*address, *bytes)],
                    }),
                }
                open = true;
            }
            place = place.ahead(*bytes);
        }
        left.append(&mut parts);
    }
    left
}
