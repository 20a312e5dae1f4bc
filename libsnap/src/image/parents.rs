//! Other appshots that hold pages of one, its *parents*.
//!
//! They stand in the same directory. What a parent is, its identity says, the digest
//! of its manifest file: one that was replaced is another. Its name is only where to
//! look first.

use super::fault::{corrupt, ensure};
use super::reader::{open_dir, open_file, open_part, read_manifest};
use super::records::{Life, Manifest, Parent, Part};
use super::source::Source;
use super::{MANIFEST, limits};
use crate::error::{Error, Kind, Result};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An appshot that another one needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needed {
    /// BLAKE3 of its manifest file, lower-case hex.
    pub identity: String,
    /// Where it is now; `None` where it is not beside the one that needs it.
    pub path: Option<PathBuf>,
    /// The name it had when it was needed first.
    pub name: String,
}

/// The appshots that the one at `path` cannot be restored without: all of them, for a
/// parent's own parents are listed too as far as they hold pages of this one. Reads
/// nothing but manifests.
pub fn needed(path: &Path) -> Result<Vec<Needed>> {
    let (manifest, _) = read_manifest(&open_dir(path)?)?;
    let needed = manifest.parents.into_iter().map(|parent| Needed {
        path: find(path, &parent),
        identity: parent.identity,
        name: parent.name,
    });
    Ok(needed.collect())
}

/// The appshots beside the one at `path` that cannot be restored without it. Those that
/// stand under a hidden name count too: they may get another.
pub fn children(path: &Path) -> Result<Vec<PathBuf>> {
    let identity = identity(path)?;
    let needs = |path: &PathBuf| {
        let bytes = manifest_bytes(path).unwrap_or_default();
        let named = str::from_utf8(&bytes).is_ok_and(|text| text.contains(&identity));
        named && needed(path).is_ok_and(|needed| needed.iter().any(|one| one.identity == identity))
    };
    let beside = directory(path).read_dir().into_iter().flatten().flatten();
    Ok(beside.map(|entry| entry.path()).filter(needs).collect())
}

/// What tells the appshot at `path` from any other: BLAKE3 of its manifest file.
pub fn identity(path: &Path) -> Result<String> {
    Ok(read_manifest(&open_dir(path)?)?.1.to_hex().to_string())
}

/// A parent that is open.
#[derive(Clone, Debug)]
pub(super) struct Lending {
    pub name: String,
    /// All its parts, of which `digests` is the last.
    pub parts: Vec<Part>,
    pub digests: Arc<File>,
    /// Which of them are borrowed from.
    pub lent: Vec<usize>,
}

/// Opens the parent of the appshot at `child`, and those of its cores that lend. They
/// are named by both.
pub(super) fn open<'a>(
    child: &Path,
    parent: &Parent,
    names: impl Iterator<Item = &'a str>,
) -> Result<(Lending, Vec<(Part, Arc<File>)>)> {
    let path = find(child, parent).ok_or_else(|| missing(child, parent))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    open_at(&path, &name, parent, names).map_err(|error| of_parent(error, &name))
}

fn open_at<'a>(
    path: &Path,
    name: &str,
    parent: &Parent,
    names: impl Iterator<Item = &'a str>,
) -> Result<(Lending, Vec<(Part, Arc<File>)>)> {
    let dir = open_dir(path)?;
    let (manifest, identity) = read_manifest(&dir)?;
    ensure(
        identity.to_hex().as_str() == parent.identity,
        MANIFEST,
        || "it was replaced by another one just now",
    )?;
    let (mut lent, mut parts) = (Vec::new(), Vec::new());
    for own in names {
        let number = manifest.parts.iter().position(|part| part.name == own);
        let number = number.filter(|_| is_core(&manifest, own));
        let number = number.ok_or_else(|| corrupt(MANIFEST, format_args!("it has no core {own:?} to lend")))?;
        let part = &manifest.parts[number];
        let file = open_part(&dir, part)?;
        let named = Part {
            name: format!("{name}/{}", part.name),
            ..part.clone()
        };
        lent.push(number);
        parts.push((named, file));
    }
    let digests = manifest
        .parts
        .last()
        .ok_or_else(|| corrupt(MANIFEST, "it has no parts"))?;
    let lending = Lending {
        name: name.to_owned(),
        digests: open_part(&dir, digests)?,
        parts: manifest.parts,
        lent,
    };
    Ok((lending, parts))
}

fn is_core(manifest: &Manifest, name: &str) -> bool {
    let mut lives = manifest.processes.iter().map(|entry| &entry.life);
    lives.any(|life| matches!(life, Life::Alive { part } if part == name))
}

/// The directory of the parent of the appshot at `child`, under its old name or another.
fn find(child: &Path, parent: &Parent) -> Option<PathBuf> {
    let beside = directory(child);
    let known = beside.join(&parent.name);
    if is(&known, parent) {
        return Some(known);
    }
    let mut others = beside.read_dir().ok()?.flatten().filter(|entry| {
        // What is hidden is not there yet, or is being removed.
        !entry.file_name().to_string_lossy().starts_with('.')
    });
    others.find_map(|entry| Some(entry.path()).filter(|path| is(path, parent)))
}

/// Where an appshot stands, and its parents.
pub(super) fn directory(appshot: &Path) -> &Path {
    match appshot.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Whether this is the parent, by its manifest alone.
fn is(path: &Path, parent: &Parent) -> bool {
    let found = manifest_bytes(path);
    found.is_some_and(|bytes| blake3::hash(&bytes).to_hex().as_str() == parent.identity)
}

/// Whatever stands in the manifest file, if there is one.
fn manifest_bytes(path: &Path) -> Option<Vec<u8>> {
    let file = open_file(&open_dir(path).ok()?, MANIFEST).ok()?;
    let bytes = file.bytes().ok().filter(|bytes| *bytes <= limits::MANIFEST_BYTES)?;
    file.read_range(0, bytes).ok()
}

fn missing(child: &Path, parent: &Parent) -> Error {
    let beside = directory(child);
    let name = &parent.name;
    let because = match beside.join(name).exists() {
        true => format!("memory of it is in the appshot {name}, which was replaced or changed"),
        false => format!("memory of it is in the appshot {name}, which is missing"),
    };
    Error::new(Kind::NotFound, format!("cannot open the appshot {}", child.display()))
        .because(because)
        .needs(format!(
            "the appshot of identity {}, beside it in {}",
            parent.identity,
            beside.display()
        ))
        .fix("put that one back, under any name; take a copy that needs no other with `appshot flatten` before")
        .state("nothing was started")
}

/// What is wrong with a parent is told as that.
pub(super) fn of_parent(mut error: Error, name: &str) -> Error {
    error.what = format!("{}, of the parent {name}", error.what);
    error
}
