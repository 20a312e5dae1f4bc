//! Threads that each have a template, and instances forked off it in waiting.
//!
//! ```text
//!   order ──> thread of its kind: one in waiting, or one forked now ──> finished here ──> watched elsewhere
//!                   └── while there is no order: fork the next one
//! ```
//!
//! A template holds all of an app's memory. One that nobody has asked for lately goes.

use crate::pool::{Busy, Job, Kind};
use crate::shelf::Shelf;
use crate::watcher::Watcher;
use libsnap::error::Result;
use libsnap::ids::HostPid;
use libsnap::restore::eager::Eager;
use libsnap::restore::{self, From, Template};
use libsnap::store::Store;
use libsnap::target::{Memory, PidMode};
use nodekit::start::Ready;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Instances in waiting of one template: as many as were missing at once, within these.
const WAITING_MIN: usize = 1;
const WAITING_MAX: usize = 16;
/// After this without an order half as many wait.
const IDLE: Duration = Duration::from_secs(30);
/// After this a template goes.
const FORGOTTEN: Duration = Duration::from_secs(300);

type Order = (Job, Busy);

/// Clones are the same.
#[derive(Clone, Debug)]
pub struct Templates {
    store: Store,
    shelf: Shelf,
    watcher: Watcher,
    threads: Arc<Mutex<Vec<(Kind, Thread)>>>,
}

#[derive(Debug)]
enum Thread {
    /// And the process that is the template, zero where there is none.
    Orders(Sender<Order>, Arc<AtomicI32>),
    /// No template can be made of it.
    None,
}

impl Thread {
    fn bytes(&self) -> u64 {
        match self {
            Thread::Orders(_, pid) => match pid.load(Ordering::Relaxed) {
                0 => 0,
                pid => libsnap::cgroup::pss_bytes(HostPid(pid)).unwrap_or(0),
            },
            Thread::None => 0,
        }
    }
}

impl Templates {
    pub fn new(store: Store, shelf: Shelf, watcher: Watcher) -> Templates {
        Templates {
            store,
            shelf,
            watcher,
            threads: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Kind, Thread)>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the job done with an instance forked off a template. Answers the job where
    /// there is none of this kind, or can be none.
    pub fn give(&self, kind: &Kind, job: Job, busy: Busy) -> Result<(), Order> {
        let order = (job, busy);
        let way = kind.way;
        // What is forked is not brought by a pager, which also notes what is written.
        if way.memory != Memory::Shared || way.pids != PidMode::New || !way.renewed || way.revertible {
            return Err(order);
        }
        let mut threads = self.lock();
        match threads.iter().find(|(known, _)| known == kind) {
            Some((_, Thread::None)) => Err(order),
            // A thread that ends takes itself off first.
            Some((_, Thread::Orders(orders, _))) => orders.send(order).map_err(|unsent| unsent.0),
            None => {
                let (orders, ordered) = channel();
                let _ = orders.send(order);
                let pid: Arc<AtomicI32> = Arc::default();
                threads.push((kind.clone(), Thread::Orders(orders, Arc::clone(&pid))));
                let (this, kind) = (self.clone(), kind.clone());
                std::thread::spawn(move || this.work(&kind, &ordered, &pid));
                Ok(())
            }
        }
    }

    /// All threads end when they have done what was ordered.
    pub fn end(&self) {
        self.lock().clear();
    }

    /// What all of them have, without what they share with instances.
    pub fn bytes(&self) -> u64 {
        self.lock().iter().map(|(_, thread)| thread.bytes()).sum()
    }

    /// Ends those that have been there for longest, until that is so many bytes or none is
    /// left. A thread does what it was ordered to before.
    pub fn give_up(&self, bytes: u64) -> u64 {
        let mut threads = self.lock();
        let mut given = 0;
        threads.retain(|(_, thread)| {
            let own = thread.bytes();
            let stays = given >= bytes || own == 0;
            given += if stays { 0 } else { own };
            stays
        });
        given
    }

    fn work(&self, kind: &Kind, orders: &Receiver<Order>, pid: &AtomicI32) {
        let mut made: Option<(From, Template)> = None;
        let mut waiting: VecDeque<Ready> = VecDeque::new();
        let (mut wanted, mut asked) = (WAITING_MIN, Instant::now());
        loop {
            let next = match waiting.len() < wanted && made.is_some() {
                true => orders.try_recv().map_err(|error| match error {
                    TryRecvError::Empty => None,
                    TryRecvError::Disconnected => Some(RecvTimeoutError::Disconnected),
                }),
                false => {
                    let _first = Eager::begin();
                    orders.recv_timeout(IDLE).map_err(Some)
                }
            };
            match next {
                Ok((job, busy)) => {
                    asked = Instant::now();
                    if waiting.is_empty() && made.is_some() {
                        wanted = (wanted * 2).min(WAITING_MAX);
                    }
                    let now = self.shelf.get(&kind.appshot, kind.way.memory);
                    // The appshot may have been replaced.
                    let is_of = |(from, _): &mut (From, Template)| now.as_ref().is_some_and(|now| now.is(from));
                    if made.take_if(|made| !is_of(made)).is_some() {
                        waiting.clear();
                    }
                    let ready = match waiting.pop_front() {
                        Some(ready) => ready,
                        None => self.fork_new(kind, now.clone(), &mut made),
                    };
                    let own = made.as_ref().map_or(0, |(_, template)| template.pid().0);
                    pid.store(own, Ordering::Relaxed);
                    self.go_through(ready, job, busy);
                    if made.is_none() {
                        let never = now.is_some_and(|from| !Template::suits(from.shot(), kind.way));
                        return self.leave(kind, orders, never);
                    }
                }
                Err(None) => match made
                    .as_ref()
                    .map(|(_, template)| Ready::forked(&self.store, template)?.warmed())
                {
                    Some(Ok(ready)) => waiting.push_back(ready),
                    Some(Err(error)) => {
                        tracing::warn!(%error, appshot = %kind.appshot.display(), "no instance in waiting");
                        wanted = 0;
                    }
                    None => {}
                },
                Err(Some(RecvTimeoutError::Timeout)) if asked.elapsed() < FORGOTTEN => {
                    wanted = (wanted / 2).max(WAITING_MIN);
                    waiting.truncate(wanted);
                }
                Err(Some(RecvTimeoutError::Timeout)) => return self.leave(kind, orders, false),
                Err(Some(RecvTimeoutError::Disconnected)) => return,
            }
        }
    }

    /// Of the template, which is made if need be. Nothing ready where that fails.
    fn fork_new(&self, kind: &Kind, from: Option<From>, made: &mut Option<(From, Template)>) -> Ready {
        let Some(from) = from else { return Ready::default() };
        let mut fork = || {
            if made.is_none() && Template::suits(from.shot(), kind.way) {
                *made = Some((from.clone(), restore::template(&from, kind.way)?));
            }
            match made {
                Some((_, template)) => Ready::forked(&self.store, template),
                None => Ok(Ready::default()),
            }
        };
        fork().unwrap_or_else(|error: libsnap::error::Error| {
            tracing::warn!(%error, appshot = %kind.appshot.display(), "nothing can be forked");
            Ready::default()
        })
    }

    fn go_through(&self, mut ready: Ready, job: Job, busy: Busy) {
        if let Some(prepared) = &mut ready.prepared {
            prepared.await_eagerly();
        }
        if let Some(watch) = job(ready, busy)
            && let Err(error) = self.watcher.watch(watch)
        {
            tracing::warn!(%error, "nobody watches an instance");
        }
    }

    /// Does what was ordered before others heard of it. `never`: nor can another thread.
    fn leave(&self, kind: &Kind, orders: &Receiver<Order>, never: bool) {
        let mut threads = self.lock();
        threads.retain(|(known, _)| known != kind);
        if never {
            threads.push((kind.clone(), Thread::None));
        }
        drop(threads);
        while let Ok((job, busy)) = orders.try_recv() {
            self.go_through(Ready::default(), job, busy);
        }
    }
}
