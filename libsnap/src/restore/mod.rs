//! Bringing an appshot back.
//!
//! ```text
//!            prepare                                              finish
//!  open -> Plan -> Skeleton -> mappings -> memory, protection  |  files -> descriptors -> threads -> state -> Live
//!           |        |                        |                |    |
//!           |      husks for every process,   |                |  the app's time begins
//!           |      with its PID, session,   verified           |
//!           |      group, terminal                             |
//!         everything is refused here                    and here once more
//! ```
//!
//! What takes long, and is the same for all instances, can be done before one is asked
//! for: a [`Prepared`] waits for its name, its time and what it shares with others.
//! Processes are built by executor batches.
//!
//! All processes are traced and die with the tracer until the last step lets
//! them go, so that a failure anywhere leaves nothing behind.

mod ahead;
mod apart;
pub mod eager;
pub mod fill;
mod huge;
mod itself;
pub mod kept;
mod mounts;
pub mod opened;
mod owed;
pub mod pager;
pub mod place;
pub mod plan;
mod prepared;
pub mod revert;
pub mod rights;
pub mod script;
mod seed;
mod settle;
pub mod skeleton;
pub mod spare;
pub mod state;
mod template;
mod threads;
pub mod vdso;
pub mod working_set;

pub use prepared::{Prepared, Way};
pub use template::{Nursery, Template};

use crate::error::{Error, Result};
use crate::image::{Appshot, processors};
use crate::snapshot::Steps;
use crate::target::{Instance, RestoreOptions};
use kept::Kept;
use opened::Opened;
use skeleton::Skeleton;
use spare::Spare;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Restores the appshot at `path`. Uses ptrace: runs wholly on the calling
/// thread, which must live until it returns. The caller is the parent of
/// [`Instance::child`] and must reap it.
pub fn restore(path: &Path, options: &RestoreOptions) -> Result<Instance> {
    restore_unless(&|| false, path, options)
}

/// [`restore`], given up and undone once `cancelled` says so. It is asked at each
/// phase and each piece of memory; not any more once the app is let go.
pub fn restore_unless(cancelled: Cancelled<'_>, path: &Path, options: &RestoreOptions) -> Result<Instance> {
    let begin = Instant::now();
    in_phases(cancelled, |mut phases| {
        phases.start("open")?;
        let from = From::Disk(Opened::open(path)?);
        from.judged(cancelled, attempt(&from, &mut None, options, begin, phases))
    })
}

/// The same of an appshot that was opened or read before, in a spare that this thread
/// has made. What does not suit the app is left there.
pub fn restore_from(
    cancelled: Cancelled<'_>,
    from: &From,
    spare: &mut Option<Spare>,
    options: &RestoreOptions,
) -> Result<Instance> {
    let begin = Instant::now();
    in_phases(cancelled, |phases| {
        from.judged(cancelled, attempt(from, spare, options, begin, phases))
    })
}

/// Does what can be done before an instance is asked for. It is to be in this cgroup,
/// which becomes its own. The same thread must finish it.
pub fn prepare(from: &From, way: Way, group: Option<PathBuf>) -> Result<Prepared> {
    in_phases(&|| false, |mut phases| {
        let prepared = || {
            let shot = from.shot();
            let vdsos = plan::here(shot, way.force_vdso_bridge)?;
            phases.start("skeleton")?;
            let skeleton = Skeleton::build(shot, way.pids, way.network(shot), group)?;
            Prepared::within(from, way, vdsos, skeleton, &mut phases)?.complete()
        };
        from.judged(&|| false, prepared())
    })
}

/// Makes what instances of this kind can be forked off, where [`Template::suits`] says so.
pub fn template(from: &From, way: Way) -> Result<Template> {
    let vdsos = plan::here(from.shot(), way.force_vdso_bridge)?;
    from.judged(&|| false, Template::start(from, way, vdsos))
}

/// Makes an instance of what was prepared as `options` want it ([`Way::of`]), unless
/// they do not allow it.
pub fn finish(cancelled: Cancelled<'_>, prepared: Prepared, options: &RestoreOptions) -> Result<Instance> {
    let begin = Instant::now();
    in_phases(cancelled, |mut phases| {
        let from = prepared.from().clone();
        let finished = phases.start("plan").and_then(|()| {
            plan::allowed(from.shot(), options)?;
            prepared.finish(options, begin, phases)
        });
        finished.map_err(|error| told(error, &from.shot().path))
    })
}

fn attempt(
    from: &From,
    spare: &mut Option<Spare>,
    options: &RestoreOptions,
    begin: Instant,
    mut phases: Phases<'_>,
) -> Result<Instance> {
    phases.start("plan")?;
    let vdsos = plan::check(from.shot(), options)?;
    if let From::Disk(opened) = from {
        opened.read_ahead();
    }
    let name = options.name.as_deref();
    let prepared = Prepared::make(
        from,
        Way::of(options),
        vdsos,
        spare,
        (name, &options.binds),
        &mut phases,
    )?;
    prepared.finish(options, begin, phases)
}

fn told(mut error: Error, path: &Path) -> Error {
    if !error.what.starts_with("cannot restore") {
        error.what = format!("cannot restore {}: {}", path.display(), error.what);
    }
    error.state("nothing was left behind")
}

/// Where an app comes from.
#[derive(Clone, Debug)]
pub enum From {
    /// Its bytes are verified when they are used.
    Disk(Arc<Opened>),
    /// They have been.
    Memory(Arc<Kept>),
}

impl From {
    pub fn shot(&self) -> &Appshot {
        match self {
            From::Disk(opened) => &opened.shot,
            From::Memory(kept) => &kept.shot,
        }
    }

    /// Whether the other is of the same reading.
    pub fn is(&self, other: &From) -> bool {
        match (self, other) {
            (From::Disk(one), From::Disk(other)) => Arc::ptr_eq(one, other),
            (From::Memory(one), From::Memory(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// Whether its directory still holds what was read.
    pub fn is_current(&self) -> bool {
        match self {
            From::Disk(opened) => opened.is_current(),
            From::Memory(kept) => kept.is_current(),
        }
    }

    /// What is damaged is told as that, whatever else it led to.
    fn judged<T>(&self, cancelled: Cancelled<'_>, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            let damage = || match self {
                From::Disk(opened) => opened.digests.verify(processors()).err(),
                From::Memory(_) => None,
            };
            let damage = (!cancelled()).then(damage).flatten();
            told(damage.unwrap_or(error), &self.shot().path)
        })
    }
}

/// Whether the one who asked has given up.
pub type Cancelled<'a> = &'a (dyn Fn() -> bool + Sync);

pub(crate) struct Phases<'a> {
    steps: Steps<'a>,
    cancelled: Cancelled<'a>,
}

pub(crate) fn in_phases<T>(cancelled: Cancelled<'_>, work: impl FnOnce(Phases<'_>) -> T) -> T {
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
