//! Opens an appshot that nobody vouches for.

use super::fault::{corrupt, ensure, unreadable};
use super::leaves::{DIGESTS, Leaves, Pieces};
use super::parents::{self, Lending, Parts, of_parent};
use super::process::{Core, Segment};
use super::records::{Lender, Life, Manifest, Part};
use super::source::Source;
use super::{LEAF, MANIFEST, core_read, digest, limits, manifest, validate};
use crate::error::{Error, Kind, Result};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// A whole appshot. What it says is consistent; whether it may be restored
/// here is for the restorer to decide.
#[derive(Debug)]
pub struct Appshot {
    pub manifest: Manifest,
    /// The live processes, in the order of `manifest.processes`.
    pub cores: Vec<Core>,
    pub path: PathBuf,
    /// BLAKE3 of the manifest file: what tells it from any other.
    pub identity: blake3::Hash,
    /// The descriptors that were verified: of the parts, then of what parents lend.
    files: Vec<Arc<File>>,
}

/// What the parts of an appshot must be, byte for byte.
#[derive(Debug)]
pub struct Digests {
    /// In the order of the manifest; then what parents lend.
    parts: Parts,
    /// How many are its own.
    own: usize,
    parents: Vec<Lending>,
    /// What is borrowed of the others: number of the part, whole leaves.
    borrowed: Vec<(usize, Range<u64>)>,
    /// They have been held against the parts once.
    verified: OnceLock<()>,
}

impl Digests {
    /// Reads every part, and what is borrowed, with up to `threads` threads and holds it
    /// against the digest that it was sealed with, unless that has been done.
    pub fn verify(&self, threads: usize) -> Result<()> {
        if self.verified.get().is_some() {
            return Ok(());
        }
        let own = &self.parts[..self.own];
        let lengths: Vec<u64> = own.iter().map(|(part, _)| part.bytes).collect();
        let found = digest::of_all(&lengths, threads, |at, offset, buffer: &mut [u8]| {
            let (part, file) = &own[at];
            file.fill_at(buffer, offset).map_err(|e| unreadable(&part.name, e))
        })?;
        let mut leaves = Leaves::default();
        for ((part, _), found) in own.iter().zip(found) {
            ensure(
                digest::merged(&found).to_hex().as_str() == part.blake3,
                &part.name,
                || format!("its {} bytes do not match the digest they were sealed with", part.bytes),
            )?;
            if part.name != DIGESTS {
                leaves.push(&found);
            }
        }
        let sealed = own.last().map(|(part, _)| part);
        ensure(
            sealed == Some(&leaves.part()),
            DIGESTS,
            || "they are those of other content",
        )?;
        if !self.borrowed.is_empty() {
            self.read_leaves(&self.pieces()?, &self.borrowed, threads, |_, _, _| Ok(()))?;
        }
        self.verified.get_or_init(|| ());
        Ok(())
    }

    /// What pieces of the parts are held against one by one, instead of all at once.
    pub fn pieces(&self) -> Result<Pieces> {
        let (parts, files): (Vec<Part>, Vec<&File>) = self.parts[..self.own]
            .iter()
            .map(|(part, file)| (part.clone(), &**file))
            .unzip();
        let file = files.last().ok_or_else(|| corrupt(DIGESTS, "it is missing"))?;
        let mut pieces = Pieces::read(&parts, *file)?;
        for parent in &self.parents {
            let lent = Pieces::read(&parent.parts, &*parent.digests).map_err(|e| of_parent(e, &parent.name))?;
            parent.lent.iter().for_each(|number| pieces.add(&lent, *number));
        }
        Ok(pieces)
    }

    /// Reads these ranges of parts (by their number), which begin and end with leaves,
    /// with up to `threads` threads. Each leaf is held against its digest; then
    /// `see` is shown it: number of the part, offset, content.
    pub fn read_leaves(
        &self,
        pieces: &Pieces,
        wanted: &[(usize, Range<u64>)],
        threads: usize,
        see: impl Fn(usize, u64, &[u8]) -> Result<()> + Sync,
    ) -> Result<()> {
        let units = wanted.iter().flat_map(|(part, range)| {
            let starts = range.clone().step_by(digest::BLOCK);
            starts.map(|start| (*part, start, range.end.min(start + digest::BLOCK as u64)))
        });
        let units: Vec<(usize, u64, u64)> = units.collect();
        digest::share_out(units.len() as u64, threads, |number, buffer| {
            let (at, start, end) = units[number as usize];
            let (part, file) = &self.parts[at];
            for offset in (start..end).step_by(digest::STEP) {
                let bytes = &mut buffer[..(end - offset).min(digest::STEP as u64) as usize];
                file.fill_at(bytes, offset).map_err(|e| unreadable(&part.name, e))?;
                pieces.verify(at, &part.name, offset, bytes)?;
                see(at, offset, bytes)?;
            }
            Ok(())
        })
        .map(drop)
    }

    /// Reads one leaf, or what there is of it, and verifies it.
    pub fn read_leaf(&self, pieces: &Pieces, at: usize, offset: u64, buffer: &mut Vec<u8>) -> Result<()> {
        let (part, file) = &self.parts[at];
        buffer.resize((part.bytes - offset).min(LEAF as u64) as usize, 0);
        file.fill_at(buffer, offset).map_err(|e| unreadable(&part.name, e))?;
        pieces.verify(at, &part.name, offset, buffer)
    }

    /// Names and sizes of the parts, by number: its own in the order of the manifest,
    /// then what parents lend.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().map(|(part, _)| part)
    }

    /// What is borrowed of parents: the number of the part, whole leaves.
    pub fn borrowed(&self) -> &[(usize, Range<u64>)] {
        &self.borrowed
    }

    /// How many of the parts are the appshot's own.
    pub fn own(&self) -> usize {
        self.own
    }
}

impl Appshot {
    /// Reads and verifies every byte.
    pub fn open(path: &Path) -> Result<Appshot> {
        let (appshot, digests) = Appshot::open_to_verify(path)?;
        digests.verify(digest::processors())?;
        Ok(appshot)
    }

    /// As [`Appshot::open`], of the copies that `copy` makes of its parts (name, file,
    /// length): those are verified, and the files are not looked at again.
    pub fn open_copy(path: &Path, copy: impl Fn(&str, &File, u64) -> std::io::Result<File>) -> Result<Appshot> {
        let mut opened = Opened::new(path)?;
        for (part, file) in &mut opened.parts {
            *file = Arc::new(copy(&part.name, file, part.bytes).map_err(|e| unreadable(&part.name, e))?);
        }
        let (appshot, digests) = opened.parse_to_verify()?;
        digests.verify(digest::processors())?;
        Ok(appshot)
    }

    /// As [`Appshot::open`], but has not read the memory yet, and the records are
    /// no more than consistent. Nothing that comes of them may run before the
    /// digests have been verified.
    pub fn open_to_verify(path: &Path) -> Result<(Appshot, Digests)> {
        Opened::new(path)?.parse_to_verify()
    }

    /// As [`Appshot::open`], but trusts the parts to have the content they
    /// were sealed with. For listing; never to restore from.
    pub fn open_unverified_memory(path: &Path) -> Result<Appshot> {
        Opened::new(path)?.parse()
    }

    /// The verified descriptor of a part, at its start. Duplicates share their
    /// position: read with offsets where two readers may meet.
    pub fn part(&self, name: &str) -> Result<File> {
        let number = self.manifest.parts.iter().position(|part| part.name == name);
        let file = number
            .map(|number| &self.files[number])
            .ok_or_else(|| Error::new(Kind::NotFound, format!("the appshot has no part {name:?}")))?;
        let mut file = file.try_clone().map_err(|e| unreadable(name, e))?;
        file.rewind().map_err(|e| unreadable(name, e))?;
        Ok(file)
    }

    /// The verified descriptor of the part of this number, where a [`Segment`] is read.
    pub fn file(&self, part: usize) -> &File {
        &self.files[part]
    }

    /// Fills the buffer with memory of a process; whether all of it is stored.
    pub fn read_memory(&self, core: &Core, vaddr: u64, buffer: &mut [u8]) -> io::Result<bool> {
        let (mut at, end) = (vaddr, vaddr + buffer.len() as u64);
        for segment in Segment::among(&core.segments, vaddr..end) {
            if segment.vaddr > at {
                return Ok(false);
            }
            let until = segment.end().min(end);
            let place = segment.place().ahead(at - segment.vaddr);
            let own = &mut buffer[(at - vaddr) as usize..(until - vaddr) as usize];
            self.files[place.part].read_exact_at(own, place.offset)?;
            at = until;
        }
        Ok(at == end)
    }

    /// Which part of whom has this number: one of its own, or a parent's.
    pub fn lender(&self, number: usize) -> Lender {
        let own = self.manifest.parts.get(number).map(|part| Lender {
            parent: None,
            part: part.name.clone(),
        });
        own.unwrap_or_else(|| {
            self.lent()
                .nth(number - self.manifest.parts.len())
                .cloned()
                .expect("a number of ours")
        })
    }

    /// What parents lend, in the order of its numbers.
    fn lent(&self) -> impl Iterator<Item = &Lender> {
        lent(&self.manifest)
    }

    /// How much of its memory other appshots hold.
    pub fn borrowed_bytes(&self) -> u64 {
        let own = self.manifest.parts.len();
        let segments = self.cores.iter().flat_map(|core| &core.segments);
        segments.filter(|s| s.part >= own).map(|s| s.bytes).sum()
    }
}

/// What parents lend, parent by parent.
fn lent(manifest: &Manifest) -> impl Iterator<Item = &Lender> {
    let of = |parent: usize| move |lender: &&Lender| lender.parent == Some(parent as u32);
    (0..manifest.parents.len()).flat_map(move |parent| manifest.lenders.iter().filter(of(parent)))
}

/// An appshot of which only the manifest has been read.
struct Opened {
    manifest: Manifest,
    /// In the order of the manifest's parts, then what parents lend.
    parts: Parts,
    parents: Vec<Lending>,
    path: PathBuf,
    identity: blake3::Hash,
}

impl Opened {
    fn new(path: &Path) -> Result<Opened> {
        let mut dir = open_dir(path)?;
        let (manifest, identity) = read_manifest(&dir)?;
        check_names(&mut dir, &manifest)?;
        let parts = manifest
            .parts
            .iter()
            .map(|part| Ok((part.clone(), open_part(&dir, part)?)));
        let mut parts: Parts = parts.collect::<Result<_>>()?;
        let mut parents = Vec::with_capacity(manifest.parents.len());
        for (number, parent) in manifest.parents.iter().enumerate() {
            let names = manifest
                .lenders
                .iter()
                .filter(|lender| lender.parent == Some(number as u32));
            let (lending, mut lent) = parents::open(path, parent, names.map(|lender| lender.part.as_str()))?;
            parts.append(&mut lent);
            parents.push(lending);
        }
        Ok(Opened {
            manifest,
            parts,
            parents,
            path: path.to_path_buf(),
            identity,
        })
    }

    fn digests(&self) -> Digests {
        Digests {
            parts: self.parts.clone(),
            own: self.manifest.parts.len(),
            parents: self.parents.clone(),
            borrowed: Vec::new(),
            verified: OnceLock::new(),
        }
    }

    fn parse_to_verify(self) -> Result<(Appshot, Digests)> {
        let mut digests = self.digests();
        match self.parse() {
            Ok(appshot) => {
                digests.borrowed = borrowed_leaves(&digests, &appshot.cores);
                Ok((appshot, digests))
            }
            // What is damaged is told as that, whatever else it looks like.
            Err(error) => digests.verify(digest::processors()).and(Err(error)),
        }
    }

    fn parse(self) -> Result<Appshot> {
        let numbers: HashMap<&str, usize> = self.manifest.parts.iter().map(|p| p.name.as_str()).zip(0..).collect();
        let number = |part: &str| {
            let number = numbers.get(part).copied();
            number.ok_or_else(|| corrupt(MANIFEST, format_args!("no part {part}")))
        };
        let mut lenders = Vec::with_capacity(self.manifest.lenders.len());
        for lender in &self.manifest.lenders {
            lenders.push(match lender.parent {
                None => number(&lender.part)?,
                Some(_) => {
                    let lent = lent(&self.manifest).position(|one| one == lender);
                    numbers.len() + lent.ok_or_else(|| corrupt(MANIFEST, "a lender of no parent"))?
                }
            });
        }
        let mut cores = Vec::new();
        for entry in &self.manifest.processes {
            if let Life::Alive { part: name } = &entry.life {
                let part = number(name)?;
                let (image, mut segments) = core_read::parse(name, &*self.parts[part].1)?;
                for segment in &mut segments {
                    segment.part = match segment.part {
                        0 => part,
                        lender => *lenders
                            .get(lender - 1)
                            .filter(|lender| **lender != part)
                            .ok_or_else(|| {
                                corrupt(name, format_args!("it borrows from an unknown lender, {lender}"))
                            })?,
                    };
                }
                cores.push(Core { part, image, segments });
            }
        }
        validate::app(&self.manifest, &cores)?;
        let sizes: Vec<u64> = self.parts.iter().map(|(part, _)| part.bytes).collect();
        validate::borrowed(&self.manifest, &cores, &lenders, &sizes)?;
        Ok(Appshot {
            manifest: self.manifest,
            cores,
            path: self.path,
            identity: self.identity,
            files: self.parts.into_iter().map(|(_, file)| file).collect(),
        })
    }
}

/// Whole leaves of what parents lend, as far as any process has them.
fn borrowed_leaves(digests: &Digests, cores: &[Core]) -> Vec<(usize, Range<u64>)> {
    let leaf = LEAF as u64;
    let segments = cores.iter().flat_map(|core| &core.segments);
    let lent = segments.filter(|segment| segment.part >= digests.own);
    let mut leaves: Vec<(usize, u64, u64)> = lent
        .map(|s| {
            let end = (s.offset + s.bytes).next_multiple_of(leaf);
            (s.part, s.offset / leaf * leaf, end.min(digests.parts[s.part].0.bytes))
        })
        .collect();
    leaves.sort_unstable();
    let mut joined: Vec<(usize, Range<u64>)> = Vec::new();
    for (part, start, end) in leaves {
        match joined.last_mut() {
            Some((own, last)) if *own == part && last.end >= start => last.end = last.end.max(end),
            _ => joined.push((part, start..end)),
        }
    }
    joined
}

pub(super) fn open_dir(path: &Path) -> Result<Dir> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Dir::open(path, flags, Mode::empty()).map_err(|errno| {
        let kind = match errno {
            Errno::ENOENT => Kind::NotFound,
            _ => Kind::Failed,
        };
        let error =
            Error::new(kind, format!("cannot open the appshot {}", path.display())).state("nothing was started");
        match errno {
            Errno::ENOTDIR => error
                .because("it is a file; an appshot is a directory")
                .fix("unpack a packed one first, with `appshot store import FILE --to DIR`"),
            _ => error.because(errno),
        }
    })
}

pub(super) fn read_manifest(dir: &Dir) -> Result<(Manifest, blake3::Hash)> {
    let file = open_file(dir, MANIFEST)?;
    let size = file.bytes().map_err(|e| unreadable(MANIFEST, e))?;
    ensure(size <= limits::MANIFEST_BYTES, MANIFEST, || {
        format!("{size} bytes are too many")
    })?;
    let bytes = file.read_range(0, size).map_err(|e| unreadable(MANIFEST, e))?;
    Ok((manifest::parse(&bytes)?, blake3::hash(&bytes)))
}

/// A regular file of the directory itself: no link, no device, no fifo to
/// wait on.
pub(super) fn open_file(dir: &Dir, name: &str) -> Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = match openat(dir.as_fd(), name, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::ENOENT) => return Err(corrupt(name, "the file is missing")),
        Err(errno @ (Errno::EMFILE | Errno::ENFILE)) => {
            return Err(unreadable(name, errno)
                .needs("one open file for each process and blob")
                .fix("raise the limit of open files (ulimit -n)"));
        }
        Err(errno) => return Err(unreadable(name, errno)),
    };
    let metadata = file.metadata().map_err(|e| unreadable(name, e))?;
    ensure(metadata.is_file(), name, || "this is not a regular file")?;
    Ok(file)
}

/// The directory holds the manifest, its parts and nothing else. That none is
/// missing shows when they are opened.
pub(super) fn check_names(dir: &mut Dir, manifest: &Manifest) -> Result<()> {
    let listed: std::collections::BTreeSet<&[u8]> = manifest.parts.iter().map(|part| part.name.as_bytes()).collect();
    for entry in dir.iter() {
        let entry = entry.map_err(|e| unreadable("the directory", e))?;
        let name = entry.file_name().to_bytes();
        let known = name == b"." || name == b".." || name == MANIFEST.as_bytes() || listed.contains(name);
        ensure(known, MANIFEST, || {
            format!("file {} is not listed", name.escape_ascii())
        })?;
    }
    Ok(())
}

pub(super) fn open_part(dir: &Dir, part: &Part) -> Result<Arc<File>> {
    let file = open_file(dir, &part.name)?;
    let bytes = file.bytes().map_err(|e| unreadable(&part.name, e))?;
    ensure(bytes == part.bytes, &part.name, || {
        format!("it has {bytes} bytes instead of {}", part.bytes)
    })?;
    Ok(Arc::new(file))
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn sealed() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sample.appshot");
        sample::write(&path);
        (dir, path)
    }

    #[test]
    fn round_trip() {
        let (dir, path) = sealed();
        let appshot = Appshot::open(&path).unwrap();
        let mut expected = sample::manifest();
        expected.parts = appshot.manifest.parts.clone();
        assert_eq!(appshot.manifest, expected);
        assert_eq!(appshot.cores[0].image, sample::process(2, 1));
        assert_eq!(appshot.cores[1].image, sample::process(7, 2));
        let mut memory = vec![0; sample::memory().len()];
        for segment in &appshot.cores[1].segments {
            let at = usize::try_from(segment.vaddr - sample::HEAP).unwrap();
            let bytes = usize::try_from(segment.bytes).unwrap();
            appshot
                .file(segment.part)
                .read_exact_at(&mut memory[at..at + bytes], segment.offset)
                .unwrap();
        }
        assert_eq!(memory, sample::memory());
        assert_eq!(appshot.cores[1].segments.len(), 2);
        assert_eq!(appshot.part("shm-0.data").unwrap().metadata().unwrap().len(), 5000);
        assert!(appshot.part("7.core").is_ok());
        assert_eq!(appshot.part("manifest").unwrap_err().kind, Kind::NotFound);
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing but the appshot is left");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        for part in ["manifest", "2.core"] {
            assert_eq!(path.join(part).metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    /// Any damage in any file is found, wherever it is.
    #[test]
    fn flips_and_truncations_are_refused() {
        let (_dir, path) = sealed();
        for name in ["manifest", "2.core", "7.core", "shm-0.data", "unlinked-3.data"] {
            let file = path.join(name);
            let good = std::fs::read(&file).unwrap();
            // Dense where structures are, sampled in the memory.
            let step = if name == "shm-0.data" { 501 } else { 37 };
            for at in (0..good.len()).filter(|at| *at < 300 || at % step == 0 || *at + 300 > good.len()) {
                let mut bad = good.clone();
                bad[at] ^= 1 << (at % 8);
                std::fs::write(&file, &bad).unwrap();
                let error = Appshot::open(&path).expect_err("flip");
                assert_eq!(
                    error.state.as_deref(),
                    Some("nothing was started"),
                    "{name} {at}: {error}"
                );
                std::fs::write(&file, &good[..at]).unwrap();
                assert!(Appshot::open(&path).is_err(), "{name} cut at {at}");
            }
            std::fs::write(&file, [&good[..], b"\0"].concat()).unwrap();
            assert!(Appshot::open(&path).is_err(), "{name} grown");
            std::fs::write(&file, &good).unwrap();
            assert!(Appshot::open(&path).is_ok());
        }
    }

    #[test]
    fn only_the_listed_files_are_taken() {
        let (_dir, path) = sealed();
        for extra in ["extra", ".hidden", "3.core"] {
            std::fs::write(path.join(extra), "").unwrap();
            let error = Appshot::open(&path).unwrap_err();
            assert!(error.to_string().contains(extra), "{error}");
            std::fs::remove_file(path.join(extra)).unwrap();
        }
        for name in ["manifest", "2.core", "shm-0.data"] {
            let (file, aside) = (path.join(name), path.with_extension("aside"));
            std::fs::rename(&file, &aside).unwrap();
            let error = Appshot::open(&path).unwrap_err();
            assert!(error.to_string().contains("missing"), "{error}");
            std::os::unix::fs::symlink(&aside, &file).unwrap();
            assert!(Appshot::open(&path).is_err(), "a link is not followed");
            std::fs::remove_file(&file).unwrap();
            std::fs::rename(&aside, &file).unwrap();
        }
        assert!(Appshot::open(&path).is_ok());
        let gone = Appshot::open(&path.join("nothing")).unwrap_err();
        assert_eq!(gone.kind, Kind::NotFound);
    }

    /// Listing does not need the memory to be whole, only the records.
    #[test]
    fn memory_can_be_left_unverified() {
        let (_dir, path) = sealed();
        let file = path.join("2.core");
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[5000] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        assert!(Appshot::open(&path).is_err());
        assert_eq!(Appshot::open_unverified_memory(&path).unwrap().cores.len(), 2);
    }
}
