//! eventfd(2), timerfd_create(2), signalfd(2), pidfd_open(2): read from
//! `/proc/PID/fdinfo`, made again by their own calls.
//!
//! Refused: timerfds on CPU-time clocks, pidfds of processes outside the app.

use super::{Builder, Context, Found, Refused, refused};
use crate::error::{Error, OrFail, Result};
use crate::ids::{HostPid, VirtualPid};
use crate::image::records::{FileKind, TimerValue};
use crate::sys::{fd, task};
use std::os::fd::{AsRawFd, OwnedFd};

pub fn capture_eventfd(found: &Found) -> FileKind {
    FileKind::Eventfd {
        count: found.info.hex("eventfd-count"),
        semaphore: found.info.number("eventfd-semaphore") == Some(1),
    }
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

pub fn capture_timerfd(found: &Found) -> Result<FileKind, Refused> {
    let clock = found.info.number("clockid").unwrap_or(-1) as i32;
    // `it_value: (seconds, nanoseconds)`
    let time = |key: &str| -> u64 {
        let text = found.info.get(key).unwrap_or("(0, 0)").trim_matches(['(', ')']);
        let (seconds, nanos) = text.split_once(',').unwrap_or(("0", "0"));
        let number = |t: &str| t.trim().parse::<u64>().unwrap_or(0);
        number(seconds) * 1_000_000_000 + number(nanos)
    };
    if ![libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME].contains(&clock) {
        return refused(
            format!("a timerfd on clock {clock}"),
            "use CLOCK_MONOTONIC, CLOCK_BOOTTIME or CLOCK_REALTIME",
        );
    }
    Ok(FileKind::Timerfd {
        clock,
        ticks: found.info.number("ticks").unwrap_or(0) as u64,
        settime_flags: found.info.octal("settime flags") as i32,
        time: TimerValue {
            interval_ns: time("it_interval"),
            value_ns: time("it_value"),
        },
    })
}

pub fn restore_timerfd(clock: i32, ticks: u64, settime_flags: i32, time: TimerValue) -> Result<OwnedFd> {
    /// `_IOW('T', 0, u64)` (Linux 3.17)
    const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;
    let failed = || "cannot make a timerfd";
    let made = fd::timerfd(clock, libc::TFD_CLOEXEC).or_fail(failed)?;
    if time.value_ns > 0 {
        // The time left is relative whatever the timer was set with.
        let cancel = settime_flags & libc::TFD_TIMER_CANCEL_ON_SET;
        fd::timerfd_set(&made, cancel, time.value_ns, time.interval_ns).or_fail(failed)?;
    }
    if ticks > 0 {
        fd::ioctl_bytes(&made, TFD_IOC_SET_TICKS, &mut ticks.to_ne_bytes()).or_fail(failed)?;
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
    match context.virtual_pid(host) {
        Some(pid) => Ok(FileKind::Pidfd { pid }),
        None => refused(
            format!("a pidfd of process {host}, which is not of this app or has ended"),
            "close it before the snapshot",
        ),
    }
}

pub fn restore_pidfd(builder: &Builder<'_>, pid: VirtualPid) -> Result<OwnedFd> {
    let host: HostPid = *builder
        .processes
        .get(&pid)
        .ok_or_else(|| Error::failed(format!("cannot open a pidfd: process {pid} is not in the appshot")))?;
    let made = task::pidfd_open(host).or_fail(|| format!("cannot open a pidfd of process {pid}"))?;
    debug_assert!(made.as_raw_fd() >= 0);
    Ok(made)
}
