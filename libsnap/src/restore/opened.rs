//! An appshot that has been opened: what instances are made from, as often as wanted.

use super::ahead;
use super::kept::Marks;
use super::working_set::{Touched, WorkingSet};
use crate::error::Result;
use crate::image::{Appshot, Digests, LEAF, Pieces, data_runs, processors};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Its records are read; its bytes are verified when they are used.
#[derive(Debug)]
pub struct Opened {
    pub shot: Appshot,
    pub digests: Digests,
    pub pieces: Pieces,
    marks: Marks,
    /// Verified leaves, those used last in front: part, offset, content.
    leaves: Mutex<VecDeque<(usize, u64, Vec<u8>)>>,
    /// The cores' parts and what they borrow, verified, where they are held in memory.
    held: OnceLock<BTreeMap<usize, Vec<u8>>>,
    /// Taken by who reads them.
    holding: Mutex<()>,
    /// What instances need first; not looked for yet, or none.
    working_set: Mutex<Option<Option<Arc<WorkingSet>>>>,
    /// The kernel was asked for what they need first of files.
    ahead: AtomicBool,
}

/// Verified leaves kept at hand.
const LEAVES: usize = 64;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Opened {
    /// Opens the appshot at `path`. Nothing that comes of it may run before what it
    /// was made of has been verified.
    pub fn open(path: &Path) -> Result<Arc<Opened>> {
        let marks = Marks::of(path);
        let (shot, digests) = Appshot::open_to_verify(path)?;
        let pieces = digests.pieces()?;
        Ok(Arc::new(Opened {
            shot,
            digests,
            pieces,
            marks,
            leaves: Mutex::default(),
            held: OnceLock::new(),
            holding: Mutex::default(),
            working_set: Mutex::default(),
            ahead: AtomicBool::new(false),
        }))
    }

    /// Whether its directory still holds the files that were opened.
    pub fn is_current(&self) -> bool {
        self.marks.are_current()
    }

    /// Has the kernel read what instances need first of their files, once. To be called when
    /// it is known that they may have them.
    pub(super) fn read_ahead(&self) {
        if !self.ahead.swap(true, Ordering::Relaxed) {
            ahead::begin(self);
        }
    }

    /// What instances need first, as far as it is known.
    pub fn working_set(&self) -> Option<Arc<WorkingSet>> {
        let mut known = locked(&self.working_set);
        known
            .get_or_insert_with(|| WorkingSet::read(self).map(Arc::new))
            .clone()
    }

    /// Keeps what an instance has touched besides what was known.
    pub fn keep_working_set(&self, known: Option<&WorkingSet>, touched: Touched) -> Result<()> {
        let Some(grown) = WorkingSet::grown(self, known, touched)? else {
            return Ok(());
        };
        let grown = Arc::new(grown);
        *locked(&self.working_set) = Some(Some(Arc::clone(&grown)));
        grown.write(self)
    }

    /// Reads the memory of all its processes, verified, and holds it from now on.
    pub fn hold(&self) -> Result<()> {
        let _one = locked(&self.holding);
        if self.held.get().is_some() {
            return Ok(());
        }
        let sizes: Vec<u64> = self.digests.parts().map(|part| part.bytes).collect();
        let own = self.shot.cores.iter().map(|core| (core.part, 0..sizes[core.part]));
        let lent = self.digests.borrowed().iter().cloned();
        let wanted: Vec<_> = own.chain(lent).collect();
        // Pages of zeroes are never written, and take no memory.
        let parts: BTreeSet<usize> = wanted.iter().map(|(part, _)| *part).collect();
        let held = parts
            .into_iter()
            .map(|part| (part, Mutex::new(vec![0; sizes[part] as usize])));
        let held: BTreeMap<usize, Mutex<Vec<u8>>> = held.collect();
        self.digests
            .read_leaves(&self.pieces, &wanted, processors(), |part, offset, bytes| {
                let mut whole = locked(&held[&part]);
                let own = &mut whole[offset as usize..][..bytes.len()];
                data_runs(bytes).for_each(|run| own[run.clone()].copy_from_slice(&bytes[run]));
                Ok(())
            })?;
        let held = held.into_iter().map(|(part, whole)| {
            let whole = whole.into_inner().unwrap_or_else(PoisonError::into_inner);
            (part, whole)
        });
        self.held.get_or_init(|| held.collect());
        Ok(())
    }

    /// A part that is held in memory: all of it, or what is borrowed.
    pub fn held(&self, part: usize) -> Option<&[u8]> {
        self.held.get()?.get(&part).map(Vec::as_slice)
    }

    /// Shows a verified leaf, or as much of it as there is.
    pub fn with_leaf<T>(&self, part: usize, offset: u64, see: impl FnOnce(&[u8]) -> T) -> Result<T> {
        if let Some(whole) = self.held(part) {
            let rest = &whole[offset as usize..];
            return Ok(see(&rest[..rest.len().min(LEAF)]));
        }
        let mut leaves = locked(&self.leaves);
        if let Some((_, _, content)) = leaves.iter().find(|leaf| (leaf.0, leaf.1) == (part, offset)) {
            return Ok(see(content));
        }
        let oldest = if leaves.len() < LEAVES { None } else { leaves.pop_back() };
        let mut content = oldest.map(|leaf| leaf.2).unwrap_or_default();
        self.digests.read_leaf(&self.pieces, part, offset, &mut content)?;
        leaves.push_front((part, offset, content));
        Ok(see(&leaves[0].2))
    }
}
