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

/// Dropped, by the same thread, it is an ordinary one again. Threads that it starts are
/// ordinary ones, but for the processor (see [`at_large`]).
#[derive(Debug)]
pub struct Eager {
    thread: HostPid,
    ordinary: SchedAttr,
    affinity: Vec<u64>,
}

impl Eager {
    pub fn begin() -> Option<Eager> {
        let thread = HostPid(nix::unistd::gettid().as_raw());
        let eager = Eager {
            thread,
            ordinary: task::sched_getattr(thread).ok()?,
            affinity: task::sched_getaffinity(thread).ok()?,
        };
        task::sched_setattr(thread, &first(RESET_ON_FORK)).ok()?;
        Some(eager)
    }

    pub fn thread(&self) -> HostPid {
        self.thread
    }

    /// The two work by turns from now on. The other gets what it is to have with its
    /// registers.
    pub fn with(&self, other: HostPid) {
        bring_here(self.thread);
        bring_here(other);
        hurry(other);
    }
}

impl Drop for Eager {
    fn drop(&mut self) {
        task::sched_setattr(self.thread, &self.ordinary).ok();
        task::sched_setaffinity(self.thread, &self.affinity).ok();
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
