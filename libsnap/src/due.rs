//! What an app that sleeps would do next by itself: the earliest of its timers, as its
//! appshot has them. No process is looked at.
//!
//! - timerfds (timerfd_create(2)), POSIX timers (timer_create(2)) and ITIMER_REAL
//!   (setitimer(2)) are records with the time at which they are due;
//! - a thread that sleeps (nanosleep(2)) or waits for events (poll(2), select(2), epoll_wait(2))
//!   has a time-out with its record, or, where it waits for an instant, in its memory;
//! - so has one that waits for another thread (futex(2)), but that is most often housekeeping of
//!   a runtime: looked at only by who wants [`Timers::All`].
//!
//! Not known: time-outs of rt_sigtimedwait(2), semtimedop(2), io_getevents(2) and
//! epoll_pwait2(2), and what lies behind a shorter time-out of an event loop. Clocks of CPU
//! time stand still while the app sleeps.

use crate::image::records::{Blocked, Clocks, FileKind};
use crate::image::{Appshot, Core, ThreadImage};
use crate::sys::ptrace::reg;
use serde::{Deserialize, Serialize};

/// Which timers count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timers {
    Off,
    /// Those that an app has armed, or sleeps for.
    #[default]
    Armed,
    /// And time-outs with which its threads wait for each other.
    All,
}

/// A timer, and when it is due on the host's CLOCK_REALTIME.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Due {
    pub unix_ms: u64,
    /// `timer 3 of process 2`
    pub timer: String,
}

/// The earliest that was due later than this after the freeze.
pub fn earliest(shot: &Appshot, which: Timers, beyond_ns: u64) -> Option<Due> {
    if which == Timers::Off {
        return None;
    }
    let clocks = &shot.manifest.clocks;
    let mut all = Vec::new();
    for file in &shot.manifest.files {
        if let FileKind::Timerfd { time, .. } = &file.kind {
            all.push((time.value_ns, "a timerfd".to_owned()));
        }
    }
    for core in &shot.cores {
        let (process, pid) = (&core.image.process, core.image.threads.first());
        let pid = pid.map_or(0, |main| main.record.tid.0);
        all.push((process.itimers[0].value_ns, format!("ITIMER_REAL of process {pid}")));
        let counting = process.posix_timers.iter().filter(|timer| !is_cpu(timer.clock));
        all.extend(counting.map(|timer| (timer.time.value_ns, format!("timer {} of process {pid}", timer.id))));
        for thread in &core.image.threads {
            let wait = wait(shot, core, thread, which, clocks);
            all.extend(wait.map(|(ns, call)| (ns, format!("{call} of thread {}", thread.record.tid))));
        }
    }
    let later = all.into_iter().filter(|(ns, _)| *ns > beyond_ns);
    let (ns, timer) = later.min()?;
    let freeze = u64::try_from(clocks.realtime_ns).unwrap_or(0);
    Some(Due {
        unix_ms: freeze.saturating_add(ns) / 1_000_000,
        timer,
    })
}

/// Of a process, of a thread, and of others (negative).
fn is_cpu(clock: i32) -> bool {
    clock < 0 || [libc::CLOCK_PROCESS_CPUTIME_ID, libc::CLOCK_THREAD_CPUTIME_ID].contains(&clock)
}

/// When the wait of a thread ends, counted from the freeze, and the call.
fn wait(
    shot: &Appshot,
    core: &Core,
    thread: &ThreadImage,
    which: Timers,
    clocks: &Clocks,
) -> Option<(u64, &'static str)> {
    let arg = |at: usize| thread.regs[at];
    let call = i64::try_from(arg(reg::ORIG_RAX)).ok()?;
    let name = match call {
        libc::SYS_nanosleep => "nanosleep",
        libc::SYS_clock_nanosleep => "clock_nanosleep",
        libc::SYS_poll => "poll",
        libc::SYS_ppoll => "ppoll",
        libc::SYS_select => "select",
        libc::SYS_pselect6 => "pselect6",
        libc::SYS_epoll_wait => "epoll_wait",
        libc::SYS_epoll_pwait => "epoll_pwait",
        libc::SYS_futex if which == Timers::All => "futex",
        _ => return None,
    };
    let instant = match (thread.record.blocked_in, call) {
        (Blocked::No, _) => return None,
        (Blocked::Timed { left_ns }, _) => return Some((left_ns, name)),
        (Blocked::Restart, libc::SYS_clock_nanosleep) if arg(reg::RSI) & TIMER_ABSTIME != 0 => {
            let clock = i32::try_from(arg(reg::RDI)).ok().filter(|clock| !is_cpu(*clock))?;
            (clock, arg(reg::RDX))
        }
        // FUTEX_WAIT has a relative time; these wait for an instant.
        (Blocked::Restart, libc::SYS_futex) if arg(reg::RSI) & FUTEX_COMMANDS == FUTEX_WAIT_BITSET => {
            match arg(reg::RSI) & FUTEX_CLOCK_REALTIME {
                0 => (libc::CLOCK_MONOTONIC, arg(reg::R10)),
                _ => (libc::CLOCK_REALTIME, arg(reg::R10)),
            }
        }
        (Blocked::Restart, _) => return None,
    };
    let ((clock, at), now) = (instant, clocks);
    let now_ns = match clock {
        libc::CLOCK_REALTIME => now.realtime_ns,
        libc::CLOCK_BOOTTIME => now.boottime_ns,
        _ => now.monotonic_ns,
    };
    let due_ns = time(shot, core, at)?;
    // One that is past is due at once.
    Some((due_ns.saturating_sub(u64::try_from(now_ns).unwrap_or(0)).max(1), name))
}

const TIMER_ABSTIME: u64 = 1;
/// Without flags.
const FUTEX_COMMANDS: u64 = 0x7f;
const FUTEX_WAIT_BITSET: u64 = 9;
const FUTEX_CLOCK_REALTIME: u64 = 256;

/// A `struct timespec` of the app, in nanoseconds; none at no address, and none where its
/// memory is not stored: then it is zero, and nobody waits so long.
fn time(shot: &Appshot, core: &Core, at: u64) -> Option<u64> {
    let mut bytes = [0; 16];
    let stored = at != 0 && at <= u64::MAX - 16 && shot.read_memory(core, at, &mut bytes).ok()?;
    let word = |at: usize| bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    stored.then(|| word(0).checked_mul(1_000_000_000)?.checked_add(word(8)))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::sample;

    const SECOND: u64 = 1_000_000_000;

    /// Timers of the sample that are to be told: the thread's wait, in this call.
    fn told(
        which: Timers,
        beyond_ns: u64,
        edit: impl FnOnce(&mut crate::image::records::Manifest, &mut ThreadImage),
    ) -> Option<Due> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sample.appshot");
        let (mut manifest, mut images) = (sample::manifest(), [sample::process(2, 1), sample::process(7, 2)]);
        manifest.clocks.realtime_ns = 1000 * SECOND as i64;
        edit(&mut manifest, &mut images[1].threads[1]);
        drop(sample::try_write(&path, manifest, &images).unwrap());
        earliest(&Appshot::open_unverified_memory(&path).unwrap(), which, beyond_ns)
    }

    fn wait(thread: &mut ThreadImage, call: i64, left_ns: u64) {
        thread.regs[reg::ORIG_RAX] = call as u64;
        thread.record.blocked_in = Blocked::Timed { left_ns };
    }

    #[test]
    fn the_earliest_that_is_far_enough() {
        let near = told(Timers::Armed, 0, |_, thread| wait(thread, libc::SYS_poll, 60 * SECOND));
        assert_eq!(near.unwrap().unix_ms, 1_000_000, "some of the sample are due at once");
        let far = told(Timers::Armed, SECOND, |_, thread| {
            wait(thread, libc::SYS_poll, 60 * SECOND)
        });
        let far = far.unwrap();
        assert_eq!((far.unix_ms, far.timer.as_str()), (1_060_000, "poll of thread 70"));
        let armed = told(Timers::Armed, SECOND, |manifest, thread| {
            wait(thread, libc::SYS_poll, 60 * SECOND);
            for file in &mut manifest.files {
                if let FileKind::Timerfd { time, .. } = &mut file.kind {
                    time.value_ns = 30 * SECOND;
                }
            }
        });
        assert_eq!(armed.unwrap().timer, "a timerfd");
        assert_eq!(told(Timers::Off, 0, |_, _| ()), None);
        let forever = told(Timers::All, SECOND, |_, thread| {
            wait(thread, libc::SYS_read, 60 * SECOND)
        });
        assert_eq!(forever, None, "no call with a time-out");
    }

    #[test]
    fn who_waits_for_a_thread_counts_where_that_is_wanted() {
        let futex = |which| told(which, SECOND, |_, thread| wait(thread, libc::SYS_futex, 60 * SECOND));
        assert_eq!(futex(Timers::Armed), None);
        assert_eq!(futex(Timers::All).unwrap().unix_ms, 1_060_000);
        // An instant that cannot be read: at no address, or where no memory is.
        for at in [0, 8, u64::MAX - 4] {
            let unknown = told(Timers::All, SECOND, |_, thread| {
                thread.record.blocked_in = Blocked::Restart;
                thread.regs[reg::ORIG_RAX] = libc::SYS_futex as u64;
                (thread.regs[reg::RSI], thread.regs[reg::R10]) = (FUTEX_WAIT_BITSET | 128, at);
            });
            assert_eq!(unknown, None, "{at:x}");
        }
    }
}
