//! Where a benchmark runs: a private mount namespace with a tmpfs on /run (the
//! peer caches its kernel probes only there), no inherited descriptors (the
//! peer refuses files of another mount namespace), its own temporary
//! directories, and orphans that come back to this process to be reaped.

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Directories of one run, removed when dropped.
#[derive(Debug)]
pub struct Place {
    disk: TempDir,
    shm: TempDir,
}

impl Place {
    pub fn new(parent: &Path) -> Result<Self> {
        let disk = TempDir::with_prefix_in("appshot-bench-", parent)
            .with_context(|| format!("cannot make a directory in {}", parent.display()))?;
        // A server that runs as another user has its directory below.
        std::fs::set_permissions(disk.path(), Permissions::from_mode(0o711))?;
        let shm = TempDir::with_prefix_in("appshot-bench-", "/dev/shm")?;
        Ok(Place { disk, shm })
    }

    /// What has to be removed if nobody drops this.
    pub fn directories(&self) -> [PathBuf; 2] {
        [self.disk.path().to_owned(), self.shm.path().to_owned()]
    }

    /// A directory on disk, for appshots and programs.
    pub fn disk(&self) -> &Path {
        self.disk.path()
    }

    /// A new file of one zeroed page in memory, for heartbeats: on disk, its
    /// write-back would be seen as pauses.
    pub fn beat_file(&self, name: &str) -> Result<PathBuf> {
        let path = self.shm.path().join(name);
        std::fs::write(&path, [0u8; 4096])?;
        Ok(path)
    }
}

/// Makes this process fit to measure in. Call first, with one thread.
pub fn enter() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "must run as root: both sides read other processes and mount a tmpfs"
    );
    close_inherited()?;
    nix::sys::prctl::set_child_subreaper(true)?;
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    let none = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).context("cannot make mounts private")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).context("cannot mount a tmpfs on /run")
}

fn close_inherited() -> Result<()> {
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // The listing's own descriptor is in the list and already closed: EBADF.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}
