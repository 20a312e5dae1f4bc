//! Mount namespaces beside the app's own (mount_namespaces(7)), as an appshot has them.
//!
//! One begins as a copy of the app's own. What was done to it since is a list of steps, to be done again in
//! this order: what a mount is on comes before it.

use super::fault::ensure;
use super::records::{Manifest, Namespace, ShmKind, hex_bytes};
use super::validate::{count, path, shown, text};
use super::{MANIFEST, limits};
use crate::error::Result;
use crate::ids::ShmId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

const PART: &str = MANIFEST;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mounts {
    pub steps: Vec<Step>,
}

/// Flags are those of mount(2), paths as from the namespace's root. One at `/` takes the place of all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// What the app's own has there is not, with all below it.
    Unmount { at: String },
    /// What is there has these flags.
    Remount { at: String, flags: u64 },
    /// What the app's own has at another place, with all that is mounted below it.
    Bind { at: String, from: String, flags: u64 },
    /// A file system that is nowhere else.
    Mount {
        at: String,
        flags: u64,
        /// As /proc names it (`tmpfs`).
        source: String,
        /// Flags have no value.
        options: BTreeMap<String, String>,
        kind: FileSystem,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FileSystem {
    /// Of the app's own PID namespace.
    Proc,
    /// Without any pseudo-terminals.
    Devpts,
    Tmpfs(Tree),
}

impl FileSystem {
    /// As mount(2) names it.
    pub fn name(&self) -> &'static str {
        match self {
            FileSystem::Proc => "proc",
            FileSystem::Devpts => "devpts",
            FileSystem::Tmpfs(_) => "tmpfs",
        }
    }

    /// Options that are kept.
    pub fn options(name: &str) -> &'static [&'static str] {
        match name {
            "proc" => &["hidepid", "gid", "subset"],
            "devpts" => &["gid", "uid", "mode", "ptmxmode", "max"],
            "tmpfs" => &[
                "size",
                "nr_inodes",
                "mode",
                "uid",
                "gid",
                "inode64",
                "inode32",
                "noswap",
            ],
            _ => &[],
        }
    }
}

/// The files of a file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tree {
    /// Which of its directories is mounted.
    pub root: String,
    /// Directories before what is in them; that which is mounted comes first, and has no name.
    pub entries: Vec<Entry>,
    /// Where the content of its files stands, one behind the other.
    pub content: Option<ShmId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Below the root (`a/b`).
    pub name: String,
    pub kind: EntryKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub atime_ns: i64,
    pub mtime_ns: i64,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub attributes: Vec<Attribute>,
}

/// An extended attribute (xattr(7)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attribute {
    pub name: String,
    #[serde(with = "hex_bytes")]
    pub value: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EntryKind {
    Directory,
    /// Runs: offset, where that stands in the content, length.
    File {
        bytes: u64,
        runs: Vec<(u64, u64, u64)>,
    },
    /// Another name of a file that stands before it.
    Link {
        to: String,
    },
    Symlink {
        to: String,
    },
    Fifo,
    Socket,
}

/// Where a path of such a namespace leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// To what has this path in the app's own.
    Own(String),
    /// To a file system that is nowhere else.
    Beside,
    /// To what the app's own has something else mounted on.
    Covered,
}

impl Step {
    pub fn at(&self) -> &str {
        match self {
            Step::Unmount { at } | Step::Remount { at, .. } | Step::Bind { at, .. } | Step::Mount { at, .. } => at,
        }
    }
}

impl Mounts {
    pub fn place(&self, path: &str) -> Place {
        self.place_before(self.steps.len(), path)
    }

    /// Where it leads before this step is done.
    pub fn place_before(&self, step: usize, path: &str) -> Place {
        let mut place = Place::Own(path.to_owned());
        for step in &self.steps[..step] {
            let Ok(rest) = Path::new(path).strip_prefix(step.at()) else {
                continue;
            };
            place = match step {
                Step::Unmount { .. } => Place::Covered,
                Step::Remount { .. } => continue,
                Step::Bind { from, .. } if rest.as_os_str().is_empty() => Place::Own(from.clone()),
                Step::Bind { from, .. } => Place::Own(Path::new(from).join(rest).to_string_lossy().into_owned()),
                Step::Mount { .. } => Place::Beside,
            };
        }
        place
    }

    pub fn trees(&self) -> impl Iterator<Item = &Tree> {
        self.steps.iter().filter_map(|step| match step {
            Step::Mount {
                kind: FileSystem::Tmpfs(tree),
                ..
            } => Some(tree),
            _ => None,
        })
    }

    pub fn contents_mut(&mut self) -> impl Iterator<Item = &mut ShmId> {
        self.steps.iter_mut().filter_map(|step| match step {
            Step::Mount {
                kind: FileSystem::Tmpfs(tree),
                ..
            } => tree.content.as_mut(),
            _ => None,
        })
    }
}

impl Manifest {
    pub fn all_mounts(&self) -> impl Iterator<Item = &Mounts> {
        self.namespaces.iter().filter_map(|namespace| match namespace {
            Namespace::Mnt(mounts) => Some(mounts),
            _ => None,
        })
    }

    /// Where a path leads to: of the mount namespace with this number, or of the app's own.
    pub fn place(&self, namespace: Option<u32>, path: &str) -> Place {
        match namespace.and_then(|number| self.namespaces.get(number as usize)) {
            Some(Namespace::Mnt(mounts)) => mounts.place(path),
            _ => Place::Own(path.to_owned()),
        }
    }

    /// The mount namespace that a process is in, where that is not the app's own.
    pub fn mounts_of(&self, numbers: &[u32]) -> Option<u32> {
        let is_mnt = |number: &u32| matches!(self.namespaces.get(*number as usize), Some(Namespace::Mnt(_)));
        numbers.iter().copied().find(is_mnt)
    }
}

/// MS_RDONLY, NOSUID, NODEV, NOEXEC, NOSYMFOLLOW, NOATIME, NODIRATIME, RELATIME, STRICTATIME.
pub const FLAGS: u64 = 1 | 2 | 4 | 8 | 256 | 1024 | 2048 | 1 << 21 | 1 << 24;

/// Steps that a restore can take, and that touch nothing but what they make.
pub fn valid(manifest: &Manifest, mounts: &Mounts) -> Result<()> {
    count(PART, "mounts", mounts.steps.len(), limits::MOUNTS)?;
    for (nth, step) in mounts.steps.iter().enumerate() {
        path(PART, "mount", step.at())?;
        let flags = match step {
            Step::Unmount { .. } => 0,
            Step::Remount { flags, .. } | Step::Bind { flags, .. } | Step::Mount { flags, .. } => *flags,
        };
        let at = shown(step.at());
        ensure(flags & !FLAGS == 0, PART, || {
            format!("mount {at}: its flags are {flags:#x}")
        })?;
        let takes_all = step.at() == "/" && !matches!(step, Step::Remount { .. });
        ensure(!takes_all || nth == 0, PART, || "a mount on the root of a namespace")?;
        match step {
            Step::Bind { from, .. } => path(PART, "mount", from)?,
            Step::Mount {
                source, options, kind, ..
            } => {
                text(PART, "source of a mount", source, limits::PATH_BYTES)?;
                for (name, value) in options {
                    let known = FileSystem::options(kind.name()).contains(&name.as_str());
                    ensure(known, PART, || format!("mount {at}: option {:?}", shown(name)))?;
                    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'%';
                    ensure(value.len() <= 64 && value.bytes().all(plain), PART, || {
                        format!("mount {at}: option {name}={:?}", shown(value))
                    })?;
                }
                if let FileSystem::Tmpfs(tree) = kind {
                    self::tree(manifest, tree)?;
                }
            }
            Step::Unmount { .. } | Step::Remount { .. } => {}
        }
    }
    Ok(())
}

/// Each file is made in a directory of this tree that was made before: no name leads out of it.
fn tree(manifest: &Manifest, tree: &Tree) -> Result<()> {
    count(PART, "files of a mount", tree.entries.len(), limits::MOUNTED_FILES)?;
    path(PART, "root of a mount", &tree.root)?;
    let content = tree.content.map(|id| {
        let own = |shm: &&super::records::ShmRecord| shm.id == id && shm.kind == ShmKind::Anon;
        manifest.shmem.iter().find(own).map(|shm| shm.bytes)
    });
    ensure(content != Some(None), PART, || "the content of a mount is not listed")?;
    let room = content.flatten().unwrap_or(0);
    let mut known: HashMap<&str, bool> = HashMap::new();
    // Of the content, which is of one file after the other.
    let mut used = 0;
    for (nth, entry) in tree.entries.iter().enumerate() {
        let name = entry.name.as_str();
        let fault = |what: &str| format!("file {:?} of a mount: {what}", shown(name));
        text(PART, "file of a mount", name, limits::PATH_BYTES)?;
        let is_directory = entry.kind == EntryKind::Directory;
        let in_place = match (nth, name.rsplit_once('/')) {
            (0, _) => name.is_empty() && is_directory,
            (_, Some((parent, own))) => known.get(parent) == Some(&true) && is_name(own),
            (_, None) => is_name(name),
        };
        ensure(in_place, PART, || fault("it is in no directory"))?;
        match &entry.kind {
            EntryKind::Link { to } => {
                ensure(known.get(to.as_str()) == Some(&false), PART, || {
                    fault("it links to no file")
                })?;
            }
            EntryKind::Symlink { to } => text(PART, "link of a mount", to, limits::PATH_BYTES)?,
            EntryKind::File { bytes, runs } => {
                ensure(*bytes <= limits::PART_BYTES, PART, || fault("it is too large"))?;
                let mut end = 0;
                for (offset, from, length) in runs {
                    let ends = offset.checked_add(*length).filter(|end| end <= bytes);
                    let there = from.checked_add(*length).filter(|end| *from >= used && *end <= room);
                    ensure(*offset >= end && there.is_some() && ends.is_some(), PART, || {
                        fault("its content is not there")
                    })?;
                    (end, used) = (ends.unwrap_or(end), there.unwrap_or(used));
                }
            }
            EntryKind::Directory | EntryKind::Fifo | EntryKind::Socket => {}
        }
        ensure(entry.mode & !0o7777 == 0, PART, || fault("its mode is malformed"))?;
        count(PART, "attributes of a file", entry.attributes.len(), limits::ATTRIBUTES)?;
        for Attribute { name, value } in &entry.attributes {
            text(PART, "attribute of a file", name, 255)?;
            count(PART, "bytes of an attribute", value.len(), 65536)?;
        }
        let new = known.insert(name, is_directory).is_none();
        ensure(new, PART, || fault("it is listed twice"))?;
    }
    ensure(used <= limits::MOUNTED_BYTES, PART, || "too much in a mount")?;
    ensure(!tree.entries.is_empty(), PART, || "a mount without a directory")
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && !name.contains('/') && ![".", ".."].contains(&name)
}

/// What is in a mount is in nothing else.
pub fn contents(manifest: &Manifest) -> Result<()> {
    let mut known = BTreeSet::new();
    let mut all = manifest
        .all_mounts()
        .flat_map(Mounts::trees)
        .filter_map(|tree| tree.content);
    ensure(
        all.all(|id| known.insert(id)),
        PART,
        || "the content of two mounts is one",
    )
}
