//! The record of one app, and what /proc says about it now.

use crate::cgroup;
use crate::error::{Error, Kind, Result};
use crate::ids::HostPid;
use crate::network::Joined;
use crate::target::{Hooks, Instance, Target};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// One app that was started or restored on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct App {
    pub name: String,
    /// A UUID that no other start, restore or clone has; empty in records of older versions.
    #[serde(default)]
    pub instance: String,
    /// The app's first process.
    pub root: HostPid,
    /// Field 22 of /proc/PID/stat: a number that is given out again is recognised.
    pub root_start_time: u64,
    pub init: Option<HostPid>,
    pub init_start_time: Option<u64>,
    pub cgroup: Option<PathBuf>,
    pub command: Vec<String>,
    pub started_unix_ms: u64,
    /// The same moment on CLOCK_BOOTTIME.
    #[serde(default)]
    pub started_boot_ns: u64,
    pub log: Option<PathBuf>,
    /// The appshot it was restored from.
    pub from: Option<PathBuf>,
    /// The process that reaps it and writes its exit here.
    pub supervisor: Option<HostPid>,
    /// Exit code, 128 + N after signal N.
    pub exit: Option<i32>,
    /// The appshot that a halting snapshot left behind.
    pub appshot: Option<PathBuf>,
    /// Why it was brought up, where that was said: `request`, `operator`, `recovery` ...
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cause: Option<String>,
    /// The network namespace that it was made to join.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub network: Option<Joined>,
    /// What its cgroup had counted when it began: it had been prepared before anybody asked for
    /// it, which is the platform's doing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ahead: Option<cgroup::Counters>,
    /// For how long it was brought up, from the request on until it ran.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub coming_ns: u64,
    /// Snapshots of it, by why they were taken.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub snapshots: BTreeMap<String, Taken>,
    /// What its owner wants it to be told.
    #[serde(skip_serializing_if = "Hooks::are_none", default)]
    pub hooks: Hooks,
}

/// Snapshots that were taken for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taken {
    pub count: u64,
    /// How long they took together, from the request to the sealed appshot.
    pub ns: u64,
}

/// More reasons than these are counted as [`OTHER_CAUSES`].
const CAUSES_MAX: usize = 16;
const OTHER_CAUSES: &str = "other";

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What an app does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Running,
    /// Alive, but held still.
    Frozen,
    /// No process: its state is in an appshot.
    Asleep,
    Exited,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Running => "running",
            State::Frozen => "frozen",
            State::Asleep => "asleep",
            State::Exited => "exited",
        })
    }
}

impl App {
    /// The record of an instance that has just come up under this process.
    pub fn of_instance(instance: &Instance, command: Vec<String>) -> Result<App> {
        Ok(App {
            name: instance.name.clone(),
            instance: crate::identity::uuid()?,
            root: instance.root,
            // An app may end at once: then no process has this start time any more.
            root_start_time: start_time(instance.root).unwrap_or_default(),
            init: instance.init,
            init_start_time: instance.init.and_then(start_time),
            cgroup: instance.cgroup.clone(),
            command,
            started_unix_ms: super::now_unix_ms()?,
            started_boot_ns: crate::clocks::boottime_ns(),
            log: None,
            from: None,
            supervisor: i32::try_from(std::process::id()).ok().map(HostPid),
            exit: None,
            appshot: None,
            cause: None,
            network: instance.network,
            ahead: instance.ahead,
            coming_ns: 0,
            snapshots: BTreeMap::new(),
            hooks: Hooks::default(),
        })
    }

    /// Notes a snapshot that took so long.
    pub fn was_taken(&mut self, cause: &str, took: Duration) {
        let is_known = self.snapshots.contains_key(cause) || self.snapshots.len() < CAUSES_MAX;
        let cause = if is_known { cause } else { OTHER_CAUSES };
        let taken = self.snapshots.entry(cause.to_owned()).or_default();
        taken.count += 1;
        taken.ns += u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    }

    /// The process whose end is the app's end: its init, or its first process.
    pub fn child(&self) -> HostPid {
        self.init.unwrap_or(self.root)
    }

    fn child_start_time(&self) -> Option<u64> {
        match self.init {
            Some(_) => self.init_start_time,
            None => Some(self.root_start_time),
        }
    }

    pub fn alive(&self) -> bool {
        self.exit.is_none() && is_same(self.child(), self.child_start_time())
    }

    /// Whether the app's first process is still there.
    pub fn root_alive(&self) -> bool {
        is_same(self.root, Some(self.root_start_time))
    }

    pub(super) fn has_pid(&self, pid: HostPid) -> bool {
        (pid == self.root || Some(pid) == self.init) && self.alive()
    }

    pub fn same_instance(&self, other: &App) -> bool {
        self.child() == other.child() && self.child_start_time() == other.child_start_time()
    }

    pub fn state(&self) -> State {
        if self.alive() {
            return match self.held() {
                true => State::Frozen,
                false => State::Running,
            };
        }
        match &self.appshot {
            Some(path) if path.exists() => State::Asleep,
            _ => State::Exited,
        }
    }

    /// Frozen by its cgroup, or stopped under a tracer.
    fn held(&self) -> bool {
        let frozen = self.cgroup.as_deref().is_some_and(cgroup::is_still);
        frozen || Stat::read(self.root).is_some_and(|stat| stat.state == 't')
    }

    /// What the engine acts on.
    pub fn target(&self) -> Result<Target> {
        if !self.alive() {
            let error = Error::new(Kind::Conflict, format!("app {} is not running", self.name));
            return Err(match self.state() {
                State::Asleep => error
                    .because("it is asleep in its appshot")
                    .fix(format!("wake it with `appshot restore {}`", self.name)),
                _ => error.because("it has exited"),
            });
        }
        Ok(Target::App {
            name: self.name.clone(),
            cgroup: self.cgroup.clone(),
            root: self.root,
            init: self.init,
            network: self.network.map(|network| network.inode),
        })
    }
}

/// Whether `pid` is alive and still the process that started then.
fn is_same(pid: HostPid, started: Option<u64>) -> bool {
    Stat::read(pid).is_some_and(|stat| stat.is_alive() && Some(stat.start_time) == started)
}

/// When a process started, in clock ticks since boot; `None` when it has ended.
pub fn start_time(pid: HostPid) -> Option<u64> {
    let stat = Stat::read(pid)?;
    stat.is_alive().then_some(stat.start_time)
}

/// The two fields of /proc/PID/stat that matter here.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    start_time: u64,
}

impl Stat {
    fn read(pid: HostPid) -> Option<Stat> {
        let text = crate::proc::read(format!("/proc/{pid}/stat")).ok()?;
        Stat::parse(&String::from_utf8_lossy(&text))
    }

    /// The name in field 2 may hold blanks and brackets: count from its last bracket.
    fn parse(text: &str) -> Option<Stat> {
        let mut fields = text.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?.chars().next()?;
        // 18 fields stand between the state (3) and the start time (22).
        let start_time = fields.nth(18)?.parse().ok()?;
        Some(Stat { state, start_time })
    }

    /// A zombie has ended: only its parent has not asked yet.
    fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_strange_names() {
        let text = "42 (a) b) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 99 1 18";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.start_time), ('S', 12345));
        assert_eq!(Stat::parse("42 (x) S 1"), None);
        assert_eq!(Stat::parse(""), None);
    }
}
