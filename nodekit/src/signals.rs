//! The signals by which a person or service manager ends a program, taken as
//! events.

use libsnap::error::{OrFail, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// Blocks them for the calling thread, and the threads and processes that it
/// starts from now on; they are read from the descriptor, which does not wait.
pub fn block() -> Result<SignalFd> {
    let mut set = SigSet::empty();
    ENDING.iter().for_each(|signal| set.add(*signal));
    set.thread_block().or_fail(|| "cannot block signals")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).or_fail(|| "cannot take signals")
}
