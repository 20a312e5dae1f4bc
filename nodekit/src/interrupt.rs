//! Ctrl-C while a worker works: it is asked to undo, and its answer awaited.

use crate::jobs::Job;
use crate::signals;
use crate::worker::Working;
use libsnap::error::Result;
use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, poll};
use serde::de::DeserializeOwned;

/// Like [`crate::worker::in_worker`], for a command in the hands of a person.
/// The first signal cancels, the second ends the command; the worker undoes in
/// either case.
pub fn in_worker<T: DeserializeOwned>(job: &Job, progress: &mut dyn FnMut(&str)) -> Result<T> {
    let signals = signals::block()?;
    let working = Working::start(job)?;
    let cancel = working.canceller();
    at_a_signal(signals, cancel);
    working.finish(progress)
}

/// Has the first signal give up what goes on, and the second end the command.
pub fn at_a_signal(signals: SignalFd, give_up: impl Fn() + Send + 'static) {
    std::thread::spawn(move || {
        next(&signals);
        eprintln!("stopping: waiting for the app to be as it was; once more to not wait");
        give_up();
        let number = next(&signals);
        std::process::exit(128 + number);
    });
}

/// Waits for a signal and tells its number.
fn next(signals: &SignalFd) -> i32 {
    loop {
        let mut fds = [PollFd::new(signals, PollFlags::IN)];
        let _ = poll(&mut fds, None);
        if let Ok(Some(signal)) = signals.read_signal() {
            return i32::try_from(signal.ssi_signo).unwrap_or_default();
        }
    }
}
