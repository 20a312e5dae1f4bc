//! An app from an appshot in memory: each process does all of it in one script where it
//! can. There is nothing to verify any more, and no memory to bring along.

use super::kept::Kept;
use super::script::{self, Script};
use super::skeleton::Skeleton;
use super::vdso::Vdso;
use super::{Objects, Phases, place, state};
use crate::error::Result;
use crate::ids::HostPid;
use crate::image::Core;
use crate::image::records::Seccomp;
use crate::ipc;
use crate::sys::ptrace::Regs;
use crate::target::RestoreOptions;

/// Everything but the registers that make it run.
pub fn build(
    kept: &Kept,
    objects: Objects,
    skeleton: &mut Skeleton,
    options: &RestoreOptions,
    vdsos: &[Vdso],
    phases: &mut Phases<'_>,
) -> Result<()> {
    let shot = &kept.shot;
    phases.start("process")?;
    let mut mapped = objects.mapped();
    let renewed = options.identity.renewed;
    let regs: Vec<Regs> = skeleton.husks.iter().map(|husk| husk.regs).collect();
    let mut scripts: Vec<Script<'_>> = Vec::with_capacity(regs.len());
    for (at, core) in shot.cores.iter().enumerate() {
        let process = &core.image.process;
        let mut script = Script::new(skeleton.executor, skeleton.husks[at].pid, &regs[at]);
        skeleton.begin_work(&mut script, at, shot)?;
        place::mappings_with(skeleton, &mut script, kept, at, &mut mapped, (&vdsos[at], renewed))?;
        place::descriptors(&mut script, skeleton.restorer, process, &objects.files, &shot.manifest)?;
        place::protection(&mut script, core, &vdsos[at])?;
        scripts.push(script);
    }
    let simple = |at: usize| is_simple(&shot.cores[at], skeleton.husks[at].pid);
    if !shot.manifest.semaphores.is_empty() || !(0..shot.cores.len()).all(simple) {
        script::run_all(&mut scripts)?;
        phases.start("threads")?;
        for (at, core) in shot.cores.iter().enumerate() {
            state::threads(skeleton, at, core, &shot.manifest.seccomp)?;
        }
        ipc::adjust(skeleton, shot)?;
        phases.start("state")?;
    }
    let cores = shot.cores.iter().enumerate().zip(scripts);
    let running = cores.map(|((at, core), script)| state::process(skeleton, at, core, script));
    script::finish_all(running.collect::<Result<_>>()?)?;
    state::stops(skeleton, shot)
}

/// One thread, without filters, and no limit that would be in the way of its own making.
fn is_simple(core: &Core, pid: HostPid) -> bool {
    let alone = matches!(&core.image.threads[..], [main] if main.record.seccomp == Seccomp::Off);
    alone && state::limits_to_set(pid, &core.image.process).next().is_none()
}
