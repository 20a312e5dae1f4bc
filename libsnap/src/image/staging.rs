//! A directory that appears under its name whole or not at all.

use crate::error::{Error, Kind, OrFail, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};
use std::fs::{DirBuilder, File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// In the name of every directory that is not committed yet.
const PARTIAL: &str = ".partial-";

/// A hidden sibling of the destination; removed on drop unless committed.
#[derive(Debug)]
pub struct Staging {
    dest: PathBuf,
    parent: PathBuf,
    temp: PathBuf,
    /// There is one of this name already, which goes.
    replaces: bool,
    committed: bool,
    /// The directory, locked (flock) as long as its owner lives: what is not
    /// locked belongs to nobody any more.
    _owned: Flock<File>,
}

impl Staging {
    pub fn create(dest: &Path) -> Result<Self> {
        Staging::beside(dest, false)
    }

    /// For a directory that is there, and is removed once this one has its name.
    pub fn replace(dest: &Path) -> Result<Self> {
        Staging::beside(dest, true)
    }

    fn beside(dest: &Path, replaces: bool) -> Result<Self> {
        let cannot = || format!("cannot write appshot {}", dest.display());
        let name = dest
            .file_name()
            .ok_or_else(|| Error::new(Kind::Usage, cannot()).because("the path has no name"))?;
        let parent = match dest.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // Absolute: the caller may change its working directory meanwhile.
        let parent = parent.canonicalize().or_fail(cannot)?;
        let dest = parent.join(name);
        if !replaces && dest.symlink_metadata().is_ok() {
            return Err(exists(&dest));
        }
        sweep(&parent);
        // Between making and locking another writer may sweep it away.
        loop {
            let temp = parent.join(partial_name(name));
            DirBuilder::new().mode(0o700).create(&temp).or_fail(cannot)?;
            if let Some(owned) = own(&temp).or_fail(cannot)? {
                return Ok(Staging {
                    dest,
                    parent,
                    temp,
                    replaces,
                    committed: false,
                    _owned: owned,
                });
            }
        }
    }

    /// A new file for its owner alone, also readable so that it can be verified.
    pub fn create_file(&self, name: &str) -> io::Result<File> {
        create_private(&self.temp.join(name))
    }

    /// Where the files are until [`Staging::commit`].
    pub fn path(&self) -> &Path {
        &self.temp
    }

    pub fn dest(&self) -> &Path {
        &self.dest
    }

    /// Gives the directory its name. The files must be on disk already.
    pub fn commit(mut self) -> Result<PathBuf> {
        File::open(&self.temp)
            .and_then(|dir| dir.sync_all())
            .or_fail(|| format!("cannot seal appshot {}", self.dest.display()))?;
        match self.replaces {
            // What had the name is removed with what was staged.
            true => self.exchange()?,
            false => {
                self.publish(&self.temp)?;
                self.committed = true;
            }
        }
        Ok(self.dest.clone())
    }

    /// Gives one of the files the name instead; the directory is removed.
    pub fn commit_file(self, name: &str) -> Result<()> {
        self.publish(&self.temp.join(name))
    }

    fn exchange(&self) -> Result<()> {
        let cannot = || format!("cannot seal appshot {}", self.dest.display());
        let exchange = || renameat2(AT_FDCWD, &self.temp, AT_FDCWD, &self.dest, RenameFlags::RENAME_EXCHANGE);
        exchange().or_fail(cannot)?;
        File::open(&self.parent)
            .and_then(|dir| dir.sync_all())
            .or_fail(cannot)
            .inspect_err(|_| {
                let _ = exchange();
            })
    }

    fn publish(&self, from: &Path) -> Result<()> {
        rename_new(from, &self.dest)?;
        if let Err(cause) = File::open(&self.parent).and_then(|dir| dir.sync_all()) {
            // The name may not survive a power cut: it must not be reported as sealed.
            let _ = std::fs::rename(&self.dest, from);
            return Err(Error::failed(format!("cannot seal appshot {}", self.dest.display())).because(cause));
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.committed {
            let _ = std::fs::remove_dir_all(&self.temp);
        }
    }
}

/// Creates a file that must not exist, for its owner alone.
fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// `.NAME.partial-<pid>-<random>`
fn partial_name(name: &std::ffi::OsStr) -> std::ffi::OsString {
    let random = RandomState::new().build_hasher().finish();
    let mut partial = std::ffi::OsString::from(".");
    partial.push(name);
    partial.push(format!("{PARTIAL}{}-{random:016x}", std::process::id()));
    partial
}

/// Takes a partial directory; `None` when it is gone or another's.
fn own(dir: &Path) -> io::Result<Option<Flock<File>>> {
    let file = match File::open(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(owned) => Ok((owned.metadata()?.nlink() > 0).then_some(owned)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// Removes from `parent` what killed writers left there. What cannot be removed
/// stays for the next one who tries.
pub fn sweep(parent: &Path) {
    for entry in parent.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let ours = name.starts_with('.') && name.contains(PARTIAL);
        let path = entry.path();
        if ours && let Ok(Some(_owned)) = own(&path) {
            tracing::info!(path = %path.display(), "its writer was killed: removed");
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

/// Renames without replacing. File systems without RENAME_NOREPLACE get a
/// check and a plain rename, which never replaces a directory that has files.
fn rename_new(from: &Path, to: &Path) -> Result<()> {
    let renamed = renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE);
    match renamed {
        Ok(()) => Ok(()),
        Err(Errno::EEXIST) => Err(exists(to)),
        Err(Errno::EINVAL) if to.symlink_metadata().is_err() => {
            std::fs::rename(from, to).or_fail(|| format!("cannot rename {} to {}", from.display(), to.display()))
        }
        Err(errno) => {
            Err(Error::failed(format!("cannot rename {} to {}", from.display(), to.display())).because(errno))
        }
    }
}

/// The destination is taken.
fn exists(dest: &Path) -> Error {
    Error::new(Kind::Conflict, format!("cannot write {}: it exists", dest.display()))
        .fix("choose another name, or remove it first")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_owns_is_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        let living = Staging::create(&dir.path().join("living")).unwrap();
        let dead = dir.path().join(".dead.appshot.partial-1-00");
        std::fs::create_dir(&dead).unwrap();
        std::fs::write(dead.join("2.core"), "half").unwrap();
        let other = dir.path().join("not.partial-1");
        std::fs::create_dir(&other).unwrap();
        sweep(dir.path());
        assert!(living.path().exists() && other.exists() && !dead.exists());
    }
}
