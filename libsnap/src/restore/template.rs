//! A template: an app's memory, whole, in a process that never runs. Instances are
//! forked off it, and share what they do not write with it and with each other.
//!
//! ```text
//!   make:      T, in the host's namespaces: the app's mappings, full, in huge pages
//!   instance:  init (1) in new namespaces
//!              T ── clone3(CLONE_VM) into init's PID namespace ──> M
//!              M ── clone3 ──> root (2), with a copy of T's page tables;  M ends, init has it
//!              root enters init's other namespaces
//! ```
//!
//! What is forked is plain memory: nobody serves it, and it outlives the template. What
//! a fork does not hand on (MADV_DONTFORK, mlock) comes afterwards.
//!
//! For apps of one process that have nothing mapped that is shared.

use super::fill::is_unique;
use super::huge;
use super::place::{self, Protect};
use super::prepared::{Prepared, Way};
use super::script::Script;
use super::seed::{Clone, Seed, one};
use super::skeleton::{self, Husk, Skeleton, free_number, wait_born};
use super::vdso::Vdso;
use super::{From, Phases, in_phases};
use crate::cgroup;
use crate::error::{Error, OrFail, Result};
use crate::executor::{self, Gate};
use crate::ids::HostPid;
use crate::image::Appshot;
use crate::image::records::{FileKind, Life};
use crate::ipc;
use crate::launch::Place;
use crate::memory;
use crate::sys::memory::Span;
use crate::sys::task;
use crate::target::{Network, PidMode};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

/// What the template takes from us for a moment, by number.
const INIT: i32 = 0;
const GROUP: i32 = 1;

/// Ended by dropping it. ptrace belongs to a thread: it is used by the one that made it.
#[derive(Debug)]
pub struct Template {
    prepared: Prepared,
    gate: Gate,
    /// Of the inits.
    seed: Seed,
}

impl Template {
    /// Whether instances of this appshot can be forked.
    pub fn suits(shot: &Appshot, way: Way) -> bool {
        let [root] = &shot.manifest.processes[..] else {
            return false;
        };
        let terminal = |kind: &FileKind| matches!(kind, FileKind::Pty(_) | FileKind::PtySlave { .. });
        matches!(root.life, Life::Alive { .. })
            && root.sid == root.pid
            && root.pid.0 > 1
            && root.exit_signal == libc::SIGCHLD
            && shot.manifest.shmem.is_empty()
            // A fork renews memory of some kinds whether that is wanted or not.
            && (way.renewed || !shot.cores.iter().any(|core| core.image.vmas.iter().any(is_unique)))
            && !shot.manifest.files.iter().any(|file| terminal(&file.kind))
    }

    /// The process that holds the memory.
    pub fn pid(&self) -> HostPid {
        self.prepared.skeleton().any()
    }

    /// Takes the time that an eager restore takes.
    pub(super) fn make(from: &From, way: Way, vdsos: Vec<Vdso>, phases: &mut Phases<'_>) -> Result<Template> {
        let shot = from.shot();
        phases.start("skeleton")?;
        let used = shot.cores[0].image.vmas.iter().map(Span::from).collect();
        let place = Place {
            pids: PidMode::Host,
            ..Place::default()
        };
        let (mut skeleton, only) = Skeleton::begin(place, free_number(shot), used)?;
        skeleton.is_template = true;
        skeleton.adopt(shot, only);
        let prepared = Prepared::template(from, way, skeleton, vdsos, phases)?;
        let skeleton = prepared.skeleton();
        let vmas = &shot.cores[0].image.vmas;
        let gate = match prepared.vdso().gate(skeleton, vmas) {
            Some(gate) => gate,
            None => executor::find_gate(skeleton.any(), &memory::code(vmas))?,
        };
        let mut script = skeleton.script(0);
        place::collapse(&mut script, &huge::worth(&shot.cores[0]))?;
        script.flush()?;
        let seed = Seed::make(prepared.skeleton().restorer)?;
        if seed.executor() != prepared.skeleton().executor {
            return Err(Error::failed("an instance's init has no room for the executor"));
        }
        Ok(Template { prepared, gate, seed })
    }

    /// Prepares an instance in this cgroup, which becomes its own.
    pub fn instance(&self, group: Option<PathBuf>) -> Result<Prepared> {
        in_phases(&|| false, |phases| self.in_phases(group, phases))
    }

    fn in_phases(&self, group: Option<PathBuf>, mut phases: Phases<'_>) -> Result<Prepared> {
        phases.start("init")?;
        let from = self.prepared.from();
        let (shot, way) = (from.shot(), self.prepared.way());
        let mut skeleton = self.seed.skeleton(group.clone())?;
        phases.start("network")?;
        if way.network(shot) == Network::Own {
            skeleton.leave_network()?;
        }
        phases.start("fork")?;
        let root = self.fork(&mut skeleton, group.as_deref())?;
        skeleton.adopt(shot, root);
        phases.start("own")?;
        ipc::restore(skeleton.any(), &shot.manifest)?;
        let mut script = skeleton.script(0);
        script.must("setsid", libc::SYS_setsid, &[])?;
        skeleton.end_work(&mut script, 0, shot)?;
        place::protection(&mut script, &shot.cores[0], self.prepared.vdso(), Protect::NotForked)?;
        script.flush()?;
        phases.steps.end();
        self.prepared.instance(skeleton)?.complete()
    }

    /// Forks the root of an instance, whose init is there.
    fn fork(&self, skeleton: &mut Skeleton, group: Option<&std::path::Path>) -> Result<Husk> {
        let failed = || "cannot fork an instance off its template";
        let parent = self.prepared.skeleton();
        let template = &parent.husks[0];
        let init = skeleton.init.as_ref().ok_or_else(|| Error::failed("no init"))?;
        let init: OwnedFd = task::pidfd_open(init.pid).or_fail(failed)?;
        let joined = group.filter(|_| cgroup::is_v2()).map(File::open).transpose();
        let joined = joined.or_fail(failed)?;
        let shot = self.prepared.from().shot();
        let root = shot.manifest.processes[0].pid.0;
        // A number that nobody of the app has.
        let between = skeleton::highest(shot) + 1;

        let mut script = parent.script(0);
        place::take(&mut script, parent.restorer, init.as_raw_fd(), INIT)?;
        if let Some(group) = &joined {
            place::take(&mut script, parent.restorer, group.as_raw_fd(), GROUP)?;
        }
        let entered = [INIT as u64, libc::CLONE_NEWPID as u64];
        script.must("setns(CLONE_NEWPID)", libc::SYS_setns, &entered)?;
        let how = Clone {
            flags: (libc::CLONE_VM | libc::CLONE_PARENT) as u64,
            pid: Some(between),
            ..Clone::default()
        };
        how.add(&mut script)?;
        script.must("close_range", libc::SYS_close_range, &[0, GROUP as u64, 0])?;
        let between = one(script.flush()?)?;
        skeleton.born.push(between);
        wait_born(between)?;

        let mut script = Script::new(parent.executor, between, &template.regs);
        let how = Clone {
            exit_signal: libc::SIGCHLD,
            pid: Some(root),
            cgroup: joined.as_ref().map(|_| GROUP),
            ..Clone::default()
        };
        how.add(&mut script)?;
        let pid = one(script.flush()?)?;
        skeleton.born.push(pid);
        wait_born(pid)?;
        skeleton::end_with(between, self.gate, 0)?;
        if let (Some(group), None) = (group, joined) {
            cgroup::join(group, pid)?;
        }

        let root = Husk {
            pid,
            regs: template.regs,
            threads: Vec::new(),
        };
        let mut script = Script::new(parent.executor, pid, &root.regs);
        let network = if skeleton.has_network { libc::CLONE_NEWNET } else { 0 };
        let others = libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNS | network;
        // By a pidfd (Linux 5.8).
        script.must("setns", libc::SYS_setns, &[INIT as u64, others as u64])?;
        script.flush()?;
        Ok(root)
    }
}
