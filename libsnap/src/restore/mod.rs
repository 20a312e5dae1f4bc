//! Bringing an appshot back.
//!
//! ```text
//!  open (verified) -> Plan -> Skeleton -> shared objects -> memory -> descriptors -> threads -> state -> Live
//!                      |        |         \_____________________ built by executor batches ___________/
//!              everything is   husks for every process,
//!              refused here    with its PID, group, session
//! ```
//!
//! All processes are traced and die with the tracer until the last step lets
//! them go, so that a failure anywhere leaves nothing behind.

pub mod place;
pub mod plan;
pub mod rights;
pub mod skeleton;
pub mod state;
pub mod vdso;

use crate::cgroup;
use crate::error::Result;
use crate::files::{self, Builder};
use crate::ids::ShmId;
use crate::image::Appshot;
use crate::ipc;
use crate::snapshot::Steps;
use crate::target::{Instance, PidMode, RestoreOptions};
use place::Shared;
use skeleton::Skeleton;
use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Instant;
use vdso::Vdso;

/// Restores the appshot at `path`. Uses ptrace: runs wholly on the calling
/// thread, which must live until it returns. The caller is the parent of
/// [`Instance::child`] and must reap it.
pub fn restore(path: &Path, options: &RestoreOptions) -> Result<Instance> {
    let begin = Instant::now();
    let mut silent = |_: &str| {};
    let mut steps = Steps::new(&mut silent);
    steps.start("verify");
    let shot = Appshot::open(path)?;
    steps.start("plan");
    let vdsos = plan::check(&shot, options)?;
    restore_verified(&shot, options, &vdsos, begin, steps).map_err(|mut error| {
        if !error.what.starts_with("cannot restore") {
            error.what = format!("cannot restore {}: {}", path.display(), error.what);
        }
        error.state("nothing was left behind")
    })
}

fn restore_verified(
    shot: &Appshot,
    options: &RestoreOptions,
    vdsos: &[Vdso],
    begin: Instant,
    mut steps: Steps<'_>,
) -> Result<Instance> {
    let name = options.name.clone().unwrap_or_else(|| shot.manifest.app.clone());
    steps.start("skeleton");
    crate::timed::prune();
    let group = cgroup::create(&name)?;
    let mut skeleton = Skeleton::build(shot, options.pids, group.clone())?;
    steps.start("objects");
    let shared = Shared::make(shot, &skeleton)?;
    ipc::restore(skeleton.any(), &shot.manifest)?;
    let sources: HashMap<ShmId, String> = shared
        .shm
        .iter()
        .map(|(id, fd)| (*id, format!("/proc/self/fd/{}", fd.as_raw_fd())))
        .collect();
    let view = skeleton.view();
    let ptys = std::mem::take(&mut skeleton.ptys);
    let made = files::restore_all(
        &Builder {
            view: view.clone(),
            processes: &skeleton.numbers,
            shm: &sources,
            stdio: &options.stdio,
            ttys: skeleton.open_ttys(&shot.manifest)?,
        },
        &shot.manifest,
        ptys,
    )?;
    for (at, core) in shot.cores.iter().enumerate() {
        steps.start("memory");
        place::memory(&skeleton, at, core, &shared, &view, &vdsos[at])?;
        steps.start("descriptors");
        place::descriptors(&skeleton, at, &core.image.process, &made, &shot.manifest)?;
        steps.start("threads");
        state::threads(&mut skeleton, at, core, &shot.manifest.seccomp)?;
    }
    drop(made);
    steps.start("adjustments");
    ipc::adjust(&skeleton, shot)?;
    steps.start("state");
    for (at, core) in shot.cores.iter().enumerate() {
        state::process(&skeleton, at, core)?;
    }
    state::stops(&skeleton, shot)?;
    steps.start("go");
    for (at, core) in shot.cores.iter().enumerate() {
        state::registers(&skeleton, at, core)?;
    }
    let (root, init, processes) = skeleton.let_go()?;
    Ok(Instance {
        name,
        root,
        init: init.filter(|_| options.pids == PidMode::New),
        cgroup: group,
        processes,
        total_micros: begin.elapsed().as_micros() as u64,
        phases: merged(steps.end()),
    })
}

/// Steps that were taken once a process, added up.
fn merged(phases: Vec<crate::target::Phase>) -> Vec<crate::target::Phase> {
    let mut sums: Vec<crate::target::Phase> = Vec::new();
    for phase in phases {
        match sums.iter_mut().find(|sum| sum.name == phase.name) {
            Some(sum) => sum.micros += phase.micros,
            None => sums.push(phase),
        }
    }
    sums
}
