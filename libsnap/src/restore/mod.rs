//! Bringing an appshot back.
//!
//! ```text
//!  open -> Plan -> Skeleton -> shared objects -> mappings -> memory and -> threads -> state -> Live
//!           |        |                                       descriptors
//!           |      husks for every process,                     |
//!           |      with its PID, group, session               verified
//!         everything is refused here
//! ```
//!
//! From the mappings on, processes are built by executor batches.
//!
//! All processes are traced and die with the tracer until the last step lets
//! them go, so that a failure anywhere leaves nothing behind.

pub mod eager;
pub mod fill;
pub mod kept;
pub mod opened;
mod owed;
pub mod pager;
pub mod place;
pub mod plan;
pub mod revert;
pub mod rights;
pub mod script;
pub mod skeleton;
pub mod spare;
pub mod state;
pub mod vdso;
mod warm;
pub mod working_set;

use crate::cgroup;
use crate::error::{Error, Result};
use crate::files::{self, Builder};
use crate::identity;
use crate::ids::{FileId, ShmId};
use crate::image::{Appshot, processors};
use crate::ipc;
use crate::snapshot::Steps;
use crate::target::{Instance, Memory, PidMode, RestoreOptions};
use fill::{Empty, Wanted};
use kept::Kept;
use opened::Opened;
use pager::{Left, Pager, Rest};
use place::{Mapped, Shared};
use revert::{Made, Point};
use script::{Running, Script};
use skeleton::Skeleton;
use spare::Spare;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use vdso::Vdso;

/// Restores the appshot at `path`. Uses ptrace: runs wholly on the calling
/// thread, which must live until it returns. The caller is the parent of
/// [`Instance::child`] and must reap it.
pub fn restore(path: &Path, options: &RestoreOptions) -> Result<Instance> {
    restore_unless(&|| false, path, options)
}

/// [`restore`], given up and undone once `cancelled` says so. It is asked at each
/// phase and each piece of memory; not any more once the app is let go.
pub fn restore_unless(cancelled: Cancelled<'_>, path: &Path, options: &RestoreOptions) -> Result<Instance> {
    restore_with(cancelled, path, &mut None, options)
}

/// [`restore_unless`], in a spare that this thread has made. What does not suit the app
/// is left there.
pub fn restore_with(
    cancelled: Cancelled<'_>,
    path: &Path,
    spare: &mut Option<Spare>,
    options: &RestoreOptions,
) -> Result<Instance> {
    let begin = Instant::now();
    // This may take long.
    spare.as_mut().map(Spare::calm);
    in_phases(cancelled, |mut phases| {
        phases.start("open")?;
        let opened = Opened::open(path)?;
        let restored = attempt(From::Disk(&opened), spare, options, begin, phases);
        restored.map_err(|error| worst(cancelled, &opened, error))
    })
}

/// The same of an appshot that was opened before.
pub fn restore_opened(
    cancelled: Cancelled<'_>,
    opened: &Arc<Opened>,
    spare: &mut Option<Spare>,
    options: &RestoreOptions,
) -> Result<Instance> {
    let from = From::Disk(opened);
    let restored = in_phases(cancelled, |phases| {
        attempt(from, spare, options, Instant::now(), phases)
    });
    restored.map_err(|error| worst(cancelled, opened, error))
}

/// What is damaged is told as that, whatever else it led to.
fn worst(cancelled: Cancelled<'_>, opened: &Opened, error: Error) -> Error {
    let damage = || opened.digests.verify(processors()).err();
    let damage = (!cancelled()).then(damage).flatten();
    told(damage.unwrap_or(error), &opened.shot.path)
}

/// The same of an appshot that is kept in memory.
pub fn restore_kept(
    cancelled: Cancelled<'_>,
    kept: &Kept,
    spare: &mut Option<Spare>,
    options: &RestoreOptions,
) -> Result<Instance> {
    let from = From::Memory(kept);
    let restored = in_phases(cancelled, |phases| {
        attempt(from, spare, options, Instant::now(), phases)
    });
    restored.map_err(|error| told(error, &kept.shot.path))
}

fn told(mut error: Error, path: &Path) -> Error {
    if !error.what.starts_with("cannot restore") {
        error.what = format!("cannot restore {}: {}", path.display(), error.what);
    }
    error.state("nothing was left behind")
}

/// Where an app comes from.
#[derive(Clone, Copy)]
enum From<'a> {
    Disk(&'a Arc<Opened>),
    Memory(&'a Kept),
}

impl<'a> From<'a> {
    fn shot(self) -> &'a Appshot {
        match self {
            From::Disk(opened) => &opened.shot,
            From::Memory(kept) => &kept.shot,
        }
    }
}

/// Whether the one who asked has given up.
pub type Cancelled<'a> = &'a (dyn Fn() -> bool + Sync);

struct Phases<'a> {
    steps: Steps<'a>,
    cancelled: Cancelled<'a>,
}

fn in_phases<T>(cancelled: Cancelled<'_>, work: impl FnOnce(Phases<'_>) -> T) -> T {
    let mut silent = |_: &str| {};
    work(Phases {
        steps: Steps::new(&mut silent),
        cancelled,
    })
}

impl Phases<'_> {
    fn start(&mut self, name: &str) -> Result<()> {
        go_on(self.cancelled)?;
        self.steps.start(name);
        Ok(())
    }
}

fn go_on(cancelled: Cancelled<'_>) -> Result<()> {
    match cancelled() {
        true => Err(Error::failed("the restore was given up").because("the one who asked for it has cancelled it")),
        false => Ok(()),
    }
}

fn attempt(
    from: From<'_>,
    spare: &mut Option<Spare>,
    options: &RestoreOptions,
    begin: Instant,
    mut phases: Phases<'_>,
) -> Result<Instance> {
    let shot = from.shot();
    phases.start("plan")?;
    let vdsos = plan::check(shot, options)?;
    let name = options.name.clone().unwrap_or_else(|| shot.manifest.app.clone());
    phases.start("skeleton")?;
    let hostname = options.identity.renewed.then_some(name.as_str());
    let mut skeleton = match spare.take_if(|spare| spare.suits(shot, options.pids)) {
        Some(spare) => spare.turn_into(shot, hostname)?,
        None => {
            spare.as_mut().map(Spare::calm);
            crate::timed::prune();
            Skeleton::build(shot, options.pids, cgroup::create(&name)?, hostname)?
        }
    };
    let group = skeleton.group().cloned();
    let own = identity::files(&name, &options.identity)?;
    phases.start("objects")?;
    let objects = Objects::make(shot, &mut skeleton, options)?;
    let pager = match from {
        From::Disk(opened) => build(opened, objects, &mut skeleton, options, &vdsos, &mut phases)?,
        From::Memory(kept) => {
            warm::build(kept, objects, &mut skeleton, options, &vdsos, &mut phases)?;
            None
        }
    };
    if options.identity.renewed {
        let mut husks = skeleton.husks.iter().zip(&shot.cores);
        husks.try_for_each(|(husk, core)| fill::renew(husk.pid, core))?;
    }
    identity::write(&skeleton.outer_view(), &own)?;
    let asked = match options.revertible {
        true => revert::ask(&skeleton, shot)?,
        false => None,
    };
    phases.start("go")?;
    for (at, core) in shot.cores.iter().enumerate() {
        state::registers(&skeleton, at, core, &vdsos[at])?;
    }
    let point = match (from, &pager) {
        (From::Disk(opened), Some(pager)) if options.revertible => Some(Arc::new(Point::arm(Made {
            opened,
            skeleton: &skeleton,
            pager,
            vdsos: &vdsos,
            renewed: options.identity.renewed,
            asked,
        }))),
        _ => None,
    };
    let (root, init, processes) = skeleton.let_go(pager.as_ref().map(|pager| &pager.hold))?;
    if let (Some(pager), Some(init)) = (pager, init) {
        pager.runs(init, &options.stdio)?;
    }
    Ok(Instance {
        name,
        root,
        init: init.filter(|_| options.pids == PidMode::New),
        cgroup: group,
        processes,
        total_micros: begin.elapsed().as_micros() as u64,
        phases: phases.steps.end(),
        point,
    })
}

/// What its processes share, made in our own process.
struct Objects {
    shared: Shared,
    files: HashMap<FileId, OwnedFd>,
}

impl Objects {
    fn make(shot: &Appshot, skeleton: &mut Skeleton, options: &RestoreOptions) -> Result<Objects> {
        let shared = Shared::make(shot, skeleton)?;
        ipc::restore(skeleton.any(), &shot.manifest)?;
        let source = |(id, fd): (&ShmId, &OwnedFd)| (*id, format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let ptys = std::mem::take(&mut skeleton.ptys);
        let files = files::restore_all(
            &Builder {
                view: skeleton.view(),
                processes: &skeleton.numbers,
                shm: &shared.shm.iter().map(source).collect(),
                stdio: &options.stdio,
                ttys: skeleton.open_ttys(&shot.manifest)?,
                timeline: skeleton.timeline,
            },
            &shot.manifest,
            ptys,
        )?;
        Ok(Objects { shared, files })
    }

    fn mapped(&self) -> Mapped<'_> {
        Mapped::new(&self.shared)
    }
}

/// Everything but the registers that make it run. Answers who brings the memory that is
/// not there then.
fn build(
    opened: &Arc<Opened>,
    objects: Objects,
    skeleton: &mut Skeleton,
    options: &RestoreOptions,
    vdsos: &[Vdso],
    phases: &mut Phases<'_>,
) -> Result<Option<Pager>> {
    let shot = &opened.shot;
    let lazy = options.memory != Memory::Eager && options.pids == PidMode::New;
    let rest = match options.memory {
        Memory::Shared => Rest::WhenTouched,
        Memory::Eager | Memory::Lazy => Rest::Soon,
    };
    if rest == Rest::WhenTouched {
        opened.hold()?;
    }
    phases.start("mappings")?;
    let mut mapped = objects.mapped();
    let mut numbers = Vec::with_capacity(shot.cores.len());
    let mapping = start_all(skeleton, shot, |at, script| {
        skeleton.begin_work(script, at, shot)?;
        let number = place::mappings(skeleton, script, &shot.cores[at], &mut mapped, &vdsos[at])?;
        numbers.push(number);
        Ok(())
    })?;
    script::finish_all(mapping)?;
    phases.start("memory")?;
    let empty = shot.cores.iter().zip(numbers).enumerate();
    let empty = empty.map(|(at, (core, number))| {
        let new = options.identity.renewed;
        let noted = lazy && options.revertible;
        Empty::new(skeleton.husks[at].pid, number, core, &vdsos[at], Wanted { lazy, new, noted })
    });
    let empty: Vec<Empty<'_>> = empty.collect();
    let taking = start_all(skeleton, shot, |at, script| {
        let process = &shot.cores[at].image.process;
        place::descriptors(script, skeleton.restorer, process, &objects.files, &shot.manifest)
    })?;
    let filled = fill::all(opened, &empty, phases.cancelled);
    script::finish_all(taking)?;
    filled?;
    drop(objects);
    // No process holds its userfaultfd any more: where nothing is left, what it had
    // registered is ordinary memory again.
    let left = empty.into_iter().enumerate().filter_map(|(core, empty)| {
        let (faults, owed) = empty.left()?;
        let pid = skeleton.husks[core].pid;
        Some(Left {
            core,
            pid,
            faults,
            owed,
        })
    });
    let left: Vec<Left> = left.collect();
    let pager = match left.is_empty() {
        true => None,
        false => Some(Pager::start(opened, left, rest)?),
    };
    phases.start("protection")?;
    let protecting = start_all(skeleton, shot, |at, script| {
        place::protection(script, &shot.cores[at], &vdsos[at])
    })?;
    script::finish_all(protecting)?;
    phases.start("threads")?;
    for (at, core) in shot.cores.iter().enumerate() {
        state::threads(skeleton, at, core, &shot.manifest.seccomp)?;
    }
    phases.start("adjustments")?;
    ipc::adjust(skeleton, shot)?;
    phases.start("state")?;
    let cores = shot.cores.iter().enumerate();
    let running = cores.map(|(at, core)| state::process(skeleton, at, core, skeleton.script(at)));
    script::finish_all(running.collect::<Result<_>>()?)?;
    state::stops(skeleton, shot)?;
    Ok(pager)
}

/// Sets the main thread of every process to work on a script of its own.
fn start_all<'a>(
    skeleton: &'a Skeleton,
    shot: &Appshot,
    mut write: impl FnMut(usize, &mut Script<'_>) -> Result<()>,
) -> Result<Vec<Running<'a>>> {
    let start = |at| {
        let mut script = skeleton.script(at);
        write(at, &mut script)?;
        script.start()
    };
    (0..shot.cores.len()).map(start).collect()
}
