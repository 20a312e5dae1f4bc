//! The instances that are metered, from their begin to their last reading.

use super::memory::{Memory, Seen};
use super::owners::Owners;
use super::{FIRST_NS, LOOK_NS, SECOND_NS};
use libsnap::cgroup;
use libsnap::error::Result;
use libsnap::ids::HostPid;
use libsnap::network::{Joined, Traffic};
use libsnap::proc;
use libsnap::store::{App, Reading, State as AppState, Store, Taken};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use usage::ledger::Ledger;
use usage::record::{Account, AccountKind, Body, Counters, End, Gap, Moment, Snapshots, Source, State, Use};

/// An instance that was found so late had a past that nobody has seen. What is found sooner
/// is taken to have got its memory evenly until then.
const LATE_NS: u64 = SECOND_NS / 4;
/// Where nothing of an instance runs it is as it was; it is looked at as a whole so often all the same.
const WHOLE_NS: u64 = 5 * SECOND_NS;
/// How long a last reading is waited for when the cgroup is gone.
const PATIENCE_NS: u64 = 5 * SECOND_NS;

#[derive(Debug)]
pub struct Instances {
    live: BTreeMap<String, Live>,
    /// Open in the ledger, and not there; since when.
    missed: BTreeMap<String, u64>,
    /// When the meter began; what began later began with nothing.
    began_ns: u64,
    tenants_ns: u64,
    ahead_ns: u64,
    /// When one came or went.
    changed_ns: u64,
}

#[derive(Debug)]
struct Live {
    app: App,
    counters: Counters,
    /// As the ledger has them.
    told: Counters,
    snapshots: BTreeMap<String, Taken>,
    state: State,
    source: Source,
    memory: Memory,
    look_at: u64,
    pause_ns: u64,
    group: Option<cgroup::Watched>,
    /// What goes through the devices of a network that it has joined.
    traffic: Option<File>,
    /// The processor's counters when it was looked at last, and when it was looked at as a whole.
    whole: (Option<cgroup::Counters>, u64),
    /// Nothing had changed by then.
    rests: bool,
    /// Of its CPU time, what is in the sum over all.
    summed_ns: u64,
    /// Since when it is not alive any more.
    gone_since: Option<u64>,
}

impl Instances {
    pub fn new(began: Moment) -> Instances {
        Instances {
            live: BTreeMap::new(),
            missed: BTreeMap::new(),
            began_ns: began.boot_ns,
            tenants_ns: 0,
            ahead_ns: 0,
            changed_ns: began.boot_ns,
        }
    }

    /// CPU time that all of them used since the meter began.
    pub fn tenants_ns(&self) -> u64 {
        self.tenants_ns
    }

    /// CPU time that those that began since then had used before anybody asked for them.
    pub fn ahead_ns(&self) -> u64 {
        self.ahead_ns
    }

    /// Whether the last look has found it.
    pub fn has(&self, app: &App) -> bool {
        self.live.get(&app.instance).is_some_and(Live::is_seen)
    }

    /// When the next one is to be looked at.
    pub fn due(&self) -> u64 {
        let due = self.live.values().filter(|live| live.gone_since.is_none());
        due.map(|live| live.look_at).min().unwrap_or(u64::MAX)
    }

    /// Takes up instances that are new, and lets go of those whose place another has taken.
    /// Answers what there is.
    pub fn follow(&mut self, store: &Store, owners: &Owners, ledger: &mut Ledger, at: Moment) -> Result<Vec<App>> {
        let apps = store.list()?;
        for app in &apps {
            if let Some(live) = self.live.get_mut(&app.instance) {
                live.heard(app);
                continue;
            }
            if app.instance.is_empty() || !app.alive() {
                continue;
            }
            let live = open(app, store, owners, ledger, at, self.began_ns);
            if app.started_boot_ns >= self.began_ns {
                self.ahead_ns += app.ahead.unwrap_or_default().cpu_ns;
            }
            self.live.insert(app.instance.clone(), live);
            self.changed_ns = at.boot_ns;
        }
        // Those in a cgroup are seen to be there at each look.
        let alive = apps.iter().filter(|app| self.has(app) || app.alive());
        let alive: BTreeSet<&String> = alive.map(|app| &app.instance).collect();
        for (id, live) in &mut self.live {
            if !alive.contains(id) {
                live.gone_since.get_or_insert(at.boot_ns);
            }
        }
        Ok(apps)
    }

    /// Looks at those that are due, or at all.
    pub fn look(&mut self, at: Moment, all: bool) {
        let there = self.live.values_mut().filter(|live| live.gone_since.is_none());
        for live in there.filter(|live| all || live.look_at <= at.boot_ns) {
            self.tenants_ns += live.look(self.changed_ns);
        }
    }

    /// Writes down what has changed.
    pub fn tell(&mut self, ledger: &mut Ledger, at: Moment) {
        for (id, live) in &mut self.live {
            live.tell_snapshots(id, ledger, at);
            if live.counters != live.told {
                live.told = live.counters;
                ledger.append(
                    at,
                    Body::Use(Use {
                        id: id.clone(),
                        state: live.state,
                        counters: live.counters,
                    }),
                );
            }
        }
    }

    /// Closes the accounts of those that have ended, by their last readings; answers the
    /// readings, to be removed once the ledger is on the disk.
    pub fn end(&mut self, store: &Store, owners: &Owners, ledger: &mut Ledger, at: Moment) -> Result<Vec<Reading>> {
        self.miss(ledger, at);
        // Looked at before the readings: who removes a cgroup has left one by then.
        let lost: Vec<String> = self.lost(at);
        let readings = store.readings()?;
        for reading in &readings {
            self.settle(reading, store, owners, ledger, at);
        }
        for id in lost {
            self.live.remove(&id);
            self.missed.remove(&id);
            if let Some(counters) = ledger.books().get(&id).map(|book| book.counters) {
                lose(&id, counters, ledger, at);
            }
        }
        Ok(readings)
    }

    /// Notes accounts that the ledger has open, of instances that are not there: they ended
    /// while the meter was down, or the machine did.
    fn miss(&mut self, ledger: &Ledger, at: Moment) {
        for Account { id, kind, .. } in ledger.books().began() {
            if is_instance(*kind) && !self.live.contains_key(id) && !self.missed.contains_key(id) {
                self.missed.insert(id.clone(), at.boot_ns);
            }
        }
    }

    /// Of those that are gone, the ones whose last readings were waited for long enough.
    fn lost(&self, at: Moment) -> Vec<String> {
        let is_over = |since: u64| at.boot_ns.saturating_sub(since) > PATIENCE_NS;
        let live = self.live.iter().filter(|(_, live)| live.is_cleared());
        let live = live.filter_map(|(id, live)| live.gone_since.filter(|since| is_over(*since)).map(|_| id));
        let missed = self
            .missed
            .iter()
            .filter(|(_, since)| is_over(**since))
            .map(|(id, _)| id);
        live.chain(missed).cloned().collect()
    }

    fn settle(&mut self, reading: &Reading, store: &Store, owners: &Owners, ledger: &mut Ledger, at: Moment) {
        let app = &reading.app;
        let id = app.instance.clone();
        let is_open = ledger.books().get(&id).is_some();
        if ledger.has_ended(&id) {
            // Only the removal of the reading was not come to.
            return;
        }
        self.missed.remove(&id);
        self.changed_ns = at.boot_ns;
        let mut live = self.live.remove(&id).unwrap_or_else(|| {
            let live = open(app, store, owners, ledger, at, self.began_ns);
            let memory = Memory::unknown(app.started_boot_ns + live.counters.running_ns);
            Live { memory, ..live }
        });
        live.heard(app);
        live.tell_snapshots(&id, ledger, at);
        live.memory.stay(reading.boot_ns, &mut live.counters);
        live.take(&reading.counters);
        live.passed(reading.traffic.unwrap_or_default());
        live.counters.running_ns = live
            .counters
            .running_ns
            .max(reading.boot_ns.saturating_sub(app.started_boot_ns));
        self.tenants_ns += live.sum();
        if !is_open && live.counters.unseen_ns > 0 {
            gap(
                &id,
                live.counters.unseen_ns,
                "it had ended before the meter saw it",
                ledger,
                at,
            );
        }
        let state = match app.appshot.as_deref().is_some_and(Path::exists) {
            true => State::Asleep,
            false => State::Exited,
        };
        // It is billed for when it was, not for when that was heard of.
        let unix_ms = reading.unix_ms.min(at.unix_ms);
        let end = End {
            id,
            state,
            counters: live.counters,
        };
        let boot_ns = at.boot_ns;
        ledger.append(Moment { boot_ns, unix_ms }, Body::End(end));
    }
}

fn is_instance(kind: AccountKind) -> bool {
    matches!(kind, AccountKind::Started | AccountKind::Restored)
}

fn lose(id: &str, counters: Counters, ledger: &mut Ledger, at: Moment) {
    gap(id, 0, "it is gone, and nobody has left its last counters", ledger, at);
    let end = End {
        id: id.to_owned(),
        state: State::Lost,
        counters,
    };
    ledger.append(at, Body::End(end));
}

fn gap(id: &str, ns: u64, reason: &str, ledger: &mut Ledger, at: Moment) {
    let gap = Gap {
        id: Some(id.to_owned()),
        ns: (ns > 0).then_some(ns),
        reason: reason.to_owned(),
    };
    ledger.append(at, Body::Gap(gap));
}

/// Takes up an instance: with what the ledger has of it, or with nothing.
fn open(app: &App, store: &Store, owners: &Owners, ledger: &mut Ledger, at: Moment, meter_began_ns: u64) -> Live {
    let id = &app.instance;
    let resumed = ledger.books().get(id).map(|book| book.counters);
    let age_ns = at.boot_ns.saturating_sub(app.started_boot_ns);
    let memory = match resumed {
        None if age_ns <= LATE_NS => Memory::from_nothing(app.started_boot_ns),
        None => Memory::unknown(app.started_boot_ns),
        // Between the last record and now.
        Some(counters) => Memory::unknown(app.started_boot_ns + counters.running_ns),
    };
    let counters = resumed.unwrap_or_else(|| match app.from {
        Some(_) => Counters {
            restores: 1,
            restoring_ns: app.coming_ns,
            ..Counters::default()
        },
        None => Counters {
            starting_ns: app.coming_ns,
            ..Counters::default()
        },
    });
    if resumed.is_none() {
        ledger.append(
            at,
            Body::Account(Box::new(account(app, store, owners, ledger.boot_id(), counters))),
        );
    }
    let unseen = match resumed {
        None if app.alive() && age_ns > LATE_NS => Some((age_ns, "it ran before the meter began")),
        Some(counters) if app.alive() => {
            let missed = age_ns.saturating_sub(counters.running_ns);
            Some((
                missed,
                "the meter was down: memory was not seen, CPU time was counted by the kernel",
            ))
        }
        _ => None,
    };
    if let Some((ns, reason)) = unseen {
        gap(id, ns, reason, ledger, at);
    }
    // What it used before the meter began is not in the node's sum.
    let summed_ns = match (resumed, app.started_boot_ns < meter_began_ns) {
        (None, false) => 0,
        _ => app
            .cgroup
            .as_deref()
            .and_then(|group| cgroup::processor_counters(group).ok())
            .map_or(u64::MAX, |read| read.since(app.ahead.unwrap_or_default()).cpu_ns),
    };
    let mut live = Live {
        app: app.clone(),
        counters,
        told: counters,
        snapshots: BTreeMap::new(),
        state: State::Running,
        source: source(app.cgroup.as_deref()),
        memory,
        look_at: at.boot_ns,
        pause_ns: FIRST_NS,
        group: app.cgroup.as_deref().map(cgroup::Watched::new),
        traffic: app.network.and_then(|joined| traffic_of(app, joined)),
        whole: (None, 0),
        rests: false,
        summed_ns,
        gone_since: None,
    };
    live.heard(app);
    live
}

/// Of the network that it is in, as long as it is the one that it has joined.
fn traffic_of(app: &App, joined: Joined) -> Option<File> {
    let root = format!("/proc/{}", app.root);
    let file = File::open(format!("{root}/net/dev")).ok()?;
    let inode = std::fs::metadata(format!("{root}/ns/net")).ok()?.ino();
    (inode == joined.inode && app.root_alive()).then_some(file)
}

fn account(app: &App, store: &Store, owners: &Owners, boot_id: &str, counters: Counters) -> Account {
    let of = owners.app_of(app, store);
    Account {
        id: app.instance.clone(),
        provider: owners.provider(&of).to_owned(),
        app: of,
        kind: match app.from {
            Some(_) => AccountKind::Restored,
            None => AccountKind::Started,
        },
        name: app.name.clone(),
        boot_id: boot_id.to_owned(),
        began_boot_ns: app.started_boot_ns,
        began_unix_ms: app.started_unix_ms,
        source: source(app.cgroup.as_deref()),
        cause: app.cause.clone(),
        state: State::Running,
        counters,
    }
}

fn source(cgroup: Option<&Path>) -> Source {
    match cgroup.is_some() && !cgroup::is_v2() {
        true => Source::CgroupV1,
        false => Source::Proc,
    }
}

impl Live {
    /// Takes over what its record tells of snapshots.
    fn heard(&mut self, app: &App) {
        if self.app.snapshots != app.snapshots {
            self.app.snapshots.clone_from(&app.snapshots);
        }
        let taken = self.app.snapshots.values();
        let (count, ns) = taken.fold((0, 0), |(count, ns), of| (count + of.count, ns + of.ns));
        self.counters.snapshots = self.counters.snapshots.max(count);
        self.counters.snapshotting_ns = self.counters.snapshotting_ns.max(ns);
    }

    fn tell_snapshots(&mut self, id: &str, ledger: &mut Ledger, at: Moment) {
        if self.snapshots != self.app.snapshots {
            self.snapshots.clone_from(&self.app.snapshots);
            let (id, causes) = (id.to_owned(), self.snapshots.clone());
            ledger.append(at, Body::Snapshots(Snapshots { id, causes }));
        }
    }

    /// Answers by how much its CPU time has risen.
    fn look(&mut self, others_ns: u64) -> u64 {
        let now = libsnap::clocks::boottime_ns();
        self.look_at = now + self.pause_ns;
        self.pause_ns = (self.pause_ns * 2).min(LOOK_NS);
        if let Some(group) = self.group.take() {
            let is_there = self.look_at(&group, others_ns, now);
            self.group = Some(group);
            if !is_there {
                return 0;
            }
        }
        self.count_traffic();
        let running_ns = now.saturating_sub(self.app.started_boot_ns);
        self.counters.running_ns = self.counters.running_ns.max(running_ns);
        self.sum()
    }

    /// What it has received and sent since it has joined its network; never less than before.
    fn count_traffic(&mut self) {
        let Some((file, joined)) = self.traffic.as_ref().zip(self.app.network) else {
            return;
        };
        // Another may have joined it when this one has ended.
        if let (Ok(text), true) = (proc::read_again(file), self.app.alive()) {
            self.passed(Traffic::parse(&text).since(joined.before));
        }
    }

    fn passed(&mut self, traffic: Traffic) {
        self.counters.received_bytes = self.counters.received_bytes.max(traffic.received_bytes);
        self.counters.sent_bytes = self.counters.sent_bytes.max(traffic.sent_bytes);
    }

    /// Answers whether it is there. What takes long and says little new, or is not billed, is asked
    /// more seldom.
    fn look_at(&mut self, group: &cgroup::Watched, others_ns: u64, now: u64) -> bool {
        let processor = group.counters().ok();
        let (before, whole_ns) = self.whole;
        let is_whole = now.saturating_sub(whole_ns) >= WHOLE_NS || self.pause_ns < LOOK_NS;
        let ran = processor.is_none() || processor != before;
        if self.rests && !ran && !is_whole {
            self.memory.stay(now, &mut self.counters);
            return true;
        }
        let processes = group.processes().unwrap_or_default();
        let mut state = Some(self.state);
        if is_whole || !processes.contains(&self.app.child()) {
            state = self.state(group, &processes);
        }
        let Some(state) = state else {
            // Its last reading tells the rest.
            self.gone_since.get_or_insert(now);
            return false;
        };
        if let Some(read) = processor {
            self.take(&match self.source {
                Source::Proc if !is_whole => read,
                _ => group.with_others(read),
            });
        }
        let held = self.memory.bytes();
        let seen = Seen {
            cgroup: group.path(),
            source: self.source,
            processes: &processes,
            // Our init does nothing for long.
            rests: self.app.init.filter(|_| !is_whole),
            others_ns,
        };
        self.memory.look(&seen, now, &mut self.counters);
        self.rests = state == self.state && !ran && held == self.memory.bytes();
        self.state = state;
        self.whole = (processor, if is_whole { now } else { whole_ns });
        true
    }

    /// `None` of one that has ended.
    fn state(&self, group: &cgroup::Watched, processes: &[HostPid]) -> Option<State> {
        // Whoever is in it is of this instance: no other has its number.
        if cgroup::is_v2() && processes.contains(&self.app.child()) {
            return Some(match group.is_still() {
                true => State::Frozen,
                false => State::Running,
            });
        }
        match self.app.state() {
            AppState::Running => Some(State::Running),
            AppState::Frozen => Some(State::Frozen),
            AppState::Asleep | AppState::Exited => None,
        }
    }

    /// What the kernel has counted since somebody asked for it; never less than before.
    fn take(&mut self, read: &cgroup::Counters) {
        let read = read.since(self.app.ahead.unwrap_or_default());
        let mut now = self.counters;
        now.cpu_ns = read.cpu_ns;
        now.user_ns = read.user_ns.unwrap_or_default();
        now.system_ns = read.system_ns.unwrap_or_default();
        now.memory_peak = now.memory_peak.max(read.memory_peak.unwrap_or_default());
        now.read_bytes = read.read_bytes.unwrap_or_default();
        now.written_bytes = read.written_bytes.unwrap_or_default();
        self.counters.raise(&now);
    }

    fn sum(&mut self) -> u64 {
        let rise = self.counters.cpu_ns.saturating_sub(self.summed_ns);
        self.summed_ns = self.summed_ns.max(self.counters.cpu_ns);
        rise
    }

    /// Whether the last look has found it.
    fn is_seen(&self) -> bool {
        self.group.is_some() && self.gone_since.is_none()
    }

    /// Whether it has ended and its cgroup is gone.
    fn is_cleared(&self) -> bool {
        self.gone_since.is_some() && !self.app.cgroup.as_deref().is_some_and(Path::exists)
    }
}
