//! Bringing a process tree to a stop, and letting it go.
//!
//! ```text
//!   Target --freeze--> Frozen (every thread in a ptrace stop) --thaw--> running
//!                        |                                  \--kill--> gone
//!                        +-- Drop: thaw
//! ```
//!
//! Where the app has a cgroup of v2 it is frozen first: that holds the tree still
//! against forks while the threads are seized. Without one, the tree is scanned
//! again until nothing new turns up: what is stopped cannot fork. The cgroup is
//! thawed once all threads are in a ptrace stop and have the registers to go on
//! with, since a task of a frozen group could not run the executor. Should we be
//! killed before, they stay where they are; after that, they go on right.

use crate::cgroup;
use crate::clocks::{self, Reading};
use crate::error::{Error, Kind, OrFail, Result};
use crate::executor::{Executor, Gate};
use crate::files::looked;
use crate::ids::{HostPid, VirtualPid};
use crate::keys;
use crate::proc::{self, Fields, Stat, Still};
use crate::process;
use crate::survey;
use crate::sys::memory;
use crate::sys::ptrace::{self, Regs, Stop, reg};
use crate::target::Target;
use crate::timed::{self, SchedClocks, Wait};
use crate::timers;
use crate::urgent::Turn;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A tree that is not still by then is let go again.
pub const BUDGET: Duration = Duration::from_secs(2);
/// How long the end of a task that was killed is waited for.
const END_MAX: Duration = Duration::from_secs(30);
/// How long tasks that were asked to stop in vain may take to do so, to be let go
/// as they were: on a busy machine, and in an uninterruptible wait.
const LET_GO_MAX: Duration = Duration::from_secs(10);
const STUCK_MAX: Duration = Duration::from_millis(100);

/// Blocks what can be blocked while foreign code runs in a husk, but not
/// SIGTRAP: the kernel resets the action of a blocked signal that it must force
/// on a thread, and batches in a husk end with a trap.
pub const ALL_BUT_TRAP: u64 = !(1 << (libc::SIGTRAP - 1));

/// The signal mask of a thread of the app while foreign code runs in it: all but
/// SIGKILL and SIGSTOP, which the kernel leaves out of any mask.
pub const HELD: u64 = !(1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1));

/// A stopped thread and what must be given back to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenThread {
    pub tid: HostPid,
    pub vtid: VirtualPid,
    pub regs: Regs,
    pub sigmask: u64,
    /// The relative time-out it waits with, looked at before it was stopped.
    pub wait: Option<Wait>,
    /// What was left of it at the freeze.
    pub left_ns: Option<u64>,
    /// rseq area and its critical-section pointer, where the thread is inside
    /// one: the kernel clears it when other code runs.
    pub rseq_section: Option<(u64, u64)>,
    pub turn: Turn,
    /// It has come before all others since it was to stop.
    #[serde(default)]
    pub hurried: bool,
    /// What it may do with memory by protection keys (PKRU, pkeys(7)): foreign code may be given
    /// more, and changes what is said of keys that are free.
    #[serde(default)]
    pub rights: Option<u32>,
}

#[derive(Clone, Debug)]
pub struct FrozenProcess {
    pub pid: HostPid,
    pub vpid: VirtualPid,
    pub threads: Vec<FrozenThread>,
    /// It was stopped before (job control), by this signal; let go, the kernel
    /// stops it again without telling its parent twice.
    pub stopped: Option<i32>,
    /// Signals (bit mask) that waited at the freeze, where it has POSIX timers.
    pub waiting: u64,
}

impl FrozenProcess {
    pub fn main(&self) -> &FrozenThread {
        &self.threads[0]
    }

    /// Removes the executor, whatever happened in it before. The other threads
    /// get back what they had first: they must not stand in code that is gone.
    /// The main thread, which removes it, is left to be recovered.
    pub fn leave(&self, executor: Executor, gate: Gate) -> Result<()> {
        let main = self.main();
        let others = self.threads[1..].iter().map(FrozenThread::recover);
        let recovered: Vec<Result<()>> = others.collect();
        let cured = executor.cure(main.tid, &main.regs, gate);
        recovered.into_iter().chain([cured]).collect()
    }
}

/// A tree that stands still. Dropped, it goes on as before.
#[derive(Debug)]
#[must_use]
pub struct Frozen {
    /// The root first, parents before children.
    pub processes: Vec<FrozenProcess>,
    /// Ended, not yet reaped by their parents in the tree.
    pub zombies: Vec<HostPid>,
    pub since: Instant,
    /// The clocks when the stop began: the freeze, from which all times count.
    pub at: Reading,
    /// How long they stood, once they are let go.
    stood: Duration,
    armed: bool,
}

/// Processes the target names now: live ones and zombies.
pub fn members(target: &Target) -> Result<Vec<HostPid>> {
    match target {
        Target::App {
            cgroup: Some(group),
            init,
            ..
        } => {
            let mut pids = cgroup::processes(group)?;
            pids.retain(|pid| Some(*pid) != *init);
            let listed: HashSet<HostPid> = pids.iter().copied().collect();
            let zombies: Vec<HostPid> = pids
                .iter()
                .flat_map(|pid| proc::children(*pid).unwrap_or_default())
                .filter(|child| !listed.contains(child))
                .collect();
            pids.extend(zombies);
            Ok(pids)
        }
        // What lost its parent belongs to the init of the app's PID namespace.
        Target::App { init: Some(init), .. } => {
            let mut pids = tree(*init);
            pids.retain(|pid| pid != init);
            Ok(pids)
        }
        Target::App { root, .. } | Target::Pid(root) => Ok(tree(*root)),
    }
}

/// The root and everything below it, parents first.
fn tree(root: HostPid) -> Vec<HostPid> {
    let mut found = if proc::exists(root) { vec![root] } else { Vec::new() };
    let mut at = 0;
    while at < found.len() {
        found.extend(proc::children(found[at]).unwrap_or_default());
        at += 1;
    }
    found
}

pub fn group_of(target: &Target) -> Option<&Path> {
    match target {
        Target::App { cgroup, .. } => cgroup.as_deref(),
        Target::Pid(_) => None,
    }
}

/// What threads of an app have before any is stopped, by their number: later nobody could
/// tell.
#[derive(Clone, Debug, Default)]
pub struct Before {
    /// What they wait in.
    pub waits: HashMap<HostPid, Wait>,
    /// When they get a processor.
    pub turns: HashMap<HostPid, Turn>,
}

/// Stops every thread of the target. On failure everything runs as before. What is read
/// of its processes from then on stays the same ([`Still`]).
pub fn freeze(target: &Target, before: Before) -> Result<(Frozen, Still)> {
    freeze_all(target, &[], before)
}

/// The same, to change them; these processes belong to it too, wherever they stand in
/// the tree.
pub fn freeze_with(target: &Target, also: &[HostPid], before: Before) -> Result<Frozen> {
    freeze_all(target, also, before).map(|(frozen, _)| frozen)
}

fn freeze_all(target: &Target, also: &[HostPid], before: Before) -> Result<(Frozen, Still)> {
    let listed = members(target)?;
    let threads = running(&listed);
    let (at, pending) = timers::begin(&listed);
    let since = Instant::now();
    // Dropped last: what was let go on a failure goes on at once.
    let _hold = group_of(target).map(Hold::new).transpose()?;
    let mut seized = Seized::default();
    (seized.before, seized.at, seized.pending) = (before, at, pending);
    if let Err(error) = seized.all(target, also, &threads, since) {
        if group_of(target).is_some() {
            seized.rest(target, also);
        }
        return Err(error);
    }
    let still = Still::begin();
    Ok((seized.finish(since, survey::root(target))?, still))
}

/// The threads of those that are no zombies, with their processes.
fn running(pids: &[HostPid]) -> Vec<(HostPid, HostPid)> {
    let live = pids.iter().filter(|pid| !survey::is_zombie(**pid));
    let threads = |pid: &HostPid| {
        let pid = *pid;
        proc::threads(pid)
            .unwrap_or_default()
            .into_iter()
            .map(move |tid| (pid, tid))
    };
    live.flat_map(threads).collect()
}

/// Asked before the first stop makes any of them run.
pub fn before(target: &Target) -> Result<Before> {
    ask_before(target, true)
}

/// The same for who keeps no journal: no thread comes before others then, for nobody
/// could tell what it had.
pub fn before_unnoted(target: &Target) -> Result<Before> {
    ask_before(target, false)
}

fn ask_before(target: &Target, noted: bool) -> Result<Before> {
    timed::prune();
    looked::prune();
    let mut clocks = SchedClocks::default();
    let mut before = Before::default();
    for pid in members(target)? {
        for tid in proc::threads(pid).unwrap_or_default() {
            before.waits.extend(clocks.look(tid).map(|wait| (tid, wait)));
            if noted {
                before.turns.extend(Turn::of(tid).ok().map(|turn| (tid, turn)));
            }
        }
    }
    Ok(before)
}

/// A frozen cgroup; dropped, it is thawed.
struct Hold(PathBuf);

impl Hold {
    /// Not waited for: every thread is waited for one by one, and the kernel's
    /// word that all of a group are frozen has been missing for seconds after
    /// tracers of it had been killed.
    fn new(group: &Path) -> Result<Self> {
        cgroup::freeze(group, true)?;
        Ok(Hold(group.to_owned()))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Err(error) = cgroup::freeze(&self.0, false) {
            tracing::error!(%error, "cannot thaw the cgroup");
        }
    }
}

fn too_slow(because: String, fix: &str) -> Error {
    Error::failed(format!("cannot stop the app within {} s", BUDGET.as_secs()))
        .because(because)
        .fix(fix)
        .state("the app was let go and is running")
}

/// A task that was asked to stop and does not.
fn does_not_stop(tid: HostPid) -> Error {
    let comm = proc::comm(tid);
    if is_stuck(tid) {
        let because = format!("task {tid} ({comm}) is in an uninterruptible wait (state D)");
        return too_slow(because, "try again when the task has come back, or end it");
    }
    let because = format!("task {tid} ({comm}) has not come to run in that time");
    too_slow(because, "try again when the machine is less busy")
}

fn is_stuck(tid: HostPid) -> bool {
    proc::stat(tid).is_ok_and(|stat| stat.state == b'D')
}

/// Threads seized so far.
#[derive(Default)]
struct Seized {
    order: Vec<HostPid>,
    threads: Vec<(HostPid, HostPid)>,
    waiting: Vec<(HostPid, HostPid)>,
    zombies: Vec<HostPid>,
    known: HashSet<HostPid>,
    /// Seized, then killed before they stopped.
    dead: Vec<(HostPid, HostPid)>,
    before: Before,
    /// Those that come before all others, to come to their stop.
    hurried: HashSet<HostPid>,
    at: Reading,
    pending: HashMap<HostPid, u64>,
    /// Processes stopped by job control, and the signal.
    stopped: HashMap<HostPid, i32>,
}

impl Seized {
    /// Stops every thread, those that were listed just now before all, again until no new
    /// one turns up.
    fn all(&mut self, target: &Target, also: &[HostPid], listed: &[(HostPid, HostPid)], since: Instant) -> Result<()> {
        for (pid, tid) in listed {
            self.thread(*pid, *tid)?;
        }
        self.wait(since)?;
        loop {
            let mut new = false;
            for pid in members(target)?.iter().chain(also) {
                new |= self.process(*pid)?;
            }
            self.wait(since)?;
            if !new {
                return Ok(());
            }
            if since.elapsed() > BUDGET {
                let because = format!("its {} processes go on making new ones", self.order.len());
                return Err(too_slow(because, "try again when the app is at rest"));
            }
        }
    }

    /// After a failure, what a frozen cgroup holds and nobody has seized yet: the
    /// calls that this broke off have to be set right before it is thawed.
    fn rest(&mut self, target: &Target, also: &[HostPid]) {
        for pid in members(target).unwrap_or_default().iter().chain(also) {
            for tid in proc::threads(*pid).unwrap_or_default() {
                if self.known.insert(tid) && seize(tid).is_ok() {
                    self.threads.push((*pid, tid));
                }
            }
        }
    }

    /// Seizes threads of `pid` not seized yet; tells whether there were any: then there
    /// may be others by now.
    fn process(&mut self, pid: HostPid) -> Result<bool> {
        let is_known = self.order.contains(&pid);
        let Ok(stat) = (if is_known { Ok(Stat::default()) } else { proc::stat(pid) }) else {
            return Ok(false);
        };
        if stat.state == b'Z' && proc::threads(pid).map_or(0, |t| t.len()) <= 1 {
            if !self.zombies.contains(&pid) {
                self.zombies.push(pid);
            }
            return Ok(false);
        }
        let mut new = false;
        for tid in proc::threads(pid).unwrap_or_default() {
            if !self.known.contains(&tid) {
                new |= self.thread(pid, tid)?;
            }
        }
        Ok(new)
    }

    fn thread(&mut self, pid: HostPid, tid: HostPid) -> Result<bool> {
        // Also where it is on its way out: a dead main thread stays in the list
        // until we have reaped its other threads.
        self.known.insert(tid);
        match seize(tid) {
            Ok(()) => {}
            Err(Errno::ESRCH) => return Ok(false),
            Err(Errno::EPERM) if ends_soon(tid) => return Ok(false),
            Err(errno) => return Err(cannot_seize(pid, tid, errno)),
        }
        if !self.order.contains(&pid) {
            self.order.push(pid);
        }
        self.threads.push((pid, tid));
        self.waiting.push((pid, tid));
        Ok(true)
    }

    /// Waits until all seized threads are in their stop.
    fn wait(&mut self, since: Instant) -> Result<()> {
        while let Some((pid, tid)) = self.waiting.pop() {
            match self.wait_stopped(tid, since)? {
                Stopped::Yes => {}
                Stopped::Before(signal) => {
                    self.stopped.insert(pid, signal);
                }
                Stopped::Gone => self.forget(pid, tid),
                Stopped::Dead => {
                    self.forget(pid, tid);
                    self.dead.push((pid, tid));
                }
            }
        }
        Ok(())
    }

    /// Waits for the stop of one seized and interrupted thread. A signal that was
    /// being delivered is delivered, then the stop follows. One that waits for its turn of
    /// a processor does so no more.
    fn wait_stopped(&mut self, tid: HostPid, since: Instant) -> Result<Stopped> {
        let mut rounds = 0u32;
        loop {
            match ptrace::wait(tid, false) {
                Ok(Some(Stop::Trap)) => return Ok(Stopped::Yes),
                Ok(Some(Stop::Group(signal))) => return Ok(Stopped::Before(signal)),
                Ok(Some(Stop::Signal(signal))) => {
                    ptrace::cont(tid, signal).or_fail(|| format!("cannot pass signal {signal} on to task {tid}"))?;
                }
                Ok(Some(Stop::Event(_) | Stop::Syscall)) => {
                    ptrace::cont(tid, 0).or_fail(|| format!("cannot resume task {tid}"))?;
                }
                Ok(Some(Stop::Exited(_) | Stop::Killed(_))) | Err(Errno::ECHILD) => return Ok(Stopped::Gone),
                Ok(None) if rounds > SOON && ptrace::is_dead(tid) => return Ok(Stopped::Dead),
                Ok(None) if since.elapsed() > BUDGET => return Err(does_not_stop(tid)),
                Ok(None) => {
                    if rounds == SOON {
                        self.hurry(tid);
                    }
                    ptrace::pause(&mut rounds);
                }
                Err(errno) => {
                    return Err(Error::failed(format!("cannot wait for task {tid}")).because(errno));
                }
            }
        }
    }

    /// Has the thread come before all ordinary ones, where the journal has what it had.
    fn hurry(&mut self, tid: HostPid) {
        if let Some(turn) = self.before.turns.get(&tid).filter(|turn| Turn::of(tid) == Ok(**turn)) {
            turn.first_of_all(tid);
            self.hurried.insert(tid);
        }
    }

    fn forget(&mut self, pid: HostPid, tid: HostPid) {
        self.threads.retain(|(_, t)| *t != tid);
        if !self.threads.iter().any(|(p, _)| *p == pid) {
            self.order.retain(|p| *p != pid);
        }
    }

    /// Lets go of a thread that has nothing to be looked at.
    fn leave_alone(&self, tid: HostPid) {
        if let Some(turn) = self.before.turns.get(&tid).filter(|_| self.hurried.contains(&tid)) {
            turn.give_back(tid);
        }
        ptrace::detach(tid, 0).ok();
    }

    fn finish(mut self, since: Instant, root: HostPid) -> Result<Frozen> {
        let order = self.order.clone();
        let mut processes = Vec::with_capacity(order.len());
        for pid in order {
            let tids = self.threads.iter().filter(|(p, _)| *p == pid).map(|(_, t)| *t);
            let (workers, tids): (Vec<HostPid>, Vec<HostPid>) = tids.partition(|tid| *tid != pid && is_worker(*tid));
            workers.into_iter().for_each(|worker| self.leave_alone(worker));
            let mut threads = tids
                .into_iter()
                .map(|tid| {
                    let thread = inspect(tid, self.before.waits.get(&tid), &self.at)?;
                    Ok(match self.before.turns.get(&tid) {
                        Some(turn) if self.hurried.contains(&tid) && thread.turn.is_first() => {
                            let turn = *turn;
                            FrozenThread {
                                turn,
                                hurried: true,
                                ..thread
                            }
                        }
                        _ => thread,
                    })
                })
                .collect::<Result<Vec<_>>>()?;
            threads.sort_by_key(|thread| thread.tid != pid);
            let vpid = threads[0].vtid;
            let stopped = self.stopped.get(&pid).copied();
            processes.push(FrozenProcess {
                pid,
                vpid,
                threads,
                stopped,
                waiting: self.pending.get(&pid).copied().unwrap_or(0),
            });
        }
        let zombies = self.zombies.iter().copied().filter(|z| proc::exists(*z)).collect();
        self.threads.clear();
        sort_parents_first(&mut processes, root);
        Ok(Frozen {
            processes,
            zombies,
            since,
            at: self.at,
            stood: Duration::ZERO,
            armed: true,
        })
    }
}

impl Drop for Seized {
    /// Reached with threads only when freezing failed. Main threads come last:
    /// one that was killed is reported once its other threads are reaped.
    fn drop(&mut self) {
        self.threads.append(&mut self.dead);
        self.threads.sort_by_key(|(pid, tid)| pid == tid);
        let since = Instant::now();
        for (pid, tid) in &self.threads {
            let wait = self.before.waits.get(tid);
            if let Some(turn) = self.before.turns.get(tid).filter(|_| self.hurried.contains(tid)) {
                turn.give_back(*tid);
            }
            set_right(*tid, wait, clocks::monotonic_ns()).ok();
            if !matches!(ptrace::detach(*tid, 0), Err(Errno::ESRCH)) {
                continue;
            }
            if ptrace::is_dead(*tid) {
                await_killed(*pid, *tid);
                continue;
            }
            // Not stopped yet: its INTERRUPT is on the way. A task that stays in
            // an uninterruptible wait is detached by the kernel when we end.
            let patience = || if is_stuck(*tid) { STUCK_MAX } else { LET_GO_MAX };
            while ptrace::wait(*tid, false) == Ok(None) && since.elapsed() < patience() {
                std::thread::sleep(Duration::from_micros(50));
            }
            set_right(*tid, wait, clocks::monotonic_ns()).ok();
            ptrace::detach(*tid, 0).ok();
        }
    }
}

/// Keep seccomp filters of the app away from the executor's calls, and let stops
/// at system calls be no SIGTRAP, which the thread would get if we died there.
const SEIZE_OPTIONS: i32 = libc::PTRACE_O_SUSPEND_SECCOMP | libc::PTRACE_O_TRACESYSGOOD;

/// Sends a thread to its stop. A tracer that is being killed lets go after its files,
/// and with them the lock of a journal, are closed: it is waited for.
fn seize(tid: HostPid) -> crate::sys::Sys<()> {
    let since = Instant::now();
    let mut seized = ptrace::seize(tid, SEIZE_OPTIONS);
    while seized == Err(Errno::EPERM) && since.elapsed() < BUDGET {
        let tracer = tracer(tid);
        if tracer.is_some_and(|tracer| !is_ending(tracer)) {
            break;
        }
        std::thread::sleep(Duration::from_micros(50));
        seized = ptrace::seize(tid, SEIZE_OPTIONS);
        if tracer.is_none() {
            break;
        }
    }
    seized.and_then(|()| ptrace::interrupt(tid))
}

fn tracer(tid: HostPid) -> Option<HostPid> {
    let tracer = Fields::status(tid).ok()?.number("TracerPid")?;
    (tracer != 0).then_some(HostPid(tracer as i32))
}

fn is_ending(pid: HostPid) -> bool {
    const PF_EXITING: u32 = 0x4;
    proc::stat(pid).map_or(true, |stat| stat.flags & PF_EXITING != 0)
}

fn cannot_seize(pid: HostPid, tid: HostPid, errno: Errno) -> Error {
    let what = format!("cannot stop pid {pid} ({})", proc::comm(pid));
    if let Some(tracer) = tracer(tid) {
        return Error::new(Kind::Conflict, what)
            .because(format!("it is traced by pid {tracer} ({})", proc::comm(tracer)))
            .fix("end the debugger or tracer first")
            .state("the app was not changed and is running");
    }
    Error::new(Kind::Unavailable, what)
        .because(format!("PTRACE_SEIZE of task {tid}: {errno}"))
        .needs("CAP_SYS_PTRACE and CAP_SYS_ADMIN over the app")
        .fix("run as root")
        .state("the app was not changed and is running")
}

/// A thread that works for a ring of the process (io_uring(7)) and never leaves the kernel,
/// which the kernel tells; its registers only say whom to ask for. It is at rest when the ring
/// is, and ends with the process.
fn is_worker(tid: HostPid) -> bool {
    const PF_IO_WORKER: u32 = 0x10;
    let is_empty = ptrace::get_regs(tid).is_ok_and(|regs| (regs.get(reg::RIP), regs.get(reg::RSP)) == (0, 0));
    is_empty && proc::stat(tid).is_ok_and(|stat| stat.flags & PF_IO_WORKER != 0)
}

/// A task on its way out cannot be seized (EPERM) for a moment before it is gone.
fn ends_soon(tid: HostPid) -> bool {
    (0..20).any(|_| {
        let dead = ptrace::is_dead(tid);
        if !dead {
            std::thread::sleep(Duration::from_micros(200));
        }
        dead
    })
}

/// Looks within which most threads are in their stop.
const SOON: u32 = 50;

enum Stopped {
    Yes,
    /// By job control, with this signal.
    Before(i32),
    Gone,
    /// Ended, to be reaped after its other threads.
    Dead,
}

fn inspect(tid: HostPid, wait: Option<&Wait>, at: &Reading) -> Result<FrozenThread> {
    let failed = || format!("cannot read the state of task {tid}");
    // At once: whatever becomes of the snapshot, the thread goes on right.
    let (regs, wait, left_ns) = set_right(tid, wait, at.monotonic_ns).or_fail(failed)?;
    let status = Fields::status(tid).or_fail(failed)?;
    Ok(FrozenThread {
        tid,
        vtid: VirtualPid(status.innermost("NSpid")),
        sigmask: ptrace::get_sigmask(tid).or_fail(failed)?,
        rseq_section: rseq_section(tid, &regs),
        turn: Turn::of(tid).or_fail(failed)?,
        hurried: false,
        rights: keys::rights_of(tid).or_fail(failed)?,
        wait,
        left_ns,
        regs,
    })
}

/// Undoes what the stop did to the call that the thread was in. Answers its
/// registers, the wait that it is in, and the time that wait had left at `at_ns`
/// (CLOCK_MONOTONIC).
fn set_right(tid: HostPid, wait: Option<&Wait>, at_ns: i64) -> crate::sys::Sys<(Regs, Option<Wait>, Option<u64>)> {
    let regs = ptrace::get_regs(tid)?;
    let wait = wait.filter(|wait| process::is_waiting(&regs, wait)).copied();
    // Since it was looked at, the thread may have come to another wait of its kind.
    // The kernel says what was left when it was stopped, between then and now.
    let end = wait
        .and_then(|wait| wait.end_ns)
        .map(|end| match process::time_out(tid, &regs) {
            Some(left) => end.clamp(
                clocks::due(at_ns, left),
                clocks::due(clocks::monotonic_ns().max(at_ns), left),
            ),
            None => end,
        });
    let left_ns = end.map(|end| end.saturating_sub(at_ns as u64).max(1));
    let resumed = process::resumable(regs, left_ns);
    if resumed != regs {
        ptrace::set_regs(tid, &resumed)?;
    }
    Ok((resumed, wait, left_ns))
}

fn rseq_section(tid: HostPid, regs: &Regs) -> Option<(u64, u64)> {
    let (area, _, _) = ptrace::rseq(tid).ok().filter(|(area, ..)| *area != 0)?;
    let section = memory::read_u64(tid, area + 8).ok().filter(|at| *at != 0)?;
    // struct rseq_cs: version, flags, start_ip, post_commit_offset, abort_ip.
    let start = memory::read_u64(tid, section + 8).ok()?;
    let length = memory::read_u64(tid, section + 16).ok()?;
    let inside = regs.get(reg::RIP).wrapping_sub(start) < length;
    inside.then_some((area, section))
}

/// The root comes before all: an orphan hangs higher in the host's tree than it.
fn sort_parents_first(processes: &mut Vec<FrozenProcess>, root: HostPid) {
    let depth = |pid: HostPid| {
        let mut at = pid;
        let mut depth = i32::from(pid != root);
        while pid != root
            && let Ok(stat) = proc::stat(at)
        {
            at = HostPid(stat.ppid);
            depth += 1;
        }
        depth
    };
    let mut keyed: Vec<(i32, i32, FrozenProcess)> = processes.drain(..).map(|p| (depth(p.pid), p.vpid.0, p)).collect();
    keyed.sort_by_key(|(depth, vpid, _)| (*depth, *vpid));
    processes.extend(keyed.into_iter().map(|(_, _, process)| process));
}

impl FrozenThread {
    /// Readies the thread to run foreign code.
    pub fn prepare(&self) -> Result<()> {
        ptrace::set_sigmask(self.tid, HELD).or_fail(|| format!("cannot block the signals of task {}", self.tid))?;
        if !self.hurried {
            self.turn.first_of_all(self.tid);
        }
        self.give_rights(self.rights.filter(|rights| keys::hinder(*rights)).map(keys::unhindered))
    }

    fn give_rights(&self, rights: Option<u32>) -> Result<()> {
        let given = rights.map_or(Ok(()), |rights| keys::give(self.tid, rights));
        given.or_fail(|| format!("cannot set what task {} may do by its protection keys", self.tid))
    }

    /// Gives the thread back what it had, so that letting it go makes it
    /// continue where it stopped. The mask comes last: a handler that ran before
    /// the registers are right would return to the executor.
    pub fn recover(&self) -> Result<()> {
        let failed = || format!("cannot give task {} its registers back", self.tid);
        self.turn.give_back(self.tid);
        self.give_rights(self.rights)?;
        if let Some((area, section)) = self.rseq_section {
            memory::write(self.tid, area + 8, &section.to_le_bytes()).or_fail(failed)?;
        }
        ptrace::set_regs(self.tid, &self.regs).or_fail(failed)?;
        ptrace::set_sigmask(self.tid, self.sigmask).or_fail(failed)
    }
}

impl Frozen {
    pub fn threads(&self) -> usize {
        self.processes.iter().map(|p| p.threads.len()).sum()
    }

    /// Lets the app go on. Returns how long it stood still.
    pub fn thaw(mut self) -> Duration {
        self.release();
        self.stood
    }

    fn release(&mut self) {
        self.armed = false;
        self.give_time_back();
        let mut ended = Vec::new();
        for process in &self.processes {
            for thread in &process.threads {
                if thread.hurried {
                    thread.turn.give_back(thread.tid);
                }
                match ptrace::detach(thread.tid, 0) {
                    Ok(()) => {}
                    Err(Errno::ESRCH) => ended.push((process.pid, thread.tid)),
                    Err(errno) => tracing::error!(tid = thread.tid.0, %errno, "cannot detach"),
                }
            }
        }
        self.note_waits();
        ended.into_iter().rev().for_each(|(pid, tid)| await_killed(pid, tid));
    }

    /// Waits that are made again end when they would have ended.
    fn give_time_back(&self) {
        for thread in self.processes.iter().flat_map(|p| &p.threads) {
            if thread.wait.is_none() {
                continue;
            }
            let passed = (clocks::monotonic_ns() - self.at.monotonic_ns) as u64;
            let left_ns = thread.left_ns.map(|left| left.saturating_sub(passed).max(1));
            if let Some(left) = left_ns {
                process::write_time_out(thread.tid, &thread.regs, left).ok();
                let regs = process::with_time_out(thread.regs, left);
                if regs != thread.regs {
                    ptrace::set_regs(thread.tid, &regs).ok();
                }
            }
        }
    }

    /// For a later snapshot.
    fn note_waits(&mut self) {
        self.stood = self.since.elapsed();
        if let Some(root) = self.processes.first() {
            let threads = self.processes.iter().flat_map(|p| &p.threads);
            let waits = threads.filter_map(|thread| thread.wait.map(|wait| (thread.tid, wait.call, wait.end_ns)));
            timed::note(root.pid, &waits.collect::<Vec<_>>());
        }
    }

    /// Lets the app go on, traced with these options: each thread to its next system
    /// call. The kernel lets go of them when this thread ends.
    pub fn to_calls(mut self, options: i32) -> Vec<HostPid> {
        self.armed = false;
        self.give_time_back();
        let threads = self.processes.iter().flat_map(|p| &p.threads);
        let mut tids = Vec::new();
        for thread in threads {
            let tid = thread.tid;
            if thread.hurried {
                thread.turn.give_back(tid);
            }
            match ptrace::set_options(tid, options).and_then(|()| ptrace::to_syscall(tid, 0)) {
                // One that was killed meanwhile is heard of later.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => tracing::error!(tid = tid.0, %errno, "cannot go on to a system call"),
            }
            tids.push(tid);
        }
        self.note_waits();
        tids
    }

    /// Ends the app: every process is killed while it stands still, so none
    /// sees another one die. The cgroup is frozen meanwhile: if we are killed
    /// ourselves, those that are left stay still until the rest is done.
    /// `decided` is called when the app can no more go on.
    pub fn kill(mut self, target: &Target, decided: impl FnOnce()) -> Duration {
        self.armed = false;
        let group = group_of(target);
        if let Some(group) = group {
            cgroup::freeze(group, true).ok();
        }
        decided();
        for process in &self.processes {
            crate::sys::moment();
            let pid = nix::unistd::Pid::from_raw(process.pid.0);
            nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).ok();
        }
        if let Some(group) = group {
            cgroup::freeze(group, false).ok();
        }
        // Children first: the init of a PID namespace waits in the kernel until all
        // of it is reaped, by us before all.
        for process in self.processes.iter().rev() {
            for thread in process.threads.iter().rev() {
                if thread.tid == process.pid && is_our_child(process.pid) {
                    // Its status is for whoever waits for it.
                    ptrace::wait_ended(thread.tid);
                } else {
                    await_end(thread.tid);
                }
            }
        }
        self.since.elapsed()
    }
}

fn is_our_child(pid: HostPid) -> bool {
    proc::stat(pid).is_ok_and(|stat| stat.ppid == std::process::id() as i32)
}

/// Of a thread that could not be let go, as it was killed meanwhile. A process ends once its
/// tracer has heard of all its threads, the main one last, and its parent hears of that only
/// then.
pub fn await_killed(pid: HostPid, tid: HostPid) {
    // The end of a child of ours is for whoever waits for it.
    if pid != tid || !is_our_child(pid) {
        await_end(tid);
    }
}

/// The tracer is told of an end first; the real parent reaps afterwards. One that was killed
/// and does not end in time is left to a thread: as long as nobody takes the end of a task
/// that we trace, its parent never hears of it.
pub fn await_end(tid: HostPid) {
    let since = Instant::now();
    loop {
        // Read before the look: this thread, or the machine, may be away in between.
        let is_late = since.elapsed() > END_MAX;
        if has_ended(tid) {
            return;
        }
        if is_late {
            tracing::warn!(%tid, "killed, and not at its end in {} s", END_MAX.as_secs());
            let start_time = proc::stat(tid).map(|stat| stat.start_time).ok();
            std::thread::spawn(move || {
                let is_same = || proc::stat(tid).map(|stat| stat.start_time).ok() == start_time;
                while is_same() && !has_ended(tid) {
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
            return;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

fn has_ended(tid: HostPid) -> bool {
    matches!(
        ptrace::wait(tid, false),
        Ok(Some(Stop::Exited(_) | Stop::Killed(_))) | Err(_)
    )
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if self.armed {
            self.release();
        }
    }
}
