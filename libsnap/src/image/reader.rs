//! Opens an appshot that nobody vouches for.

use super::digest::ChainingValue;
use super::fault::{corrupt, ensure, unreadable};
use super::leaves::{DIGESTS, Leaves, Pieces};
use super::process::Core;
use super::records::{Life, Manifest, Part};
use super::source::Source;
use super::{LEAF, MANIFEST, core_read, digest, limits, manifest, validate};
use crate::error::{Error, Kind, Result};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::io::Seek;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

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
    /// The descriptors that were verified, without the cores'.
    blobs: BTreeMap<String, File>,
}

/// What the parts of an appshot must be, byte for byte.
#[derive(Debug)]
pub struct Digests {
    parts: Vec<(Part, File)>,
    /// They have been held against the parts once.
    verified: OnceLock<()>,
}

impl Digests {
    pub(super) fn of(parts: Vec<(Part, File)>) -> Digests {
        Digests {
            parts,
            verified: OnceLock::new(),
        }
    }

    /// Reads every part with up to `threads` threads and holds it against the
    /// digest that it was sealed with, unless that has been done.
    pub fn verify(&self, threads: usize) -> Result<()> {
        if self.verified.get().is_some() {
            return Ok(());
        }
        let found = digest::of_all(&self.lengths(), threads, |at, offset, buffer: &mut [u8]| {
            let (part, file) = &self.parts[at];
            file.fill_at(buffer, offset).map_err(|e| unreadable(&part.name, e))
        })?;
        if let Some((_, error)) = self.unlike(&found).next() {
            return Err(error);
        }
        self.leaves_are_sealed(&found)?;
        self.verified.get_or_init(|| ());
        Ok(())
    }

    /// The same, naming every part that is not what it was sealed as. `all` the parts of
    /// the appshot are these, or some are missing.
    pub(super) fn damaged(&self, threads: usize, all: bool) -> Vec<(String, Error)> {
        let broken = Mutex::new(BTreeMap::new());
        let found = digest::of_all(&self.lengths(), threads, |at, offset, buffer: &mut [u8]| {
            let (part, file) = &self.parts[at];
            let read = file.fill_at(buffer, offset);
            if let (Err(cause), Ok(mut broken)) = (read, broken.lock()) {
                broken.insert(at, unreadable(&part.name, cause));
            }
            Ok::<(), Infallible>(())
        });
        let Ok(found) = found;
        let mut broken = broken.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut damaged: BTreeMap<usize, Error> = self.unlike(&found).collect();
        damaged.append(&mut broken);
        if all
            && damaged.is_empty()
            && let Err(error) = self.leaves_are_sealed(&found)
        {
            return vec![(DIGESTS.to_owned(), error)];
        }
        let named = |(at, error): (usize, Error)| (self.parts[at].0.name.clone(), error);
        damaged.into_iter().map(named).collect()
    }

    fn lengths(&self) -> Vec<u64> {
        self.parts.iter().map(|(part, _)| part.bytes).collect()
    }

    /// Parts that have other leaves than they were sealed with.
    fn unlike(&self, found: &[Vec<ChainingValue>]) -> impl Iterator<Item = (usize, Error)> {
        let pairs = self.parts.iter().zip(found).enumerate();
        pairs.filter_map(|(at, ((part, _), found))| {
            let same = digest::merged(found).to_hex().as_str() == part.blake3;
            let told = || format!("its {} bytes do not match the digest they were sealed with", part.bytes);
            ensure(same, &part.name, told).err().map(|error| (at, error))
        })
    }

    /// The part of digests tells those of the others.
    fn leaves_are_sealed(&self, found: &[Vec<ChainingValue>]) -> Result<()> {
        let mut leaves = Leaves::default();
        for (part, found) in self.parts().zip(found) {
            if part.name != DIGESTS {
                leaves.push(found);
            }
        }
        let sealed = self.parts().last();
        ensure(
            sealed == Some(&leaves.part()),
            DIGESTS,
            || "they are those of other content",
        )
    }

    /// What pieces of the parts are held against one by one, instead of all at once.
    pub fn pieces(&self) -> Result<Pieces> {
        let (parts, files): (Vec<Part>, Vec<&File>) =
            self.parts.iter().map(|(part, file)| (part.clone(), file)).unzip();
        let file = files.last().ok_or_else(|| corrupt(DIGESTS, "it is missing"))?;
        Pieces::read(&parts, *file)
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
                pieces.verify(&part.name, offset, bytes)?;
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
        pieces.verify(&part.name, offset, buffer)
    }

    /// Names and sizes of the parts, in the order of the manifest.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().map(|(part, _)| part)
    }
}

impl Appshot {
    /// Reads and verifies every byte.
    pub fn open(path: &Path) -> Result<Appshot> {
        let opened = Opened::new(path)?;
        opened.digests()?.verify(digest::processors())?;
        opened.parse()
    }

    /// As [`Appshot::open`], of the copies that `copy` makes of its parts (name, file,
    /// length): those are verified, and the files are not looked at again.
    pub fn open_copy(path: &Path, copy: impl Fn(&str, &File, u64) -> std::io::Result<File>) -> Result<Appshot> {
        let mut opened = Opened::new(path)?;
        for (part, file) in opened.manifest.parts.iter().zip(&mut opened.files) {
            *file = copy(&part.name, file, part.bytes).map_err(|e| unreadable(&part.name, e))?;
        }
        opened.digests()?.verify(digest::processors())?;
        opened.parse()
    }

    /// As [`Appshot::open`], but has not read the memory yet, and the records are
    /// no more than consistent. Nothing that comes of them may run before the
    /// digests have been verified.
    pub fn open_to_verify(path: &Path) -> Result<(Appshot, Digests)> {
        let opened = Opened::new(path)?;
        let digests = opened.digests()?;
        match opened.parse() {
            Ok(appshot) => Ok((appshot, digests)),
            // What is damaged is told as that, whatever else it looks like.
            Err(error) => digests.verify(digest::processors()).and(Err(error)),
        }
    }

    /// As [`Appshot::open`], but trusts the parts to have the content they
    /// were sealed with. For listing; never to restore from.
    pub fn open_unverified_memory(path: &Path) -> Result<Appshot> {
        Opened::new(path)?.parse()
    }

    /// The verified descriptor of a part, at its start. Duplicates share their
    /// position: read with offsets where two readers may meet.
    pub fn part(&self, name: &str) -> Result<File> {
        let core = || {
            let live = self.manifest.processes.iter().filter_map(|entry| match &entry.life {
                Life::Alive { part } => Some(part),
                Life::Zombie { .. } => None,
            });
            live.zip(&self.cores)
                .find(|(part, _)| *part == name)
                .map(|(_, core)| &core.file)
        };
        let file = self
            .blobs
            .get(name)
            .or_else(core)
            .ok_or_else(|| Error::new(Kind::NotFound, format!("the appshot has no part {name:?}")))?;
        let mut file = file.try_clone().map_err(|e| unreadable(name, e))?;
        file.rewind().map_err(|e| unreadable(name, e))?;
        Ok(file)
    }
}

/// An appshot of which only the manifest has been read.
struct Opened {
    manifest: Manifest,
    /// In the order of the manifest's parts.
    files: Vec<File>,
    path: PathBuf,
    identity: blake3::Hash,
}

impl Opened {
    fn new(path: &Path) -> Result<Opened> {
        let mut dir = open_dir(path)?;
        let (manifest, identity) = read_manifest(&dir)?;
        check_names(&mut dir, &manifest)?;
        let files = manifest.parts.iter().map(|part| open_part(&dir, part));
        Ok(Opened {
            files: files.collect::<Result<_>>()?,
            manifest,
            path: path.to_path_buf(),
            identity,
        })
    }

    fn digests(&self) -> Result<Digests> {
        let parts = self.manifest.parts.iter().zip(&self.files);
        let parts = parts.map(|(part, file)| {
            let file = file.try_clone().map_err(|e| unreadable(&part.name, e))?;
            Ok((part.clone(), file))
        });
        Ok(Digests::of(parts.collect::<Result<_>>()?))
    }

    fn parse(self) -> Result<Appshot> {
        let names = self.manifest.parts.iter().map(|part| part.name.clone());
        let mut files: BTreeMap<String, File> = names.zip(self.files).collect();
        let mut cores = Vec::new();
        for entry in &self.manifest.processes {
            if let Life::Alive { part } = &entry.life {
                let file = files
                    .remove(part)
                    .ok_or_else(|| corrupt(MANIFEST, format_args!("no part {part}")))?;
                let (image, segments) = core_read::parse(part, &file)?;
                cores.push(Core { file, image, segments });
            }
        }
        validate::app(&self.manifest, &cores)?;
        Ok(Appshot {
            manifest: self.manifest,
            cores,
            path: self.path,
            identity: self.identity,
            blobs: files,
        })
    }
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
fn open_file(dir: &Dir, name: &str) -> Result<File> {
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

pub(super) fn open_part(dir: &Dir, part: &Part) -> Result<File> {
    let file = open_file(dir, &part.name)?;
    let bytes = file.bytes().map_err(|e| unreadable(&part.name, e))?;
    ensure(bytes == part.bytes, &part.name, || {
        format!("it has {bytes} bytes instead of {}", part.bytes)
    })?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use std::os::unix::fs::{FileExt, PermissionsExt};

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
            appshot.cores[1]
                .file
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
