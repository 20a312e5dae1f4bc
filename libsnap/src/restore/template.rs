//! A template: an app's memory, whole, in a process that never runs. Instances are
//! forked off it, and share what they do not write with it and with each other.
//!
//! ```text
//!   template   T, in the host's namespaces: the app's mappings, full, in huge pages
//!   nursery    seed ── clone3 ──> init (1) in new namespaces
//!   template   T ── clone3(CLONE_VM) into init's PID namespace ──> M
//!              M ── clone3 ──> root (2), with a copy of T's page tables;  M ends, init has it
//!              root waits in pause(2), and is let go
//!   nursery    root is stopped, enters init's other namespaces
//! ```
//!
//! ptrace belongs to a thread. One has the template, and only forks. Namespaces take longer
//! than that: several threads, each with a nursery, make instances of one template at the
//! same time.
//!
//! What is forked is plain memory: nobody serves it, and it outlives the template. What
//! a fork does not hand on (MADV_DONTFORK, mlock) comes afterwards.
//!
//! For apps of one process that have nothing mapped that is shared.

use super::eager::{self, Eager};
use super::fill::is_unique;
use super::huge;
use super::place::{self, Protect, Shared};
use super::prepared::{Prepared, Way};
use super::script::Script;
use super::seed::{Clone as Fork, Seed, one};
use super::skeleton::{self, Husk, OPTIONS, Skeleton, free_number, wait_born};
use super::state;
use super::vdso::Vdso;
use super::{From, Phases, in_phases};
use crate::cgroup;
use crate::error::{Error, OrFail, Result};
use crate::executor::{self, Executor, Gate};
use crate::frames;
use crate::freeze;
use crate::hugetlb;
use crate::ids::HostPid;
use crate::image::Appshot;
use crate::image::records::{FileKind, Life};
use crate::ipc;
use crate::launch::Place;
use crate::memory;
use crate::netns;
use crate::sys::memory::Span;
use crate::sys::ptrace::{self, Regs};
use crate::sys::task;
use crate::target::PidMode;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};

/// What the template takes from us for a moment, by number.
const INIT: i32 = 0;
const GROUP: i32 = 1;

/// Of all processes, unless they or their parents have set another one (prctl(2)).
const SLACK_NS: u64 = 50_000;

/// By whom instances are forked off a process that holds all memory; clones of it are the
/// same. It ends with the last of them.
#[derive(Clone, Debug)]
pub struct Template {
    from: From,
    way: Way,
    vdsos: Vec<Vdso>,
    executor: Executor,
    restorer: i32,
    pid: HostPid,
    /// Those that foreign code runs with.
    regs: Regs,
    orders: Sender<Order>,
}

/// A root is to be forked.
#[derive(Debug)]
struct Order {
    init: HostPid,
    group: Option<PathBuf>,
    eager: bool,
    answer: Sender<Result<HostPid>>,
}

impl Template {
    /// Whether instances of this appshot can be forked.
    pub fn suits(shot: &Appshot, way: Way) -> bool {
        let [root] = &shot.manifest.processes[..] else {
            return false;
        };
        let terminal = |kind: &FileKind| matches!(kind, FileKind::Pty(_) | FileKind::PtySlave { .. });
        // Its buffers are pinned, which a fork of them is not.
        let ring = |kind: &FileKind| matches!(kind, FileKind::Uring(_));
        matches!(root.life, Life::Alive { .. })
            && !way.bound
            && root.sid == root.pid
            && root.pid.0 > 1
            && root.exit_signal == libc::SIGCHLD
            && shot.manifest.shmem.is_empty()
            && shot.manifest.namespaces.is_empty()
            // The first to write to one after a fork may be killed for want of another.
            && !hugetlb::has_any(shot)
            // A fork renews memory of some kinds whether that is wanted or not.
            && (way.renewed || !shot.cores.iter().any(|core| core.image.vmas.iter().any(is_unique)))
            && !shot.manifest.files.iter().any(|file| terminal(&file.kind) || ring(&file.kind))
    }

    /// The process that holds the memory.
    pub fn pid(&self) -> HostPid {
        self.pid
    }

    /// Takes the time that an eager restore takes.
    pub(super) fn start(from: &From, way: Way, vdsos: Vec<Vdso>) -> Result<Template> {
        let (made, is_made) = channel();
        let (orders, ordered) = channel();
        let (of, planned) = (from.clone(), vdsos.clone());
        std::thread::spawn(move || {
            let warehouse = in_phases(&|| false, |mut phases| Warehouse::make(&of, way, planned, &mut phases));
            match warehouse {
                Ok(warehouse) => {
                    let skeleton = warehouse.prepared.skeleton();
                    let husk = &skeleton.husks[0];
                    let told = (skeleton.executor, skeleton.restorer, husk.pid, husk.regs);
                    if made.send(Ok(told)).is_ok() {
                        warehouse.serve(&ordered);
                    }
                }
                Err(error) => drop(made.send(Err(error))),
            }
        });
        let made = is_made.recv().or_fail(|| "the thread of a template has ended")?;
        let (executor, restorer, pid, regs) = made?;
        Ok(Template {
            from: from.clone(),
            way,
            vdsos,
            executor,
            restorer,
            pid,
            regs,
            orders,
        })
    }

    /// Where the calling thread makes instances of it.
    pub fn nursery(&self) -> Result<Nursery> {
        let seed = Seed::make(self.restorer)?;
        if seed.executor() != self.executor {
            return Err(Error::failed("an instance's init has no room for the executor"));
        }
        let template = self.clone();
        Ok(Nursery { template, seed })
    }

    /// A root beside this init, which is let go and waits.
    fn fork(&self, init: HostPid, group: Option<PathBuf>, eager: bool) -> Result<HostPid> {
        let gone = || "the thread of a template has ended";
        let (answer, answered) = channel();
        let order = Order {
            init,
            group,
            eager,
            answer,
        };
        self.orders.send(order).or_fail(gone)?;
        answered.recv().or_fail(gone)?
    }
}

/// Makes instances of a template. ptrace belongs to a thread: it is used by the one that
/// made it.
#[derive(Debug)]
pub struct Nursery {
    template: Template,
    /// Of the inits.
    seed: Seed,
}

impl Nursery {
    /// Of what it makes instances.
    pub fn from(&self) -> &From {
        &self.template.from
    }

    /// Pages that an instance of it, whose root this is, has written to by now: the next one
    /// will, too. At most so many.
    pub fn written_by(&self, root: HostPid, most: usize) -> Vec<Span> {
        frames::own(root, self.template.from.shot(), most)
    }

    /// Prepares an instance in this cgroup, which becomes its own. Where somebody waits for
    /// it, the thread is eager, and so is what it works with.
    pub fn instance(&self, group: Option<PathBuf>, eager: Option<&Eager>) -> Result<Prepared> {
        in_phases(&|| false, |phases| self.in_phases(group, eager, phases))
    }

    fn in_phases(&self, group: Option<PathBuf>, eager: Option<&Eager>, mut phases: Phases<'_>) -> Result<Prepared> {
        let Template {
            from, way, vdsos, regs, ..
        } = &self.template;
        let shot = from.shot();
        let eager = eager.filter(|_| skeleton::is_little(shot));
        phases.start("init")?;
        eager::follow(eager, self.seed.pid());
        let mut skeleton = self.seed.skeleton(group.clone(), way.network(shot))?;
        phases.start("fork")?;
        let init = skeleton.init.as_ref().map(|init| init.pid);
        let init = init.ok_or_else(|| Error::failed("no init"))?;
        let pid = self.template.fork(init, group, eager.is_some())?;
        skeleton.born.push(pid);
        if let Some(eager) = eager {
            // Some policies leave the nice value as it is, and its parent has another one.
            eager.calm(pid);
            eager.with(pid);
        }
        let taken = ptrace::seize(pid, OPTIONS).and_then(|()| ptrace::interrupt(pid));
        taken.or_fail(|| "cannot take over what was forked off a template")?;
        state::await_stop(pid)?;
        let root = Husk {
            pid,
            regs: *regs,
            threads: Vec::new(),
        };
        skeleton.adopt(shot, root);
        phases.start("own")?;
        let mut script = skeleton.script(0);
        let network = if skeleton.has_network { libc::CLONE_NEWNET } else { 0 };
        let others = libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNS | network;
        // By a pidfd (Linux 5.8).
        script.must("setns", libc::SYS_setns, &[INIT as u64, others as u64])?;
        let mut shared = Shared::default();
        if ipc::Content::of(&shot.manifest).any() {
            script.flush()?;
            ipc::widen(skeleton.any(), ipc::Content::of(&shot.manifest))?;
            shared.opened = ipc::restore(skeleton.any(), ipc::Content::of(&shot.manifest))?;
        }
        if skeleton.has_network && !shot.manifest.network_settings.is_empty() {
            script.flush()?;
            netns::restore(skeleton.any(), &shot.manifest)?;
        }
        script.must("setsid", libc::SYS_setsid, &[])?;
        skeleton.end_work(&mut script, 0, shot)?;
        place::protection(&mut script, &shot.cores[0], &vdsos[0], Protect::NotForked)?;
        script.flush()?;
        phases.steps.end();
        let prepared = Prepared::forked(from, *way, skeleton, vdsos.clone(), shared)?.complete()?;
        eager.iter().for_each(|eager| eager.calm(init));
        Ok(prepared)
    }
}

/// The process that holds the memory, and the thread that has it.
#[derive(Debug)]
struct Warehouse {
    prepared: Prepared,
    gate: Gate,
}

impl Warehouse {
    fn make(from: &From, way: Way, vdsos: Vec<Vdso>, phases: &mut Phases<'_>) -> Result<Warehouse> {
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
        Ok(Warehouse { prepared, gate })
    }

    /// Until nobody can order any more.
    fn serve(&self, orders: &Receiver<Order>) {
        loop {
            // Who waits for it does not wait for others.
            let first = Eager::begin();
            let Ok(order) = orders.recv() else { return };
            let first = first.filter(|_| order.eager);
            eager::follow(first.as_ref(), self.prepared.skeleton().any());
            // The one who ordered may have ended.
            let _ = order
                .answer
                .send(self.fork(order.init, order.group.as_deref(), first.is_some()));
        }
    }

    fn fork(&self, init: HostPid, group: Option<&Path>, eager: bool) -> Result<HostPid> {
        let failed = || "cannot fork an instance off its template";
        let parent = self.prepared.skeleton();
        let template = &parent.husks[0];
        let init: OwnedFd = task::pidfd_open(init).or_fail(failed)?;
        let joined = group.filter(|_| cgroup::is_v2()).map(File::open).transpose();
        let joined = joined.or_fail(failed)?;
        let shot = self.prepared.from().shot();
        // A number that nobody of the app has.
        let between = skeleton::highest(shot) + 1;

        let mut script = parent.script(0);
        // What an attempt that failed has left.
        script.must("close_range", libc::SYS_close_range, &[0, GROUP as u64, 0])?;
        place::take(&mut script, parent.restorer, init.as_raw_fd(), INIT)?;
        if let Some(group) = &joined {
            place::take(&mut script, parent.restorer, group.as_raw_fd(), GROUP)?;
        }
        let entered = [INIT as u64, libc::CLONE_NEWPID as u64];
        script.must("setns(CLONE_NEWPID)", libc::SYS_setns, &entered)?;
        let how = Fork {
            flags: (libc::CLONE_VM | libc::CLONE_PARENT) as u64,
            pid: Some(between),
            ..Fork::default()
        };
        how.add(&mut script)?;
        script.must("close_range", libc::SYS_close_range, &[0, GROUP as u64, 0])?;
        let mut unfinished = Unfinished(vec![one(script.flush()?)?]);
        let between = unfinished.0[0];
        wait_born(between)?;

        // The default slack of timers, which nobody can set, is what the parent has; one that
        // comes before all others has none, and can be given none (Linux 6.12).
        if eager {
            eager::soon(between);
        }
        let mut script = Script::new(parent.executor, between, &template.regs);
        let slack = [libc::PR_SET_TIMERSLACK as u64, SLACK_NS];
        script.must("prctl(PR_SET_TIMERSLACK)", libc::SYS_prctl, &slack)?;
        let how = Fork {
            exit_signal: libc::SIGCHLD,
            pid: Some(shot.manifest.processes[0].pid.0),
            cgroup: joined.as_ref().map(|_| GROUP),
            ..Fork::default()
        };
        how.add(&mut script)?;
        let root = one(script.flush()?)?;
        unfinished.0.push(root);
        wait_born(root)?;
        skeleton::end_with(between, self.gate, 0)?;
        unfinished.0.remove(0);
        if let (Some(group), None) = (group, joined) {
            cgroup::join(group, root)?;
        }
        // All its signals are blocked: it stays there until it is stopped. Meanwhile it ends
        // with its init, which is traced.
        let waits = executor::call_registers(&template.regs, self.gate, libc::SYS_pause, [0; 6]);
        let gone = ptrace::set_regs(root, &waits).and_then(|()| ptrace::detach(root, 0));
        gone.or_fail(failed)?;
        unfinished.0.clear();
        Ok(root)
    }
}

/// Processes that are ended unless they are taken out.
struct Unfinished(Vec<HostPid>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        for pid in &self.0 {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.0), nix::sys::signal::SIGKILL).ok();
        }
        self.0.iter().rev().for_each(|pid| freeze::await_end(*pid));
    }
}
