//! Where bytes are read from: a file, or memory in tests and fuzz targets.

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::FileExt;

/// Random access without a position, so that threads and duplicates of a
/// descriptor cannot disturb each other.
pub trait Source: Sync {
    fn bytes(&self) -> Result<u64>;
    /// Fills the buffer or fails.
    fn fill_at(&self, buffer: &mut [u8], offset: u64) -> Result<()>;

    /// Reads a range that the caller has held against a limit. The range is
    /// held against the source before memory is taken for it.
    fn read_range(&self, offset: u64, bytes: u64) -> Result<Vec<u8>> {
        let end = offset.checked_add(bytes).ok_or(ErrorKind::UnexpectedEof)?;
        if end > self.bytes()? {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let bytes = usize::try_from(bytes).map_err(Error::other)?;
        let mut buffer = vec![0; bytes];
        self.fill_at(&mut buffer, offset)?;
        Ok(buffer)
    }
}

impl Source for File {
    fn bytes(&self) -> Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn fill_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        if is_hole(self, offset, buffer.len() as u64) {
            buffer.fill(0);
            return Ok(());
        }
        self.read_exact_at(buffer, offset)
    }
}

/// Whether the file stores nothing there: reading a hole would fill the page cache
/// with zeroes. (lseek(2) moves a position that nobody uses.)
fn is_hole(file: &File, offset: u64, bytes: u64) -> bool {
    let Ok(from) = i64::try_from(offset) else { return false };
    match lseek(file, from, Whence::SeekData) {
        Ok(data) => data as u64 >= offset.saturating_add(bytes),
        Err(errno) => errno == Errno::ENXIO,
    }
}

impl Source for [u8] {
    fn bytes(&self) -> Result<u64> {
        Ok(self.len() as u64)
    }

    fn fill_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let start = usize::try_from(offset).map_err(Error::other)?;
        let end = start.checked_add(buffer.len()).ok_or(ErrorKind::UnexpectedEof)?;
        let range = self.get(start..end).ok_or(ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(range);
        Ok(())
    }
}
