//! Writes an appshot, or the core of one process, anew so that it needs no other.

use super::blocks::{Memory, Press};
use super::core_write::CoreWriter;
use super::digest;
use super::leaves::DIGESTS;
use super::process::{Core, Place};
use super::reader::Appshot;
use super::writer::{Sealed, Writer};
use super::{PAGE, core_name};
use crate::error::{Error, Kind, OrFail, Result};
use crate::ids::VirtualPid;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

/// Writes what the appshot at `path` holds and borrows to the new directory `dest`. All
/// of it is verified before. What its processes share is stored once still.
pub fn flatten(path: &Path, dest: &Path) -> Result<Sealed> {
    write(path, Writer::create(dest)?)
}

/// The same in its place: it is replaced once the new one is whole.
pub fn flatten_in_place(path: &Path) -> Result<Sealed> {
    write(path, Writer::replace(path)?)
}

fn write(path: &Path, writer: Writer) -> Result<Sealed> {
    let (shot, digests) = Appshot::open_to_verify(path)?;
    digests.verify(digest::processors())?;
    let shot = Arc::new(shot);
    // Who got a page of a part, and where: borrowed by others that have it there too.
    let mut holders: HashMap<Place, (usize, u64)> = HashMap::new();
    let mut layouts = Vec::with_capacity(shot.cores.len());
    for (at, core) in shot.cores.iter().enumerate() {
        let mut to = writer.core(core.image.process.pid)?;
        let memory: Arc<dyn Memory> = Arc::new(Held {
            shot: Arc::clone(&shot),
            core: at,
        });
        for (span, holder) in runs(core, at, &mut holders) {
            match holder {
                Some(holder) => to.borrow(span, &layouts[holder])?,
                None => to.memory(span.clone(), prot(core, span.start), &memory)?,
            }
        }
        layouts.push(to.finish(&core.image)?);
    }
    let cores: Vec<String> = shot
        .cores
        .iter()
        .map(|core| core_name(core.image.process.pid))
        .collect();
    for part in &shot.manifest.parts {
        if part.name != DIGESTS && !cores.contains(&part.name) {
            let mut blob = writer.blob(&part.name)?;
            io::copy(&mut shot.part(&part.name)?, &mut blob).or_fail(|| format!("cannot copy part {}", part.name))?;
            blob.finish()?;
        }
    }
    writer.close()?.seal(shot.manifest.clone())
}

/// Writes the core of one process with all its memory to a new file, for gdb.
pub fn whole_core(shot: Appshot, pid: VirtualPid, dest: &Path) -> Result<()> {
    let cannot = || format!("cannot write the core of process {pid} to {}", dest.display());
    let at = shot.cores.iter().position(|core| core.image.process.pid == pid);
    let core = at.ok_or_else(|| Error::new(Kind::NotFound, cannot()).because("the appshot has no such process"))?;
    let shot = Arc::new(shot);
    let memory: Arc<dyn Memory> = Arc::new(Held {
        shot: Arc::clone(&shot),
        core,
    });
    let core = &shot.cores[core];
    let press = Arc::new(Press::start().or_fail(cannot)?);
    let file = || {
        File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(dest)
    };
    let mut to = CoreWriter::new(press.begin(&core_name(pid), file)?, Arc::default(), None)?;
    for segment in &core.segments {
        to.memory(segment.vaddr..segment.end(), prot(core, segment.vaddr), &memory)?;
    }
    to.finish(&core.image)?;
    press.finish().map(drop)
}

/// The memory of a process as runs that it stores itself, or that one before it does.
fn runs(core: &Core, at: usize, holders: &mut HashMap<Place, (usize, u64)>) -> Vec<(Range<u64>, Option<usize>)> {
    let mut runs: Vec<(Range<u64>, Option<usize>)> = Vec::new();
    for segment in &core.segments {
        let start = runs.len();
        for page in (0..segment.bytes).step_by(PAGE as usize) {
            let vaddr = segment.vaddr + page;
            let (holder, address) = *holders.entry(segment.place().ahead(page)).or_insert((at, vaddr));
            let holder = Some(holder).filter(|holder| *holder != at && address == vaddr);
            match runs[start..].last_mut() {
                Some((last, known)) if *known == holder => last.end += PAGE,
                _ => runs.push((vaddr..vaddr + PAGE, holder)),
            }
        }
    }
    runs
}

fn prot(core: &Core, address: u64) -> u32 {
    let vmas = &core.image.vmas;
    let after = vmas.partition_point(|vma| vma.end <= address);
    vmas.get(after).map_or(0, |vma| vma.prot)
}

/// The memory of a process of an appshot.
#[derive(Debug)]
struct Held {
    shot: Arc<Appshot>,
    core: usize,
}

impl Memory for Held {
    fn read(&self, spans: &[Range<u64>], mut buffer: &mut [u8]) -> Result<()> {
        let core = &self.shot.cores[self.core];
        for span in spans {
            let (own, rest) = buffer.split_at_mut((span.end - span.start) as usize);
            let failed = || format!("cannot read the memory of {}", self.shot.path.display());
            let read = self.shot.read_memory(core, span.start, own);
            let whole = read.and_then(|whole| whole.then_some(()).ok_or(io::ErrorKind::UnexpectedEof.into()));
            whole.or_fail(failed)?;
            buffer = rest;
        }
        Ok(())
    }
}
