//! Memory of an instance, and what it comes to over time.

use super::SEEN_NS;
use libsnap::cgroup;
use libsnap::ids::HostPid;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use usage::record::{Counters, Source};

/// The sum of all processes' proportional set sizes is read at least so often, ...
const STALE_NS: u64 = 15_000_000_000;
/// ... where others came or went meanwhile that may share it.
const SHARED_NS: u64 = 5_000_000_000;

/// A process of so many pages at most is as large as it was while they are as many.
const SMALL_PAGES: u64 = 16;

/// Of so many processes of an instance a file stays open: to find it takes longer than to read it.
const OPEN_MAX: usize = 8;

/// What is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    pub cgroup: &'a Path,
    pub source: Source,
    pub processes: &'a [HostPid],
    /// One that is as it was if it was small.
    pub rests: Option<HostPid>,
    /// When another instance came or went.
    pub others_ns: u64,
}

/// What was seen last.
#[derive(Debug, Default)]
pub struct Memory {
    at_ns: u64,
    bytes: Option<u64>,
    /// What the processes had resident, and when their proportional size was read.
    resident: u64,
    exact_at_ns: u64,
    open: Vec<(HostPid, File)>,
    /// Resident pages and proportional set size of those that are small.
    small: Vec<(HostPid, u64, u64)>,
}

impl Memory {
    /// Nothing is known before `at_ns`, but that there was none then.
    pub fn from_nothing(at_ns: u64) -> Memory {
        Memory {
            at_ns,
            bytes: Some(0),
            ..Memory::default()
        }
    }

    /// Nothing is known.
    pub fn unknown(at_ns: u64) -> Memory {
        Memory {
            at_ns,
            ..Memory::default()
        }
    }

    /// Looks, and counts what was held since the last look: a line from then to now.
    pub fn look(&mut self, of: &Seen<'_>, at_ns: u64, counters: &mut Counters) {
        let charged = match of.source {
            Source::Proc => None,
            _ => cgroup::charged_bytes(of.cgroup),
        };
        let bytes = Some(charged.unwrap_or_else(|| self.proportional(of, at_ns)));
        let (Some(before), Some(now)) = (self.bytes, bytes) else {
            counters.unseen_ns += at_ns.saturating_sub(self.at_ns);
            (self.at_ns, self.bytes) = (at_ns, bytes);
            return;
        };
        self.count(before, now, at_ns, counters);
        self.bytes = bytes;
    }

    /// What was seen last.
    pub fn bytes(&self) -> Option<u64> {
        self.bytes
    }

    /// What it held when it was looked at last it has held until then.
    pub fn stay(&mut self, at_ns: u64, counters: &mut Counters) {
        match self.bytes {
            Some(bytes) => self.count(bytes, bytes, at_ns, counters),
            None => counters.unseen_ns += at_ns.saturating_sub(self.at_ns),
        }
    }

    fn count(&mut self, before: u64, now: u64, at_ns: u64, counters: &mut Counters) {
        let passed = at_ns.saturating_sub(self.at_ns);
        self.at_ns = self.at_ns.max(at_ns);
        if passed > SEEN_NS {
            counters.unseen_ns += passed;
            return;
        }
        counters.memory_byte_ns += (u128::from(before) + u128::from(now)) * u128::from(passed) / 2;
        counters.memory_peak = counters.memory_peak.max(before).max(now);
    }

    /// The sum of proportional set sizes. That walks all page tables, so it is asked for only
    /// when what is resident has changed, or after a while, as others may share it by now.
    fn proportional(&mut self, of: &Seen<'_>, at_ns: u64) -> u64 {
        let Seen { processes, rests, .. } = *of;
        self.open.retain(|(pid, _)| processes.contains(pid));
        self.small.retain(|(pid, ..)| processes.contains(pid));
        let pages: Vec<(HostPid, u64)> = processes
            .iter()
            .filter_map(|pid| Some((*pid, self.resident(*pid, rests == Some(*pid))?)))
            .collect();
        let resident = pages.iter().map(|(_, pages)| pages).sum();
        let others_came = of.others_ns >= self.exact_at_ns;
        let lasts = if others_came { SHARED_NS } else { STALE_NS };
        let is_fresh = at_ns.saturating_sub(self.exact_at_ns) < lasts;
        if let Some(bytes) = self.bytes.filter(|_| is_fresh && resident == self.resident) {
            return bytes;
        }
        (self.resident, self.exact_at_ns) = (resident, at_ns);
        // One that ends meanwhile holds nothing any more.
        pages
            .into_iter()
            .filter_map(|(pid, pages)| self.exact(pid, pages))
            .sum()
    }

    fn exact(&mut self, pid: HostPid, pages: u64) -> Option<u64> {
        if let Some((.., bytes)) = self.small.iter().find(|(of, had, _)| (*of, *had) == (pid, pages)) {
            return Some(*bytes);
        }
        let bytes = cgroup::pss_bytes(pid)?;
        self.small.retain(|(of, ..)| *of != pid);
        if pages <= SMALL_PAGES {
            self.small.push((pid, pages, bytes));
        }
        Some(bytes)
    }

    /// Pages that are resident.
    fn resident(&mut self, pid: HostPid, rests: bool) -> Option<u64> {
        if let Some((_, pages, _)) = self.small.iter().find(|(of, ..)| rests && *of == pid) {
            return Some(*pages);
        }
        let open = self.open.iter().find(|(of, _)| *of == pid);
        if let Some(pages) = open.and_then(|(_, file)| pages(file)) {
            return Some(pages);
        }
        // Another has its number, or it is new.
        self.open.retain(|(of, _)| *of != pid);
        let file = File::open(format!("/proc/{pid}/statm")).ok()?;
        let pages = pages(&file);
        if self.open.len() < OPEN_MAX {
            self.open.push((pid, file));
        }
        pages
    }
}

/// Resident pages by `/proc/PID/statm`. None of a process that has ended: whoever has its number
/// by now has another file.
fn pages(statm: &File) -> Option<u64> {
    // Seven numbers.
    let mut bytes = [0; 160];
    let length = statm.read_at(&mut bytes, 0).ok()?;
    let text = std::str::from_utf8(&bytes[..length]).ok()?;
    text.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_where_it_was_seen() {
        let mut counters = Counters::default();
        let mut memory = Memory::from_nothing(0);
        memory.count(0, 100, 10, &mut counters);
        memory.bytes = Some(100);
        memory.count(100, 100, 30, &mut counters);
        assert_eq!(counters.memory_byte_ns, 500 + 2000);
        memory.stay(40, &mut counters);
        assert_eq!((counters.memory_byte_ns, counters.memory_peak), (3500, 100));
        // Nobody looked for longer than that.
        memory.stay(41 + SEEN_NS, &mut counters);
        assert_eq!((counters.memory_byte_ns, counters.unseen_ns), (3500, SEEN_NS + 1));
        let mut memory = Memory::unknown(0);
        memory.stay(7, &mut counters);
        assert_eq!(counters.unseen_ns, SEEN_NS + 8);
    }
}
