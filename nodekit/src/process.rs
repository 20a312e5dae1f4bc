//! Processes that are not our children, held by pidfd.

use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::ids::HostPid;
use libsnap::store::App;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// A descriptor of a process that was there a moment ago; the caller checks
/// afterwards that it is the one it meant.
pub fn open(pid: HostPid) -> Result<OwnedFd> {
    let what = || format!("cannot reach process {pid}");
    let number = Pid::from_raw(pid.0).ok_or_else(|| Error::new(Kind::NotFound, what()))?;
    pidfd_open(number, PidfdFlags::empty()).map_err(|e| Error::new(Kind::NotFound, what()).because(e))
}

/// The process whose end is the app's.
pub fn open_child(app: &App) -> Result<OwnedFd> {
    open_of(app, app.child())
}

/// The app's own error where it does not run, before and after: the number may
/// have been given out again in between.
fn open_of(app: &App, pid: HostPid) -> Result<OwnedFd> {
    app.target()?;
    let process = open(pid);
    app.target()?;
    process
}

/// Sends a signal to the app's first process; SIGKILL ends all of the app at
/// once, through its init.
pub fn signal(app: &App, number: i32) -> Result<()> {
    let signal = Signal::from_named_raw(number)
        .ok_or_else(|| Error::new(Kind::Usage, format!("there is no signal {number}")))?;
    let process = match signal {
        Signal::KILL => open_child(app)?,
        _ => open_of(app, app.root)?,
    };
    if signal != Signal::KILL && !app.root_alive() {
        return Err(Error::new(
            Kind::Conflict,
            format!("the first process of app {} has ended", app.name),
        ));
    }
    pidfd_send_signal(&process, signal).or_fail(|| format!("cannot signal app {}", app.name))
}

/// Waits until the process has ended; `false` when the time was up before.
pub fn wait(process: &OwnedFd, limit: Option<Duration>) -> Result<bool> {
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    loop {
        let mut fds = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut fds, limit.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready.or_fail(|| "cannot wait for a process")? > 0),
        }
    }
}
