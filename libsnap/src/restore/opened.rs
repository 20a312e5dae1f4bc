//! An appshot that has been opened: what instances are made from, as often as wanted.

use crate::error::Result;
use crate::image::records::Life;
use crate::image::{Appshot, Digests, Pieces};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Its records are read; its bytes are verified when they are used.
#[derive(Debug)]
pub struct Opened {
    pub shot: Appshot,
    pub digests: Digests,
    pub pieces: Pieces,
}

impl Opened {
    /// Opens the appshot at `path`. Nothing that comes of it may run before what it
    /// was made of has been verified.
    pub fn open(path: &Path) -> Result<Arc<Opened>> {
        let (shot, digests) = Appshot::open_to_verify(path)?;
        let pieces = digests.pieces()?;
        Ok(Arc::new(Opened { shot, digests, pieces }))
    }

    /// The number of each core's part.
    pub fn core_parts(&self) -> Vec<usize> {
        let numbers: HashMap<&str, usize> = self.digests.parts().map(|part| part.name.as_str()).zip(0..).collect();
        let entries = self.shot.manifest.processes.iter();
        let names = entries.filter_map(|entry| match &entry.life {
            Life::Alive { part } => Some(part.as_str()),
            Life::Zombie { .. } => None,
        });
        names.map(|name| numbers[name]).collect()
    }
}
