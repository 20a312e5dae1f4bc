//! What a snapshot leaves on disk: its size, its durability, its warmth.

use crate::clock::{millis_between, now_ns};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// All files of a snapshot, whether it is a file or a directory.
fn below(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        files.extend(below(&entry?.path())?);
    }
    Ok(files)
}

/// Space taken on the disk, holes left out.
pub fn disk_bytes(path: &Path) -> Result<u64> {
    let sizes: Result<Vec<u64>> = below(path)?
        .iter()
        .map(|file| Ok(fs::symlink_metadata(file)?.blocks() * 512))
        .collect();
    Ok(sizes?.iter().sum())
}

/// Puts every byte on the disk; answers the milliseconds that it took.
pub fn sync(path: &Path) -> Result<f64> {
    let begin_ns = now_ns();
    for file in below(path)?.iter().filter(|file| file.is_file()) {
        File::open(file)?.sync_all()?;
    }
    File::open(path)?.sync_all()?;
    Ok(millis_between(begin_ns, now_ns()))
}

/// Reads every file, so that the page cache holds it.
pub fn warm_cache(path: &Path) -> Result<()> {
    for file in below(path)?.iter().filter(|file| file.is_file()) {
        read_millis(file, u64::MAX)?;
    }
    Ok(())
}

/// Forgets every file: the next who reads one goes to the disk.
pub fn drop_caches() -> Result<()> {
    nix::unistd::sync();
    Ok(fs::write("/proc/sys/vm/drop_caches", "3")?)
}

/// The file that holds the most.
pub fn largest(path: &Path) -> Result<PathBuf> {
    let size = |file: &PathBuf| fs::metadata(file).map_or(0, |metadata| metadata.len());
    below(path)?.into_iter().max_by_key(size).context("no file")
}

/// Milliseconds of reading so many bytes of a file, from its begin.
pub fn read_millis(path: &Path, bytes: u64) -> Result<f64> {
    let begin_ns = now_ns();
    let mut buffer = vec![0; 1 << 20];
    let mut head = File::open(path)?.take(bytes);
    while head.read(&mut buffer)? > 0 {}
    Ok(millis_between(begin_ns, now_ns()))
}

/// Touches as much memory as will be needed: a virtual machine may have given
/// its idle memory back, and whoever comes first would pay for fetching it.
pub fn warm_memory(bytes: usize) {
    let touched = vec![1u8; bytes];
    std::hint::black_box(&touched);
}

pub fn remove(path: &Path) {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    if let Err(error) = removed
        && path.exists()
    {
        eprintln!("bench: cannot remove {}: {error}", path.display());
    }
}
