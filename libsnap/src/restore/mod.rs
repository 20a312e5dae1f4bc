//! Bringing an appshot back.
//!
//! ```text
//!  open -> Plan -> Skeleton -> shared objects -> memory -> descriptors -> threads -> state -> Live
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
pub mod script;
pub mod skeleton;
pub mod state;
pub mod vdso;

use crate::cgroup;
use crate::error::{Error, Result};
use crate::files::{self, Builder};
use crate::ids::ShmId;
use crate::image::{Appshot, Digests, processors};
use crate::ipc;
use crate::snapshot::Steps;
use crate::target::{Instance, PidMode, RestoreOptions};
use place::{Mapped, Shared};
use skeleton::Skeleton;
use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::OnceLock;
use std::thread;
use std::time::Instant;
use vdso::Vdso;

/// Restores the appshot at `path`. Uses ptrace: runs wholly on the calling
/// thread, which must live until it returns. The caller is the parent of
/// [`Instance::child`] and must reap it.
pub fn restore(path: &Path, options: &RestoreOptions) -> Result<Instance> {
    let begin = Instant::now();
    let mut silent = |_: &str| {};
    let mut steps = Steps::new(&mut silent);
    steps.start("open");
    let (shot, digests) = Appshot::open_to_verify(path)?;
    let verified = OnceLock::new();
    let restored = attempt(&shot, &digests, &verified, options, begin, steps);
    restored.map_err(|error| {
        // What is damaged is told as that, whatever else it led to.
        let intact = verified.into_inner().unwrap_or_else(|| digests.verify(processors()));
        let mut error = intact.err().unwrap_or(error);
        if !error.what.starts_with("cannot restore") {
            error.what = format!("cannot restore {}: {}", path.display(), error.what);
        }
        error.state("nothing was left behind")
    })
}

/// Builds the app while its bytes are being verified, and lets it go when both
/// are done.
fn attempt(
    shot: &Appshot,
    digests: &Digests,
    verified: &OnceLock<Result<()>>,
    options: &RestoreOptions,
    begin: Instant,
    mut steps: Steps<'_>,
) -> Result<Instance> {
    steps.start("plan");
    let vdsos = plan::check(shot, options)?;
    let name = options.name.clone().unwrap_or_else(|| shot.manifest.app.clone());
    steps.start("skeleton");
    crate::timed::prune();
    let group = cgroup::create(&name)?;
    let skeleton = Skeleton::build(shot, options.pids, group.clone())?;
    // From here on nothing forks this process: it may have threads.
    let skeleton = thread::scope(|scope| {
        let verify = || verified.get_or_init(|| digests.verify(processors().saturating_sub(1).max(1)));
        let verification = scope.spawn(verify);
        let built = build(shot, skeleton, options, &vdsos, &mut steps);
        steps.start("verify");
        match verification.join() {
            Ok(Ok(())) => built,
            _ => Err(Error::failed("the appshot is damaged")),
        }
    })?;
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
        phases: steps.end(),
    })
}

/// Everything but the registers that make it run.
fn build(
    shot: &Appshot,
    mut skeleton: Skeleton,
    options: &RestoreOptions,
    vdsos: &[Vdso],
    steps: &mut Steps<'_>,
) -> Result<Skeleton> {
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
            timeline: skeleton.timeline,
        },
        &shot.manifest,
        ptys,
    )?;
    steps.start("memory");
    let mut mapped = Mapped::new(&view, &shared);
    let mut running = Vec::with_capacity(shot.cores.len());
    for (at, core) in shot.cores.iter().enumerate() {
        let mut script = skeleton.script(at);
        place::memory(&skeleton, &mut script, core, &mut mapped, &vdsos[at])?;
        place::descriptors(
            &mut script,
            skeleton.restorer,
            &core.image.process,
            &made,
            &shot.manifest,
        )?;
        running.push(script.start()?);
    }
    script::finish_all(running)?;
    drop(made);
    steps.start("threads");
    for (at, core) in shot.cores.iter().enumerate() {
        state::threads(&mut skeleton, at, core, &shot.manifest.seccomp)?;
    }
    steps.start("adjustments");
    ipc::adjust(&skeleton, shot)?;
    steps.start("state");
    let cores = shot.cores.iter().enumerate();
    let running = cores.map(|(at, core)| state::process(&skeleton, at, core));
    script::finish_all(running.collect::<Result<_>>()?)?;
    state::stops(&skeleton, shot)?;
    Ok(skeleton)
}
