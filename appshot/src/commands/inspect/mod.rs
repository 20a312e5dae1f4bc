//! `inspect`: what is in an appshot. Calls no kernel: it works on any machine
//! and needs no rights but to read the files.

mod address;
mod fds;
mod memory;
mod sockets;
mod summary;
mod tree;

use crate::cli;
use libsnap::error::{Error, Kind, Result};
use libsnap::ids::VirtualPid;
use libsnap::image::records::{Lender, Manifest, ProcessRecord, ThreadRecord, Vma};
use libsnap::image::{self, Appshot, Core};
use libsnap::rehearsal::mark::{self, Mark};
use libsnap::store::Store;
use nodekit::out;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The whole of an appshot but its memory, for `-o json`.
#[derive(Debug, Serialize)]
pub struct Inspection {
    pub path: PathBuf,
    /// Whether every byte was held against its digest.
    pub verified: bool,
    /// How its last rehearsal on this machine went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rehearsed: Option<Mark>,
    pub manifest: Manifest,
    pub processes: Vec<Process>,
}

#[derive(Debug, Serialize)]
pub struct Process {
    pub comm: String,
    pub ppid: VirtualPid,
    pub pgid: VirtualPid,
    pub sid: VirtualPid,
    pub process: ProcessRecord,
    pub threads: Vec<ThreadRecord>,
    pub mappings: Vec<Vma>,
    pub stored: Vec<Stored>,
}

/// A run of pages that the appshot holds or borrows.
#[derive(Clone, Debug, Serialize)]
pub struct Stored {
    pub vaddr: u64,
    pub bytes: u64,
    /// Whose part holds them, if not the process's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lender: Option<Lender>,
}

pub fn inspect(store: &Store, args: &cli::Inspect) -> Result<u8> {
    let path = store.resolve_appshot(&args.appshot)?;
    if let [pid, file] = &args.core[..] {
        return core(&path, pid, Path::new(file));
    }
    let appshot = match args.verify {
        true => Appshot::open(&path)?,
        false => Appshot::open_unverified_memory(&path)?,
    };
    let inspection = Inspection::of(appshot, args.verify);
    out::show(args.output.format, &inspection, |inspection| text(inspection, args))?;
    Ok(0)
}

/// Writes a core that is whole by itself.
fn core(appshot: &Path, pid: &str, file: &Path) -> Result<u8> {
    let number = pid.parse().map_err(|_| {
        Error::new(Kind::Usage, format!("{pid:?} is no PID")).fix("`appshot inspect --tree` lists those of an appshot")
    })?;
    image::whole_core(Appshot::open(appshot)?, VirtualPid(number), file)?;
    out::print(&format!("{}\n", file.display()))?;
    Ok(0)
}

impl Inspection {
    fn of(appshot: Appshot, verified: bool) -> Inspection {
        Inspection {
            path: appshot.path.clone(),
            verified,
            rehearsed: mark::read(&appshot.path, &appshot.identity.to_hex()),
            processes: appshot.cores.iter().map(|core| Process::of(&appshot, core)).collect(),
            manifest: appshot.manifest,
        }
    }
}

impl Process {
    fn of(appshot: &Appshot, core: &Core) -> Process {
        let segments = core.segments.iter();
        let stored = segments.map(|segment| Stored {
            vaddr: segment.vaddr,
            bytes: segment.bytes,
            lender: (segment.part != core.part).then(|| appshot.lender(segment.part)),
        });
        let image = core.image.clone();
        Process {
            comm: image.comm,
            ppid: image.ppid,
            pgid: image.pgid,
            sid: image.sid,
            threads: image.threads.into_iter().map(|t| t.record).collect(),
            process: image.process,
            mappings: image.vmas,
            stored: stored.collect(),
        }
    }
}

/// The parts asked for; summary and tree when none is.
fn text(inspection: &Inspection, args: &cli::Inspect) -> String {
    let parts = [
        (args.tree, tree::text as fn(&Inspection) -> String),
        (args.fds, fds::text),
        (args.sockets, sockets::text),
        (args.memory, memory::text),
    ];
    let asked: Vec<String> = parts
        .iter()
        .filter(|(asked, _)| *asked)
        .map(|(_, part)| part(inspection))
        .collect();
    match asked.is_empty() {
        true => summary::text(inspection) + "\n" + &tree::text(inspection),
        false => asked.join("\n"),
    }
}
