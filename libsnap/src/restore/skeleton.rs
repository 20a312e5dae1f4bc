//! The process tree, as husks: every process with its PID, parent, session and
//! group, and nothing else yet.
//!
//! A process inherits its session from whoever forks it, at that moment. So:
//! a session leader is forked by its parent and calls setsid; a member is forked
//! once its parent is in that session; one that stayed behind in its parent's old
//! session is forked before the parent calls setsid; an orphan (its parent is
//! init, its session another's) is forked through a *stand-in* that is a member
//! of the session and then ends. Numbers of sessions and groups whose leader is
//! gone are held by stand-ins while the tree is built.

use super::eager::Eager;
use super::pager::Hold;
use super::script::Script;
use super::settle::Had;
use super::state::{self, Inherited, Limits};
use crate::cgroup;
use crate::clocks::Timeline;
use crate::error::{Error, OrFail, Result};
use crate::executor::{self, Batch, Executor, Gate};
use crate::files::pty::Ptys;
use crate::ids::{FileId, HostPid, VirtualPid};
use crate::image::Appshot;
use crate::image::records::{Clocks, FileKind, Life, Manifest, PtyRecord, SnapEntry};
use crate::keys;
use crate::launch::{self, INIT_ADDRESS, Place};
use crate::proc::{self, Mapping};
use crate::shared::Owners;
use crate::sys::blob;
use crate::sys::memory::Span;
use crate::sys::ptrace::{self, Regs, Stop, reg};
use crate::sys::task::{self, CloneArgs};
use crate::target::{Network, Notice, PidMode};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

/// A process being built.
#[derive(Clone, Debug)]
pub struct Husk {
    pub pid: HostPid,
    pub regs: Regs,
    /// Threads besides the main one, in the order of the appshot.
    pub threads: Vec<HostPid>,
}

/// All processes being built. Dropped, they are all ended.
#[derive(Debug)]
pub struct Skeleton {
    pub(super) init: Option<Husk>,
    /// The app's root, where it was made before the rest of the tree.
    pub(super) early: Option<Husk>,
    /// Husks have nothing to unmap.
    pub(super) is_empty: bool,
    /// Its process is one that others are forked off.
    pub(super) is_template: bool,
    /// Its init only has to be let go.
    init_waits: bool,
    /// Its init is killed when the thread ends that has made it.
    pub(super) is_bound: bool,
    /// The instance is in a network namespace of its own.
    pub(super) has_network: bool,
    pub(super) eager: Option<Eager>,
    pub(super) had: Had,
    /// What its processes have, where that is known.
    pub(super) inherited: Option<Inherited>,
    /// Resource limits that its processes have been made with, where they are known.
    pub(super) limits: Option<Limits>,
    /// Which of its processes share a descriptor table, and the like.
    pub(super) owners: Owners,
    /// Live processes in the order of the appshot's cores.
    pub husks: Vec<Husk>,
    pub numbers: HashMap<VirtualPid, HostPid>,
    pub executor: Executor,
    /// Mappings of every husk: all are forks of the first.
    pub layout: Vec<Mapping>,
    /// A `syscall` instruction in every husk, until its own vdso is in place.
    pub gate: Gate,
    /// The number under which every husk holds a pidfd of this process, to take
    /// descriptors from it.
    pub restorer: i32,
    /// Until they are given to the app's processes.
    pub ptys: Ptys,
    /// Those of [`Manifest::namespaces`], once they are made.
    pub(super) namespaces: Vec<OwnedFd>,
    /// Those of mounts among them, by number.
    pub(super) mounted: Vec<u32>,
    /// Of the app, once it is about to run.
    pub timeline: Timeline,
    cgroup: Option<PathBuf>,
    root: VirtualPid,
    /// The highest number that the app uses.
    highest: i32,
    /// Every process ever forked, stand-ins included, oldest first.
    pub(super) born: Vec<HostPid>,
    armed: bool,
}

/// Processes that are built before all others that want a processor, at most.
const EAGER_MAX: usize = 4;
/// Threads of these: more are worth all processors.
const EAGER_THREADS_MAX: usize = 64;

pub(super) const OPTIONS: i32 = libc::PTRACE_O_EXITKILL
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_SUSPEND_SECCOMP;

impl Skeleton {
    /// In namespaces of its own, made for this appshot.
    pub fn build(shot: &Appshot, pids: PidMode, network: Network, group: Option<PathBuf>) -> Result<Skeleton> {
        let wanted = adopted(&shot.manifest.processes, pids);
        crate::identity::prepare_host();
        let place = Place {
            pids,
            cgroup: group,
            pid: (pids == PidMode::Host).then_some(wanted[0].pid.0),
            ..Place::default()
        };
        let mut used = Vec::new();
        for core in &shot.cores {
            used.extend(core.image.vmas.iter().map(Span::from));
        }
        let (mut skeleton, first) = Skeleton::begin(place, free_number(shot), used)?;
        match pids {
            PidMode::New => skeleton.init = Some(first),
            // The first husk is the app's root itself, leader of its own session.
            PidMode::Host => skeleton.early = Some(first),
        }
        if network == Network::Own {
            skeleton.leave_network()?;
        }
        skeleton.grow(shot, &wanted)?;
        Ok(skeleton)
    }

    /// The first process of a new place, with an executor that is in nobody's way.
    pub(super) fn begin(place: Place, restorer: i32, used: Vec<Span>) -> Result<(Skeleton, Husk)> {
        let ourselves = HostPid(std::process::id() as i32);
        let ourselves = task::pidfd_open(ourselves).or_fail(|| "cannot open this process")?;
        let first = launch::husk(&place, ourselves.as_fd(), restorer, OPTIONS);
        let first = first.inspect_err(|_| {
            place.cgroup.as_deref().map(cgroup::destroy);
        })?;
        let mut skeleton = Skeleton::empty(first, restorer, place.cgroup);
        let first = skeleton.infect_first(first, used)?;
        // It was to end with this thread, before that traced it.
        let mut script = Script::new(skeleton.executor, first.pid, &first.regs);
        script.must("prctl", libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG as u64, 0])?;
        script.flush()?;
        Ok((skeleton, first))
    }

    /// Of one process.
    fn empty(first: HostPid, restorer: i32, cgroup: Option<PathBuf>) -> Skeleton {
        Skeleton {
            init: None,
            early: None,
            is_empty: false,
            is_template: false,
            init_waits: false,
            is_bound: false,
            has_network: false,
            eager: None,
            had: Had::default(),
            inherited: None,
            limits: None,
            owners: Owners::default(),
            husks: Vec::new(),
            numbers: HashMap::new(),
            executor: Executor::at(0),
            layout: Vec::new(),
            gate: Gate::of_husk(0),
            restorer,
            ptys: Ptys::default(),
            namespaces: Vec::new(),
            mounted: Vec::new(),
            timeline: Timeline::begin(Clocks::default()),
            cgroup,
            root: VirtualPid(0),
            highest: 0,
            born: vec![first],
            armed: true,
        }
    }

    /// Of a process that was forked off ours, and is no part of it.
    pub(super) fn another(&self, first: HostPid, cgroup: Option<PathBuf>) -> Skeleton {
        let mut other = Skeleton::empty(first, self.restorer, cgroup);
        (other.executor, other.gate) = (self.executor, self.gate);
        other.layout.clone_from(&self.layout);
        other
    }

    /// Makes all processes of the appshot besides those that are there.
    pub(super) fn grow(&mut self, shot: &Appshot, wanted: &[SnapEntry]) -> Result<()> {
        let manifest = &shot.manifest;
        (self.root, self.highest) = (wanted[0].pid, highest(shot));
        self.owners = Owners::of(manifest);
        self.ptys = Ptys::make(&format!("/proc/{}/root", self.born[0]), manifest)?;
        let mut tree = Tree::new(self, wanted);
        tree.terminals = terminals(manifest).map(|pty| (pty.sid, pty)).collect();
        tree.detached = detached(shot);
        let grown = tree.grow();
        let Tree { made, born, .. } = tree;
        self.born.extend(born);
        grown?;
        self.numbers = made.iter().map(|(vpid, husk)| (*vpid, husk.pid)).collect();
        let alive = manifest
            .processes
            .iter()
            .filter(|p| matches!(p.life, Life::Alive { .. }));
        self.husks = alive.map(|p| made[&p.pid].clone()).collect();
        state::continues(self, shot)
    }

    /// Its only process is `root`.
    pub(super) fn adopt(&mut self, shot: &Appshot, root: Husk) {
        let number = shot.manifest.processes[0].pid;
        (self.root, self.highest) = (number, highest(shot));
        self.numbers = HashMap::from([(number, root.pid)]);
        self.husks = vec![root];
    }

    fn infect_first(&mut self, pid: HostPid, mut used: Vec<Span>) -> Result<Husk> {
        let failed = || "cannot enter a new process";
        ptrace::set_options(pid, OPTIONS).or_fail(failed)?;
        ptrace::set_sigmask(pid, crate::freeze::ALL_BUT_TRAP).or_fail(failed)?;
        // While it is built, and so are its children and threads, no protection key is in the way.
        keys::give(pid, 0).or_fail(failed)?;
        let regs = ptrace::get_regs(pid).or_fail(failed)?.with(reg::RSP, 0);
        let mappings = proc::mappings(pid).or_fail(failed)?;
        let code: Vec<Span> = mappings
            .iter()
            .filter(|m| m.name == "[vdso]")
            .map(|m| m.span())
            .collect();
        self.gate = executor::find_gate(pid, &code)?;
        used.extend(mappings.iter().map(|m| m.span()));
        let hole = executor::find_hole(&mut used, executor::FOOTPRINT)
            .ok_or_else(|| Error::refused("the app's address spaces leave no room for the executor"))?;
        self.executor = Executor::infect(pid, &regs, self.gate, hole)?;
        self.layout = mappings;
        Ok(Husk {
            pid,
            regs,
            threads: Vec::new(),
        })
    }

    /// It is asked for: where that is not much, all that is left comes before what
    /// others do.
    pub(super) fn hasten(&mut self, shot: &Appshot) {
        self.eager = self.eager.take().filter(|_| is_little(shot));
        for (eager, husk) in self
            .eager
            .iter()
            .flat_map(|eager| self.husks.iter().map(move |husk| (eager, husk)))
        {
            eager.with(husk.pid);
        }
    }

    /// The cgroup that all of it is in.
    pub fn group(&self) -> Option<&PathBuf> {
        self.cgroup.as_ref()
    }

    pub fn batch(&self) -> Batch {
        self.executor.batch()
    }

    /// A script for the main thread of husk `at`.
    pub fn script(&self, at: usize) -> Script<'_> {
        let husk = &self.husks[at];
        Script::new(self.executor, husk.pid, &husk.regs)
    }

    /// Runs a batch in the main thread of husk `at`.
    pub fn run(&self, at: usize, batch: &mut Batch) -> Result<Vec<HostPid>> {
        let husk = &self.husks[at];
        run(&self.executor, husk, batch)
    }

    /// The root directory of the instance as seen from here: that of its own mount namespace, whatever root
    /// a process has.
    pub fn view(&self) -> String {
        format!("/proc/{}/root", self.base())
    }

    /// Its first process.
    pub fn any(&self) -> HostPid {
        self.husks[0].pid
    }

    /// A process whose namespaces are the app's own.
    pub fn base(&self) -> HostPid {
        self.init.as_ref().unwrap_or(&self.husks[0]).pid
    }

    /// Opens /dev/tty where the appshot has it, each in the session that the
    /// terminal controls: nobody else can.
    pub fn open_ttys(&self, manifest: &Manifest) -> Result<HashMap<FileId, OwnedFd>> {
        let mut opened = HashMap::new();
        for file in &manifest.files {
            let FileKind::PtySlave {
                index,
                through_tty: true,
            } = file.kind
            else {
                continue;
            };
            let sid = terminals(manifest).find(|pty| pty.index == index).map(|pty| pty.sid);
            let leader = sid.and_then(|sid| self.numbers.get(&sid));
            let leader = leader.and_then(|pid| self.husks.iter().find(|husk| husk.pid == *pid));
            let leader =
                leader.ok_or_else(|| Error::failed(format!("nobody has pseudo-terminal {index} as its /dev/tty")))?;
            let fd = open_in(&self.executor, leader, "/dev/tty", file.flags)?;
            let pidfd = task::pidfd_open(leader.pid).or_fail(|| "cannot open a new process")?;
            let got =
                task::pidfd_getfd(pidfd.as_fd(), fd as i32).or_fail(|| "cannot take /dev/tty from a new process")?;
            let mut batch = self.batch();
            batch.must("close", libc::SYS_close, &[fd]);
            run(&self.executor, leader, &mut batch)?;
            opened.insert(file.id, got);
        }
        Ok(opened)
    }

    /// Signals that wait for the app's processes; nothing of ours runs in them any more.
    pub fn notify(&self, notices: &[Notice]) -> Result<()> {
        for notice in notices {
            let signal = Signal::try_from(notice.signal).or_fail(|| "cannot tell the app")?;
            let told = if notice.all { &self.husks[..] } else { &self.husks[..1] };
            for husk in told {
                let sent = nix::sys::signal::kill(nix::unistd::Pid::from_raw(husk.pid.0), signal);
                sent.or_fail(|| format!("cannot send {signal} to the app"))?;
            }
        }
        Ok(())
    }

    /// Lets every process go: the app runs. Parents come first: the SIGCHLD of a
    /// child that ends at once would interrupt calls in a process of which a thread
    /// is still traced. The init comes last: while it is ours, our death is its own,
    /// and that of all in its PID namespace. Where memory is still owed it is given
    /// `hold` and comes first: it notices our death itself, and then holds on until
    /// all are dead; killed by our death it would let go before.
    pub fn let_go(mut self, hold: Option<&Hold>) -> Result<(HostPid, Option<HostPid>, usize)> {
        let root = self.numbers[&self.root];
        let init = self.init.clone();
        // An init that holds what is owed comes first: it ends the app when we die.
        if let (Some(init), Some(_)) = (&init, hold) {
            self.finish_init(hold)?;
            detach(init.pid)?;
        }
        let mut ended = Vec::new();
        for husk in &self.husks {
            for tid in husk.threads.iter().copied().chain([husk.pid]) {
                if !detach(tid)? {
                    ended.push((husk.pid, tid));
                }
            }
        }
        // The rest has time.
        if self.eager.take().is_some() {
            std::thread::yield_now();
        }
        if let (Some(init), None) = (&init, hold) {
            self.finish_init(None)?;
            detach(init.pid)?;
        }
        self.armed = false;
        ended
            .into_iter()
            .for_each(|(pid, tid)| crate::freeze::await_killed(pid, tid));
        Ok((root, init.map(|i| i.pid), self.numbers.len()))
    }

    /// The init becomes what it is as soon as it is let go. Before that where the tree is
    /// complete and waits to be asked for.
    pub(super) fn finish_init(&mut self, hold: Option<&Hold>) -> Result<()> {
        if let (false, Some(init)) = (self.init_waits, &self.init) {
            self.turn_into_init(init, hold)?;
            self.init_waits = true;
        }
        Ok(())
    }

    fn turn_into_init(&self, init: &Husk, hold: Option<&Hold>) -> Result<()> {
        let failed = || "cannot start the instance's init";
        let mut script = Script::new(self.executor, init.pid, &init.regs);
        let mut held = None;
        if let Some(hold) = hold {
            script.flush()?;
            held = Some(self.hand_over(init, hold)?);
        }
        if self.is_bound {
            let bound = [libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64];
            script.must("prctl(PR_SET_PDEATHSIG)", libc::SYS_prctl, &bound)?;
        }
        self.leave(&mut script)?;
        script.flush()?;
        self.executor.cure_husk(init.pid, &init.regs, self.gate)?;
        // The kernel wrote the start of the stack below the strings of exec.
        let stack = self.layout.iter().find(|m| m.name == "[stack]");
        let stack = stack.map_or(0, |m| m.end - 4096);
        let root = u64::from(self.root.0.unsigned_abs());
        let regs = init
            .regs
            .with(reg::RIP, blob::init_program_loop(INIT_ADDRESS, held.is_some()))
            .with(reg::RBX, root)
            .with(reg::RSP, stack)
            .with(reg::ORIG_RAX, u64::MAX);
        let [queue, lifeline, signals] = held.unwrap_or_default();
        let regs = regs
            .with(reg::R13, queue)
            .with(reg::R14, lifeline)
            .with(reg::R15, signals);
        ptrace::set_regs(init.pid, &regs).or_fail(failed)?;
        // What it hears of through a signalfd has to be blocked.
        let blocked = if held.is_some() { SIGCHLD } else { 0 };
        ptrace::set_sigmask(init.pid, blocked).or_fail(failed)
    }
}

/// As a signal mask.
const SIGCHLD: u64 = 1 << (libc::SIGCHLD - 1);

impl Skeleton {
    /// Gives an init what it holds: the numbers of the queue, the lifeline, a signalfd.
    fn hand_over(&self, init: &Husk, hold: &Hold) -> Result<[u64; 3]> {
        let mut batch = self.batch();
        let mask = batch.words(&[SIGCHLD]);
        let take = |batch: &mut Batch, fd: &OwnedFd| {
            let args = [self.restorer as u64, fd.as_raw_fd() as u64, 0];
            batch.must("pidfd_getfd", libc::SYS_pidfd_getfd, &args)
        };
        let calls = [
            take(&mut batch, &hold.queue),
            take(&mut batch, &hold.lifeline),
            batch.must("signalfd4", libc::SYS_signalfd4, &[u64::MAX, mask.address, 8, 0]),
        ];
        run(&self.executor, init, &mut batch)?;
        let failed = || "cannot give the instance's init its descriptors";
        let mut numbers = [0; 3];
        for (number, call) in numbers.iter_mut().zip(calls) {
            *number = batch.result(call).or_fail(failed)?;
        }
        Ok(numbers)
    }
}

impl Drop for Skeleton {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        for pid in &self.born {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.0), nix::sys::signal::SIGKILL).ok();
        }
        if let Some(group) = &self.cgroup {
            cgroup::destroy(group).ok();
        }
        // The tracer hears of each end first. An init that is killed waits in the
        // kernel until all of its namespace is reaped: it comes last.
        for tid in self.husks.iter().flat_map(|husk| &husk.threads) {
            crate::freeze::await_end(*tid);
        }
        for pid in self.born.iter().rev() {
            while let Ok(Some(stop)) = ptrace::wait(*pid, true) {
                if matches!(stop, Stop::Exited(_) | Stop::Killed(_)) {
                    break;
                }
            }
        }
        if let Some(first) = self.born.first() {
            launch::reap(*first);
        }
    }
}

/// Answers no where what was let go before has killed it: that is the app's own affair, but
/// that we have to hear of its end.
fn detach(tid: HostPid) -> Result<bool> {
    match ptrace::detach(tid, 0) {
        Ok(()) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        other => other.map(|()| true).or_fail(|| format!("cannot let task {tid} go")),
    }
}

pub(super) fn run(executor: &Executor, husk: &Husk, batch: &mut Batch) -> Result<Vec<HostPid>> {
    if batch.is_empty() {
        return Ok(Vec::new());
    }
    executor.run(husk.pid, &husk.regs, batch)
}

/// Opens a file in a husk; answers its number there.
fn open_in(executor: &Executor, husk: &Husk, path: &str, flags: i32) -> Result<u64> {
    let mut batch = executor.batch();
    let name = batch.c_string(path);
    let flags = (flags | libc::O_NOCTTY | libc::O_CLOEXEC) as u64;
    let call = batch.must("open", libc::SYS_open, &[name.address, flags, 0]);
    run(executor, husk, &mut batch)?;
    batch.result(call).or_fail(|| format!("cannot open {path}"))
}

/// Pseudo-terminals that control a session.
fn terminals(manifest: &Manifest) -> impl Iterator<Item = &PtyRecord> {
    let ptys = manifest.files.iter().filter_map(|file| {
        if let FileKind::Pty(pty) = &file.kind {
            Some(&**pty)
        } else {
            None
        }
    });
    ptys.filter(|pty| pty.sid.0 != 0)
}

/// Processes that have no controlling terminal though their session has one:
/// forked before its leader took it, or given up (TIOCNOTTY).
fn detached(shot: &Appshot) -> Vec<(VirtualPid, VirtualPid)> {
    let without = shot
        .cores
        .iter()
        .map(|core| &core.image)
        .filter(|image| image.process.ctty.is_none());
    without.map(|image| (image.process.pid, image.sid)).collect()
}

/// A session or group that is led from outside cannot be entered again where its
/// number is another's: with the host's PIDs, and where the app's PID namespace
/// had none for it (0). The app's root leads one of its own instead.
pub(super) fn adopted(processes: &[SnapEntry], pids: PidMode) -> Vec<SnapEntry> {
    let mut wanted = processes.to_vec();
    let root = processes[0].pid;
    // The first husk is the root, and leads its own session.
    let first = pids == PidMode::Host || root.0 == 1;
    let outside = |pid: VirtualPid| pid.0 == 0 || first && !processes.iter().any(|p| p.pid == pid);
    for entry in &mut wanted {
        for number in [&mut entry.sid, &mut entry.pgid] {
            if outside(*number) || first && entry.pid == root {
                *number = root;
            }
        }
    }
    wanted
}

/// A number that no process of the app uses for a descriptor.
pub(super) fn free_number(shot: &Appshot) -> i32 {
    let used = shot
        .cores
        .iter()
        .flat_map(|core| &core.image.process.fds)
        .map(|entry| entry.fd.0);
    // Numbers that files are watched by (epoll) are used too, for a moment.
    let watched = shot.manifest.files.iter().filter_map(|file| match &file.kind {
        FileKind::Epoll { watches } => watches.iter().map(|watch| watch.fd.0).max(),
        _ => None,
    });
    used.chain(watched).max().unwrap_or(2) + 1
}

/// The highest process, thread, session or group number of the app.
pub(super) fn highest(shot: &Appshot) -> i32 {
    let processes = shot.manifest.processes.iter().flat_map(|p| [p.pid, p.pgid, p.sid]);
    let threads = shot
        .cores
        .iter()
        .flat_map(|core| &core.image.threads)
        .map(|t| t.record.tid);
    processes.chain(threads).map(|pid| pid.0).max().unwrap_or(1)
}

/// Whether what is to be built is so little that it may come before all else.
pub(super) fn is_little(shot: &Appshot) -> bool {
    let threads: usize = shot.cores.iter().map(|core| core.image.threads.len()).sum();
    shot.manifest.processes.len() <= EAGER_MAX && threads <= EAGER_THREADS_MAX
}

/// Ends a stopped husk so that its parent reads `status`.
pub(super) fn end_with(pid: HostPid, gate: Gate, status: i32) -> Result<()> {
    let failed = || format!("cannot end process {pid} as it had ended");
    let signal = status & 0x7f;
    if signal != 0 {
        // No core file for what died long ago.
        crate::sys::task::prlimit_set(pid, libc::RLIMIT_CORE, (0, 0)).or_fail(failed)?;
        ptrace::set_sigmask(pid, 0).or_fail(failed)?;
        if signal == libc::SIGKILL {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.0), nix::sys::signal::SIGKILL).or_fail(failed)?;
        } else {
            ptrace::cont(pid, signal).or_fail(failed)?;
        }
    } else {
        let regs = ptrace::get_regs(pid).or_fail(failed)?;
        let code = ((status >> 8) & 0xff) as u64;
        let exit = regs
            .with(reg::RIP, gate.at)
            .with(reg::RAX, libc::SYS_exit_group as u64)
            .with(reg::RDI, code)
            .with(reg::ORIG_RAX, u64::MAX);
        ptrace::set_regs(pid, &exit).or_fail(failed)?;
        ptrace::cont(pid, 0).or_fail(failed)?;
    }
    loop {
        match ptrace::wait(pid, true).or_fail(failed)? {
            Some(Stop::Exited(_) | Stop::Killed(_)) | None => return Ok(()),
            Some(_) => ptrace::cont(pid, 0).or_fail(failed)?,
        }
    }
}

/// One that is to be ended once the tree stands.
struct StandIn {
    husk: Husk,
    /// Its parent, where that is not an init which reaps by itself.
    reaper: Option<Husk>,
    /// Who gets its children; else init.
    adopter: Option<Husk>,
}

/// The tree while it grows.
struct Tree<'a> {
    executor: Executor,
    gate: Gate,
    wanted: &'a [SnapEntry],
    init: Option<Husk>,
    made: HashMap<VirtualPid, Husk>,
    /// Session each made process is in now.
    sessions: HashMap<VirtualPid, VirtualPid>,
    stand_ins: Vec<StandIn>,
    born: Vec<HostPid>,
    /// A number above all that the app uses: stand-ins take the next ones.
    spare: i32,
    /// Zombies: process, its name, its parent, wait status and user.
    zombies: Vec<(Husk, &'a str, Husk, (i32, u32))>,
    /// Controlling terminals, by session.
    terminals: HashMap<VirtualPid, &'a PtyRecord>,
    /// Processes without one, with their session.
    detached: Vec<(VirtualPid, VirtualPid)>,
}

impl<'a> Tree<'a> {
    fn new(skeleton: &mut Skeleton, wanted: &'a [SnapEntry]) -> Self {
        let mut tree = Tree {
            executor: skeleton.executor,
            gate: skeleton.gate,
            wanted,
            init: skeleton.init.clone(),
            made: HashMap::new(),
            sessions: HashMap::new(),
            stand_ins: Vec::new(),
            born: Vec::new(),
            spare: skeleton.highest,
            zombies: Vec::new(),
            terminals: HashMap::new(),
            detached: Vec::new(),
        };
        if let Some(root) = skeleton.early.take() {
            tree.sessions.insert(wanted[0].pid, wanted[0].pid);
            tree.made.insert(wanted[0].pid, root);
        }
        tree
    }

    fn grow(&mut self) -> Result<()> {
        if self.made.contains_key(&self.wanted[0].pid) {
            self.take_terminal(self.wanted[0].pid)?;
        }
        while self.made.len() < self.wanted.len() {
            let before = self.made.len();
            for at in 0..self.wanted.len() {
                let entry = &self.wanted[at];
                if !self.made.contains_key(&entry.pid) {
                    self.try_make(entry)?;
                }
            }
            if self.made.len() == before {
                let left: Vec<String> = self
                    .wanted
                    .iter()
                    .filter(|e| !self.made.contains_key(&e.pid))
                    .map(|e| format!("{} ({})", e.pid, e.comm))
                    .collect();
                return Err(Error::refused("the sessions of its processes cannot be built again")
                    .because(format!("no way to make {}", left.join(", "))));
            }
        }
        self.groups()?;
        self.set_terminals()?;
        self.dismiss()?;
        self.end_zombies()
    }

    /// Processes that had ended end again, with the status their parents are to
    /// read. The parents have had the signal before the snapshot, or have it
    /// among their pending ones: this second one is taken away.
    fn end_zombies(&mut self) -> Result<()> {
        for (husk, name, parent, (status, uid)) in std::mem::take(&mut self.zombies) {
            let mut batch = self.executor.batch();
            let name = batch.c_string(name).address;
            batch.must("prctl(PR_SET_NAME)", libc::SYS_prctl, &[libc::PR_SET_NAME as u64, name]);
            batch.must("setresuid", libc::SYS_setresuid, &[u64::from(uid); 3]);
            run(&self.executor, &husk, &mut batch)?;
            end_with(husk.pid, self.gate, status)?;
            let mut batch = self.executor.batch();
            let all = batch.words(&[u64::MAX]);
            let now = batch.words(&[0, 0]);
            batch.call(
                "rt_sigtimedwait",
                libc::SYS_rt_sigtimedwait,
                &[all.address, 0, now.address, 8],
            );
            run(&self.executor, &parent, &mut batch)?;
        }
        Ok(())
    }

    /// Makes one process if its parent and session allow it now.
    fn try_make(&mut self, entry: &'a SnapEntry) -> Result<()> {
        if self.init.is_none() && !self.wanted.iter().any(|e| e.pid == entry.ppid) {
            // Without an init of its own, the host's adopts what has lost its parent.
            return self.make_orphan(entry, None);
        }
        let parent = self.parent(entry);
        let Some(parent) = parent else { return Ok(()) };
        let inherited = self.session_of(entry.ppid);
        if first_session(self.wanted, entry).is_none_or(|session| Some(session) == inherited) {
            self.make(entry, &parent, inherited)?;
            return self.settle_in(entry, inherited);
        }
        // Its parent has adopted it, or init has.
        let adopter = Some(entry.ppid).filter(|parent| self.made.contains_key(parent));
        self.make_orphan(entry, adopter)
    }

    /// One that leads a session leaves the one that it was made in, once those are made that stay.
    fn settle_in(&mut self, entry: &'a SnapEntry, inherited: Option<VirtualPid>) -> Result<()> {
        if entry.sid != entry.pid {
            return Ok(());
        }
        self.make_left_behind(entry, inherited)?;
        self.become_leader(entry)
    }

    fn parent(&self, entry: &SnapEntry) -> Option<Husk> {
        match self.made.get(&entry.ppid) {
            Some(parent) => Some(parent.clone()),
            None if self.wanted.iter().any(|e| e.pid == entry.ppid) => None,
            None => self.init.clone(),
        }
    }

    fn session_of(&self, pid: VirtualPid) -> Option<VirtualPid> {
        // init leads session 1.
        self.sessions
            .get(&pid)
            .copied()
            .or((self.init.is_some() && !self.made.contains_key(&pid)).then_some(VirtualPid(1)))
    }

    fn make(&mut self, entry: &'a SnapEntry, parent: &Husk, session: Option<VirtualPid>) -> Result<()> {
        let is_own = self.made.get(&entry.ppid).is_some_and(|own| own.pid == parent.pid);
        let flag = |shares: bool, flag: i32| if shares { flag } else { 0 };
        let shared = flag(entry.shares_files, libc::CLONE_FILES) | flag(entry.shares_state, libc::CLONE_FS);
        if shared != 0 && !is_own {
            return Err(
                Error::refused("the sessions of its processes cannot be built again").because(format!(
                    "process {} shares descriptors or directories with a parent that cannot have made it",
                    entry.pid
                )),
            );
        }
        let husk = fork_in(&self.executor, parent, entry.pid.0, entry.exit_signal, shared)?;
        self.born.push(husk.pid);
        if let Life::Zombie { wait_status, uid } = entry.life {
            self.zombies
                .push((husk.clone(), &entry.comm, parent.clone(), (wait_status, uid)));
        }
        self.sessions.insert(entry.pid, session.unwrap_or(VirtualPid(0)));
        self.made.insert(entry.pid, husk);
        Ok(())
    }

    /// Children that stay in the session their parent is about to leave, or have such themselves.
    fn make_left_behind(&mut self, leader: &'a SnapEntry, inherited: Option<VirtualPid>) -> Result<()> {
        let Some(session) = inherited else { return Ok(()) };
        let parent = self.made[&leader.pid].clone();
        let wanted = self.wanted;
        for entry in wanted.iter().filter(|e| e.ppid == leader.pid) {
            if is_left_behind(wanted, entry, session) {
                self.make(entry, &parent, inherited)?;
                self.settle_in(entry, inherited)?;
            }
        }
        Ok(())
    }

    fn become_leader(&mut self, entry: &SnapEntry) -> Result<()> {
        let mut batch = self.executor.batch();
        batch.must("setsid", libc::SYS_setsid, &[]);
        run(&self.executor, &self.made[&entry.pid], &mut batch)?;
        self.sessions.insert(entry.pid, entry.pid);
        self.take_terminal(entry.pid)
    }

    /// A session leader takes its controlling terminal before it has children:
    /// they inherit it.
    fn take_terminal(&self, leader: VirtualPid) -> Result<()> {
        match self.terminals.get(&leader) {
            Some(pty) => self.on_terminal(leader, pty, "ioctl(TIOCSCTTY)", libc::TIOCSCTTY, None),
            None => Ok(()),
        }
    }

    /// Once the groups stand: the foreground ones, and those who have no terminal.
    fn set_terminals(&self) -> Result<()> {
        for (pid, sid) in &self.detached {
            if let Some(pty) = self.terminals.get(sid).filter(|_| pid != sid) {
                self.on_terminal(*pid, pty, "ioctl(TIOCNOTTY)", libc::TIOCNOTTY, None)?;
            }
        }
        for (sid, pty) in self.terminals.iter().filter(|(_, pty)| pty.foreground.0 != 0) {
            self.on_terminal(*sid, pty, "ioctl(TIOCSPGRP)", libc::TIOCSPGRP, Some(pty.foreground))?;
        }
        Ok(())
    }

    /// One ioctl by a process on the slave of its session.
    fn on_terminal(
        &self,
        pid: VirtualPid,
        pty: &PtyRecord,
        name: &'static str,
        request: u64,
        group: Option<VirtualPid>,
    ) -> Result<()> {
        let husk = self
            .made
            .get(&pid)
            .ok_or_else(|| Error::failed(format!("session leader {pid} is missing")))?;
        let fd = open_in(&self.executor, husk, &format!("/dev/pts/{}", pty.index), libc::O_RDWR)?;
        let mut batch = self.executor.batch();
        let group = group.map(|group| batch.words(&[group.0 as u64]).address);
        batch.must(name, libc::SYS_ioctl, &[fd, request, group.unwrap_or(0)]);
        batch.must("close", libc::SYS_close, &[fd]);
        run(&self.executor, husk, &mut batch).map(drop)
    }

    /// A child of init (or of the host's), or of a subreaper, that it cannot fork itself.
    fn make_orphan(&mut self, entry: &'a SnapEntry, adopter: Option<VirtualPid>) -> Result<()> {
        let session = first_session(self.wanted, entry).unwrap_or(entry.sid);
        let adopting = adopter.map(|pid| self.made[&pid].clone());
        let member = match self.member_of(session, adopter) {
            Some(member) => member,
            None if session == entry.pid => self.made[&self.wanted[0].pid].clone(),
            // Its leader comes first; or all that could fork it are not below who has adopted it.
            None if self.wanted.iter().any(|e| e.pid == session) => return Ok(()),
            None => self.stand_in_leader(session, adopting.as_ref())?,
        };
        // Through one more that ends, so that its parent becomes another.
        self.spare += 1;
        let between = self.fork(&member, self.spare, 0)?;
        self.make(entry, &between, Some(session))?;
        self.stand_ins.push(StandIn {
            husk: between,
            reaper: Some(member),
            adopter: adopting,
        });
        self.settle_in(entry, Some(session))
    }

    /// One of this session that can fork, zombies among them; `below` this one, where it is named.
    fn member_of(&self, session: VirtualPid, below: Option<VirtualPid>) -> Option<Husk> {
        let fits = |pid: VirtualPid| below.is_none_or(|above| is_below(self.wanted, pid, above));
        let mut found = self
            .sessions
            .iter()
            .filter(|(pid, sid)| **sid == session && fits(**pid));
        let husk = found.find_map(|(pid, _)| self.made.get(pid)).cloned();
        let above = below.map(|pid| self.made[&pid].pid);
        husk.or_else(|| {
            let is_there =
                |stand_in: &&StandIn| above.is_none() || stand_in.reaper.as_ref().map(|reaper| reaper.pid) == above;
            let mut husks = self.stand_ins.iter().filter(is_there).map(|stand_in| &stand_in.husk);
            husks.find(|husk| self.stand_in_number(husk) == Some(session)).cloned()
        })
    }

    fn stand_in_number(&self, husk: &Husk) -> Option<VirtualPid> {
        let status = proc::Fields::status(husk.pid).ok()?;
        Some(VirtualPid(status.innermost("NSpid")))
    }

    /// Holds the number of a session whose leader is gone, below whoever has adopted its members.
    fn stand_in_leader(&mut self, session: VirtualPid, adopter: Option<&Husk>) -> Result<Husk> {
        let root = || self.made.get(&self.wanted[0].pid).cloned();
        let Some(parent) = adopter.cloned().or_else(|| self.init.clone()).or_else(root) else {
            return Err(Error::failed("no process to fork from"));
        };
        let husk = self.fork(&parent, session.0, 0)?;
        let mut batch = self.executor.batch();
        batch.must("setsid", libc::SYS_setsid, &[]);
        run(&self.executor, &husk, &mut batch)?;
        let reaps_itself = adopter.is_none() && self.init.is_some();
        self.stand_ins.push(StandIn {
            husk: husk.clone(),
            reaper: (!reaps_itself).then_some(parent),
            adopter: None,
        });
        Ok(husk)
    }

    /// Groups: who leads one or has led it first, then everybody joins. Where the one whose number a group
    /// has is to leave it, somebody stays in it until all have come.
    fn groups(&mut self) -> Result<()> {
        let wanted = self.wanted;
        let has_members = |entry: &SnapEntry| wanted.iter().any(|other| other.pgid == entry.pid);
        for entry in wanted.iter().filter(|e| e.sid != e.pid && has_members(e)) {
            self.set_group(entry.pid, entry.pid)?;
            if entry.pgid != entry.pid {
                self.spare += 1;
                let member = self.made[&entry.pid].clone();
                let husk = self.fork(&member, self.spare, 0)?;
                self.stand_ins.push(StandIn {
                    husk,
                    reaper: Some(member),
                    adopter: None,
                });
            }
        }
        for entry in wanted.iter().filter(|e| e.pgid != e.pid && e.sid != e.pid) {
            let exists = wanted.iter().any(|e| e.pid == entry.pgid)
                || self
                    .stand_ins
                    .iter()
                    .any(|stand_in| self.stand_in_number(&stand_in.husk) == Some(entry.pgid));
            if !exists {
                self.stand_in_group(entry)?;
            }
            self.set_group(entry.pid, entry.pgid)?;
        }
        Ok(())
    }

    fn set_group(&mut self, pid: VirtualPid, group: VirtualPid) -> Result<()> {
        let husk = &self.made[&pid];
        let status = proc::Fields::status(husk.pid).or_fail(|| "cannot read the state of a new process")?;
        if status.innermost("NSpgid") == group.0 {
            return Ok(());
        }
        let mut batch = self.executor.batch();
        batch.must("setpgid", libc::SYS_setpgid, &[0, group.0 as u64]);
        run(&self.executor, husk, &mut batch).map(drop)
    }

    /// Holds the number of a group whose leader is gone.
    fn stand_in_group(&mut self, entry: &SnapEntry) -> Result<()> {
        let member = self.made[&entry.pid].clone();
        let husk = self.fork(&member, entry.pgid.0, 0)?;
        let mut batch = self.executor.batch();
        batch.must("setpgid", libc::SYS_setpgid, &[0, 0]);
        run(&self.executor, &husk, &mut batch)?;
        self.stand_ins.push(StandIn {
            husk,
            reaper: Some(member),
            adopter: None,
        });
        Ok(())
    }

    fn fork(&mut self, parent: &Husk, pid: i32, exit_signal: i32) -> Result<Husk> {
        let husk = fork_in(&self.executor, parent, pid, exit_signal, 0)?;
        self.born.push(husk.pid);
        Ok(husk)
    }

    /// Ends the stand-ins; what they forked becomes init's, or its adopter's.
    fn dismiss(&mut self) -> Result<()> {
        for stand_in in std::mem::take(&mut self.stand_ins).into_iter().rev() {
            let adopts = |on: u64| {
                let Some(adopter) = &stand_in.adopter else {
                    return Ok(());
                };
                let mut batch = self.executor.batch();
                let args = [libc::PR_SET_CHILD_SUBREAPER as u64, on];
                batch.must("prctl(PR_SET_CHILD_SUBREAPER)", libc::SYS_prctl, &args);
                run(&self.executor, adopter, &mut batch).map(drop)
            };
            adopts(1)?;
            end_with(stand_in.husk.pid, self.gate, 0)?;
            adopts(0)?;
            if let Some(reaper) = stand_in.reaper {
                let mut batch = self.executor.batch();
                const WALL: u64 = libc::__WALL as u32 as u64;
                batch.call("wait4", libc::SYS_wait4, &[u64::MAX, 0, WALL | libc::WNOHANG as u64, 0]);
                run(&self.executor, &reaper, &mut batch)?;
            }
        }
        Ok(())
    }
}

/// The session in which it was made, where that shows: its own, or that of children it had before it led one.
fn first_session(wanted: &[SnapEntry], entry: &SnapEntry) -> Option<VirtualPid> {
    if entry.sid != entry.pid {
        return Some(entry.sid);
    }
    let children = wanted.iter().filter(|child| child.ppid == entry.pid);
    let mut sessions = children.filter_map(|child| first_session(wanted, child));
    sessions.find(|session| *session != entry.pid)
}

fn is_below(wanted: &[SnapEntry], pid: VirtualPid, above: VirtualPid) -> bool {
    let parent = |pid: VirtualPid| wanted.iter().find(|entry| entry.pid == pid).map(|entry| entry.ppid);
    let mut at = Some(pid);
    // No longer than there are processes: what an appshot says may go round.
    for _ in wanted {
        match at {
            Some(found) if found == above => return found != pid,
            Some(found) => at = parent(found),
            None => return false,
        }
    }
    false
}

/// Whether it was in this session when it was made, and so is itself, or a child that it had then.
fn is_left_behind(wanted: &[SnapEntry], entry: &SnapEntry, session: VirtualPid) -> bool {
    let mut children = wanted.iter().filter(|child| child.ppid == entry.pid);
    match entry.sid == entry.pid {
        true => children.any(|child| is_left_behind(wanted, child, session)),
        false => entry.sid == session,
    }
}

/// Forks a husk from another one, with which it may share something.
pub(super) fn fork_in(executor: &Executor, parent: &Husk, pid: i32, exit_signal: i32, shared: i32) -> Result<Husk> {
    let mut batch = executor.batch();
    let set_tid = batch.bytes(&pid.to_le_bytes());
    let args = CloneArgs {
        flags: shared as u64,
        exit_signal: exit_signal as u64,
        set_tid: set_tid.address,
        set_tid_size: 1,
        ..CloneArgs::default()
    };
    let args = batch.bytes(&args.to_bytes());
    batch.must("clone3", libc::SYS_clone3, &[args.address, CloneArgs::SIZE]);
    let born = run(executor, parent, &mut batch)
        .map_err(|error| error.fix(format!("process number {pid} may be in use: restore with --pids=new")))?;
    let child = *born.first().ok_or_else(|| Error::failed("clone3 made no process"))?;
    wait_born(child)?;
    Ok(Husk {
        pid: child,
        regs: parent.regs,
        threads: Vec::new(),
    })
}

/// Waits for the first stop of a task that was born traced.
pub fn wait_born(tid: HostPid) -> Result<()> {
    match ptrace::wait(tid, true).or_fail(|| format!("cannot wait for new task {tid}"))? {
        Some(Stop::Trap | Stop::Group(_) | Stop::Signal(libc::SIGSTOP)) => Ok(()),
        other => Err(Error::failed(format!("new task {tid} did not stop: {other:?}"))),
    }
}
