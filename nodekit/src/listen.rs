//! A daemon's socket: one owner, right mode from its first moment.

use crate::peer::Gate;
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::store::Lock;
use nix::sys::stat::{Mode, umask};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// A bound socket, removed when the daemon ends.
#[derive(Debug)]
pub struct Listening {
    pub path: PathBuf,
    /// Held as long as the daemon lives; the kernel releases it when it is killed.
    _owner: Lock,
}

/// Binds `path`, mode 0660. A socket that a killed daemon left is cleaned; a
/// living daemon's is left to it.
pub fn bind(path: &Path, gate: &Gate) -> Result<(UnixListener, Listening)> {
    let what = || format!("cannot listen on {}", path.display());
    if path
        .parent()
        .is_some_and(|dir| !dir.as_os_str().is_empty() && !dir.is_dir())
    {
        return Err(Error::new(Kind::NotFound, what())
            .because("there is no such directory")
            .fix("make it, or name another socket with --socket"));
    }
    let owner = Lock::try_take(&lock_path(path))?.ok_or_else(|| taken(path))?;
    clean(path)?;
    // Nobody may connect before owner and group are right.
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound.or_fail(what)?;
    if let Some(gid) = gate.gid() {
        chown(path, None, Some(gid)).or_fail(what)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).or_fail(what)?;
    let path = path.to_owned();
    Ok((listener, Listening { path, _owner: owner }))
}

fn lock_path(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

fn taken(path: &Path) -> Error {
    Error::new(Kind::Conflict, format!("cannot listen on {}", path.display()))
        .because("another daemon does")
        .fix("stop it, or name another socket with --socket")
}

/// We hold the lock, so no daemon of ours listens. What is no socket is not ours to remove.
fn clean(path: &Path) -> Result<()> {
    let what = || format!("cannot listen on {}", path.display());
    match path.symlink_metadata() {
        Err(_) => Ok(()),
        Ok(meta) if !meta.file_type().is_socket() => {
            Err(Error::new(Kind::Conflict, what()).because("a file that is no socket is in the way"))
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => Err(taken(path)),
        Ok(_) => std::fs::remove_file(path).or_fail(what),
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate {
        Gate::new(None).unwrap()
    }

    #[tokio::test]
    async fn one_daemon_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.sock");
        let (_listener, listening) = bind(&path, &gate()).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        assert_eq!(bind(&path, &gate()).unwrap_err().kind, Kind::Conflict);
        drop(listening);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_cleaned_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        drop(bind(&path, &gate()).unwrap());
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(bind(&path, &gate()).unwrap_err().kind, Kind::Conflict);
        assert!(path.exists());
    }
}
