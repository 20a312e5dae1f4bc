//! An appshot as one file, for travel.
//!
//! ```text
//!       0  "APPSHOT PACKED 1"   16 bytes; the last one is the version
//!      16  zstd frames, back to back: the manifest, then the parts in its order
//!       I  index: JSON list of [name, bytes, packed bytes], in the order of the frames
//!  end-40  u64 little-endian: size of the index
//!  end-32  BLAKE3 of everything before
//! ```
//!
//! The index stands at the end because it is known last; writing goes forward
//! only. Reading begins with the digest of the whole file, so nothing is
//! unpacked from a damaged one. Someone may still have made a malicious one:
//! no frame yields more than the index says, the index must say what the
//! manifest says, and what was unpacked is opened as an untrusted directory
//! before it gets its name.

use super::digest;
use super::fault::{corrupt, ensure, unreadable, unsupported};
use super::flatten::flatten;
use super::parents::needed;
use super::reader::Appshot;
use super::records::Manifest;
use super::source::Source;
use super::staging::Staging;
use super::{MANIFEST, limits, manifest, validate};
use crate::error::{Error, Kind, OrFail, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 16] = b"APPSHOT PACKED 1";
/// Index size and digest.
const TRAILER_BYTES: u64 = 40;
const DIGEST_BYTES: u64 = 32;
/// For errors.
const PACKED: &str = "the packed file";
/// zstd's default: further levels cost much more than they save on memory pages.
const LEVEL: i32 = 3;
/// Memory compresses in large blocks; copying in small ones would be slow.
const COPY_BYTES: usize = 1 << 20;

/// One frame.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry(String, u64, u64);

/// Packs the appshot in `dir` into the new file `out`, and returns its size.
/// The appshot is verified first; what it borrows from others is packed with it.
pub fn pack(dir: &Path, out: &Path) -> Result<u64> {
    if needed(dir)?.is_empty() {
        return pack_opened(&Appshot::open(dir)?, out);
    }
    // It travels alone: what it borrows comes along.
    let staging = Staging::create(out)?;
    let flat = flatten(dir, &staging.path().join("flat"))?;
    pack_opened(&Appshot::open_unverified_memory(&flat.path)?, out)
}

pub(super) fn pack_opened(appshot: &Appshot, out: &Path) -> Result<u64> {
    let cannot = || format!("cannot pack {} into {}", appshot.path.display(), out.display());
    let staging = Staging::create(out)?;
    let mut to = Hashed {
        file: staging.create_file("packed").or_fail(cannot)?,
        hasher: blake3::Hasher::new(),
    };
    write(appshot, &mut to).or_fail(cannot)?;
    let Hashed { file, hasher } = to;
    let (bytes, digest) = (hasher.count(), hasher.finalize());
    (&file)
        .write_all(digest.as_bytes())
        .and_then(|()| file.sync_all())
        .or_fail(cannot)?;
    let reads_back = digest::of(&file, bytes).or_fail(cannot)?;
    if reads_back != digest {
        return Err(Error::failed(cannot()).because("it reads back other than it was written"));
    }
    staging.commit_file("packed")?;
    Ok(bytes + DIGEST_BYTES)
}

fn write(appshot: &Appshot, to: &mut Hashed) -> io::Result<()> {
    to.write_all(MAGIC)?;
    // The records were verified; their JSON is the same as in the directory,
    // or the digest in the seal would not match when it is unpacked.
    let manifest = manifest::encode(&appshot.manifest).map_err(io::Error::other)?;
    let mut index = vec![write_frame(MANIFEST, &manifest[..], manifest.len() as u64, to)?];
    for part in &appshot.manifest.parts {
        let file = appshot.part(&part.name).map_err(io::Error::other)?;
        index.push(write_frame(&part.name, file, part.bytes, to)?);
    }
    let index = serde_json::to_vec(&index)?;
    to.write_all(&index)?;
    to.write_all(&(index.len() as u64).to_le_bytes())
}

fn write_frame(name: &str, from: impl Read, bytes: u64, to: &mut Hashed) -> io::Result<Entry> {
    let start = to.hasher.count();
    let mut encoder = zstd::Encoder::new(&mut *to, LEVEL)?;
    encoder.set_pledged_src_size(Some(bytes))?;
    encoder.include_checksum(false)?;
    if bytes > COPY_BYTES as u64 {
        encoder.multithread(std::thread::available_parallelism().map_or(1, |n| n.get() as u32))?;
    }
    copy(from, &mut encoder, bytes)?;
    encoder.finish()?;
    Ok(Entry(name.to_string(), bytes, to.hasher.count() - start))
}

/// Copies exactly this many bytes, after which the source must be at its end.
fn copy(from: impl Read, to: &mut impl Write, bytes: u64) -> io::Result<()> {
    let mut from = from.take(bytes.saturating_add(1));
    let mut buffer = vec![0; COPY_BYTES.min(usize::try_from(bytes).unwrap_or(COPY_BYTES) + 1)];
    let mut copied = 0;
    loop {
        match from.read(&mut buffer)? {
            0 if copied == bytes => return Ok(()),
            0 => {
                return Err(io::Error::other(format!("{copied} bytes instead of {bytes}")));
            }
            read => {
                copied += read as u64;
                if copied > bytes {
                    return Err(io::Error::other(format!("more than {bytes} bytes")));
                }
                to.write_all(&buffer[..read])?;
            }
        }
    }
}

/// A file with the digest of what was written to it.
struct Hashed {
    file: File,
    hasher: blake3::Hasher,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Unpacks into the new directory `dest`. When this returns, the appshot is
/// verified and on disk.
pub fn unpack(file: &Path, dest: &Path) -> Result<PathBuf> {
    let cannot = || format!("cannot unpack {} into {}", file.display(), dest.display());
    let source = File::open(file).map_err(|e| cannot_find(cannot(), &e))?;
    let contents = read(&source)?;
    let staging = Staging::create(dest)?;
    let mut to = staging.create_file(MANIFEST).or_fail(cannot)?;
    to.write_all(&contents.sealed)
        .and_then(|()| to.sync_all())
        .or_fail(cannot)?;
    for frame in &contents.parts {
        let mut to = staging.create_file(&frame.name).or_fail(cannot)?;
        unpack_frame(&source, frame, &mut to)?;
        to.sync_data().or_fail(cannot)?;
    }
    Appshot::open(staging.path())?;
    staging.commit()
}

fn cannot_find(what: String, cause: &std::io::Error) -> Error {
    let kind = match cause.kind() {
        std::io::ErrorKind::NotFound => Kind::NotFound,
        _ => Kind::Failed,
    };
    Error::new(kind, what)
        .because(cause)
        .fix("name a file that `appshot pack` wrote")
        .state("nothing was written")
}

/// Reads a packed appshot without unpacking its parts.
pub fn parse(bytes: &[u8]) -> Result<Manifest> {
    read(bytes).map(|contents| contents.manifest)
}

struct Frame {
    name: String,
    bytes: u64,
    offset: u64,
    packed_bytes: u64,
}

struct Contents {
    manifest: Manifest,
    /// The manifest's bytes.
    sealed: Vec<u8>,
    parts: Vec<Frame>,
}

fn read(source: &(impl Source + ?Sized)) -> Result<Contents> {
    let frames = read_index(source, verify(source)?)?;
    let mut frames = frames.into_iter();
    let first = frames
        .next()
        .filter(|first| first.name == MANIFEST && first.bytes <= limits::MANIFEST_BYTES);
    let first = first.ok_or_else(|| corrupt(PACKED, "it does not begin with a manifest"))?;
    let mut sealed = Vec::new();
    unpack_frame(source, &first, &mut sealed)?;
    let manifest = manifest::parse(&sealed)?;
    ensure(
        manifest.parents.is_empty(),
        PACKED,
        || "it needs other appshots, as none that was packed does",
    )?;
    let parts: Vec<_> = frames.collect();
    let agree = parts.len() == manifest.parts.len()
        && parts
            .iter()
            .zip(&manifest.parts)
            .all(|(frame, part)| frame.name == part.name && frame.bytes == part.bytes);
    ensure(agree, PACKED, || "its index does not match its manifest")?;
    Ok(Contents {
        manifest,
        sealed,
        parts,
    })
}

/// Checks magic, version and digest; returns where the trailer begins.
fn verify(source: &(impl Source + ?Sized)) -> Result<u64> {
    let unreadable = |e| unreadable(PACKED, e);
    let size = source.bytes().map_err(unreadable)?;
    ensure(size >= MAGIC.len() as u64 + TRAILER_BYTES, PACKED, || {
        format!("{size} bytes are too few")
    })?;
    let magic = source.read_range(0, MAGIC.len() as u64).map_err(unreadable)?;
    let (name, version) = magic.split_at(MAGIC.len() - 1);
    ensure(
        name == &MAGIC[..MAGIC.len() - 1],
        PACKED,
        || "this is not a packed appshot",
    )?;
    if version != &MAGIC[MAGIC.len() - 1..] {
        return Err(unsupported(
            format_args!("the packed form is version {}", version.escape_ascii()),
            "the version of Appshot that wrote it, or a newer one that still reads it",
        ));
    }
    let covered = size - DIGEST_BYTES;
    let digest = source.read_range(covered, DIGEST_BYTES).map_err(unreadable)?;
    let found = digest::of(source, covered).map_err(unreadable)?;
    ensure(
        digest == found.as_bytes(),
        PACKED,
        || "its content does not match its digest",
    )?;
    Ok(size - TRAILER_BYTES)
}

/// The frames lie back to back between the magic and the index.
fn read_index(source: &(impl Source + ?Sized), trailer: u64) -> Result<Vec<Frame>> {
    let unreadable = |e| unreadable(PACKED, e);
    let word = source.read_range(trailer, 8).map_err(unreadable)?;
    let index_bytes = super::elf::u64_at(&word, 0);
    let start = trailer
        .checked_sub(index_bytes)
        .filter(|start| *start >= MAGIC.len() as u64);
    let start = start.filter(|_| index_bytes <= limits::INDEX_BYTES);
    let start = start.ok_or_else(|| corrupt(PACKED, format_args!("an index of {index_bytes} bytes")))?;
    let json = source.read_range(start, index_bytes).map_err(unreadable)?;
    let entries: Vec<Entry> = serde_json::from_slice(&json).map_err(|e| corrupt(PACKED, format_args!("index: {e}")))?;
    validate::count(PACKED, "parts", entries.len(), limits::PARTS + 1)?;
    let mut frames = Vec::with_capacity(entries.len());
    let mut offset = MAGIC.len() as u64;
    for Entry(name, bytes, packed_bytes) in entries {
        let end = offset.checked_add(packed_bytes).filter(|end| *end <= start);
        let end = end.ok_or_else(|| corrupt(PACKED, format_args!("frame at byte {offset} is too long")))?;
        frames.push(Frame {
            name,
            bytes,
            offset,
            packed_bytes,
        });
        offset = end;
    }
    ensure(offset == start, PACKED, || format!("byte {offset} belongs to no frame"))?;
    Ok(frames)
}

fn unpack_frame(source: &(impl Source + ?Sized), frame: &Frame, to: &mut impl Write) -> Result<()> {
    let range = Range {
        source,
        at: frame.offset,
        end: frame.offset + frame.packed_bytes,
    };
    zstd::Decoder::new(range)
        .and_then(|decoder| copy(decoder, to, frame.bytes))
        .map_err(|e| corrupt(PACKED, format_args!("{}: {e}", frame.name)))
}

/// A part of a source as a stream.
struct Range<'a, S: ?Sized> {
    source: &'a S,
    at: u64,
    end: u64,
}

impl<S: Source + ?Sized> Read for Range<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        self.source.fill_at(&mut buffer[..length], self.at)?;
        self.at += length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn packed() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sample.packed");
        sample::write(&dir.path().join("sample.appshot"));
        let bytes = pack(&dir.path().join("sample.appshot"), &path).unwrap();
        assert_eq!(path.metadata().unwrap().len(), bytes);
        (dir, path)
    }

    fn with_digest(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.truncate(bytes.len() - 32);
        let digest = blake3::hash(&bytes);
        bytes.extend(digest.as_bytes());
        bytes
    }

    #[test]
    fn round_trip() {
        let (dir, path) = packed();
        let dest = dir.path().join("again.appshot");
        assert_eq!(unpack(&path, &dest).unwrap(), dest.canonicalize().unwrap());
        for entry in std::fs::read_dir(dir.path().join("sample.appshot")).unwrap() {
            let name = entry.unwrap().file_name();
            let before = std::fs::read(dir.path().join("sample.appshot").join(&name)).unwrap();
            assert_eq!(std::fs::read(dest.join(&name)).unwrap(), before, "{name:?}");
        }
        assert_eq!(unpack(&path, &dest).unwrap_err().kind, Kind::Conflict);
        assert_eq!(pack(&dest, &path).unwrap_err().kind, Kind::Conflict);
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            3,
            "nothing else is left"
        );
    }

    #[test]
    fn flips_and_truncations_are_refused() {
        let (_dir, path) = packed();
        let good = std::fs::read(&path).unwrap();
        assert!(parse(&good).is_ok());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(parse(&bad).is_err(), "flip at {at}");
            assert!(parse(&good[..at]).is_err(), "cut at {at}");
        }
    }

    /// With a digest that was made to fit, the rest must still hold.
    #[test]
    fn resealed_flips_never_panic_nor_unpack() {
        let (dir, path) = packed();
        let good = std::fs::read(&path).unwrap();
        for at in (0..good.len() - 32).step_by(29) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            let file = dir.path().join("bad.packed");
            std::fs::write(&file, with_digest(bad)).unwrap();
            let dest = dir.path().join("bad.appshot");
            if unpack(&file, &dest).is_ok() {
                // A flip in zstd's own framing may not change the content.
                Appshot::open(&dest).unwrap();
                std::fs::remove_dir_all(&dest).unwrap();
            }
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn other_version_is_refused() {
        let (_dir, path) = packed();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[15] = b'2';
        assert_eq!(parse(&with_digest(bytes)).unwrap_err().kind, Kind::Refused);
    }
}
