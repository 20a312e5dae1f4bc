//! Interval timers (getitimer(2)) and POSIX timers (timer_create(2)): which there
//! are is read from `/proc/PID/timers`, the time they have left by a batch in the
//! process, each between two looks at the clock; made again by their own calls
//! under their old ids.
//!
//! What a timer has left is noted as when it is due, counted from the freeze
//! (`clocks`), and one on CLOCK_MONOTONIC or CLOCK_BOOTTIME is armed again for
//! that instant: a timer that fell due meanwhile fires at once, with the overruns
//! that it has missed. Not readable, and lost: overruns of a signal that waited
//! already before the freeze, and the phase of an ITIMER_REAL whose SIGALRM waits.

use crate::clocks::{self, Reading, Timeline};
use crate::error::{Error, Kind, Result};
use crate::executor::{Batch, CallId, Executor, Slot};
use crate::freeze::FrozenProcess;
use crate::ids::{HostPid, VirtualPid};
use crate::image::ThreadImage;
use crate::image::records::{PosixTimer, ProcessRecord, SigInfo, TimerValue};
use crate::proc::{self, Fields};
use crate::restore::script::Script;
use crate::sys::task;
use std::collections::HashMap;

/// Where ids cannot be chosen: so many are passed over, at most.
const PASSED_MAX: i32 = 1_000_000;
/// Timers of one batch.
const AT_ONCE: usize = 200;
/// A timer and the clock were read together if within this time.
const TOGETHER_NS: u64 = 200_000;
/// Clocks and waiting signals belong together if read within this time.
const BEGIN_NS: i64 = 2_000_000;
const TRIES: usize = 10;

/// One timer of `/proc/PID/timers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TimerText {
    id: i32,
    signal: i32,
    value: u64,
    notify: i32,
    thread: VirtualPid,
    clock: i32,
}

fn parse_timers(text: &str) -> Vec<TimerText> {
    let mut found: Vec<TimerText> = Vec::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        if key == "ID" {
            found.push(TimerText {
                id: value.parse().unwrap_or(-1),
                signal: 0,
                value: 0,
                notify: 0,
                thread: VirtualPid(0),
                clock: 0,
            });
        }
        let Some(timer) = found.last_mut() else { continue };
        match key {
            "signal" => {
                let (signal, pointer) = value.split_once('/').unwrap_or((value, "0"));
                timer.signal = signal.parse().unwrap_or(0);
                timer.value = u64::from_str_radix(pointer, 16).unwrap_or(0);
            }
            "notify" => parse_notify(value, timer),
            "ClockID" => timer.clock = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    found
}

/// `signal/pid.12`, `none/tid.13`
fn parse_notify(value: &str, timer: &mut TimerText) {
    let (kind, target) = value.split_once('/').unwrap_or((value, ""));
    timer.notify = match kind {
        "none" => libc::SIGEV_NONE,
        "thread" => libc::SIGEV_THREAD,
        _ => libc::SIGEV_SIGNAL,
    };
    if let Some(tid) = target.strip_prefix("tid.") {
        timer.notify |= libc::SIGEV_THREAD_ID;
        timer.thread = VirtualPid(tid.parse().unwrap_or(0));
    }
}

/// All timers of a process.
#[derive(Debug)]
pub struct Timers {
    pub interval: [TimerValue; 3],
    pub posix: Vec<PosixTimer>,
}

#[derive(Clone, Copy, Debug)]
enum Which {
    Interval(u64),
    Posix(i32),
}

/// A timer as it was at an instant of the app's CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    time: TimerValue,
    at_ns: u64,
    overrun: i32,
}

/// Clocks of CPU time: of a process, of a thread, and of others (negative).
fn stands_still(clock: i32) -> bool {
    clock < 0 || [libc::CLOCK_PROCESS_CPUTIME_ID, libc::CLOCK_THREAD_CPUTIME_ID].contains(&clock)
}

/// The freeze: the clocks, and which signals wait at that instant in processes that
/// have POSIX timers.
pub fn begin(pids: &[HostPid]) -> (Reading, HashMap<HostPid, u64>) {
    let mut tries = 0;
    loop {
        let at = Reading::now();
        let timed = pids
            .iter()
            .filter(|pid| proc::text(**pid, "timers").is_ok_and(|text| !text.is_empty()));
        let waiting = timed.map(|pid| (*pid, signals_waiting(*pid))).collect();
        tries += 1;
        if clocks::monotonic_ns() - at.monotonic_ns < BEGIN_NS || tries >= TRIES {
            return (at, waiting);
        }
    }
}

fn signals_waiting(pid: HostPid) -> u64 {
    let tids = proc::threads(pid).unwrap_or_default();
    let statuses = tids.iter().filter_map(|tid| Fields::status(*tid).ok());
    statuses.fold(0, |all, status| all | status.hex("SigPnd") | status.hex("ShdPnd"))
}

/// `intervals`: what [`Asked`] has seen already.
pub fn ask(
    process: &FrozenProcess,
    executor: &Executor,
    timeline: &Timeline,
    intervals: Option<Vec<Seen>>,
) -> Result<Timers> {
    let texts = parse_timers(&proc::text(process.pid, "timers").unwrap_or_default());
    let mut seen = match intervals {
        Some(seen) => seen,
        None => look(process, executor, &INTERVALS)?,
    };
    let posix: Vec<Which> = texts.iter().map(|text| Which::Posix(text.id)).collect();
    for some in posix.chunks(AT_ONCE) {
        seen.extend(look(process, executor, some)?);
    }
    let from_freeze = |seen: &Seen| {
        let passed = seen.at_ns.saturating_sub(clocks::due(timeline.app.monotonic_ns, 0));
        let value_ns = match seen.time.value_ns {
            0 => 0,
            left => left + passed,
        };
        TimerValue { value_ns, ..seen.time }
    };
    let (interval, posix) = seen.split_at(3);
    let mut interval = [0, 1, 2].map(|at| interval[at].time);
    interval[0] = from_freeze(&seen[0]);
    if interval[0].value_ns == 0 && interval[0].interval_ns != 0 {
        // It has fallen due, and is set again when its SIGALRM is taken.
        interval[0].value_ns = 1;
    }
    // /proc shows the number in the reader's namespace.
    let tids: HashMap<i32, VirtualPid> = process.threads.iter().map(|t| (t.tid.0, t.vtid)).collect();
    let posix = texts.iter().zip(posix).map(|(text, seen)| PosixTimer {
        id: text.id,
        clock: text.clock,
        notify: text.notify,
        signal: text.signal,
        sigev_value: text.value,
        thread: tids.get(&text.thread.0).copied().unwrap_or(text.thread),
        time: if stands_still(text.clock) {
            seen.time
        } else {
            from_freeze(seen)
        },
        overrun: seen.overrun,
    });
    Ok(Timers {
        interval,
        posix: posix.collect(),
    })
}

/// Reads timers, once more where the thread lost the processor in between.
fn look(process: &FrozenProcess, executor: &Executor, timers: &[Which]) -> Result<Vec<Seen>> {
    let main = process.main();
    let mut tries = 0;
    loop {
        let mut batch = executor.batch();
        let asked = Asked::add(&mut batch, timers);
        executor.run(main.tid, &main.regs, &mut batch)?;
        tries += 1;
        if let Some(seen) = asked.seen(&batch, tries == TRIES) {
            return Ok(seen);
        }
    }
}

/// Timers in a batch, each between two looks at the clock.
#[derive(Debug)]
pub struct Asked {
    timers: Vec<(Which, Slot, Slot, Option<CallId>)>,
    last: Slot,
}

const INTERVALS: [Which; 3] = [Which::Interval(0), Which::Interval(1), Which::Interval(2)];

impl Asked {
    pub fn intervals(batch: &mut Batch) -> Asked {
        Asked::add(batch, &INTERVALS)
    }

    fn add(batch: &mut Batch, timers: &[Which]) -> Asked {
        let timers = timers.iter().map(|which| {
            let (clock, slot, overrun) = add(batch, *which);
            (*which, clock, slot, overrun)
        });
        Asked {
            timers: timers.collect(),
            last: add_clock(batch),
        }
    }

    /// What they were; `None` where the looks are too far apart to tell when, unless
    /// that will do.
    pub fn seen(&self, batch: &Batch, will_do: bool) -> Option<Vec<Seen>> {
        let clocks = self.timers.iter().map(|(_, clock, ..)| *clock).chain([self.last]);
        let looks: Vec<u64> = clocks
            .map(|clock| {
                let words = batch.read_words(clock);
                words[0] * 1_000_000_000 + words[1]
            })
            .collect();
        let apart = looks.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        // By the later look it is due later: none fires early.
        let seen = self
            .timers
            .iter()
            .zip(&looks[1..])
            .map(|((which, _, slot, overrun), at_ns)| Seen {
                time: value(*which, &batch.read_words(*slot)),
                at_ns: *at_ns,
                overrun: overrun.and_then(|call| batch.result(call).ok()).map_or(0, |n| n as i32),
            });
        (apart <= TOGETHER_NS || will_do).then(|| seen.collect())
    }
}

fn add_clock(batch: &mut Batch) -> Slot {
    let slot = batch.space(16);
    let args = [libc::CLOCK_MONOTONIC as u64, slot.address];
    batch.must("clock_gettime", libc::SYS_clock_gettime, &args);
    slot
}

fn add(batch: &mut Batch, which: Which) -> (Slot, Slot, Option<CallId>) {
    let clock = add_clock(batch);
    let slot = batch.space(32);
    let overrun = match which {
        Which::Interval(which) => {
            batch.must("getitimer", libc::SYS_getitimer, &[which, slot.address]);
            None
        }
        Which::Posix(id) => {
            let id = id as u64;
            batch.must("timer_gettime", libc::SYS_timer_gettime, &[id, slot.address]);
            Some(batch.call("timer_getoverrun", libc::SYS_timer_getoverrun, &[id]))
        }
    };
    (clock, slot, overrun)
}

/// `struct itimerval` (microseconds) or `struct itimerspec` (nanoseconds):
/// interval and time left.
fn value(which: Which, words: &[u64]) -> TimerValue {
    let unit = match which {
        Which::Interval(_) => 1000,
        Which::Posix(_) => 1,
    };
    let ns = |at: usize| words[at] * 1_000_000_000 + words[at + 1] * unit;
    TimerValue {
        interval_ns: ns(0),
        // The kernel rounds microseconds down.
        value_ns: if ns(2) == 0 { 0 } else { ns(2) + unit - 1 },
    }
}

/// A timer that fell due since the freeze is armed as it was then, and its signal
/// taken back: the kernel sends it again, with all overruns. Signals were read
/// after the timers, so none is lost. One that waited at the freeze is for what
/// fell due before, and stays.
pub fn settle(record: &mut ProcessRecord, threads: &mut [ThreadImage], waiting: u64, timeline: &Timeline) {
    let passed = timeline.passed_ns();
    for timer in &mut record.posix_timers {
        if timer.time.value_ns == 0 || stands_still(timer.clock) {
            continue;
        }
        let first = first_due(timer.time);
        let mut queues = threads
            .iter_mut()
            .map(|thread| (thread.record.tid, &mut thread.record.pending));
        let queue = if timer.thread.0 == 0 {
            Some(&mut record.pending)
        } else {
            queues.find(|(tid, _)| *tid == timer.thread).map(|(_, queue)| queue)
        };
        let Some(queue) = queue.filter(|_| first <= passed) else {
            continue;
        };
        if let Some(at) = queue.iter().position(|info| is_of(info, timer)) {
            if timer.signal > 0 && waiting >> (timer.signal - 1) & 1 == 0 {
                queue.remove(at);
            }
            timer.time.value_ns = first;
        }
    }
}

/// The kernel shows a timer whose signal waits as due at the next of its
/// intervals; this is the first after the freeze.
fn first_due(time: TimerValue) -> u64 {
    match time.interval_ns {
        0 => time.value_ns,
        interval => (time.value_ns - 1) % interval + 1,
    }
}

/// `struct siginfo`: signal, error, code; of a timer then its id.
fn is_of(info: &SigInfo, timer: &PosixTimer) -> bool {
    const SI_TIMER: i32 = -2;
    (info.0[0] as i32, info.0[1] as i32, info.0[2] as i32) == (timer.signal, SI_TIMER, timer.id)
}

/// Makes the timers of a process again, not armed yet. Where the kernel does not let their ids
/// be chosen it counts from 0 in a new process: others are made and deleted before them.
pub fn make(script: &mut Script<'_>, record: &ProcessRecord) -> Result<()> {
    if record.posix_timers.is_empty() {
        return Ok(());
    }
    let restore_ids = |script: &mut Script<'_>, on: u64| {
        let args = [task::PR_TIMER_CREATE_RESTORE_IDS, on, 0, 0, 0];
        let made = script.must("prctl(PR_TIMER_CREATE_RESTORE_IDS)", libc::SYS_prctl, &args);
        made.map(drop)
    };
    let chosen = task::chooses_timer_ids();
    if chosen {
        restore_ids(script, 1)?;
    }
    let mut timers: Vec<&PosixTimer> = record.posix_timers.iter().collect();
    timers.sort_by_key(|timer| timer.id);
    let mut next = 0;
    for timer in &timers {
        if !chosen {
            pass_over(script, next, timer.id)?;
            next = timer.id + 1;
        }
        // struct sigevent: value, signal, notify, thread id.
        let signal = u64::from(timer.signal as u32) | u64::from(timer.notify as u32) << 32;
        let thread = u64::from(timer.thread.0 as u32);
        let batch = script.room(1, 72)?;
        let event = batch.words(&[timer.sigev_value, signal, thread, 0, 0, 0, 0, 0]);
        let id = batch.words(&[timer.id as u64]);
        let args = [timer.clock as i64 as u64, event.address, id.address];
        batch.must("timer_create", libc::SYS_timer_create, &args);
    }
    if chosen {
        return restore_ids(script, 0);
    }
    for timer in timers {
        let batch = script.room(1, 32)?;
        let time = batch.space(32);
        batch.must(
            "timer_gettime",
            libc::SYS_timer_gettime,
            &[timer.id as u64, time.address],
        );
    }
    Ok(())
}

/// Has the ids from `next` to before `id` be used up.
fn pass_over(script: &mut Script<'_>, next: i32, id: i32) -> Result<()> {
    if id.saturating_sub(next) > PASSED_MAX {
        return Err(
            Error::new(Kind::Unavailable, format!("cannot make a timer with the id {id}"))
                .because("this kernel gives timers ids in turn, and it takes too long to come to that")
                .needs("PR_TIMER_CREATE_RESTORE_IDS (Linux 6.15)"),
        );
    }
    for passed in next..id {
        let batch = script.room(2, 8)?;
        let slot = batch.space(8);
        let args = [libc::CLOCK_MONOTONIC as u64, 0, slot.address];
        batch.must("timer_create", libc::SYS_timer_create, &args);
        batch.must("timer_delete", libc::SYS_timer_delete, &[passed as u64]);
    }
    Ok(())
}

/// Arms the timers of a process, whose signals are all blocked.
pub fn arm(script: &mut Script<'_>, timeline: &Timeline, record: &ProcessRecord) -> Result<()> {
    let armed = record.posix_timers.iter().filter(|timer| timer.time.value_ns != 0);
    for timer in armed {
        let due = |from_ns| (libc::TIMER_ABSTIME, clocks::due(from_ns, timer.time.value_ns));
        let (flags, value_ns) = match timer.clock {
            libc::CLOCK_MONOTONIC => due(timeline.app.monotonic_ns),
            libc::CLOCK_BOOTTIME => due(timeline.app.boottime_ns),
            clock if stands_still(clock) => (0, timer.time.value_ns),
            // Nobody tells whether it was set to an instant of the day.
            _ => (0, timeline.left_ns(timer.time.value_ns)),
        };
        let words = [timer.time.interval_ns, value_ns].map(|ns| [ns / 1_000_000_000, ns % 1_000_000_000]);
        let batch = script.room(1, 32)?;
        let value = batch.words(words.as_flattened());
        let args = [timer.id as u64, flags as u64, value.address, 0];
        batch.must("timer_settime", libc::SYS_timer_settime, &args);
    }
    for (which, timer) in (0u64..).zip(&record.itimers).filter(|(_, timer)| timer.value_ns != 0) {
        // One that is past falls due at once; where its SIGALRM waits already, this
        // makes no second one.
        let left_ns = match which {
            0 => timeline.left_ns(timer.value_ns),
            _ => timer.value_ns,
        };
        let words = [timer.interval_ns, left_ns.max(1000)].map(|ns| [ns / 1_000_000_000, ns % 1_000_000_000 / 1000]);
        let batch = script.room(1, 32)?;
        let value = batch.words(words.as_flattened());
        batch.must("setitimer", libc::SYS_setitimer, &[which, value.address, 0]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_as_the_kernel_lists_them() {
        let text = "ID: 0\nsignal: 10/0000000000000abc\nnotify: signal/pid.77\nClockID: 1\n\
                    ID: 3\nsignal: 34/00007f12\nnotify: signal/tid.78\nClockID: 0\n";
        let found = parse_timers(text);
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[0].id, found[0].signal, found[0].value, found[0].clock),
            (0, 10, 0xabc, 1)
        );
        assert_eq!(
            (found[1].notify, found[1].thread),
            (libc::SIGEV_THREAD_ID, VirtualPid(78))
        );
    }

    #[test]
    fn the_first_instant_after_the_freeze() {
        let first = |value_ns, interval_ns| first_due(TimerValue { value_ns, interval_ns });
        assert_eq!(
            (first(75, 0), first(75, 10), first(70, 10), first(7, 10)),
            (75, 5, 10, 7)
        );
    }
}
