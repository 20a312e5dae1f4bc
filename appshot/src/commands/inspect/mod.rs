//! `inspect`: what is in an appshot. Calls no kernel: it works on any machine
//! and needs no rights but to read the files.

mod address;
mod fds;
mod memory;
mod sockets;
mod summary;
mod tree;

use crate::cli;
use libsnap::error::Result;
use libsnap::ids::VirtualPid;
use libsnap::image::records::{Manifest, ProcessRecord, ThreadRecord, Vma};
use libsnap::image::{Appshot, Core};
use libsnap::store::Store;
use nodekit::out;
use serde::Serialize;
use std::path::PathBuf;

/// The whole of an appshot but its memory, for `-o json`.
#[derive(Debug, Serialize)]
pub struct Inspection {
    pub path: PathBuf,
    /// Whether every byte was held against its digest.
    pub verified: bool,
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

/// A run of pages that the appshot holds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Stored {
    pub vaddr: u64,
    pub bytes: u64,
}

pub fn inspect(store: &Store, args: &cli::Inspect) -> Result<u8> {
    let path = store.resolve_appshot(&args.appshot)?;
    let appshot = match args.verify {
        true => Appshot::open(&path)?,
        false => Appshot::open_unverified_memory(&path)?,
    };
    let inspection = Inspection::of(appshot, args.verify);
    out::show(args.output.format, &inspection, |inspection| text(inspection, args))?;
    Ok(0)
}

impl Inspection {
    fn of(appshot: Appshot, verified: bool) -> Inspection {
        Inspection {
            path: appshot.path,
            verified,
            manifest: appshot.manifest,
            processes: appshot.cores.into_iter().map(Process::of).collect(),
        }
    }
}

impl Process {
    fn of(core: Core) -> Process {
        let segments = core.segments.iter();
        let stored = segments.map(|segment| Stored {
            vaddr: segment.vaddr,
            bytes: segment.bytes,
        });
        Process {
            comm: core.image.comm,
            ppid: core.image.ppid,
            pgid: core.image.pgid,
            sid: core.image.sid,
            threads: core.image.threads.into_iter().map(|t| t.record).collect(),
            process: core.image.process,
            mappings: core.image.vmas,
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
