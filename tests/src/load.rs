//! Requests without pause, each with the time that its answer took.

use crate::clients::Ask;
use anyhow::{Context, Result, anyhow, ensure};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

/// Times of answers, in microseconds, ascending.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<u64>);

impl Latencies {
    pub fn new(mut micros: Vec<u64>) -> Latencies {
        micros.sort_unstable();
        Latencies(micros)
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The time within which this share (0 to 1) of all answers came.
    pub fn within(&self, share: f64) -> u64 {
        let last = self.0.len().saturating_sub(1);
        self.0.get((last as f64 * share).round() as usize).copied().unwrap_or(0)
    }
}

/// `52000 answers, median 0.11 ms, p99 0.80 ms, longest 12.3 ms`
impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [median, p99, longest] = [0.5, 0.99, 1.0].map(|share| self.within(share) as f64 / 1000.0);
        let count = self.count();
        write!(
            f,
            "{count} answers, median {median:.2} ms, p99 {p99:.2} ms, longest {longest:.1} ms"
        )
    }
}

/// Connections that all ask without pause.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Vec<u64>>>>,
}

impl Load {
    pub fn start(connections: Vec<Ask>) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = connections.into_iter().map(|ask| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || until(&stop, ask))
        });
        let threads = threads.collect();
        Load { stop, threads }
    }

    /// No request may have failed.
    pub fn finish(self) -> Result<Latencies> {
        self.stop.store(true, Ordering::SeqCst);
        let mut all = Vec::new();
        for thread in self.threads {
            all.extend(thread.join().map_err(|_| anyhow!("the load panicked"))??);
        }
        ensure!(!all.is_empty(), "not one answer");
        Ok(Latencies::new(all))
    }
}

fn until(stop: &AtomicBool, mut ask: Ask) -> Result<Vec<u64>> {
    let mut times = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let begin = Instant::now();
        ask().context("a request under load")?;
        times.push(u64::try_from(begin.elapsed().as_micros())?);
    }
    Ok(times)
}
