//! An appshot looked at where it lies, as a directory or packed: what it says of
//! itself, and what of it is damaged.

use super::fault::unreadable;
use super::leaves::{DIGESTS, Leaves};
use super::reader::{self, Appshot};
use super::records::{Manifest, Part};
use super::source::Source;
use super::{MANIFEST, digest, packed};
use crate::error::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

/// What can be told without reading any memory.
#[derive(Debug)]
pub struct Glance {
    pub manifest: Manifest,
    /// BLAKE3 of the manifest file: what tells the appshot from any other.
    pub identity: blake3::Hash,
    /// Size of the file, where it is packed.
    pub packed_bytes: Option<u64>,
}

/// Reads the manifest, which is verified by its seal.
pub fn glance(path: &Path) -> Result<Glance> {
    match path.is_file() {
        true => {
            let file = open(path)?;
            let (manifest, bytes) = packed::peek(&file)?;
            Ok(Glance {
                manifest,
                identity: blake3::hash(&bytes),
                packed_bytes: Some(file.bytes().map_err(|e| unreadable("the packed file", e))?),
            })
        }
        false => {
            let (manifest, identity) = reader::read_manifest(&reader::open_dir(path)?)?;
            Ok(Glance {
                manifest,
                identity,
                packed_bytes: None,
            })
        }
    }
}

/// A part that is not what it was sealed as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Name of the file; of the whole where it cannot be told apart.
    pub part: String,
    pub because: String,
}

/// Reads every byte of an appshot and names each damaged part; none: it is whole. An
/// error is about something else, such as that there is no appshot.
pub fn damage(path: &Path) -> Result<Vec<Damage>> {
    let named = |(part, because)| Damage { part, because };
    match path.is_file() {
        true => Ok(packed::damaged(&open(path)?)?.into_iter().map(named).collect()),
        false => of_directory(path),
    }
}

fn of_directory(path: &Path) -> Result<Vec<Damage>> {
    let damaged = |part: &str, error: Error| Damage {
        part: part.to_owned(),
        because: error.because.unwrap_or(error.what),
    };
    let mut dir = reader::open_dir(path)?;
    let manifest = match reader::read_manifest(&dir) {
        Ok((manifest, _)) => manifest,
        Err(error) => return Ok(vec![damaged(MANIFEST, error)]),
    };
    let mut found = Vec::new();
    found.extend(
        reader::check_names(&mut dir, &manifest)
            .err()
            .map(|e| damaged(MANIFEST, e)),
    );
    let mut parts = Vec::new();
    for part in &manifest.parts {
        match reader::open_part(&dir, part) {
            Ok(file) => parts.push((part.clone(), file)),
            Err(error) => found.push(damaged(&part.name, error)),
        }
    }
    let all = parts.len() == manifest.parts.len();
    found.extend(of_parts(&parts, all));
    // What it is put together of, and what it borrows from others.
    if found.is_empty() {
        let opened = match manifest.parents.is_empty() {
            true => Appshot::open_unverified_memory(path),
            false => Appshot::open(path),
        };
        found.extend(opened.err().map(|e| {
            Damage {
                part: "the whole".to_owned(),
                because: e
                    .because
                    .map_or(e.what.clone(), |because| format!("{}: {because}", e.what)),
            }
        }));
    }
    Ok(found)
}

/// Length of an appshot's files and what they take on disk: of those of a directory
/// (it has no deeper ones), or of the one that it is.
pub fn sizes(path: &Path) -> (u64, u64) {
    // st_blocks counts 512 bytes, whatever the file system's blocks are.
    let of = |path: &Path| path.metadata().map_or((0, 0), |meta| (meta.len(), meta.blocks() * 512));
    match path.read_dir() {
        Ok(entries) => entries
            .flatten()
            .map(|entry| of(&entry.path()))
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1)),
        Err(_) => of(path),
    }
}

/// Parts that are not what they were sealed as: `all` there are, or some are missing.
fn of_parts(parts: &[(Part, Arc<File>)], all: bool) -> Vec<Damage> {
    let damage = |part: &Part, because: String| Damage {
        part: part.name.clone(),
        because,
    };
    let (mut found, mut leaves) = (Vec::new(), Leaves::default());
    for (part, file) in parts {
        let read = digest::of_all(&[part.bytes], digest::processors(), |_, at, buffer: &mut [u8]| {
            file.fill_at(buffer, at)
        });
        match read {
            Err(cause) => found.push(damage(part, format!("it cannot be read: {cause}"))),
            Ok(own) if digest::merged(&own[0]).to_hex().as_str() != part.blake3 => {
                let bytes = part.bytes;
                let told = format!("its {bytes} bytes do not match the digest they were sealed with");
                found.push(damage(part, told));
            }
            Ok(own) if part.name != DIGESTS => leaves.push(&own[0]),
            Ok(_) => {}
        }
    }
    let sealed = parts.last().map(|(part, _)| part);
    if all && found.is_empty() && sealed != Some(&leaves.part()) {
        found.extend(sealed.map(|part| damage(part, "they are those of other content".to_owned())));
    }
    found
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| {
        let kind = match e.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            _ => Kind::Failed,
        };
        Error::new(kind, format!("cannot open the appshot {}", path.display())).because(e)
    })
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn flip(path: &Path, at: usize) {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    fn names(path: &Path) -> Vec<String> {
        damage(path).unwrap().into_iter().map(|d| d.part).collect()
    }

    #[test]
    fn each_damaged_part_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sample.appshot");
        sample::write(&path);
        assert_eq!(damage(&path).unwrap(), []);
        flip(&path.join("2.core"), 5000);
        flip(&path.join("shm-0.data"), 7);
        assert_eq!(names(&path), ["2.core", "shm-0.data"]);
        std::fs::remove_file(path.join("7.core")).unwrap();
        assert_eq!(names(&path), ["7.core", "2.core", "shm-0.data"]);
        flip(&path.join("2.core"), 5000);
        flip(&path.join("shm-0.data"), 7);
        assert_eq!(names(&path), ["7.core"]);
        flip(&path.join(MANIFEST), 200);
        assert_eq!(names(&path), [MANIFEST]);
        assert_eq!(damage(&dir.path().join("none")).unwrap_err().kind, Kind::NotFound);
    }

    #[test]
    fn a_packed_one_is_the_same_at_a_glance() {
        let dir = tempfile::tempdir().unwrap();
        let (path, file) = (dir.path().join("sample.appshot"), dir.path().join("packed"));
        sample::write(&path);
        packed::pack(&path, &file, packed::LEVEL).unwrap();
        let (whole, packed) = (glance(&path).unwrap(), glance(&file).unwrap());
        assert_eq!(
            (whole.manifest, whole.identity, whole.packed_bytes),
            (packed.manifest, packed.identity, None)
        );
        assert_eq!(packed.packed_bytes, Some(file.metadata().unwrap().len()));
        assert_eq!(damage(&file).unwrap(), []);
        let middle = file.metadata().unwrap().len() as usize / 2;
        flip(&file, middle);
        let damaged = names(&file);
        assert_eq!(damaged.len(), 1);
        assert!(path.join(&damaged[0]).exists(), "{damaged:?}");
    }
}
