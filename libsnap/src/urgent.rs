//! What is done while an app stands still comes before all else.
//!
//! The thread that has stopped an app comes before all ordinary ones (SCHED_FIFO), and
//! leaves the processor that the app runs on to it. The two wait for each other some ten
//! times: a processor that went to sleep in between takes ten times as long to go on as
//! one that is awake, so something idle runs there meanwhile (SCHED_IDLE: it is not in
//! anybody's way). A thread of the app that does something for us comes before all others
//! as well; what it had is in the journal. Where a right to that is missing, it only takes
//! longer.

use crate::ids::HostPid;
use crate::proc;
use crate::restore::eager::Eager;
use crate::sys::ptrace::Hearing;
use crate::sys::task::{self, SchedAttr};
use crate::sys::{self, Sys};
use nix::sched::CpuSet;
use serde::{Deserialize, Serialize};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// As the kernel's own threads that others wait for.
const NICE: i32 = -20;
/// No processor is kept awake for longer.
const AWAKE_MAX: Duration = Duration::from_millis(5);
const SCHED_OTHER: u32 = 0;
const SCHED_FIFO: u32 = 1;
const SCHED_BATCH: u32 = 3;
const SCHED_IDLE: u32 = 5;
/// What it forks is ordinary.
const RESET_ON_FORK: u64 = 1;

/// Dropped, by the same thread, it is an ordinary one again.
#[derive(Debug)]
#[must_use]
pub struct Urgent {
    // In the order in which they end. On a processor that others keep busy an ordinary thread may not
    // come to it for minutes: it may be elsewhere before it is one again.
    _hearing: Option<Hearing>,
    _away: Option<Away>,
    _eager: Option<Eager>,
    _nice: Option<Nice>,
    _awake: Option<Awake>,
}

impl Urgent {
    /// Before the app of this process is stopped. `prepare` may do, of what is going to be
    /// done in the stop, as much as can be done before: code and data are at hand then, and it comes
    /// before nobody yet, wherever there is room for it.
    pub fn begin<T>(root: HostPid, prepare: impl FnOnce() -> T) -> (Urgent, T) {
        have_code_mapped();
        let prepared = prepare();
        let theirs = proc::stat(root).map_or(0, |stat| stat.processor);
        // It must not inherit what this thread is to get.
        let awake = Awake::keep(theirs);
        let eager = Eager::begin();
        let urgent = Urgent {
            _hearing: eager.as_ref().and_then(|_| Hearing::begin()),
            _nice: eager.is_none().then(|| Nice::set(NICE)).flatten(),
            // Who does not come first has to take what there is.
            _away: eager.as_ref().and_then(|_| Away::from(theirs)),
            _eager: eager,
            _awake: awake,
        };
        (urgent, prepared)
    }
}

/// What runs for the first time in a stop must not be brought in there page by page.
fn have_code_mapped() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let own = HostPid(std::process::id() as i32);
        let maps = proc::maps(own).unwrap_or_default();
        for map in maps.iter().filter(|map| map.exec && map.ino != 0) {
            // Without it, it is brought in there.
            sys::memory::populate(map.span()).ok();
        }
    });
}

/// This thread runs elsewhere than on a processor. Dropped, by the same thread, it may
/// again.
#[derive(Debug)]
struct Away {
    thread: HostPid,
    before: Vec<u64>,
}

impl Away {
    /// Where there is another processor for this thread.
    fn from(processor: usize) -> Option<Away> {
        // Told by what this thread may use now.
        if !are_several() {
            return None;
        }
        let thread = HostPid(nix::unistd::gettid().as_raw());
        let before = task::sched_getaffinity(thread).ok()?;
        let mut others = before.clone();
        *others.get_mut(processor / 64)? &= !(1 << (processor % 64));
        // EINVAL: it was the only one.
        task::sched_setaffinity(thread, &others).ok()?;
        Some(Away { thread, before })
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        task::sched_setaffinity(self.thread, &self.before).ok();
    }
}

/// Another priority of this process; dropped, it has its own again.
#[derive(Debug)]
struct Nice(i32);

impl Nice {
    fn set(nice: i32) -> Option<Nice> {
        let before = task::nice(HostPid(0)).ok()?;
        task::set_nice(HostPid(0), nice).ok()?;
        Some(Nice(before))
    }
}

impl Drop for Nice {
    fn drop(&mut self) {
        task::set_nice(HostPid(0), self.0).ok();
    }
}

/// A processor that does not sleep. Dropped, it may.
#[derive(Debug)]
struct Awake {
    over: Arc<AtomicBool>,
}

impl Awake {
    fn keep(processor: usize) -> Option<Awake> {
        if !are_several() {
            return None;
        }
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let idle = move || {
            let since = Instant::now();
            if goes_last_at(processor).is_some() {
                while !seen.load(Ordering::Relaxed) && since.elapsed() < AWAKE_MAX {
                    std::hint::spin_loop();
                }
            }
        };
        thread::Builder::new().spawn(idle).ok()?;
        Some(Awake { over })
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Has this thread run at that processor, when nobody else wants it.
fn goes_last_at(processor: usize) -> Option<()> {
    let own = HostPid(nix::unistd::gettid().as_raw());
    let last = SchedAttr {
        size: 48,
        policy: SCHED_IDLE,
        ..SchedAttr::default()
    };
    task::sched_setattr(own, &last).ok()?;
    let mut only = CpuSet::new();
    only.set(processor).ok()?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &only).ok()
}

/// Whether there is a processor besides the one that a thread may take for itself.
fn are_several() -> bool {
    static SEVERAL: OnceLock<bool> = OnceLock::new();
    *SEVERAL.get_or_init(|| thread::available_parallelism().map_or(1, usize::from) > 1)
}

/// When a thread of the app gets a processor (sched(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    /// How long it may keep it, where it has asked for that (Linux 6.12).
    slice_ns: u64,
    /// How much later its timers may fire. The kernel forgets it of a thread that comes
    /// before others.
    slack_ns: Option<u64>,
}

impl Turn {
    pub fn of(tid: HostPid) -> Sys<Turn> {
        static DEFAULT_NS: OnceLock<u64> = OnceLock::new();
        let attr = task::sched_getattr(tid)?;
        let usual = DEFAULT_NS.get_or_init(|| task::sched_getattr(HostPid(0)).map_or(0, |own| own.runtime));
        let slack = proc::text(tid, "timerslack_ns");
        Ok(Turn {
            slack_ns: slack.ok().and_then(|text| text.trim().parse().ok()),
            policy: attr.policy,
            flags: attr.flags,
            nice: attr.nice,
            priority: attr.priority,
            slice_ns: if attr.runtime == *usual { 0 } else { attr.runtime },
        })
    }

    fn first() -> SchedAttr {
        SchedAttr {
            size: 48,
            policy: SCHED_FIFO,
            flags: RESET_ON_FORK,
            priority: 1,
            ..SchedAttr::default()
        }
    }

    /// The thread, which has this turn, comes before all ordinary ones.
    pub fn first_of_all(&self, tid: HostPid) {
        // One that loses us must leave a processor for whoever comes to help.
        if self.is_ordinary() && self.slack_ns.is_some() && are_several() {
            task::sched_setattr(tid, &Turn::first()).ok();
        }
    }

    /// Undoes it.
    pub fn give_back(&self, tid: HostPid) {
        if self.is_ordinary() && task::sched_getattr(tid).is_ok_and(|now| is_ours(now.policy, now.flags, now.priority))
        {
            let attr = SchedAttr {
                size: 48,
                policy: self.policy,
                flags: self.flags,
                nice: self.nice,
                runtime: self.slice_ns,
                ..SchedAttr::default()
            };
            if let Err(errno) = task::sched_setattr(tid, &attr) {
                tracing::error!(tid = tid.0, %errno, "cannot give a thread its priority back");
            }
            if let Some(slack) = self.slack_ns {
                fs::write(format!("/proc/{tid}/timerslack_ns"), slack.to_string()).ok();
            }
        }
    }

    /// Whether it comes from [`Turn::first_of_all`].
    pub fn is_first(&self) -> bool {
        is_ours(self.policy, self.flags, self.priority)
    }

    fn is_ordinary(&self) -> bool {
        [SCHED_OTHER, SCHED_BATCH, SCHED_IDLE].contains(&self.policy)
    }

    /// How long it may keep a processor, where it has asked for that.
    pub fn slice_ns(&self) -> Option<u64> {
        Some(self.slice_ns).filter(|slice| self.is_ordinary() && *slice != 0)
    }

    /// How long its timers may be late, as prctl(PR_GET_TIMERSLACK) tells it.
    pub fn slack_ns(&self) -> Option<u64> {
        self.slack_ns.filter(|_| self.is_ordinary())
    }
}

fn is_ours(policy: u32, flags: u64, priority: u32) -> bool {
    let first = Turn::first();
    (policy, flags, priority) == (first.policy, first.flags, first.priority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gets_its_turn_back() {
        let own = HostPid(nix::unistd::gettid().as_raw());
        task::set_nice(own, 3).unwrap();
        fs::write(format!("/proc/{own}/timerslack_ns"), "77000").unwrap();
        let before = Turn::of(own).unwrap();
        assert_eq!((before.policy, before.nice, before.slice_ns), (SCHED_OTHER, 3, 0));
        before.first_of_all(own);
        // Without the right to it nothing has changed.
        let now = Turn::of(own).unwrap();
        assert!(now.policy == SCHED_FIFO || now == before);
        before.give_back(own);
        assert_eq!(Turn::of(own), Ok(before));
    }
}
