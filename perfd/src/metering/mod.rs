//! Follows the registry and keeps the usage ledger.
//!
//! ```text
//!   RUN_DIR/apps ──inotify──> look at what is new: now, after 10 ms, 20 ms, ... 1 s
//!   cgroups ───each second──> counters, memory ──> ledger.append
//!   RUN_DIR/usage ──────────> last counters of what has ended ──> ledger.append
//!   store ──each 10 s───────> bytes of appshots           │
//!   edgepointd ─each second─> requests, bytes             │
//!   /proc ──each minute─────> the node's own side         └─> sync, then the readings go
//! ```
//!
//! One thread. What it knows it can have again: counters are the kernel's, or stand in
//! the ledger; memory and stored bytes while it was not there are told as a gap.

mod instances;
mod memory;
mod node;
mod owners;
mod storage;
mod traffic;

use crate::corrections::Pending;
use crate::metrics::Board;
use crate::rollups::Rollups;
use instances::Instances;
use libsnap::clocks::boottime_ns;
use libsnap::error::{OrFail, Result};
use libsnap::store::{State, Store, boot_id, directory, now_unix_ms};
use nix::fcntl::OFlag;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::unistd::pipe2;
use node::Node;
use owners::Owners;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread::JoinHandle;
use storage::Storage;
use traffic::Traffic;
use usage::archive::{self, Rules, Tidied};
use usage::books::HOUR_MS;
use usage::ledger::Ledger;
use usage::record::{Body, Gap, Moment, Start};

const SECOND_NS: u64 = 1_000_000_000;
/// What is there is looked at so often.
const LOOK_NS: u64 = SECOND_NS;
/// What is new, first.
const FIRST_NS: u64 = SECOND_NS / 100;
/// The registry tells what changes in it; it is looked through so often all the same.
const FOLLOW_NS: u64 = 10 * SECOND_NS;
const STORAGE_NS: u64 = 10 * SECOND_NS;
const NODE_NS: u64 = 60 * SECOND_NS;
const TIDY_NS: u64 = 86_400 * SECOND_NS;
/// Memory between two looks that are further apart is not known.
const SEEN_NS: u64 = 3 * SECOND_NS;

fn now() -> Result<Moment> {
    Ok(Moment {
        boot_ns: boottime_ns(),
        unix_ms: now_unix_ms()?,
    })
}

/// The thread that meters; it ends when this is dropped.
#[derive(Debug)]
pub struct Metering {
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Metering {
    /// Opens the ledger, and begins.
    pub fn begin(
        store: &Store,
        board: Board,
        rules: impl Fn(u64) -> Rules + Send + 'static,
        asked: mpsc::Receiver<Pending>,
    ) -> Result<Metering> {
        let what = || "cannot begin to meter";
        // Each instance has one open.
        nodekit::descriptors::raise();
        let mut meter = Meter::open(store, board, Box::new(rules), asked)?;
        let (stopped, stop) = pipe2(OFlag::O_CLOEXEC).or_fail(what)?;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).or_fail(what)?;
        let moved = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE;
        for dir in [store.run_dir().join("apps"), store.readings_dir()] {
            directory(&dir, 0o700)?;
            inotify.add_watch(&dir, moved).or_fail(what)?;
        }
        meter.tick(true);
        let thread = std::thread::spawn(move || {
            let _alone = Alone;
            meter.live(&inotify, &stopped);
        });
        Ok(Metering {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

/// A daemon that serves and does not meter is worse than one that is started again.
struct Alone;

impl Drop for Alone {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::exit(1);
        }
    }
}

impl Drop for Metering {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Meter {
    store: Store,
    owners: Owners,
    ledger: Ledger,
    board: Board,
    instances: Instances,
    storage: Storage,
    traffic: Traffic,
    node: Node,
    /// When these are due, on CLOCK_BOOTTIME.
    list_at: u64,
    follow_at: u64,
    storage_at: u64,
    node_at: u64,
    tidy_at: u64,
    is_ending: bool,
    rules: Box<dyn Fn(u64) -> Rules + Send>,
    asked: mpsc::Receiver<Pending>,
    rollups: Rollups,
}

impl Meter {
    fn open(
        store: &Store,
        board: Board,
        rules: Box<dyn Fn(u64) -> Rules + Send>,
        asked: mpsc::Receiver<Pending>,
    ) -> Result<Meter> {
        let (at, boot) = (now()?, boot_id()?);
        directory(&store.usage_dir(), 0o700)?;
        let (mut ledger, found) = Ledger::open(&store.usage_dir(), &boot, at)?;
        tracing::info!(node = ledger.node(), records = found.records, "ledger");
        ledger.append(
            at,
            Body::Start(Start {
                boot_id: boot,
                product: format!("perfd {}", env!("CARGO_PKG_VERSION")),
                cut_bytes: found.cut_bytes,
            }),
        );
        if found.cut_bytes > 0 {
            tracing::warn!(bytes = found.cut_bytes, "a torn last record was cut off");
            let reason = format!("a torn last record of {} bytes was cut off", found.cut_bytes);
            ledger.append(
                at,
                Body::Gap(Gap {
                    id: None,
                    ns: None,
                    reason,
                }),
            );
        }
        Ok(Meter {
            store: store.clone(),
            owners: Owners::default(),
            instances: Instances::new(at),
            storage: Storage::default(),
            traffic: Traffic::default(),
            node: Node::new(at),
            ledger,
            board,
            list_at: 0,
            follow_at: 0,
            storage_at: 0,
            node_at: 0,
            tidy_at: 0,
            is_ending: false,
            rules,
            asked,
            rollups: Rollups::begin(&store.usage_dir()),
        })
    }

    fn live(&mut self, inotify: &Inotify, stopped: &OwnedFd) {
        loop {
            let woken = wait(self.due(), inotify, stopped);
            match woken {
                Woken::Stop => break,
                Woken::Change => while inotify.read_events().is_ok_and(|events| !events.is_empty()) {},
                Woken::Time => {}
            }
            self.tick(woken == Woken::Change);
        }
        (self.list_at, self.storage_at, self.node_at) = (0, 0, 0);
        self.is_ending = true;
        self.tick(true);
    }

    /// When to look next; an hour is looked at when it ends.
    fn due(&self) -> u64 {
        let due = self.list_at.min(self.instances.due());
        let ends = now().map_or(due, |at| at.boot_ns + (HOUR_MS - at.unix_ms % HOUR_MS) * 1_000_000);
        due.min(ends)
    }

    fn tick(&mut self, changed: bool) {
        if let Err(error) = self.look(changed) {
            tracing::error!(%error, "not metered");
        }
    }

    fn look(&mut self, changed: bool) -> Result<()> {
        let mut at = now()?;
        let is_new_hour = at.unix_ms % HOUR_MS < 20;
        if is_new_hour {
            // What is seen now was used before.
            at.unix_ms -= at.unix_ms % HOUR_MS + 1;
        }
        let all = at.boot_ns >= self.list_at || is_new_hour;
        if !(changed || all) {
            self.instances.look(at, false);
            return Ok(());
        }
        self.owners.look(&self.store);
        let owners = &self.owners;
        let mut apps = None;
        if changed || at.boot_ns >= self.follow_at {
            self.follow_at = at.boot_ns + FOLLOW_NS;
            apps = Some(self.instances.follow(&self.store, owners, &mut self.ledger, at)?);
        }
        self.instances.look(at, all);
        let taken = self.instances.end(&self.store, owners, &mut self.ledger, at)?;
        if !taken.is_empty() {
            // It may have fallen asleep.
            self.storage_at = at.boot_ns;
        }
        if !all {
            return Ok(());
        }
        self.list_at = at.boot_ns + LOOK_NS;
        if at.boot_ns >= self.storage_at || is_new_hour {
            self.storage_at = at.boot_ns + STORAGE_NS;
            let all = is_new_hour || self.is_ending;
            let mut apps = match apps {
                Some(apps) => apps,
                None => self.store.list()?,
            };
            apps.retain(|app| !self.instances.has(app) && app.state() == State::Asleep);
            self.storage
                .look(&self.store, &apps, owners, &mut self.ledger, at, all)?;
        }
        self.traffic.look(&self.store, owners, &mut self.ledger, at);
        if at.boot_ns >= self.node_at {
            self.node_at = at.boot_ns + NODE_NS;
            let (tenants_ns, ahead_ns) = (self.instances.tenants_ns(), self.instances.ahead_ns());
            let look = self.node.look(tenants_ns, ahead_ns)?;
            self.ledger.append(at, Body::Node(look));
            self.board.show_node(look);
            self.ledger.checkpoint(at);
        }
        if at.boot_ns >= self.tidy_at && !self.is_ending {
            self.tidy_at = at.boot_ns + TIDY_NS;
            self.tidy(at);
        }
        self.instances.tell(&mut self.ledger, at);
        let corrected: Vec<Pending> = self.asked.try_iter().collect();
        for (correction, _) in &corrected {
            self.ledger.append(at, Body::Correction(Box::new(correction.clone())));
        }
        self.board.show(self.ledger.books());
        let first_seq = self.ledger.next_seq();
        let written = self.ledger.sync(at)?;
        self.rollups.tell(first_seq, written);
        for (_, done) in corrected {
            let _ = done.send(());
        }
        // They stand in the ledger now.
        taken
            .iter()
            .try_for_each(|reading| self.store.remove_reading(reading))?;
        self.ledger.forget_ended();
        Ok(())
    }
}

impl Meter {
    /// Beside us: it takes a while, and disturbs nobody.
    fn tidy(&self, at: Moment) {
        let (usage, rules) = (self.store.usage_dir(), (self.rules)(at.unix_ms));
        std::thread::spawn(move || match archive::tidy(&usage, &rules) {
            Ok(tidied) if tidied == Tidied::default() => {}
            Ok(tidied) => tracing::info!(?tidied, "the ledger is compacted"),
            Err(error) => tracing::error!(%error, "the ledger is not compacted"),
        });
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    Time,
    Change,
    Stop,
}

fn wait(until_ns: u64, inotify: &Inotify, stopped: &OwnedFd) -> Woken {
    let left = until_ns.saturating_sub(boottime_ns()).min(LOOK_NS);
    let timeout = Timespec {
        tv_sec: i64::try_from(left / SECOND_NS).unwrap_or(1),
        tv_nsec: i64::try_from(left % SECOND_NS).unwrap_or(0),
    };
    let mut fds = [PollFd::new(inotify, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
    if poll(&mut fds, Some(&timeout)).is_err() {
        return Woken::Time;
    }
    match (fds[1].revents().is_empty(), fds[0].revents().is_empty()) {
        (false, _) => Woken::Stop,
        (true, false) => Woken::Change,
        (true, true) => Woken::Time,
    }
}
