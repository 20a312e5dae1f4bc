//! eventfd(2), timerfd_create(2), signalfd(2), pidfd_open(2): read from
//! `/proc/PID/fdinfo`, made again by their own calls.
//!
//! Refused: timerfds on CPU-time clocks, pidfds of processes outside the app.

use super::{Builder, Context, Description, Found, Refused, refused};
use crate::clocks::{self, Reading, Timeline};
use crate::error::{Error, OrFail, Result};
use crate::ids::{HostPid, VirtualPid};
use crate::image::records::{FileKind, TimerValue};
use crate::proc::{self, Fields};
use crate::sys::{Sys, fd, task};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

pub fn capture_eventfd(context: &Context<'_>, description: &Description) -> Result<FileKind, Refused> {
    let info = &description.found.info;
    let count = info.hex("eventfd-count");
    let semaphore = match info.number("eventfd-semaphore") {
        Some(told) => told == 1,
        // Linux before 6.5 does not tell; whoever runs is not to notice that it is tried.
        None if context.frozen.is_some() => is_semaphore(&description.dup, count)
            .map_err(|error| (format!("its mode cannot be found out: {error}"), "try again".to_owned()))?,
        None => false,
    };
    Ok(FileKind::Eventfd { count, semaphore })
}

/// Whether what is read of it is 1 each time, or all there is: two at least are there while that
/// is tried. It counts as before afterwards.
fn is_semaphore(eventfd: &OwnedFd, count: u64) -> nix::Result<bool> {
    let add = |more: u64| match more {
        0 => Ok(0),
        more => nix::unistd::write(eventfd, &more.to_ne_bytes()),
    };
    let take = || {
        let mut value = [0; 8];
        nix::unistd::read(eventfd, &mut value)?;
        Ok::<_, nix::Error>(u64::from_ne_bytes(value))
    };
    let added = 2u64.saturating_sub(count);
    add(added)?;
    if take()? != 1 {
        return add(count).map(|_| false);
    }
    match added {
        0 => drop(add(1)?),
        1 => {}
        _ => drop(take()?),
    }
    Ok(true)
}

pub fn restore_eventfd(count: u64, semaphore: bool) -> Result<OwnedFd> {
    let flags = if semaphore { libc::EFD_SEMAPHORE } else { 0 };
    let failed = || "cannot make an eventfd";
    let made = fd::eventfd(0, flags | libc::EFD_CLOEXEC).or_fail(failed)?;
    if count > 0 {
        nix::unistd::write(&made, &count.to_ne_bytes()).or_fail(failed)?;
    }
    Ok(made)
}

/// Whether ticks and time go together cannot be read in one call: the timer is set
/// going again first (`timerfd_get`), so that what falls due between the two is
/// one tick and one interval.
pub fn capture_timerfd(context: &Context<'_>, description: &Description) -> Result<FileKind, Refused> {
    let found = &description.found;
    let clock = found.info.number("clockid").unwrap_or(-1) as i32;
    if ![libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME].contains(&clock) {
        return refused(
            format!("a timerfd on clock {clock}"),
            "use CLOCK_MONOTONIC, CLOCK_BOOTTIME or CLOCK_REALTIME",
        );
    }
    let failed = |error: &dyn std::fmt::Display| (format!("its time cannot be read: {error}"), "try again".to_owned());
    let freeze = context.frozen.unwrap_or_else(Reading::now).monotonic_ns;
    let (mut left_ns, interval_ns, at) = time_left(&description.dup).map_err(|e| failed(&e))?;
    let info = || proc::text(found.pid, &format!("fdinfo/{}", found.fd)).map(Fields::new);
    if left_ns == 0 && interval_ns > 0 && is_ticking(&description.dup, &info).map_err(|e| failed(&e))? {
        left_ns = interval_ns;
    }
    let info = info().map_err(|e| failed(&e))?;
    let since_freeze = u64::try_from(at - freeze).unwrap_or(0);
    // `it_value: (seconds, nanoseconds)`; zero once it has fallen due.
    let fell_due = left_ns > 0 && info.get("it_value") == Some("(0, 0)");
    let value_ns = match (left_ns, fell_due, interval_ns) {
        (0, ..) | (_, true, 0) => 0,
        (left, true, interval) => since_freeze + left + interval,
        (left, false, _) => since_freeze + left,
    };
    Ok(FileKind::Timerfd {
        clock,
        ticks: info.number("ticks").unwrap_or(0) as u64,
        settime_flags: info.octal("settime flags") as i32,
        time: TimerValue { interval_ns, value_ns },
    })
}

/// Time left and interval, and when that was, on CLOCK_MONOTONIC.
fn time_left(fd: &OwnedFd) -> Sys<(u64, u64, i64)> {
    /// The timer and the clock were read together if within this time.
    const TOGETHER_NS: i64 = 50_000;
    let mut tries = 0;
    loop {
        let before = clocks::monotonic_ns();
        let (left, interval) = fd::timerfd_get(fd)?;
        let after = clocks::monotonic_ns();
        tries += 1;
        // One that falls due at this very moment has nothing left, and has the next time.
        let due_now = left == 0 && interval > 0 && tries < 3;
        if !due_now && (after - before < TOGETHER_NS || tries > 10) {
            return Ok((left, interval, after));
        }
    }
}

/// Whether a timer that never has any time left is armed, with a period that is shorter than
/// it takes to look at it: then it ticks.
fn is_ticking(fd: &OwnedFd, info: &dyn Fn() -> io::Result<Fields>) -> io::Result<bool> {
    const LOOKS: usize = 20;
    const BETWEEN: Duration = Duration::from_micros(200);
    let first = info()?.number("ticks");
    for _ in 0..LOOKS {
        std::thread::sleep(BETWEEN);
        let (left, _) = fd::timerfd_get(fd)?;
        if left > 0 || info()?.number("ticks") != first {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Armed for the instant at which it is due; what is past already is ticks.
/// Relative times on CLOCK_REALTIME pass like monotonic ones.
pub fn restore_timerfd(
    timeline: &Timeline,
    clock: i32,
    mut ticks: u64,
    settime_flags: i32,
    time: TimerValue,
) -> Result<OwnedFd> {
    /// `_IOW('T', 0, u64)` (Linux 3.17)
    const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;
    /// So often one may fall due just while it is being made.
    const TRIES: usize = 100;
    let failed = || "cannot make a timerfd";
    let made = fd::timerfd(clock, libc::TFD_CLOEXEC).or_fail(failed)?;
    let of_the_day = clock == libc::CLOCK_REALTIME && settime_flags & libc::TFD_TIMER_ABSTIME != 0;
    let now = || match clock {
        libc::CLOCK_BOOTTIME => Reading::now().boottime_ns,
        _ if of_the_day => Reading::now().realtime_ns,
        _ => clocks::monotonic_ns(),
    };
    let from = match clock {
        libc::CLOCK_BOOTTIME => timeline.freeze.boottime_ns,
        _ if of_the_day => timeline.app.realtime_ns,
        _ => timeline.freeze.monotonic_ns,
    };
    // It may be before this machine's clocks began.
    let mut due = (time.value_ns > 0).then(|| from.saturating_add_unsigned(time.value_ns));
    if due.is_none() && time.interval_ns > 0 {
        fd::timerfd_set(&made, 0, 0, time.interval_ns).or_fail(failed)?;
    }
    for _ in 0..TRIES {
        let is = now();
        if let Some(past) = due.filter(|due| *due <= is) {
            let missed = is.saturating_sub(past).unsigned_abs().checked_div(time.interval_ns);
            ticks = ticks.saturating_add(missed.unwrap_or(0).saturating_add(1));
            due = missed.map(|n| past.saturating_add_unsigned((n + 1).saturating_mul(time.interval_ns)));
        }
        // The order matters: arming sets the ticks to none.
        if let Some(due) = due {
            let relative = clock == libc::CLOCK_REALTIME && !of_the_day;
            let (flags, value_ns) = if relative {
                (0, due - is)
            } else {
                (libc::TFD_TIMER_ABSTIME, due)
            };
            let value_ns = value_ns.unsigned_abs();
            let flags = flags | settime_flags & libc::TFD_TIMER_CANCEL_ON_SET;
            fd::timerfd_set(&made, flags, value_ns, time.interval_ns).or_fail(failed)?;
        }
        if ticks > 0 {
            fd::ioctl_bytes(&made, TFD_IOC_SET_TICKS, &mut ticks.to_ne_bytes()).or_fail(failed)?;
        }
        if due.is_none_or(|due| ticks == 0 || now() < due) {
            break;
        }
    }
    Ok(made)
}

pub fn capture_signalfd(found: &Found) -> FileKind {
    FileKind::Signalfd {
        mask: found.info.hex("sigmask"),
    }
}

pub fn restore_signalfd(mask: u64) -> Result<OwnedFd> {
    fd::signalfd(mask, libc::SFD_CLOEXEC).or_fail(|| "cannot make a signalfd")
}

pub fn capture_pidfd(context: &Context<'_>, found: &Found) -> Result<FileKind, Refused> {
    let host = found.info.number("Pid").unwrap_or(-1) as i32;
    let is_thread = found.flags & task::PIDFD_THREAD != 0;
    let leader = || Fields::status(HostPid(host)).ok()?.number("Tgid");
    match context.virtual_pid(host) {
        Some(pid) => Ok(FileKind::Pidfd { pid }),
        None if is_thread && leader().is_some_and(|leader| context.virtual_pid(leader as i32).is_some()) => refused(
            format!("a pidfd of thread {host}, which is not the main one of its process"),
            "close it before the snapshot",
        ),
        None => refused(
            format!("a pidfd of process {host}, which is not of this app or has ended"),
            "close it before the snapshot",
        ),
    }
}

pub fn restore_pidfd(builder: &Builder<'_>, pid: VirtualPid, flags: i32) -> Result<OwnedFd> {
    let host: HostPid = *builder
        .processes
        .get(&pid)
        .ok_or_else(|| Error::failed(format!("cannot open a pidfd: process {pid} is not in the appshot")))?;
    let made = match flags & task::PIDFD_THREAD {
        0 => task::pidfd_open(host),
        _ => task::pidfd_open_thread(host),
    };
    let made = made.or_fail(|| format!("cannot open a pidfd of process {pid}"))?;
    debug_assert!(made.as_raw_fd() >= 0);
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_of_an_eventfd_is_found_out() {
        for semaphore in [false, true] {
            for count in [0, 1, 2, 12345, u64::MAX - 1] {
                let made = restore_eventfd(count, semaphore).unwrap();
                assert_eq!(is_semaphore(&made, count), Ok(semaphore), "{count}");
                let own = HostPid(std::process::id() as i32);
                let info = proc::text(own, &format!("fdinfo/{}", made.as_raw_fd())).unwrap();
                assert_eq!(Fields::new(info).hex("eventfd-count"), count, "{semaphore}");
            }
        }
    }
}
