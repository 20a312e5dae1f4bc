//! How much of a relative time-out is left to a thread that waits in a call.
//!
//! The kernel keeps the end of such a wait in the thread's restart block, which
//! nobody can read. But a thread that waits has not run since it went to sleep,
//! and `/proc/TID/sched` tells when that was (`se.exec_start`, on the scheduler
//! clock of its CPU). So this is looked at *before* the thread is stopped, which
//! makes it run. Once a wait has been interrupted and restarted, its original
//! time-out says nothing any more; its end is then noted in a small file, so that
//! a later snapshot knows it.
//!
//! On a virtual machine the scheduler clock may leave out what the host stole
//! (paravirtual time accounting): a wait is then taken to have as much more left as
//! was stolen from its CPU since it began.

use crate::clocks;
use crate::ids::HostPid;
use crate::proc;
use crate::sys::memory as mem;
use crate::sys::task;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs;

/// Where ends of restarted waits are noted, beside the records of apps: one file an app,
/// named after its first process. Its first line says when, in clock ticks since boot; each
/// other one is a thread, the call and the end of its wait (0: none).
fn notes() -> String {
    crate::store::run_dir().join("timed").display().to_string()
}

/// A thread's wait, as it was just before the stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// The system call first made, also where the kernel shows restart_syscall.
    pub call: i64,
    /// As the kernel shows it in orig_rax.
    pub shown: i64,
    /// On CLOCK_MONOTONIC of this machine. None: it waits without end.
    pub end_ns: Option<u64>,
}

/// Reads scheduler clocks: they differ from CPU to CPU.
#[derive(Debug, Default)]
pub struct SchedClocks {
    /// CLOCK_MONOTONIC minus the scheduler clock, by CPU.
    offsets: HashMap<usize, i64>,
    /// What was noted, once it is asked for.
    noted: Option<Noted>,
}

impl SchedClocks {
    /// What the thread waits in with a relative time-out, if it does.
    pub fn look(&mut self, tid: HostPid) -> Option<Wait> {
        for _ in 0..LOOKS {
            let text = proc::text(tid, "syscall").ok()?;
            let mark = exec_start(tid);
            let wait = self.wait_in(tid, &text)?;
            // What is read of a thread that runs meanwhile does not fit together.
            if exec_start(tid) == mark && proc::text(tid, "syscall").is_ok_and(|again| again == text) {
                return Some(wait);
            }
        }
        None
    }

    fn wait_in(&mut self, tid: HostPid, text: &str) -> Option<Wait> {
        let mut words = text.split_whitespace();
        let shown: i64 = words.next()?.parse().ok()?;
        let args: Vec<u64> = words
            .filter_map(|w| u64::from_str_radix(w.strip_prefix("0x")?, 16).ok())
            .collect();
        if shown == libc::SYS_restart_syscall
            && let Some((call, end_ns)) = self.noted.get_or_insert_with(Noted::read).recall(tid)
        {
            return Some(Wait { call, shown, end_ns });
        }
        let call = if shown == libc::SYS_restart_syscall {
            restarted(&args)?
        } else {
            shown
        };
        let full = full_time(tid, call, &args)?;
        // What is held has been made to run, and waits for nothing but that.
        if full.is_some()
            && proc::text(tid, "wchan").is_ok_and(|place| FREEZER.contains(&place.trim()))
            && let Some((noted, end_ns)) = self.noted.get_or_insert_with(Noted::read).recall(tid)
            && noted == call
            && end_ns.is_none_or(|end| end > now())
        {
            return Some(Wait { call, shown, end_ns });
        }
        let end_ns = full.map(|full| self.asleep_since(tid).unwrap_or_else(now).saturating_add(full));
        Some(Wait { call, shown, end_ns })
    }

    fn asleep_since(&mut self, tid: HostPid) -> Option<u64> {
        let since = exec_start(tid)?;
        let offset = self.offset(last_cpu(tid)?)?;
        u64::try_from(since + offset).ok().map(|since| since.min(now()))
    }

    /// Goes to that CPU for a moment: being scheduled there sets our own mark.
    fn offset(&mut self, cpu: usize) -> Option<i64> {
        if let Some(known) = self.offsets.get(&cpu) {
            return Some(*known);
        }
        let own = HostPid(nix::unistd::gettid().as_raw());
        let before = task::sched_getaffinity(own).ok()?;
        let mut only = vec![0u64; cpu / 64 + 1];
        only[cpu / 64] = 1 << (cpu % 64);
        task::sched_setaffinity(own, &only).ok()?;
        // Where we lose the CPU between mark and clock, the offset comes out too large.
        let offset = (0..MARK_TRIES)
            .filter_map(|_| {
                std::thread::yield_now();
                exec_start(own).map(|mark| now() as i64 - mark)
            })
            .min();
        task::sched_setaffinity(own, &before).ok();
        self.offsets.insert(cpu, offset?);
        offset
    }
}

/// Where a thread of a frozen cgroup stands still; compilers put the one into the other.
const FREEZER: [&str; 2] = ["do_freezer_trap", "get_signal"];
/// At a thread that may run.
const LOOKS: usize = 5;
/// Each costs a turn of the CPU.
const MARK_TRIES: usize = 3;

fn now() -> u64 {
    clocks::monotonic_ns() as u64
}

/// `se.exec_start  :  1234567.123456` (milliseconds)
fn exec_start(tid: HostPid) -> Option<i64> {
    let text = proc::text(tid, "sched").ok()?;
    let line = text.lines().find(|line| line.starts_with("se.exec_start"))?;
    let (ms, ns) = line.split(':').nth(1)?.trim().split_once('.')?;
    Some(ms.parse::<i64>().ok()? * 1_000_000 + ns.parse::<i64>().ok()?)
}

/// Field 39 of stat.
fn last_cpu(tid: HostPid) -> Option<usize> {
    let text = proc::text(tid, "stat").ok()?;
    text.rsplit_once(')')?.1.split_whitespace().nth(36)?.parse().ok()
}

/// The call behind restart_syscall, where nobody noted it: told by what its
/// arguments look like. Pointers are large; a clock, an operation or a count is
/// small.
fn restarted(args: &[u64]) -> Option<i64> {
    let small = |at: usize| args.get(at).is_some_and(|arg| *arg < 65536);
    match (small(0), small(1)) {
        (true, true) => Some(libc::SYS_clock_nanosleep),
        (false, false) => Some(libc::SYS_nanosleep),
        (false, true) if args.get(3).is_some_and(|time| *time > 65536) => Some(libc::SYS_futex),
        (false, true) => Some(libc::SYS_poll),
        (true, false) => None,
    }
}

/// The relative time-out that the call was made with: `None` where it is no
/// call with one, `Some(None)` where it waits without end.
fn full_time(tid: HostPid, call: i64, args: &[u64]) -> Option<Option<u64>> {
    let timespec = |at: u64| -> Option<u64> {
        let seconds = mem::read_u64(tid, at).ok().filter(|_| at != 0)?;
        seconds
            .checked_mul(1_000_000_000)?
            .checked_add(mem::read_u64(tid, at + 8).ok()?)
    };
    let timeval = |at: u64| -> Option<u64> {
        let seconds = mem::read_u64(tid, at).ok().filter(|_| at != 0)?;
        let micros = mem::read_u64(tid, at + 8).ok()?;
        seconds
            .checked_mul(1_000_000_000)?
            .checked_add(micros.checked_mul(1000)?)
    };
    let millis = |value: u64| u64::try_from(value as i32).ok().map(|ms| ms * 1_000_000);
    const TIMER_ABSTIME: u64 = 1;
    match call {
        libc::SYS_nanosleep => timespec(*args.first()?).map(Some),
        libc::SYS_clock_nanosleep if *args.get(1)? & TIMER_ABSTIME == 0 => timespec(*args.get(2)?).map(Some),
        // FUTEX_WAIT takes a relative time; the others an absolute one, with which
        // they are simply made again.
        libc::SYS_futex if *args.get(1)? & 0x7f == 0 => timespec(*args.get(3)?).map(Some),
        libc::SYS_futex => Some(None),
        libc::SYS_select => timeval(*args.get(4)?).map(Some),
        libc::SYS_pselect6 => timespec(*args.get(4)?).map(Some),
        libc::SYS_ppoll => timespec(*args.get(2)?).map(Some),
        libc::SYS_poll => Some(millis(*args.get(2)?)),
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => Some(millis(*args.get(3)?)),
        _ => None,
    }
}

/// Notes in what the threads of an app wait, and until when, as the kernel restarts it: the
/// call and its end. It takes the place of what was noted of this app before.
pub fn note(app: HostPid, waits: &[(HostPid, i64, Option<u64>)]) {
    let notes = notes();
    let file = format!("{notes}/{app}");
    if waits.is_empty() {
        fs::remove_file(file).ok();
        return;
    }
    let lines = waits.iter().map(|(tid, call, end_ns)| {
        let end = end_ns.unwrap_or(0);
        format!("{tid} {call} {end}\n")
    });
    let text = format!("{}\n{}", ticks(), lines.collect::<String>());
    fs::create_dir_all(&notes).ok();
    let whole = format!("{notes}/.{app}");
    fs::write(&whole, text).and_then(|()| fs::rename(&whole, file)).ok();
}

/// Since boot, in the unit of `/proc/PID/stat`.
fn ticks() -> u64 {
    const NS: u64 = 1_000_000_000;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    let per_second = per_second.and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100);
    clocks::Reading::now().boottime_ns.unsigned_abs() / (NS / per_second)
}

/// What was noted of all apps.
#[derive(Debug, Default)]
struct Noted(HashMap<HostPid, Vec<Note>>);

#[derive(Clone, Copy, Debug)]
struct Note {
    /// When it was noted, in ticks.
    at: u64,
    call: i64,
    end_ns: Option<u64>,
}

impl Noted {
    fn read() -> Noted {
        let mut noted = Noted::default();
        for app in proc::numbered(&notes()).unwrap_or_default() {
            noted.add(&fs::read_to_string(format!("{}/{app}", notes())).unwrap_or_default());
        }
        noted
    }

    fn add(&mut self, text: &str) {
        let mut lines = text.lines();
        let Some(at) = lines.next().and_then(|line| line.parse().ok()) else {
            return;
        };
        for (tid, call, end) in lines.filter_map(parse_note) {
            let end_ns = (end != 0).then_some(end);
            self.0.entry(tid).or_default().push(Note { at, call, end_ns });
        }
    }

    /// The call and its end, none for a wait without end, as noted last of this thread: one
    /// of the same number that began later is another.
    fn recall(&self, tid: HostPid) -> Option<(i64, Option<u64>)> {
        let began = proc::stat(tid).ok()?.start_time;
        let notes = self.0.get(&tid)?.iter().filter(|note| began <= note.at);
        notes.max_by_key(|note| note.at).map(|note| (note.call, note.end_ns))
    }
}

fn parse_note(line: &str) -> Option<(HostPid, i64, u64)> {
    let mut words = line.split(' ');
    let tid = HostPid(words.next()?.parse().ok()?);
    Some((tid, words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// Forgets apps of which no such thread is left.
pub fn prune() {
    for app in proc::numbered(&notes()).unwrap_or_default() {
        if proc::exists(HostPid(app)) {
            continue;
        }
        let file = format!("{}/{app}", notes());
        let text = fs::read_to_string(&file).unwrap_or_default();
        let mut threads = text.lines().filter_map(parse_note);
        if !threads.any(|(tid, ..)| proc::exists(tid)) {
            fs::remove_file(file).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeping_thread_is_seen_with_the_time_it_has_left() {
        let (to_us, from_thread) = std::sync::mpsc::channel();
        let begin = now();
        std::thread::spawn(move || {
            to_us.send(HostPid(nix::unistd::gettid().as_raw())).ok();
            std::thread::sleep(std::time::Duration::from_secs(5));
        });
        let tid = from_thread.recv().unwrap();
        let look = || {
            let wait = SchedClocks::default().look(tid);
            wait.filter(|wait| wait.call == libc::SYS_clock_nanosleep)
        };
        while look().is_none() {
            std::thread::yield_now();
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
        let seen = now();
        let end = look().unwrap().end_ns.unwrap();
        // A virtual CPU's scheduler clock stands still while the host runs others:
        // what it stole since then is missing. Half of the second must be seen.
        const SECOND: u64 = 1_000_000_000;
        let early = begin + 5 * SECOND - SECOND / 50;
        let late = seen + 5 * SECOND - SECOND / 2;
        assert!((early..late).contains(&end), "{early} <= {end} < {late}");
    }

    #[test]
    fn a_thread_is_told_from_a_later_one_of_its_number() {
        let own = HostPid(std::process::id() as i32);
        let began = proc::stat(own).unwrap().start_time;
        let recalled = |texts: &[String]| {
            let mut noted = Noted::default();
            texts.iter().for_each(|text| noted.add(text));
            noted.recall(own)
        };
        let before = format!("{}\n{own} 35 7\n", began - 1);
        let since = format!("{began}\n1 7 0\n{own} 230 0\n");
        let later = format!("{}\n{own} 202 9\n", began + 1);
        assert_eq!(recalled(&[]), None);
        assert_eq!(recalled(std::slice::from_ref(&before)), None);
        assert_eq!(recalled(&[since.clone(), before]), Some((230, None)));
        assert_eq!(recalled(&[later, since]), Some((202, Some(9))));
    }
}
