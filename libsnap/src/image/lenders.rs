//! What an appshot that is being written borrows: which parts lend, and which pages a
//! parent has already.

use super::blocks::Memory;
use super::digest::LEAF;
use super::leaves::Pieces;
use super::parents::directory;
use super::process::{Place, Segment};
use super::reader::{Appshot, Digests};
use super::records::{Lender, Parent};
use super::{PAGE, limits};
use crate::error::{Error, Kind, OrFail, Result};
use crate::ids::VirtualPid;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The lenders and parents of a manifest in the making. A part that may lend has an id;
/// once a core that is finished borrows from it, it is listed and has a number.
#[derive(Debug, Default)]
pub struct Lenders(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    /// By ids.
    known: Vec<(Option<Parent>, String)>,
    /// The ids of those that are listed, in the order of the manifest.
    listed: Vec<usize>,
}

impl Lenders {
    /// The id of a part, of this appshot or a parent; from 1 on.
    pub fn id(&self, parent: Option<&Parent>, part: &str) -> usize {
        place_of(&mut self.locked().known, (parent.cloned(), part.to_owned())) + 1
    }

    /// Lists a part, if it is not; its number, from 1 on.
    pub fn list(&self, id: usize) -> usize {
        place_of(&mut self.locked().listed, id - 1) + 1
    }

    /// What the manifest is to list.
    pub fn records(&self) -> (Vec<Lender>, Vec<Parent>) {
        let Table { known, listed } = &*self.locked();
        let mut parents = Vec::new();
        let lenders = listed.iter().map(|id| {
            let (parent, part) = known[*id].clone();
            let parent = parent.map(|parent| place_of(&mut parents, parent) as u32);
            Lender { parent, part }
        });
        (lenders.collect(), parents)
    }

    fn locked(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a record among others, entered when new.
fn place_of<T: PartialEq>(all: &mut Vec<T>, one: T) -> usize {
    all.iter().position(|known| *known == one).unwrap_or_else(|| {
        all.push(one);
        all.len() - 1
    })
}

/// An appshot from which another one, of the same app, is to borrow.
#[derive(Debug)]
pub struct Former {
    shot: Appshot,
    digests: Digests,
    pieces: Pieces,
    /// As a child names it.
    record: Parent,
}

impl Former {
    /// Opens the one at `path` for a child at `dest`. What is used of it is verified.
    pub fn open(path: &Path, dest: &Path) -> Result<Former> {
        let cannot = || format!("cannot take {} as parent", path.display());
        let path = path.canonicalize().map_err(|e| {
            let kind = match e.kind() {
                std::io::ErrorKind::NotFound => Kind::NotFound,
                _ => Kind::Failed,
            };
            Error::new(kind, cannot()).because(e)
        })?;
        let beside = directory(dest).canonicalize().or_fail(cannot)?;
        if directory(&path) != beside {
            return Err(Error::new(Kind::Usage, cannot())
                .because(format!("{} is in another directory", dest.display()))
                .fix("write the appshot beside its parent: they are needed together"));
        }
        let (shot, digests) = Appshot::open_to_verify(&path)?;
        if shot.manifest.parents.len() >= limits::PARENTS {
            return Err(Error::refused(cannot())
                .because(format!("it needs {} others already", shot.manifest.parents.len()))
                .fix("flatten it first, with `appshot flatten`"));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Former {
            pieces: digests.pieces()?,
            record: Parent {
                identity: shot.identity.to_hex().to_string(),
                name,
            },
            shot,
            digests,
        })
    }

    /// Its view of a process, if it has one of this number.
    pub(super) fn base(self: &Arc<Self>, pid: VirtualPid) -> Option<Base> {
        let mut cores = self.shot.cores.iter();
        let core = cores.position(|core| core.image.process.pid == pid)?;
        Some(Base {
            former: Arc::clone(self),
            core,
            ids: HashMap::new(),
            leaf: Vec::new(),
            loaded: None,
        })
    }
}

/// The memory of a process as a former appshot has it.
#[derive(Debug)]
pub struct Base {
    former: Arc<Former>,
    /// Its place among the cores.
    core: usize,
    /// Of those that lend, by the numbers of their parts.
    ids: HashMap<usize, usize>,
    /// The leaf that was read last, and where it begins.
    leaf: Vec<u8>,
    loaded: Option<Place>,
}

/// What is compared at once.
const PIECE: u64 = 1 << 20;

impl Base {
    /// Reads memory and shows it piece by piece: with its place where the same is stored
    /// already, or with its content.
    pub fn compare(
        &mut self,
        lenders: &Lenders,
        span: Range<u64>,
        memory: &Arc<dyn Memory>,
        mut see: impl FnMut(Range<u64>, &[u8], Option<Place>) -> Result<()>,
    ) -> Result<()> {
        let mut buffer = vec![0; (span.end - span.start).min(PIECE) as usize];
        for start in span.clone().step_by(PIECE as usize) {
            let piece = start..span.end.min(start + PIECE);
            let bytes = &mut buffer[..(piece.end - start) as usize];
            memory.read(std::slice::from_ref(&piece), bytes)?;
            for (part, place) in self.runs(start, bytes)? {
                let place = place.map(|place| self.lent(lenders, place));
                let content = &bytes[(part.start - start) as usize..(part.end - start) as usize];
                see(part, content, place)?;
            }
        }
        Ok(())
    }

    /// Cuts content at this address where it begins or ceases to be the same.
    fn runs(&mut self, start: u64, bytes: &[u8]) -> Result<Vec<(Range<u64>, Option<Place>)>> {
        let mut runs: Vec<(Range<u64>, Option<Place>)> = Vec::new();
        for (vaddr, page) in (start..).step_by(PAGE as usize).zip(bytes.chunks_exact(PAGE as usize)) {
            let place = self.place(vaddr);
            let place = match place {
                Some(place) if self.page(place)? == page => Some(place),
                _ => None,
            };
            match runs.last_mut() {
                Some((last, known)) if known.map(|known| known.ahead(vaddr - last.start)) == place => {
                    last.end += PAGE;
                }
                _ => runs.push((vaddr..vaddr + PAGE, place)),
            }
        }
        Ok(runs)
    }

    fn place(&self, vaddr: u64) -> Option<Place> {
        let segments: &[Segment] = &self.former.shot.cores[self.core].segments;
        let segment = Segment::at(segments, vaddr)?;
        Some(segment.place().ahead(vaddr - segment.vaddr))
    }

    /// What is stored there, verified.
    fn page(&mut self, Place { part, offset }: Place) -> Result<&[u8]> {
        let leaf = Place {
            part,
            offset: offset / LEAF as u64 * LEAF as u64,
        };
        if self.loaded != Some(leaf) {
            self.loaded = None;
            let Former { digests, pieces, .. } = &*self.former;
            digests.read_leaf(pieces, part, leaf.offset, &mut self.leaf)?;
            self.loaded = Some(leaf);
        }
        let at = (offset - leaf.offset) as usize;
        Ok(&self.leaf[at..at + PAGE as usize])
    }

    /// The same place with the id of the lender: who stores it, never who borrows it.
    fn lent(&mut self, lenders: &Lenders, Place { part, offset }: Place) -> Place {
        let Former { shot, record, .. } = &*self.former;
        let id = self.ids.entry(part).or_insert_with(|| {
            let Lender { parent, part } = shot.lender(part);
            let parent = parent.map_or(record, |at| &shot.manifest.parents[at as usize]);
            lenders.id(Some(parent), &part)
        });
        Place { part: *id, offset }
    }
}
