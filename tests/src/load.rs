//! Requests without pause, each with the time that its answer took.

use crate::app::App;
use crate::clients::Ask;
use crate::judge::{Changes, Fingerprint, judge_untouched};
use crate::scenario::Server;
use crate::verdict::{PATIENCE, poll};
use anyhow::{Context, Result, anyhow, ensure};
use libsnap::target::{SnapshotOptions, TcpPolicy};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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

/// The original runs on, under load: no request fails, nothing is changed.
pub fn under_load(server: &Server<'_>, app: &App, shot: &Path) -> Result<()> {
    let load = Requests::of(server)?;
    let before = Fingerprint::take(app.top());
    let options = SnapshotOptions {
        leave_running: true,
        tcp: if load.is_some() {
            TcpPolicy::Close
        } else {
            TcpPolicy::Refuse
        },
        ..SnapshotOptions::default()
    };
    let taken = app
        .snapshot(shot, &options)
        .context("snapshot that leaves the app running");
    let untouched = judge_untouched(&before, &Fingerprint::take(app.top()), Changes::ALL);
    let served = load.map_or(Ok(()), Requests::finish);
    taken?;
    untouched?;
    served?;
    (server.use_it)().context("use of the original after its snapshot")
}

/// Requests without pause, from before the snapshot to after it.
#[derive(Debug)]
pub struct Requests {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    thread: JoinHandle<Result<()>>,
}

impl Requests {
    /// If it has such.
    pub fn of(server: &Server<'_>) -> Result<Option<Requests>> {
        let both = server.port.zip(server.request);
        both.map(|(port, request)| Requests::start(port, request)).transpose()
    }

    /// Returns when the first request has been answered.
    fn start(port: u16, request: fn(u16) -> Result<()>) -> Result<Requests> {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (asked, count) = (Arc::clone(&stop), Arc::clone(&served));
        let thread = std::thread::spawn(move || {
            while !asked.load(Ordering::SeqCst) {
                request(port).context("request under load")?;
                count.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
        let load = Requests { stop, served, thread };
        load.wait_for_another()?;
        Ok(load)
    }

    /// Until one more request has been answered, or one has failed.
    fn wait_for_another(&self) -> Result<()> {
        let start = self.served.load(Ordering::SeqCst);
        poll("requests to be served", PATIENCE, || {
            let more = self.served.load(Ordering::SeqCst) > start;
            Ok((more || self.thread.is_finished()).then_some(()))
        })
    }

    /// After further requests: did any fail?
    pub fn finish(self) -> Result<()> {
        let served = self.wait_for_another();
        self.stop.store(true, Ordering::SeqCst);
        self.thread
            .join()
            .map_err(|_| anyhow::anyhow!("the load panicked"))?
            .and(served)
    }
}
