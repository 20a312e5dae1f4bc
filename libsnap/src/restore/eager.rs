//! Work of a few hundred microseconds that somebody waits for, on a machine that has
//! other things to do.
//!
//! A thread that is eager comes before all ordinary ones (SCHED_FIFO, sched(7)), and
//! keeps the process that it builds on its own processor: they work by turns, and to
//! wake the other there takes a tenth of what it takes elsewhere. Where the right to
//! that is missing (CAP_SYS_NICE) it only takes longer.

use crate::ids::HostPid;
use crate::sys::task::{self, SchedAttr};

const SCHED_FIFO: u32 = 1;
/// SCHED_FLAG_RESET_ON_FORK.
const RESET_ON_FORK: u64 = 1;

fn first(flags: u64) -> SchedAttr {
    SchedAttr {
        size: 48,
        policy: SCHED_FIFO,
        flags,
        priority: 1,
        ..SchedAttr::default()
    }
}

/// A thread as it is scheduled.
#[derive(Debug)]
struct Scheduled {
    thread: HostPid,
    attr: SchedAttr,
    affinity: Vec<u64>,
}

impl Scheduled {
    /// The calling one.
    fn now() -> Option<Scheduled> {
        let thread = HostPid(nix::unistd::gettid().as_raw());
        Some(Scheduled {
            thread,
            attr: task::sched_getattr(thread).ok()?,
            affinity: task::sched_getaffinity(thread).ok()?,
        })
    }

    fn give(&self, task: HostPid) {
        task::sched_setattr(task, &self.attr).ok();
        task::sched_setaffinity(task, &self.affinity).ok();
    }
}

/// Dropped, by the same thread, it is an ordinary one again. Threads that it starts are
/// ordinary ones, but for the processor (see [`at_large`]).
#[derive(Debug)]
pub struct Eager(Scheduled);

impl Eager {
    pub fn begin() -> Option<Eager> {
        let ordinary = Scheduled::now()?;
        task::sched_setattr(ordinary.thread, &first(RESET_ON_FORK)).ok()?;
        Some(Eager(ordinary))
    }

    /// The same, and threads that it starts from now on are eager, too.
    pub fn begin_with_others() -> Option<Eager> {
        let eager = Eager::begin()?;
        hurry(eager.thread());
        Some(eager)
    }

    pub fn thread(&self) -> HostPid {
        self.0.thread
    }

    /// The two work by turns from now on. The other gets what it is to have with its
    /// registers.
    pub fn with(&self, other: HostPid) {
        bring_here(self.0.thread);
        bring_here(other);
        hurry(other);
    }

    /// The other becomes an ordinary one, as this thread was.
    pub fn calm(&self, other: HostPid) {
        self.0.give(other);
    }
}

impl Drop for Eager {
    fn drop(&mut self) {
        self.0.give(self.0.thread);
    }
}

/// Has a task come soon where it came first, as an ordinary one.
pub fn soon(task: HostPid) {
    let attr = SchedAttr {
        size: 48,
        nice: -20,
        ..SchedAttr::default()
    };
    task::sched_setattr(task, &attr).ok();
}

/// Has a task that works for the calling thread, eager or not, be scheduled as that is.
pub fn follow(eager: Option<&Eager>, other: HostPid) {
    match eager {
        Some(eager) => eager.with(other),
        None => Scheduled::now().iter().for_each(|ordinary| ordinary.give(other)),
    }
}

/// Has a task come before all ordinary ones until it gives itself what it had.
pub fn hurry(task: HostPid) {
    task::sched_setattr(task, &first(0)).ok();
}

/// Has a task run on the processor of the caller, and nowhere else.
pub fn bring_here(task: HostPid) {
    if let Ok(here) = nix::sched::sched_getcpu() {
        let mut only = vec![0; here / 64 + 1];
        only[here / 64] = 1 << (here % 64);
        task::sched_setaffinity(task, &only).ok();
    }
}

/// The calling thread may run wherever the program may: whoever started it may have been
/// kept on one processor, which it outlives.
pub fn at_large() {
    let program = HostPid(std::process::id() as i32);
    if let Ok(all) = task::sched_getaffinity(program) {
        task::sched_setaffinity(HostPid(0), &all).ok();
    }
}
