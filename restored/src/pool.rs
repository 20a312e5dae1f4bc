//! Threads that each have a husk in waiting: what restores an app is bound to the
//! thread that made its first process, and stays with it until it ends.
//!
//! ```text
//!   keeper ──spawn──> member: make a husk ──> wait ──job──> restore ──> supervise
//!     │                                         │
//!     └── one at a time, in a quiet moment      └── told to end: undo the husk
//! ```
//!
//! There are as many as were lately wanted at once: twice as many each time that one
//! was missing, half as many after a time in which half would have done. When this
//! process is killed the husks die with it, and their journals tell the next program
//! which cgroups to remove.

use libsnap::ids::HostPid;
use libsnap::restore::eager;
use libsnap::restore::spare::Spare;
use libsnap::store::Store;
use nodekit::start::Ready;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const SPARES_MIN: usize = 2;
const SPARES_MAX: usize = 64;
/// A moment is quiet when no restore has gone on for this long.
const QUIET: Duration = Duration::from_millis(2);
/// Where no moment is quiet, the next husk is made after this.
const PATIENCE: Duration = Duration::from_millis(20);
/// After this without need there are fewer.
const IDLE: Duration = Duration::from_secs(30);
/// Who could not make a husk tries again after this.
const RETRY: Duration = Duration::from_secs(1);
/// How long the husks may take to go.
const ENDING: Duration = Duration::from_secs(5);

/// What a thread does with what it has made ready. A restore goes on until the second
/// is dropped.
pub type Job = Box<dyn FnOnce(Ready, Busy) + Send>;

/// The thread that is to be brought along, where it is, and how it is given a job.
type Member = (Option<HostPid>, Sender<(Job, Busy)>);

/// Husks in waiting. Clones are the same pool.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Store,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// With the thread that is to be brought to where its job is given.
    ready: Vec<Member>,
    /// The fewest that were ready since the last look.
    fewest: usize,
    wanted: usize,
    /// One is being made.
    making: bool,
    /// Threads that have a husk which no job was given for.
    members: usize,
    /// Restores under way.
    busy: usize,
    ending: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} ready", self.ready.len(), self.wanted)
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

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, time);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Pool {
    pub fn new(store: Store) -> Pool {
        let state = State {
            wanted: SPARES_MIN,
            ..State::default()
        };
        let pool = Pool(Arc::new(Shared {
            store,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }));
        let keeper = pool.clone();
        std::thread::spawn(move || keeper.keep());
        pool
    }

    /// Has the job done, by a thread with a husk where one waits.
    pub fn give(&self, job: Job) {
        let mut state = self.0.lock();
        state.busy += 1;
        let busy = Busy(self.0.clone());
        match state.ready.pop() {
            Some((thread, member)) => {
                state.members -= 1;
                state.fewest = state.fewest.min(state.ready.len());
                drop(state);
                if let Some(thread) = thread {
                    eager::bring_here(thread);
                }
                // It waits until it is given a job or its sender is dropped.
                let _ = member.send((job, busy));
            }
            None => {
                state.wanted = (state.wanted * 2).min(SPARES_MAX);
                drop(state);
                std::thread::spawn(move || job(Ready::default(), busy));
            }
        }
    }

    /// Undoes what waits, and makes no more.
    pub fn end(&self) {
        let deadline = Instant::now() + ENDING;
        let mut state = self.0.lock();
        state.ending = true;
        state.ready.clear();
        self.0.changed.notify_all();
        while state.members > 0 && Instant::now() < deadline {
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
            }
            if state.making || state.members >= state.wanted {
                state = self.0.wait(state, IDLE);
                continue;
            }
            let patience = if state.busy > 0 { PATIENCE } else { QUIET };
            let began = Instant::now();
            state = self.0.wait(state, patience);
            // Something has changed before the time was over.
            if began.elapsed() >= patience && !state.ending {
                state.making = true;
                state.members += 1;
                let pool = self.clone();
                std::thread::spawn(move || pool.member());
            }
        }
    }

    fn member(&self) {
        let (sender, jobs) = channel();
        let mut made = Ready::spare(&self.0.store);
        if let Err(error) = &made {
            tracing::warn!(%error, "no husk in waiting");
            std::thread::sleep(RETRY);
        }
        let spare = made.as_mut().ok().and_then(|ready| ready.spare.as_mut());
        let thread = spare.and_then(Spare::await_eagerly);
        let mut state = self.0.lock();
        state.making = false;
        if made.is_ok() && !state.ending {
            state.ready.push((thread, sender));
        } else {
            drop(sender);
        }
        drop(state);
        self.0.changed.notify_all();
        match (jobs.recv(), made) {
            (Ok((job, busy)), Ok(ready)) => job(ready, busy),
            (_, made) => {
                drop(made);
                self.0.lock().members -= 1;
                self.0.changed.notify_all();
            }
        }
    }
}

impl State {
    /// Fewer where half of them were never needed.
    fn shrink(&mut self) {
        if self.fewest * 2 >= self.wanted {
            self.wanted = (self.wanted / 2).max(SPARES_MIN);
        }
        self.ready.truncate(self.wanted);
        self.fewest = self.ready.len();
    }
}
