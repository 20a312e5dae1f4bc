//! Owning an app: passing signals on, reaping it, writing down how it ended.

use crate::process;
use libsnap::error::{OrFail, Result};
use libsnap::store::{App, State, Store};
use nix::sys::signalfd::{SignalFd, siginfo};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getpgid, getpgrp};
use rustix::event::{PollFd, PollFlags, poll};
use std::os::fd::OwnedFd;

/// Waits for the app as its parent, passing on the signals that we get, and got
/// while it came up. Returns its exit code, 128 + N after signal N.
pub fn supervise(store: &Store, app: &App, signals: &SignalFd) -> Result<i32> {
    let child = process::open(app.child())?;
    while !ended_or_signalled(&child, signals)? {
        while let Ok(Some(signal)) = signals.read_signal() {
            forward(app, &signal);
        }
    }
    reap(store, app)
}

fn ended_or_signalled(child: &OwnedFd, signals: &SignalFd) -> Result<bool> {
    let mut fds = [PollFd::new(child, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
    match poll(&mut fds, None) {
        Err(rustix::io::Errno::INTR) => return Ok(false),
        polled => polled.or_fail(|| "cannot wait for the app")?,
    };
    Ok(!fds[0].revents().is_empty())
}

/// A signal of the terminal went to every process of its foreground group: an
/// app in that group has it already.
fn forward(app: &App, signal: &siginfo) {
    const SI_KERNEL: i32 = 0x80;
    let with_us = getpgid(Some(Pid::from_raw(app.root.0))) == Ok(getpgrp());
    if signal.ssi_code == SI_KERNEL && with_us {
        return;
    }
    // The app may just have ended: then there is nobody to tell.
    let _ = i32::try_from(signal.ssi_signo).map(|number| process::signal(app, number));
}

/// Waits for the app as its parent and writes down how it ended.
pub fn reap(store: &Store, app: &App) -> Result<i32> {
    let code = wait_child(app)?;
    finish(store, app, Some(code))?;
    Ok(code)
}

fn wait_child(app: &App) -> Result<i32> {
    loop {
        match waitpid(Pid::from_raw(app.child().0), None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => {
                return Err(errno).or_fail(|| format!("cannot wait for app {}", app.name));
            }
        }
    }
}

/// Writes down the end of an app and clears its cgroup away; `code` is unknown
/// when nobody of us was its parent.
///
/// A snapshot that ends the app notes the appshot in the record while it holds
/// the lock: its end is waited for. Where a later instance has taken the name
/// over, it has taken the cgroup over too.
pub fn finish(store: &Store, app: &App, code: Option<i32>) -> Result<Option<State>> {
    let ended_ns = libsnap::clocks::boottime_ns();
    let _busy = store.wait_lock(&app.name)?;
    let record = store.update(app, |app| app.exit = code)?;
    if let Some(record) = &record
        && let Err(error) = store.clear_cgroup(record, ended_ns)
    {
        tracing::warn!(app = app.name, %error, "the cgroup stays behind");
    }
    Ok(record.map(|app| app.state()))
}
