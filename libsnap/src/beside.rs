//! Small files that stand beside an appshot, tell something of it that its seal does not
//! cover, and go with it.
//!
//! ```text
//! .NAME.working-set   what it needed first (restore::working_set)
//! .NAME.rehearsed     how its rehearsal went (rehearsal::mark)
//! ```
//!
//! Each names the appshot that it was written for: of one that has taken its place it says
//! nothing.

use crate::error::{Error, OrFail, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Which of these files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    WorkingSet,
    Rehearsed,
}

impl Note {
    const ALL: [Note; 2] = [Note::WorkingSet, Note::Rehearsed];

    fn suffix(self) -> &'static str {
        match self {
            Note::WorkingSet => ".working-set",
            Note::Rehearsed => ".rehearsed",
        }
    }

    /// Where that of an appshot is.
    pub fn path(self, appshot: &Path) -> Option<PathBuf> {
        let name = appshot.file_name()?.to_string_lossy();
        Some(appshot.with_file_name(format!(".{name}{}", self.suffix())))
    }

    /// That of an appshot, if there is one that we wrote. Its digest, where it has one, tells
    /// damage, not who wrote it: in a directory like /tmp others may put a file beside our
    /// appshot.
    pub fn open(self, appshot: &Path) -> Option<File> {
        let open = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.path(appshot)?);
        let own = nix::unistd::geteuid().as_raw();
        let is_ours = |file: &File| {
            file.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.uid() == own && meta.mode() & 0o022 == 0)
        };
        open.ok().filter(is_ours)
    }

    /// Writes that of an appshot, whole or not at all.
    pub fn write(self, appshot: &Path, bytes: &[u8]) -> Result<()> {
        let failed = || format!("cannot write what is known of {}", appshot.display());
        let path = self.path(appshot);
        let path = path.ok_or_else(|| Error::failed(failed()).because("the appshot has no name"))?;
        let temp = path.with_extension(format!("{}.{}", &self.suffix()[1..], std::process::id()));
        // Another thread may be at it: one is enough.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp);
        let written = file.or_fail(failed)?.write_all(bytes);
        let written = written.and_then(|()| std::fs::rename(&temp, &path));
        if !appshot.exists() {
            // Removed meanwhile, and this with it.
            let _ = std::fs::remove_file(&path);
        }
        written.or_fail(failed).inspect_err(|_| {
            let _ = std::fs::remove_file(&temp);
        })
    }

    fn is_left(self, file: &Path) -> bool {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let Some((appshot, writer)) = name.strip_prefix('.').and_then(|name| name.rsplit_once(self.suffix())) else {
            return false;
        };
        let writes = |writer: &str| Path::new("/proc").join(writer).exists();
        !file.with_file_name(appshot).exists() || writer.strip_prefix('.').is_some_and(|writer| !writes(writer))
    }
}

/// Whether a file of this name has been left: its appshot is gone, or its writer was
/// killed before it had its name.
pub fn is_left(file: &Path) -> bool {
    Note::ALL.iter().any(|note| note.is_left(file))
}

/// Removes those of an appshot which goes, or becomes another.
pub fn remove(appshot: &Path) {
    for note in Note::ALL {
        note.path(appshot).map(std::fs::remove_file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let left = |name: &str| is_left(&file(name));
        assert!(left(".web.appshot.working-set") && left(".web.appshot.rehearsed"));
        std::fs::create_dir(file("web.appshot")).unwrap();
        for note in Note::ALL {
            let path = note.path(&file("web.appshot")).unwrap();
            note.write(&file("web.appshot"), b"it").unwrap();
            assert!(path.exists() && !is_left(&path) && note.open(&file("web.appshot")).is_some());
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o622)).unwrap();
            assert!(note.open(&file("web.appshot")).is_none(), "others may write it");
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            assert!(left(&format!("{name}.4194304")), "its writer is gone");
            assert!(!left(&format!("{name}.{}", std::process::id())));
        }
        remove(&file("web.appshot"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(!left("web.appshot") && !left(".web.appshot.partial-1"));
    }

    #[test]
    fn nothing_is_written_beside_what_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        Note::Rehearsed.write(&dir.path().join("web.appshot"), b"it").unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
