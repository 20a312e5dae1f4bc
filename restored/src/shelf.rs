//! Appshots at hand, the ones used last: small ones in memory, others opened.

use libsnap::restore::From;
use libsnap::restore::kept::Kept;
use libsnap::restore::opened::Opened;
use libsnap::target::Memory;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Larger ones are read at each restore.
const ONE_BYTES_MAX: u64 = 16 << 20;
const ALL_BYTES_MAX: u64 = 256 << 20;
const COUNT_MAX: usize = 64;
/// Each has a descriptor for each of its parts.
const OPENED_MAX: usize = 8;

/// Clones are the same shelf.
#[derive(Clone, Debug, Default)]
pub struct Shelf {
    kept: Row<Kept>,
    opened: Row<Opened>,
}

impl Shelf {
    /// What instances of the appshot at `path` are made from, which get their memory so.
    /// `None` where a restore tells why it cannot be had.
    pub fn get(&self, path: &Path, memory: Memory) -> Option<From> {
        // Who asks for shared memory has many of them share it.
        let kept = (memory != Memory::Shared).then(|| self.kept(path)).flatten();
        match kept {
            Some(kept) => Some(From::Memory(kept)),
            None => self.opened(path).map(From::Disk),
        }
    }

    /// The appshot at `path`, read and verified now or before. `None` where it is too
    /// large, or cannot be kept: a restore from its directory tells why.
    fn kept(&self, path: &Path) -> Option<Arc<Kept>> {
        let load = || Some(Arc::new(Kept::load(path, ONE_BYTES_MAX).ok()??));
        let too_many = |all: &[Entry<Kept>]| {
            all.len() > COUNT_MAX || all.iter().map(|(_, kept)| kept.bytes()).sum::<u64>() > ALL_BYTES_MAX
        };
        self.kept.get(path, Kept::is_current, load, too_many)
    }

    /// What is kept in memory.
    pub fn bytes(&self) -> u64 {
        let all = self.kept.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(_, kept)| kept.bytes()).sum()
    }

    /// Forgets those used longest ago, until that is so many bytes or nothing is left.
    pub fn give_up(&self, bytes: u64) -> u64 {
        let mut all = self.kept.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut given = 0;
        while given < bytes && !all.is_empty() {
            given += all.remove(0).1.bytes();
        }
        given
    }

    /// The same, only opened.
    fn opened(&self, path: &Path) -> Option<Arc<Opened>> {
        let open = || Opened::open(path).ok();
        self.opened
            .get(path, Opened::is_current, open, |all| all.len() > OPENED_MAX)
    }
}

type Entry<T> = (PathBuf, Arc<T>);

/// Those used last stand behind.
#[derive(Debug)]
struct Row<T>(Arc<Mutex<Vec<Entry<T>>>>);

impl<T> Default for Row<T> {
    fn default() -> Row<T> {
        Row(Arc::default())
    }
}

impl<T> Clone for Row<T> {
    fn clone(&self) -> Row<T> {
        Row(Arc::clone(&self.0))
    }
}

impl<T> Row<T> {
    fn get(
        &self,
        path: &Path,
        is_current: impl Fn(&T) -> bool,
        make: impl FnOnce() -> Option<Arc<T>>,
        too_many: impl Fn(&[Entry<T>]) -> bool,
    ) -> Option<Arc<T>> {
        // One that was replaced or changed meanwhile is forgotten.
        let known = self.take(path).filter(|known| is_current(known));
        let found = known.or_else(make)?;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(known, _)| known != path);
        all.push((path.to_owned(), found.clone()));
        while too_many(&all) {
            all.remove(0);
        }
        Some(found)
    }

    fn take(&self, path: &Path) -> Option<Arc<T>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .find(|(known, _)| known == path)
            .map(|(_, found)| found.clone())
    }
}
