//! The other side of the books: what the node's processors did.

use libsnap::cgroup;
use libsnap::error::{Error, OrFail, Result};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use usage::record::{self, Moment};

/// Clock ticks of /proc a second (USER_HZ), on every x86-64.
const TICK_NS: u64 = 10_000_000;

/// Our programs, where they stand beside this one: what they use is the platform's.
const PLATFORM: [&str; 6] = ["snapd", "restored", "edgepointd", "perfd", "appshot", "restore"];
/// Of them, the one all of whose children are ours: the workers that take snapshots. Of the
/// others, apps are among them.
const HAS_WORKERS: &str = "snapd";

#[derive(Debug)]
pub struct Node {
    began_ns: u64,
    /// By process and its start: what it had used when it was last seen, in nanoseconds.
    seen: HashMap<(i32, u64), u64>,
    platform_ns: u64,
}

impl Node {
    pub fn new(began: Moment) -> Node {
        let mut node = Node {
            began_ns: began.boot_ns,
            seen: HashMap::new(),
            platform_ns: 0,
        };
        // What they used before is not of this account.
        node.platform();
        node.platform_ns = 0;
        node
    }

    /// What apps have used, and what was used for them before anybody asked for it: that is the
    /// platform's.
    pub fn look(&mut self, tenants_ns: u64, ahead_ns: u64) -> Result<record::Node> {
        let what = "/proc/stat";
        let text = std::fs::read_to_string(what).or_fail(|| format!("cannot read {what}"))?;
        let mut look = parse(&text).ok_or_else(|| Error::failed(format!("cannot understand {what}")))?;
        self.platform();
        (look.tenants_ns, look.platform_ns) = (tenants_ns, self.platform_ns + ahead_ns);
        if let Some(busy_ns) = cgroup::node_cpu_ns() {
            (look.busy_ns, look.is_exact) = (busy_ns, true);
        }
        Ok(look)
    }

    fn platform(&mut self) {
        let mut found = Vec::new();
        let beside = std::env::current_exe().ok();
        let beside = beside.as_deref().and_then(Path::parent);
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let exe = std::fs::read_link(entry.path().join("exe")).unwrap_or_default();
            let name = exe.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if exe.parent() != beside || !PLATFORM.contains(&name) {
                continue;
            }
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok();
            let Some(times) = stat.as_deref().and_then(times_of) else {
                continue;
            };
            found.push((pid, times, name == HAS_WORKERS));
        }
        // What its children use it is told of when it has waited for them.
        let parents: HashSet<i32> = found
            .iter()
            .filter(|(.., waits)| *waits)
            .map(|(pid, ..)| *pid)
            .collect();
        let mut now = HashMap::new();
        for (pid, times, waits) in found {
            if !parents.contains(&times.parent) {
                let children_ns = if waits { times.children_ns } else { 0 };
                now.insert((pid, times.start), cpu_ns(pid).unwrap_or(times.own_ns) + children_ns);
            }
        }
        let used = now.iter().map(|(process, ns)| {
            let began_after_us = process.1 * TICK_NS >= self.began_ns;
            let before = self.seen.get(process).copied();
            ns.saturating_sub(before.unwrap_or(if began_after_us { 0 } else { *ns }))
        });
        self.platform_ns += used.sum::<u64>();
        self.seen = now;
    }
}

/// What all threads of a process have used, those that have ended too: clock_getcpuclockid(3).
fn cpu_ns(pid: i32) -> Option<u64> {
    let time = clock_gettime(clock_getcpuclockid(Pid::from_raw(pid)).ok()?).ok()?;
    Some(u64::try_from(time.tv_sec()).ok()? * 1_000_000_000 + u64::try_from(time.tv_nsec()).ok()?)
}

/// Of /proc/PID/stat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    /// In program and kernel, to the tick.
    own_ns: u64,
    /// Of children that it has waited for, and theirs.
    children_ns: u64,
    /// When it began, in ticks.
    start: u64,
    parent: i32,
}

fn times_of(stat: &str) -> Option<Times> {
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Times {
        own_ns: (number(11)? + number(12)?) * TICK_NS,
        children_ns: (number(13)? + number(14)?) * TICK_NS,
        start: number(19)?,
        parent: i32::try_from(number(1)?).ok()?,
    })
}

fn parse(stat: &str) -> Option<record::Node> {
    let first = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = first.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guests are in user.
    let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = ticks[..] else {
        return None;
    };
    let is_cpu = |line: &&str| {
        line.strip_prefix("cpu")
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    Some(record::Node {
        cpus: stat.lines().filter(is_cpu).count() as u64,
        busy_ns: (user + nice + system + irq + softirq) * TICK_NS,
        idle_ns: (idle + iowait) * TICK_NS,
        steal_ns: steal * TICK_NS,
        ..record::Node::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_counters_are_read() {
        let text = "cpu  10 1 5 100 4 2 3 7 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\ncpu1 1 2 3 4 5 6 7 8 0 0\nintr 5\n";
        let node = parse(text).unwrap();
        assert_eq!((node.cpus, node.busy_ns / TICK_NS), (2, 21));
        assert_eq!((node.idle_ns / TICK_NS, node.steal_ns / TICK_NS), (104, 7));
        assert_eq!(parse("cpu 1 2"), None);
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 1 2 3 4 15 6 7 8 20 0 1 0 12345 99 1 18";
        let times = times_of(stat).unwrap();
        assert_eq!((times.own_ns, times.children_ns), (21 * TICK_NS, 15 * TICK_NS));
        assert_eq!((times.start, times.parent), (12345, 1));
        assert!(cpu_ns(std::process::id() as i32).unwrap() > 0);
    }
}
