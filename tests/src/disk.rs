//! A disk that is soon full.

use anyhow::Result;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs;
use std::path::PathBuf;

/// A mounted tmpfs, unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk(pub PathBuf);

impl SmallDisk {
    /// In a new directory; `size` as tmpfs(5) reads it.
    pub fn mount(at: PathBuf, size: &str) -> Result<SmallDisk> {
        fs::create_dir(&at)?;
        let (none, options) = (None::<&str>, format!("size={size}"));
        mount(none, &at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
        Ok(SmallDisk(at))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Another test's child between fork and exec may hold a file of it.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
