//! Appshots in memory, the ones used last.

use libsnap::restore::kept::Kept;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Larger ones are read at each restore.
const ONE_BYTES_MAX: u64 = 16 << 20;
const ALL_BYTES_MAX: u64 = 256 << 20;
const COUNT_MAX: usize = 64;

/// Clones are the same shelf.
#[derive(Clone, Debug, Default)]
pub struct Shelf(Arc<Mutex<Vec<(PathBuf, Arc<Kept>)>>>);

impl Shelf {
    /// The appshot at `path`, read and verified now or before. `None` where it is too
    /// large, or cannot be kept: a restore from its directory tells why.
    pub fn get(&self, path: &Path) -> Option<Arc<Kept>> {
        if let Some(kept) = self.find(path) {
            return Some(kept);
        }
        let kept = Arc::new(Kept::load(path, ONE_BYTES_MAX).ok()??);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(known, _)| known != path);
        all.push((path.to_owned(), kept.clone()));
        let too_many = |all: &[(PathBuf, Arc<Kept>)]| {
            all.len() > COUNT_MAX || all.iter().map(|(_, kept)| kept.bytes()).sum::<u64>() > ALL_BYTES_MAX
        };
        while too_many(&all) {
            all.remove(0);
        }
        Some(kept)
    }

    /// One that was replaced or changed meanwhile is forgotten.
    fn find(&self, path: &Path) -> Option<Arc<Kept>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = all.iter().position(|(known, _)| known == path)?;
        let (path, kept) = all.remove(at);
        if !kept.is_current() {
            return None;
        }
        all.push((path, kept.clone()));
        Some(kept)
    }
}
