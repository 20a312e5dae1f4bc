//! The signals by which a person or service manager ends a program, taken as
//! events.

use libsnap::error::{OrFail, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::AsFd;

const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

fn ending() -> SigSet {
    ENDING.into_iter().collect()
}

/// Lets them through, whoever has blocked them: a mask is inherited.
pub fn unblock() -> Result<()> {
    ending().thread_unblock().or_fail(|| "cannot let signals through")
}

/// Blocks them for the calling thread, and the threads and processes that it
/// starts from now on; they are read from the descriptor, which does not wait.
pub fn block() -> Result<SignalFd> {
    let set = ending();
    set.thread_block().or_fail(|| "cannot block signals")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).or_fail(|| "cannot take signals")
}

/// Whether there is one to read.
pub fn waiting(signals: &SignalFd) -> bool {
    let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
