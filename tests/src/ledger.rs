//! What is counted after every cycle: none of it may grow, cycle by cycle.

use crate::judge::state_of;
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::fs;

/// Counts by what is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger(BTreeMap<String, u64>);

/// Of the app, which may itself ask for more.
const APP: [&str; 4] = ["app processes", "app descriptors", "app mappings", "app threads"];
/// Their sum over all cycles: how much more there was right after the restores
/// than right before the snapshots.
const ENGINE: [&str; 2] = ["descriptors by us", "mappings by us"];

impl Ledger {
    pub fn set(&mut self, what: &str, count: u64) {
        self.0.insert(what.to_owned(), count);
    }

    pub fn get(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// Sums over the processes of an app.
    pub fn of_app(pids: &[i32]) -> Ledger {
        let mut ledger = Ledger::default();
        let sum = |count: fn(i32) -> u64| pids.iter().map(|pid| count(*pid)).sum();
        for (what, count) in APP
            .into_iter()
            .zip([pids.len() as u64, sum(descriptors), sum(mappings), sum(threads)])
        {
            ledger.set(what, count);
        }
        ledger
    }

    pub fn of_daemon(&mut self, name: &str, pid: i32) {
        for (what, count) in [
            ("descriptors", descriptors(pid)),
            ("mappings", mappings(pid)),
            ("threads", threads(pid)),
            ("KiB", resident(pid)),
        ] {
            self.set(&format!("{name} {what}"), count);
        }
    }

    /// The sums up to the cycle before, and what this one had more after its restore
    /// than before its snapshot.
    pub fn add_engine(&mut self, last: Option<&Ledger>, before: &Ledger, after: &Ledger) {
        for (by_us, of_app) in ENGINE.into_iter().zip(["app descriptors", "app mappings"]) {
            // The first cycle is the warm-up.
            let sum = last.map_or(0, |last| last.get(by_us) + after.get(of_app));
            self.set(by_us, sum.saturating_sub(last.map_or(0, |_| before.get(of_app))));
        }
    }

    /// An app that grows by itself: what is counted of it says nothing.
    pub fn forgive_the_app(&mut self) {
        for what in APP {
            self.0.remove(what);
        }
    }

    /// An app that opens and maps by itself, also between two looks: what was ours
    /// would show once a cycle.
    pub fn allow_the_engine(&mut self, count: u64) {
        for by_us in ENGINE {
            self.set(by_us, self.get(by_us) + count);
        }
    }

    /// An app that forks all the time: it is never twice the same.
    pub fn forgive_the_engine(&mut self) {
        for by_us in ENGINE {
            self.0.remove(by_us);
        }
    }

    fn growth<'a>(&'a self, first: &'a Ledger) -> impl Iterator<Item = (&'a str, u64, u64)> {
        let counts = self
            .0
            .iter()
            .filter_map(|(what, now)| Some((what, *first.0.get(what)?, *now)));
        counts
            .filter(|(what, was, now)| *now > was + slack(what))
            .map(|(what, was, now)| (what.as_str(), was, now))
    }

    pub fn at_rest_since(&self, first: &Ledger) -> bool {
        self.growth(first).next().is_none()
    }

    pub fn judge_since(&self, first: &Ledger) -> Result<()> {
        let grown: Vec<String> = self
            .growth(first)
            .map(|(what, was, now)| format!("{what}: {was}, now {now}"))
            .collect();
        if grown.is_empty() {
            return Ok(());
        }
        bail!("something leaks: {}", grown.join("; "))
    }

    /// `files 14; snapd KiB 8120 > 8308`
    pub fn told_since(&self, first: &Ledger) -> String {
        let one = |(what, now): (&String, &u64)| match first.get(what) {
            was if was == *now => format!("{what} {now}"),
            was => format!("{what} {was} > {now}"),
        };
        self.0.iter().map(one).collect::<Vec<_>>().join("; ")
    }
}

/// What a process may have more of without a leak: an allocator takes another
/// arena, a runtime starts a thread of its pool.
fn slack(what: &str) -> u64 {
    match what.rsplit(' ').next() {
        // It keeps verified leaves, working sets and the buffers they were written from:
        // as much after 10 cycles as after 3.
        Some("KiB") if what.starts_with("restored") => 128 << 10,
        // Each arena of the allocator keeps a buffer of 1 MiB or two, once.
        Some("KiB") => 4096,
        // Of children that came and went since.
        Some("notes") => 8,
        _ if what.contains("d mappings") => 16,
        _ if what.contains("d threads") => 2,
        _ => 0,
    }
}

/// All processes of this host.
pub fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Children of these processes that nobody has waited for.
pub fn dead_below(parents: &[i32]) -> usize {
    let dead = |pid: &i32| state_of(*pid).is_some_and(|(state, ppid)| state == "Z" && parents.contains(&ppid));
    pids().iter().filter(|pid| dead(pid)).count()
}

fn entries(dir: &str) -> u64 {
    fs::read_dir(dir).map_or(0, |entries| entries.count() as u64)
}

/// An init has some as long as memory is still to come: they are none of the app's.
fn descriptors(pid: i32) -> u64 {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if comm.trim() == "appshot-init" {
        return 0;
    }
    entries(&format!("/proc/{pid}/fd"))
}

fn threads(pid: i32) -> u64 {
    entries(&format!("/proc/{pid}/task"))
}

fn mappings(pid: i32) -> u64 {
    fs::read_to_string(format!("/proc/{pid}/maps")).map_or(0, |maps| maps.lines().count() as u64)
}

/// VmRSS.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
