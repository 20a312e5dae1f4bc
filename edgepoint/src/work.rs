//! What an instance takes of the processors.

use libsnap::store::App;
use std::time::{Duration, Instant};

/// CPU time of an instance, looked at now and then.
#[derive(Debug)]
pub struct Work {
    at: Instant,
    cpu_ns: Option<u64>,
    share: f64,
    looks: u64,
}

impl Work {
    pub fn of(app: &App) -> Work {
        let group = app.cgroup.as_deref();
        Work {
            at: Instant::now(),
            cpu_ns: group.and_then(|group| libsnap::cgroup::cpu_ns(group).ok()),
            share: 0.0,
            looks: 0,
        }
    }

    /// What [`Work::share`] answered last.
    pub fn last(&self) -> f64 {
        self.share
    }

    /// Over how many times it has looked.
    pub fn looks(&self) -> u64 {
        self.looks
    }

    /// In percent of one processor, over a time that is at least so long; zero where it
    /// is not known.
    pub fn share(&mut self, app: &App, over: Duration) -> f64 {
        if self.at.elapsed() < over {
            return self.share;
        }
        let now = Work::of(app);
        let before = std::mem::replace(self, now);
        (self.share, self.looks) = (before.share, before.looks + 1);
        if let (Some(before_ns), Some(now_ns)) = (before.cpu_ns, self.cpu_ns) {
            let passed = self.at.duration_since(before.at).as_nanos().max(1);
            self.share = now_ns.saturating_sub(before_ns) as f64 * 100.0 / passed as f64;
        }
        self.share
    }
}
