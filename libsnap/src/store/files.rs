//! Files that are whole or absent, and locks that die with their holder.

use crate::error::{Error, Kind, OrFail, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Serialize, de::DeserializeOwned};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A record larger than this was not written by us.
const RECORD_BYTES_MAX: u64 = 1 << 20;

pub fn directory(path: &Path, mode: u32) -> Result<()> {
    let what = || format!("cannot make the directory {}", path.display());
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|e| match e.kind() {
            ErrorKind::PermissionDenied => Error::new(Kind::Unavailable, what()).because(e).needs("root"),
            _ => Error::failed(what()).because(e),
        })
        .map_err(|e| e.fix("run as root, or name other directories with --run-dir and --data-dir"))
}

/// A supervisor leaves the caller's working directory: paths must not depend on it.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).or_fail(|| format!("cannot resolve {}", path.display()))
}

/// The names in `dir` that end in `suffix`, without it, sorted. Hidden ones are left out.
pub fn stems(dir: &Path, suffix: &str) -> Result<Vec<String>> {
    let entries = dir.read_dir().or_fail(|| format!("cannot list {}", dir.display()))?;
    let mut stems: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .filter_map(|name| name.strip_suffix(suffix).map(str::to_owned))
        .collect();
    stems.sort();
    Ok(stems)
}

/// Reads a record; `None` when there is none.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let what = || format!("cannot read {}", path.display());
    let length = match path.metadata() {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.or_fail(what)?.len(),
    };
    if length > RECORD_BYTES_MAX {
        return Err(Error::failed(what()).because(format!("it is {length} bytes long")));
    }
    match std::fs::read(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        read => Ok(Some(serde_json::from_slice(&read.or_fail(what)?).or_fail(what)?)),
    }
}

/// Replaces a record whole: a reader, and whoever comes after a killed writer,
/// sees the old one or the new one. The caller holds the lock of the record:
/// the temporary name is its own.
///
/// Not synced: that takes milliseconds on a disk, on the way of every restore,
/// and a crash of the machine ends the processes that the record is about. What
/// such a crash leaves is swept by [`super::boot`].
pub fn write_json(path: &Path, record: &impl Serialize) -> Result<()> {
    let what = || format!("cannot write {}", path.display());
    let temporary = path.with_extension("json.tmp");
    let bytes = serde_json::to_vec_pretty(record).or_fail(what)?;
    let written = write_private(&temporary, &bytes).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written.or_fail(what)
}

fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}

/// Makes a rename or removal in the directory of `path` last.
pub fn sync_parent(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// Removes a file; it is no error when it is gone already.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).or_fail(|| format!("cannot remove {}", path.display())),
        _ => Ok(()),
    }
}

/// A lock of `flock(2)`: the kernel releases it when the holder dies.
///
/// The holder removes the file when it lets go, so that gone names leave
/// nothing behind. Whoever got the lock of a removed file begins again: another
/// may have made and locked a new one.
#[derive(Debug)]
#[must_use]
pub struct Lock {
    path: PathBuf,
    _file: Flock<File>,
}

impl Lock {
    pub fn take(path: &Path) -> Result<Lock> {
        match lock(path, FlockArg::LockExclusive)? {
            Some(lock) => Ok(lock),
            None => Err(Error::failed(format!("cannot lock {}", path.display()))),
        }
    }

    /// `None` when another process holds it.
    pub fn try_take(path: &Path) -> Result<Option<Lock>> {
        lock(path, FlockArg::LockExclusiveNonblock)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Removes the files of holders that were killed.
pub(super) fn sweep_locks(dir: &Path) -> Result<()> {
    for name in stems(dir, "")? {
        drop(Lock::try_take(&dir.join(name))?);
    }
    Ok(())
}

fn lock(path: &Path, how: FlockArg) -> Result<Option<Lock>> {
    let what = || format!("cannot lock {}", path.display());
    loop {
        match Flock::lock(lock_file(path).or_fail(what)?, how) {
            Ok(held) if held.metadata().or_fail(what)?.nlink() > 0 => {
                let path = path.to_owned();
                return Ok(Some(Lock { path, _file: held }));
            }
            Ok(_) | Err((_, Errno::EINTR)) => {}
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(Error::failed(what()).because(errno)),
        }
    }
}

fn lock_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}
