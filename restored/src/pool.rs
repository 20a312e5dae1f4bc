//! Threads that each have something in waiting: what restores an app is bound to the
//! thread that made its first process, and stays with it until it ends.
//!
//! ```text
//!   keeper ──spawn──> member: make a husk, or prepare an instance ──> wait ──job──> restore ──> supervise
//!     │                                                                │
//!     └── one at a time, in a quiet moment                             └── told to end: undo it
//! ```
//!
//! There are as many husks as were lately wanted at once, and as many prepared instances
//! of each appshot: twice as many each time that one was missing, half as many after a
//! time in which half would have done. An appshot that nobody has asked for lately has
//! none, but for one that somebody wants parked: that waits for its first request however
//! late it comes, as long as not too many were parked after it. When this process is killed they die with it, and their journals tell the next
//! program which cgroups to remove.

use crate::occasion::{Occasion, Off};
use crate::shelf::Shelf;
use crate::templates::Templates;
use crate::watcher::Watcher;
use libsnap::error::{Error, Kind as ErrorKind, Result};
use libsnap::ids::HostPid;
use libsnap::image;
use libsnap::restore::Way;
use libsnap::restore::eager;
use libsnap::restore::spare::Spare;
use libsnap::store::Store;
use libsnap::target::{Memory, PidMode};
use nodekit::start::Ready;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Husks for apps that are not known.
const HUSKS_MIN: usize = 2;
const HUSKS_MAX: usize = 64;
/// Prepared instances of one appshot, and of all.
const PREPARED_MAX: usize = 8;
const ALL_PREPARED_MAX: usize = 32;
/// Appshots of which one is parked, unless told otherwise.
pub const PARKED: usize = 24;
/// A moment is quiet when no restore has gone on for this long.
const QUIET: Duration = Duration::from_millis(2);
/// Where no moment is quiet, the next one is made after this.
const PATIENCE: Duration = Duration::from_millis(20);
/// After this without need there are fewer.
const IDLE: Duration = Duration::from_secs(30);
/// Who could not make one tries again after this.
const RETRY: Duration = Duration::from_secs(1);
/// How long they may take to go.
const ENDING: Duration = Duration::from_secs(5);

/// What a thread does with what it has made ready. A restore goes on until the second
/// is dropped. Answers what lasts as long as the instance.
pub type Job = Box<dyn FnOnce(Ready, Busy) -> Option<Watch> + Send>;

/// What is done when an instance, our child, has ended. It waits for that, too.
pub struct Watch {
    pub child: HostPid,
    pub at_end: Box<dyn FnOnce() + Send>,
}

/// What instances are prepared of: an appshot, and how it is restored.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    pub appshot: PathBuf,
    pub way: Way,
}

/// A thread that waits.
struct Member {
    /// `None`: it has a husk.
    kind: Option<Kind>,
    /// The cgroup of what was prepared.
    group: Option<PathBuf>,
    /// The thread that is to be brought to where its job is given.
    thread: Option<HostPid>,
    tasks: Sender<Task>,
}

/// What a thread that waits is told.
enum Task {
    Do(Job, Busy),
    Await(Box<Standing>),
}

/// A job for when its occasion comes. The thread that waits for it has itself, until then.
struct Standing {
    member: Member,
    occasion: Occasion,
    job: Job,
}

/// A job that waits for its occasion. Dropped, that is off.
#[derive(Debug)]
pub struct Armed(Off);

impl Drop for Armed {
    fn drop(&mut self) {
        self.0.call();
    }
}

/// How many of a kind there are to be.
struct Row {
    kind: Option<Kind>,
    wanted: usize,
    /// The fewest that were ready since the last look.
    fewest: usize,
    /// Threads that have one, or make one, which no job was given for.
    members: usize,
    /// When it was asked for last.
    asked: Instant,
    /// One waits until it is asked for.
    parked: bool,
    /// That one has been asked for, and waits for its occasion; and its cgroup.
    armed: Option<(Off, Option<PathBuf>)>,
    /// What one is likely to have: as much as its appshot.
    bytes: u64,
    /// None is made before.
    rests_until: Instant,
}

/// Instances that wait until one like them is asked for.
#[derive(Debug, Serialize)]
pub struct Waiting {
    appshot: PathBuf,
    memory: Memory,
    /// The first request takes it, however late it comes.
    parked: bool,
    /// That request is there, and waits for its occasion.
    armed: bool,
    wanted: usize,
    ready: usize,
}

/// What instances in waiting, templates and appshots at hand have of the machine's memory.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Held {
    prepared_bytes: u64,
    /// What those are likely to have that are to be made.
    promised_bytes: u64,
    templates_bytes: u64,
    kept_bytes: u64,
}

fn bytes(group: &Path) -> u64 {
    let usage = libsnap::cgroup::usage(group).ok();
    usage.and_then(|usage| usage.memory_bytes).unwrap_or(0)
}

/// What waits. Clones are the same pool.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Store,
    shelf: Shelf,
    templates: Templates,
    /// Appshots of which one is parked, at most.
    parked_max: usize,
    state: Mutex<State>,
    changed: Condvar,
    /// The same for tasks.
    told: tokio::sync::Notify,
}

struct State {
    ready: Vec<Member>,
    /// That of husks first.
    rows: Vec<Row>,
    /// One is being made.
    making: bool,
    /// Restores under way.
    busy: usize,
    ending: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ready", self.ready.len())
    }
}

/// A restore that goes on.
#[derive(Debug)]
pub struct Busy(Arc<Shared>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.lock().busy -= 1;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.changed.notify_all();
        self.told.notify_waiters();
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, time);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Row {
    fn new(kind: Option<Kind>, wanted: usize) -> Row {
        let now = Instant::now();
        Row {
            bytes: kind.as_ref().map_or(0, |kind| image::sizes(&kind.appshot).0),
            kind,
            wanted,
            fewest: 0,
            members: 0,
            asked: now,
            parked: false,
            armed: None,
            rests_until: now,
        }
    }

    fn bounds(&self) -> (usize, usize) {
        match self.kind {
            None => (HUSKS_MIN, HUSKS_MAX),
            Some(_) => (1, PREPARED_MAX),
        }
    }

    /// None is wanted any more.
    fn give_up(&mut self) {
        (self.wanted, self.parked) = (0, false);
        if let Some((off, _)) = self.armed.take() {
            off.call();
        }
    }

    /// What those are likely to have that lack beside the `ready` ones.
    fn promised(&self, ready: usize) -> u64 {
        self.bytes * self.wanted.saturating_sub(ready) as u64
    }
}

impl State {
    fn new() -> State {
        State {
            ready: Vec::new(),
            rows: vec![Row::new(None, HUSKS_MIN)],
            making: false,
            busy: 0,
            ending: false,
        }
    }

    /// Takes one of this kind, if one waits, and notes that it was asked for.
    fn take(&mut self, kind: Option<&Kind>) -> Option<Member> {
        let at = self.ready.iter().rposition(|member| member.kind.as_ref() == kind);
        let member = at.map(|at| self.ready.remove(at));
        let left = self.ready(kind);
        let row = match self.rows.iter().position(|row| row.kind.as_ref() == kind) {
            Some(at) => &mut self.rows[at],
            None => {
                self.rows.push(Row::new(kind.cloned(), 0));
                let last = self.rows.len() - 1;
                &mut self.rows[last]
            }
        };
        row.asked = Instant::now();
        row.fewest = row.fewest.min(left);
        let (least, most) = row.bounds();
        let parked = std::mem::take(&mut row.parked);
        match member {
            // What it became of is going to be another one.
            Some(_) if parked => (row.wanted, row.members) = (row.wanted - 1, row.members - 1),
            Some(_) => row.members -= 1,
            None => row.wanted = (row.wanted * 2).clamp(least, most),
        }
        member
    }

    /// Has one of this kind wait, in the place of the ones that were parked first where
    /// there are more than `most`. What waited of it may be of an appshot that was replaced.
    fn park(&mut self, kind: Kind, most: usize) {
        self.forget(&kind);
        let known = self.rows.iter().position(|row| row.kind.as_ref() == Some(&kind));
        let members = known.map_or(0, |at| self.rows.remove(at).members);
        self.rows.push(Row {
            members,
            parked: true,
            ..Row::new(Some(kind), 1)
        });
        let parked = self.rows.iter().filter(|row| row.parked);
        let too_many = parked.clone().count().saturating_sub(most);
        let first: Vec<Kind> = parked.filter_map(|row| row.kind.clone()).take(too_many).collect();
        first.iter().for_each(|kind| self.forget(kind));
    }

    /// Nothing of this kind waits any more.
    fn forget(&mut self, kind: &Kind) {
        self.ready.retain(|member| member.kind.as_ref() != Some(kind));
        if let Some(row) = self.rows.iter_mut().find(|row| row.kind.as_ref() == Some(kind)) {
            row.give_up();
        }
    }

    /// The row that lacks a member.
    fn lacking(&mut self) -> Option<&mut Row> {
        let now = Instant::now();
        let prepared: usize = self.rows[1..].iter().map(|row| row.members).sum();
        let may = |row: &Row| row.kind.is_none() || prepared < ALL_PREPARED_MAX;
        self.rows
            .iter_mut()
            .find(|row| row.members < row.wanted && row.rests_until <= now && may(row))
    }

    /// Fewer where half of them were never needed, none where nobody asks.
    fn shrink(&mut self) {
        for row in &mut self.rows {
            let (least, _) = row.bounds();
            let is_there = |kind: &Kind| row.parked && kind.appshot.exists();
            let lasts = |kind: &Kind| row.wanted > 0 && (row.asked.elapsed() <= IDLE || is_there(kind));
            if row.kind.as_ref().is_some_and(|kind| !lasts(kind)) {
                row.give_up();
            } else if row.fewest * 2 >= row.wanted {
                row.wanted = (row.wanted / 2).max(least);
            }
            let mut have = 0;
            self.ready.retain(|member| {
                let own = member.kind == row.kind;
                have += usize::from(own);
                !own || have <= row.wanted
            });
            row.fewest = have.min(row.wanted);
        }
        self.rows
            .retain(|row| row.kind.is_none() || row.wanted > 0 || row.members > 0);
    }

    fn member_gone(&mut self, kind: Option<&Kind>) {
        if let Some(row) = self.rows.iter_mut().find(|row| row.kind.as_ref() == kind) {
            row.members -= 1;
        }
    }

    fn ready(&self, kind: Option<&Kind>) -> usize {
        self.ready.iter().filter(|member| member.kind.as_ref() == kind).count()
    }

    /// How many are made, that of which the occasion has not come included.
    fn made(&self, row: &Row) -> usize {
        self.ready(row.kind.as_ref()) + usize::from(row.armed.is_some())
    }

    /// Has what is parked of this kind wait for its occasion.
    fn arm(&mut self, kind: &Kind, occasion: Occasion, job: Job) -> Option<()> {
        let row = self.rows.iter_mut().find(|row| row.kind.as_ref() == Some(kind))?;
        let at = self.ready.iter().position(|member| member.kind.as_ref() == Some(kind));
        let member = self.ready.remove(at.filter(|_| row.parked && row.armed.is_none())?);
        row.armed = Some((occasion.off(), member.group.clone()));
        let tasks = member.tasks.clone();
        let standing = Box::new(Standing { member, occasion, job });
        tasks.send(Task::Await(standing)).ok()
    }

    /// It has come. Nothing of this row waits for it any more where it was given up before.
    fn came(&mut self, occasion: &Occasion) -> bool {
        let Some(row) = self.armed(occasion) else { return false };
        (row.armed, row.parked) = (None, false);
        (row.wanted, row.members) = (row.wanted.saturating_sub(1), row.members - 1);
        true
    }

    /// The row that waits for it.
    fn armed(&mut self, occasion: &Occasion) -> Option<&mut Row> {
        let waits = |row: &&mut Row| row.armed.as_ref().is_some_and(|(off, _)| off.is_of(occasion));
        self.rows.iter_mut().find(waits)
    }

    /// Kinds of instances, those that were asked for longest ago first: what of each waits, and
    /// what is promised.
    fn kinds(&self) -> Vec<(Kind, Vec<PathBuf>, u64)> {
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by_key(|row| row.asked);
        let of = |row: &Row| {
            let own = self.ready.iter().filter(|member| member.kind == row.kind);
            let armed = row.armed.as_ref().and_then(|(_, group)| group.clone());
            let groups = own.filter_map(|member| member.group.clone()).chain(armed);
            Some((row.kind.clone()?, groups.collect(), row.promised(self.made(row))))
        };
        rows.into_iter().filter_map(of).collect()
    }

    fn members(&self) -> usize {
        self.rows.iter().map(|row| row.members).sum()
    }
}

fn watch(watch: Option<Watch>) {
    if let Some(watch) = watch {
        (watch.at_end)();
    }
}

impl Pool {
    pub fn new(store: Store, shelf: Shelf, watcher: Watcher, parked_max: usize) -> Pool {
        let pool = Pool(Arc::new(Shared {
            templates: Templates::new(store.clone(), shelf.clone(), watcher),
            store,
            shelf,
            parked_max: parked_max.min(ALL_PREPARED_MAX),
            state: Mutex::new(State::new()),
            changed: Condvar::new(),
            told: tokio::sync::Notify::new(),
        }));
        let keeper = pool.clone();
        std::thread::spawn(move || keeper.keep());
        pool
    }

    /// Has the job done, by a thread that has an instance prepared or a husk where one
    /// waits.
    pub fn give(&self, kind: Option<Kind>, job: Job) {
        let kind = kind.filter(|kind| kind.way.pids == PidMode::New && !kind.way.bound);
        self.0.lock().busy += 1;
        let busy = Busy(self.0.clone());
        let (job, busy) = match &kind {
            Some(kind) => match self.0.templates.give(kind, job, busy) {
                Ok(()) => return,
                Err(order) => order,
            },
            None => (job, busy),
        };
        let mut state = self.0.lock();
        let prepared = kind.as_ref().and_then(|kind| state.take(Some(kind)));
        match prepared.or_else(|| state.take(None)) {
            Some(member) => {
                drop(state);
                if let Some(thread) = member.thread {
                    eager::bring_here(thread);
                }
                // It waits until it is given a job or its sender is dropped.
                let _ = member.tasks.send(Task::Do(job, busy));
            }
            None => {
                drop(state);
                std::thread::spawn(move || watch(job(Ready::default(), busy)));
            }
        }
    }

    /// Has an instance of this kind wait for its first request, in a quiet moment.
    pub fn park(&self, kind: Kind) {
        self.0.lock().park(kind, self.0.parked_max);
        self.0.tell();
    }

    /// Has the job done once its occasion comes, by the thread that has one of this kind parked.
    /// What is dropped undone was called off, or its memory was wanted.
    pub fn arm(&self, kind: &Kind, occasion: Occasion, job: Job) -> Result<Armed> {
        let armed = Armed(occasion.off());
        match self.0.lock().arm(kind, occasion, job) {
            Some(()) => Ok(armed),
            None => Err(Error::new(ErrorKind::Unavailable, "nothing waits for its occasion")
                .because("no instance of this kind is parked")
                .fix("have one wait (POST /v1/prepare with \"instance\" and \"ready\"), or ask once it is wanted")),
        }
    }

    /// Waits until one of this kind is parked; answers whether it is.
    pub async fn parked(&self, kind: &Kind) -> bool {
        let look = || {
            let state = self.0.lock();
            let row = state.rows.iter().find(|row| row.kind.as_ref() == Some(kind));
            row.filter(|row| row.parked).map(|row| state.made(row) > 0)
        };
        loop {
            let changed = self.0.told.notified();
            match look() {
                None => return false,
                Some(true) => return true,
                Some(false) => changed.await,
            }
        }
    }

    /// What waits of which appshot.
    pub fn waiting(&self) -> Vec<Waiting> {
        let state = self.0.lock();
        let kinds = state.rows.iter().filter_map(|row| Some((row, row.kind.as_ref()?)));
        let told = kinds.map(|(row, kind)| Waiting {
            appshot: kind.appshot.clone(),
            memory: kind.way.memory,
            parked: row.parked,
            armed: row.armed.is_some(),
            wanted: row.wanted,
            ready: state.made(row),
        });
        told.collect()
    }

    /// The memory of what is kept in case that somebody asks for it.
    pub fn memory(&self) -> Held {
        let kinds = self.0.lock().kinds();
        let groups = kinds.iter().flat_map(|(_, groups, _)| groups);
        Held {
            prepared_bytes: groups.map(|group| bytes(group)).sum(),
            promised_bytes: kinds.iter().map(|(.., promised)| promised).sum(),
            templates_bytes: self.0.templates.bytes(),
            kept_bytes: self.0.shelf.bytes(),
        }
    }

    /// Gives up so much of it, where there is so much: what was asked for longest ago first, made
    /// or not; templates then, appshots in memory last. Answers how much that was.
    pub fn give_up(&self, wanted: u64) -> u64 {
        let mut given = 0;
        let kinds = self.0.lock().kinds();
        for (kind, groups, promised) in kinds {
            if given >= wanted {
                break;
            }
            given += promised + groups.iter().map(|group| bytes(group)).sum::<u64>();
            self.0.lock().forget(&kind);
        }
        self.0.tell();
        given += self.0.templates.give_up(wanted.saturating_sub(given));
        given + self.0.shelf.give_up(wanted.saturating_sub(given))
    }

    /// Undoes what waits, and makes no more.
    pub fn end(&self) {
        self.0.templates.end();
        let deadline = Instant::now() + ENDING;
        let mut state = self.0.lock();
        state.ending = true;
        state.ready.clear();
        state.rows.iter_mut().for_each(Row::give_up);
        self.0.tell();
        while state.members() > 0 && Instant::now() < deadline {
            state = self.0.wait(state, Duration::from_millis(10));
        }
    }

    fn keep(&self) {
        let mut looked = Instant::now();
        let mut state = self.0.lock();
        while !state.ending {
            if looked.elapsed() > IDLE {
                looked = Instant::now();
                state.shrink();
                self.0.told.notify_waiters();
            }
            if state.making || state.lacking().is_none() {
                let now = Instant::now();
                let rests = state.rows.iter().any(|row| row.rests_until > now);
                state = self.0.wait(state, if rests { RETRY } else { IDLE });
                continue;
            }
            let patience = if state.busy > 0 { PATIENCE } else { QUIET };
            let began = Instant::now();
            state = self.0.wait(state, patience);
            // Something has changed before the time was over.
            if began.elapsed() < patience || state.ending {
                continue;
            }
            if let Some(row) = state.lacking() {
                row.members += 1;
                let kind = row.kind.clone();
                state.making = true;
                let pool = self.clone();
                std::thread::spawn(move || pool.member(kind));
            }
        }
    }

    fn member(&self, kind: Option<Kind>) {
        let (sender, tasks) = channel();
        let mut made = self.make(kind.as_ref());
        let thread = made.as_mut().ok().and_then(|ready| match &mut ready.prepared {
            Some(prepared) => {
                prepared.waits();
                prepared.await_eagerly()
            }
            None => ready.spare.as_mut().and_then(Spare::await_eagerly),
        });
        let prepared = made.as_ref().ok().and_then(|ready| ready.prepared.as_ref());
        let group = prepared.and_then(|prepared| prepared.group().map(Path::to_owned));
        let mut state = self.0.lock();
        state.making = false;
        // It may have been given up, or asked for, meanwhile.
        let row = state.rows.iter().find(|row| row.kind == kind);
        let is_wanted = row.is_some_and(|row| state.made(row) < row.wanted);
        match &made {
            Ok(_) if is_wanted && !state.ending => state.ready.push(Member {
                kind: kind.clone(),
                group,
                thread,
                tasks: sender,
            }),
            Ok(_) => drop(sender),
            Err(error) => {
                tracing::warn!(%error, ?kind, "nothing in waiting");
                drop(sender);
                if let Some(row) = state.rows.iter_mut().find(|row| row.kind == kind) {
                    row.rests_until = Instant::now() + RETRY;
                }
            }
        }
        drop(state);
        self.0.tell();
        let order = made.is_ok().then(|| self.order(&tasks)).flatten();
        match (order, made) {
            (Some((job, busy, occasion)), Ok(ready)) => {
                let came = job(ready, busy);
                // With what was kept for it.
                drop(occasion);
                watch(came);
            }
            (_, made) => {
                drop(made);
                self.0.lock().member_gone(kind.as_ref());
                self.0.tell();
            }
        }
    }

    /// Waits until there is something to do; none where what waits is not wanted any more.
    fn order(&self, tasks: &Receiver<Task>) -> Option<(Job, Busy, Option<Occasion>)> {
        loop {
            let standing = match tasks.recv().ok()? {
                Task::Do(job, busy) => return Some((job, busy, None)),
                Task::Await(standing) => standing,
            };
            let Standing { member, occasion, job } = *standing;
            let comes = occasion.comes();
            let mut state = self.0.lock();
            if comes && state.came(&occasion) {
                state.busy += 1;
                return Some((job, Busy(self.0.clone()), Some(occasion)));
            }
            if let Some(row) = state.armed(&occasion) {
                // Off, it waits as before.
                row.armed = None;
                state.ready.push(member);
            }
            drop(state);
            self.0.tell();
            // Who asked hears of it with the job: nothing of theirs is held any more then.
            drop(occasion);
            drop(job);
        }
    }

    fn make(&self, kind: Option<&Kind>) -> Result<Ready> {
        let Shared { store, shelf, .. } = &*self.0;
        match kind.and_then(|kind| Some((kind, shelf.get(&kind.appshot, kind.way.memory)?))) {
            Some((kind, from)) => Ready::prepared(store, from, kind.way)?.warmed(&[]),
            None => Ready::spare(store),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libsnap::target::RestoreOptions;

    fn kind(name: &str) -> Kind {
        Kind {
            appshot: PathBuf::from(name),
            way: Way::of(&RestoreOptions::default()),
        }
    }

    fn wanted(state: &State) -> Vec<(&str, usize)> {
        let named = state
            .rows
            .iter()
            .filter_map(|row| Some((row.kind.as_ref()?, row.wanted)));
        named
            .map(|(kind, wanted)| (kind.appshot.to_str().unwrap(), wanted))
            .collect()
    }

    #[test]
    fn those_that_were_parked_last_stay() {
        let mut state = State::new();
        for name in ["/a", "/b", "/a", "/c"] {
            state.park(kind(name), 2);
        }
        assert_eq!(wanted(&state), [("/b", 0), ("/a", 1), ("/c", 1)]);
        state.shrink();
        assert_eq!(wanted(&state), [("/a", 1), ("/c", 1)]);
        state.park(kind("/a"), 0);
        assert_eq!(wanted(&state), [("/c", 0), ("/a", 0)]);
    }

    #[test]
    fn what_is_to_be_made_is_promised_until_it_is_there_or_given_up() {
        let mut state = State::new();
        state.park(kind("/proc/self/exe"), 2);
        let bytes = std::fs::metadata("/proc/self/exe").unwrap().len();
        let promised = |state: &State| state.kinds().iter().map(|(.., promised)| *promised).sum::<u64>();
        assert_eq!(promised(&state), bytes);
        state.ready.push(Member {
            kind: Some(kind("/proc/self/exe")),
            group: None,
            thread: None,
            tasks: channel().0,
        });
        assert_eq!(promised(&state), 0);
        state.park(kind("/proc/self/exe"), 2);
        assert_eq!(
            promised(&state),
            bytes,
            "what waited is of an appshot that was replaced"
        );
        state.forget(&kind("/proc/self/exe"));
        assert_eq!(promised(&state), 0);
    }

    #[test]
    fn who_is_asked_for_is_parked_no_more() {
        let mut state = State::new();
        state.park(kind("/a"), 2);
        state.rows[1].members = 1;
        state.ready.push(Member {
            kind: Some(kind("/a")),
            group: None,
            thread: None,
            tasks: channel().0,
        });
        assert!(state.take(Some(&kind("/a"))).is_some());
        assert_eq!(wanted(&state), [("/a", 0)]);
        // Who found nothing has one made for the next.
        assert!(state.take(Some(&kind("/a"))).is_none());
        assert_eq!(wanted(&state), [("/a", 1)]);
    }

    #[test]
    fn what_is_parked_waits_for_its_occasion() {
        let (pipe, _other) = std::io::pipe().unwrap();
        let occasion = || Occasion::new(&[libsnap::target::HeldDescriptor::own(&pipe)], None).unwrap();
        let job = || -> Job { Box::new(|_, _| None) };
        let (mut state, kind) = (State::new(), kind("/a"));
        assert!(state.arm(&kind, occasion(), job()).is_none(), "nothing is parked");
        state.park(kind.clone(), 2);
        assert!(state.arm(&kind, occasion(), job()).is_none(), "it is not made yet");
        let ready = |state: &mut State| {
            let (tasks, told) = channel();
            state.ready.push(Member {
                kind: Some(kind.clone()),
                group: None,
                thread: None,
                tasks,
            });
            state.rows[1].members += 1;
            told
        };
        let standing = |told: &Receiver<Task>| match told.try_recv().unwrap() {
            Task::Await(standing) => *standing,
            Task::Do(..) => panic!("it is to wait"),
        };
        let told = ready(&mut state);
        state.arm(&kind, occasion(), job()).unwrap();
        assert!(state.arm(&kind, occasion(), job()).is_none(), "it waits already");
        assert_eq!((state.ready(Some(&kind)), state.made(&state.rows[1])), (0, 1));
        assert!(state.lacking().is_none_or(|row| row.kind.is_none()), "no other is made");
        let first = standing(&told);
        assert!(state.came(&first.occasion) && !state.came(&first.occasion));
        assert_eq!((state.rows[1].wanted, state.rows[1].members), (0, 0));
        // Given up, whoever comes then finds nothing.
        state.park(kind.clone(), 2);
        let told = ready(&mut state);
        state.arm(&kind, occasion(), job()).unwrap();
        let second = standing(&told);
        state.forget(&kind);
        assert!(!second.occasion.comes() && !state.came(&second.occasion));
    }
}
