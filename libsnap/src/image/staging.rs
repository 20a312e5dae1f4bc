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
        DirBuilder::new()
            .mode(0o700)
            .create(&temp)
            .or_fail(cannot)?;
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
        let cannot = || format!("cannot seal appshot {}", self.dest.display());
        File::open(&self.temp)
            .and_then(|dir| dir.sync_all())
            .or_fail(cannot)?;
        rename_new(&self.temp, &self.dest)?;
        self.committed = true;
        let synced = File::open(&self.parent).and_then(|dir| dir.sync_all());
        if let Err(cause) = synced {
            // The name may not survive a power cut: it must not be reported as sealed.
            let _ = std::fs::remove_dir_all(&self.dest);
            return Err(Error::failed(cannot()).because(cause));
        }
        Ok(self.dest.clone())
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
pub fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// `.NAME.partial-<pid>-<random>`
pub fn partial_name(name: &std::ffi::OsStr) -> std::ffi::OsString {
    let random = RandomState::new().build_hasher().finish();
    let mut partial = std::ffi::OsString::from(".");
    partial.push(name);
    partial.push(format!(".partial-{}-{random:016x}", std::process::id()));
    partial
}

/// Renames without replacing. File systems without RENAME_NOREPLACE get a
/// check and a plain rename, which never replaces a directory that has files.
pub fn rename_new(from: &Path, to: &Path) -> Result<()> {
    let renamed = renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE);
    match renamed {
        Ok(()) => Ok(()),
        Err(Errno::EEXIST) => Err(exists(to)),
        Err(Errno::EINVAL) if to.symlink_metadata().is_err() => std::fs::rename(from, to)
            .or_fail(|| format!("cannot rename {} to {}", from.display(), to.display())),
        Err(errno) => Err(Error::failed(format!(
            "cannot rename {} to {}",
            from.display(),
            to.display()
        ))
        .because(errno)),
    }
}

/// The destination is taken.
pub fn exists(dest: &Path) -> Error {
    Error::new(
        Kind::Conflict,
        format!("cannot write {}: it exists", dest.display()),
    )
    .fix("choose another name, or remove it first")
}
