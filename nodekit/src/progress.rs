//! What a person sees of a job that takes long.

use libsnap::error::Result;
use std::io::{IsTerminal, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Shorter jobs show nothing.
const PATIENCE: Duration = Duration::from_millis(500);

/// Runs `job`; what it tells is shown on one line of the terminal once the
/// patience is over. Not on a terminal, or when `quiet`: nothing is shown.
pub fn shown<T>(quiet: bool, job: impl FnOnce(&mut dyn FnMut(&str)) -> Result<T>) -> Result<T> {
    if quiet || !std::io::stderr().is_terminal() {
        return job(&mut |_| {});
    }
    std::thread::scope(|scope| {
        let (steps, told) = channel();
        scope.spawn(move || display(&told));
        // The sender goes with the closure: its end clears the line.
        let mut tell = move |step: &str| drop(steps.send(step.to_owned()));
        job(&mut tell)
    })
}

fn display(steps: &Receiver<String>) {
    let began = Instant::now();
    let mut step = String::new();
    loop {
        match steps.recv_timeout(PATIENCE.saturating_sub(began.elapsed())) {
            Ok(next) => step = next,
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
    line(&step);
    for step in steps {
        line(&step);
    }
    line("");
}

/// Replaces the line (CSI K clears what was there).
fn line(step: &str) {
    let _ = write!(std::io::stderr(), "\r\x1b[K{step}");
    let _ = std::io::stderr().flush();
}
