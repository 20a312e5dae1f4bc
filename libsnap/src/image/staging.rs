//! A directory that appears under its name whole or not at all.

use crate::error::{Error, Kind, OrFail, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::fs::{DirBuilder, File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A hidden sibling of the destination; removed on drop unless committed.
#[derive(Debug)]
pub struct Staging {
    dest: PathBuf,
    parent: PathBuf,
    temp: PathBuf,
    committed: bool,
}

impl Staging {
    pub fn create(dest: &Path) -> Result<Self> {
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
        if dest.symlink_metadata().is_ok() {
            return Err(exists(&dest));
        }
        let temp = parent.join(partial_name(name));
        DirBuilder::new().mode(0o700).create(&temp).or_fail(cannot)?;
        Ok(Staging {
            dest,
            parent,
            temp,
            committed: false,
        })
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
        self.publish(&self.temp)?;
        self.committed = true;
        Ok(self.dest.clone())
    }

    /// Gives one of the files the name instead; the directory is removed.
    pub fn commit_file(self, name: &str) -> Result<()> {
        self.publish(&self.temp.join(name))
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
    partial.push(format!(".partial-{}-{random:016x}", std::process::id()));
    partial
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
