//! The threads that serve clients.
//!
//! Each has a reactor of its own, the clients that were given to it in turn, and connections
//! of its own to the apps: nothing of a request goes from one processor to another, which
//! would take longer than the request. Who has few clients has few threads that do anything.

use libsnap::error::{OrFail, Result};
use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

thread_local! {
    static HERE: Cell<usize> = const { Cell::new(0) };
}

/// The number of the thread that asks, below [`count`].
pub fn here() -> usize {
    HERE.get()
}

/// As many as there are processors.
pub fn count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
}

/// Dropped, they end, and what they serve is cut.
#[derive(Debug)]
pub struct Workers {
    handles: Vec<Handle>,
    next: AtomicUsize,
    _alive: watch::Sender<()>,
}

impl Workers {
    pub fn begin() -> Result<Workers> {
        let what = || "cannot start threads for HTTP";
        let (alive, ended) = watch::channel(());
        let mut handles = Vec::with_capacity(count());
        for number in 0..count() {
            let runtime = Builder::new_current_thread().enable_all().build().or_fail(what)?;
            handles.push(runtime.handle().clone());
            let mut ended = ended.clone();
            let live = move || {
                HERE.set(number);
                // Nothing is ever sent: it is closed.
                let _ = runtime.block_on(ended.changed());
                runtime.shutdown_background();
            };
            let thread = thread::Builder::new().name(format!("http-{number}"));
            thread.spawn(live).or_fail(what)?;
        }
        Ok(Workers {
            handles,
            next: AtomicUsize::new(0),
            _alive: alive,
        })
    }

    /// The one whose turn it is to get a client.
    pub fn next(&self) -> &Handle {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        &self.handles[next % self.handles.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_turn_and_a_number() {
        let workers = Workers::begin().unwrap();
        let mut seen: Vec<usize> = (0..2 * count())
            .map(|_| {
                let (told, number) = std::sync::mpsc::channel();
                workers.next().spawn(async move { told.send(here()) });
                number.recv().unwrap()
            })
            .collect();
        seen.sort_unstable();
        let twice: Vec<usize> = (0..count()).flat_map(|number| [number, number]).collect();
        assert_eq!(seen, twice);
        assert_eq!(here(), 0);
    }
}
