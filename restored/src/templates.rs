//! Templates, and threads that have instances forked off them in waiting.
//!
//! ```text
//!   order ──> orders of its kind ──> first:  one in waiting, or one forked now ──> finished here ──> watched elsewhere
//!                                     │       └── while there is no order: fork the next one
//!                                     └> helpers: one forked now
//! ```
//!
//! A template holds all of an app's memory. One that nobody has asked for lately goes.
//! Helpers come when more is ordered than the first can do at once, up to one a processor.

use crate::pool::{Busy, Job, Kind};
use crate::shelf::Shelf;
use crate::watcher::Watcher;
use libsnap::error::{Error, Result};
use libsnap::image::processors;
use libsnap::restore::eager::Eager;
use libsnap::restore::{self, From, Nursery, Prepared, Template};
use libsnap::store::Store;
use libsnap::sys::memory::Span;
use libsnap::target::{Memory, PidMode};
use nodekit::start::Ready;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A moment is quiet when nothing was ordered for this long: the next one to wait is made
/// then, when the last one has given its first answers.
const QUIET: Duration = Duration::from_millis(5);
/// Pages that an instance in waiting has for itself already, at most.
const OWN_PAGES_MAX: usize = 256;
/// Instances in waiting of one template: as many as were missing at once, within these.
const WAITING_MIN: usize = 1;
const WAITING_MAX: usize = 16;
/// After this without an order half as many wait, and helpers go.
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
    kinds: Arc<Mutex<Vec<(Kind, Row)>>>,
}

#[derive(Debug)]
enum Row {
    Orders(Arc<Orders>),
    /// No template can be made of it.
    None,
}

impl Row {
    fn bytes(&self) -> u64 {
        let Row::Orders(orders) = self else { return 0 };
        // One that is being made has little yet.
        let made = orders.template.try_lock().ok();
        let pid = made.and_then(|made| made.as_ref().map(|(_, template)| template.pid()));
        pid.and_then(libsnap::cgroup::pss_bytes).unwrap_or(0)
    }
}

/// What was ordered of one kind.
#[derive(Default)]
struct Orders {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// And of what it was made. Held while it is made.
    template: Mutex<Option<(From, Template)>>,
}

#[derive(Default)]
struct Queue {
    orders: VecDeque<Order>,
    helpers: usize,
    /// No order comes any more.
    ended: bool,
}

impl std::fmt::Debug for Orders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Orders")
    }
}

/// The first thread of these. However it ends, nobody waits for it then.
struct Serves<'a>(&'a Templates, &'a Arc<Orders>);

impl Drop for Serves<'_> {
    fn drop(&mut self) {
        let Serves(all, own) = self;
        lock(&all.kinds).retain(|(_, row)| !matches!(row, Row::Orders(orders) if Arc::ptr_eq(orders, own)));
        own.end();
        lock(&own.queue).orders.clear();
    }
}

/// One of the others. However it ends, it is not counted any more.
struct Helps<'a>(&'a Orders);

impl Drop for Helps<'_> {
    fn drop(&mut self) {
        lock(&self.0.queue).helpers -= 1;
    }
}

/// What came of waiting for an order.
enum Next {
    Order(Order),
    /// None came in time.
    Idle,
    Ended,
}

fn thread(name: &str) -> std::thread::Builder {
    std::thread::Builder::new().name(name.to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Orders {
    /// The next one. A helper leaves the last to the first, which may have one in waiting.
    fn next(&self, helps: bool, patience: Duration) -> Next {
        let since = Instant::now();
        let mut queue = lock(&self.queue);
        loop {
            if queue.orders.len() > usize::from(helps && !queue.ended)
                && let Some(order) = queue.orders.pop_front()
            {
                return Next::Order(order);
            }
            if queue.ended {
                return Next::Ended;
            }
            let left = patience.saturating_sub(since.elapsed());
            if left.is_zero() {
                return Next::Idle;
            }
            let waited = self.changed.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Of this reading of the appshot, made if need be.
    fn template(&self, from: &From, kind: &Kind) -> Result<Template> {
        let mut made = lock(&self.template);
        match &*made {
            Some((of, template)) if of.is(from) => Ok(template.clone()),
            _ => {
                *made = None;
                let template = restore::template(from, kind.way)?;
                *made = Some((from.clone(), template.clone()));
                Ok(template)
            }
        }
    }

    fn has_template(&self) -> bool {
        self.template.try_lock().is_ok_and(|template| template.is_some())
    }

    fn end(&self) {
        lock(&self.queue).ended = true;
        self.changed.notify_all();
    }
}

impl Templates {
    pub fn new(store: Store, shelf: Shelf, watcher: Watcher) -> Templates {
        Templates {
            store,
            shelf,
            watcher,
            kinds: Arc::default(),
        }
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
        let mut kinds = lock(&self.kinds);
        match kinds.iter().find(|(known, _)| known == kind) {
            Some((_, Row::None)) => Err(order),
            // A thread that ends takes itself off first.
            Some((_, Row::Orders(orders))) => {
                self.put(kind, orders, order);
                Ok(())
            }
            None => {
                let orders = Arc::<Orders>::default();
                let (this, of, own) = (self.clone(), kind.clone(), orders.clone());
                let serve = move || {
                    let _serves = Serves(&this, &own);
                    this.first(&of, &own);
                };
                // It waits for `kinds` before it could take its row off.
                if let Err(error) = thread("clones").spawn(serve) {
                    tracing::warn!(%error, appshot = %kind.appshot.display(), "no template");
                    return Err(order);
                }
                self.put(kind, &orders, order);
                kinds.push((kind.clone(), Row::Orders(orders)));
                Ok(())
            }
        }
    }

    fn put(&self, kind: &Kind, orders: &Arc<Orders>, order: Order) {
        let most = processors() - 1;
        let mut queue = lock(&orders.queue);
        queue.orders.push_back(order);
        if queue.orders.len() > 1 && queue.helpers < most && orders.has_template() {
            queue.helpers += 1;
            let (this, kind, orders) = (self.clone(), kind.clone(), orders.clone());
            if thread("clones").spawn(move || this.help(&kind, &orders)).is_err() {
                queue.helpers -= 1;
            }
        }
        drop(queue);
        orders.changed.notify_all();
    }

    /// What all of them have, without what they share with instances.
    pub fn bytes(&self) -> u64 {
        lock(&self.kinds).iter().map(|(_, row)| row.bytes()).sum()
    }

    /// Ends those that have been there for longest, until that is so many bytes or none is
    /// left. What was ordered before is done.
    pub fn give_up(&self, bytes: u64) -> u64 {
        let mut given = 0;
        lock(&self.kinds).retain(|(_, row)| {
            let own = row.bytes();
            let Row::Orders(orders) = row else { return true };
            if given >= bytes || own == 0 {
                return true;
            }
            given += own;
            orders.end();
            false
        });
        given
    }

    /// All threads end when they have done what was ordered.
    pub fn end(&self) {
        for (_, row) in lock(&self.kinds).drain(..) {
            if let Row::Orders(orders) = row {
                orders.end();
            }
        }
    }

    fn first(&self, kind: &Kind, orders: &Orders) {
        let mut made: Option<Nursery> = None;
        let mut waiting: VecDeque<Ready> = VecDeque::new();
        let (mut wanted, mut asked) = (WAITING_MIN, Instant::now());
        let mut last = None;
        // What instances write to in their first moments.
        let mut own: Vec<Span> = Vec::new();
        loop {
            let eager = Eager::begin();
            let next = match &made {
                Some(_) if waiting.len() < wanted => orders.next(false, QUIET),
                _ => orders.next(false, IDLE),
            };
            match (next, &made) {
                (Next::Order((job, busy)), _) => {
                    asked = Instant::now();
                    if waiting.is_empty() && made.is_some() {
                        wanted = (wanted * 2).clamp(WAITING_MIN, WAITING_MAX);
                    }
                    let now = self.now(kind, &mut made);
                    if made.is_none() {
                        waiting.clear();
                        own.clear();
                    }
                    let ready = match waiting.pop_front() {
                        Some(ready) => ready,
                        None => self.fork(kind, orders, now.as_ref(), &mut made, eager.as_ref()),
                    };
                    last = ready.prepared.as_ref().map(Prepared::root);
                    drop(eager);
                    self.go_through(ready, job, busy);
                    if made.is_none() {
                        let never = now.is_some_and(|from| !Template::suits(from.shot(), kind.way));
                        return self.leave(kind, orders, never);
                    }
                }
                (Next::Idle, Some(nursery)) if waiting.len() < wanted => {
                    if let (Some(root), true) = (last.take(), own.is_empty()) {
                        own = nursery.written_by(root, OWN_PAGES_MAX);
                    }
                    // Who orders meanwhile waits for this one.
                    let forked = Ready::forked(&self.store, nursery, eager.as_ref());
                    match forked.and_then(|ready| ready.warmed(&own)) {
                        Ok(mut ready) => {
                            if let Some(prepared) = &mut ready.prepared {
                                prepared.read_ahead();
                                prepared.waits();
                            }
                            waiting.push_back(ready);
                        }
                        Err(error) => {
                            tracing::warn!(%error, appshot = %kind.appshot.display(), "no instance in waiting");
                            wanted = 0;
                        }
                    }
                }
                (Next::Idle, _) if asked.elapsed() < FORGOTTEN => {
                    wanted = (wanted / 2).max(WAITING_MIN);
                    waiting.truncate(wanted);
                }
                (Next::Idle, _) => return self.leave(kind, orders, false),
                (Next::Ended, _) => return,
            }
        }
    }

    fn help(&self, kind: &Kind, orders: &Orders) {
        let _helps = Helps(orders);
        let mut made: Option<Nursery> = None;
        loop {
            let eager = Eager::begin();
            let Next::Order((job, busy)) = orders.next(true, IDLE) else {
                break;
            };
            let now = self.now(kind, &mut made);
            let ready = self.fork(kind, orders, now.as_ref(), &mut made, eager.as_ref());
            drop(eager);
            self.go_through(ready, job, busy);
        }
    }

    /// The appshot as it is now: it may have been replaced since something was made of it.
    fn now(&self, kind: &Kind, made: &mut Option<Nursery>) -> Option<From> {
        let now = self.shelf.get(&kind.appshot, kind.way.memory);
        made.take_if(|made| !now.as_ref().is_some_and(|now| now.is(made.from())));
        now
    }

    /// An instance that somebody waits for. Nothing ready where there can be none.
    fn fork(
        &self,
        kind: &Kind,
        orders: &Orders,
        from: Option<&From>,
        made: &mut Option<Nursery>,
        eager: Option<&Eager>,
    ) -> Ready {
        let Some(from) = from else { return Ready::default() };
        let mut fork = || {
            if made.is_none() && Template::suits(from.shot(), kind.way) {
                *made = Some(orders.template(from, kind)?.nursery()?);
            }
            match made {
                Some(nursery) => Ready::forked(&self.store, nursery, eager),
                None => Ok(Ready::default()),
            }
        };
        fork().unwrap_or_else(|error: Error| {
            tracing::warn!(%error, appshot = %kind.appshot.display(), "nothing can be forked");
            // Whatever is wrong with it: the next one makes another.
            *made = None;
            *lock(&orders.template) = None;
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
    fn leave(&self, kind: &Kind, orders: &Orders, never: bool) {
        let mut kinds = lock(&self.kinds);
        kinds.retain(|(_, row)| !matches!(row, Row::Orders(own) if std::ptr::eq(&raw const **own, orders)));
        if never {
            kinds.push((kind.clone(), Row::None));
        }
        drop(kinds);
        orders.end();
        while let Next::Order((job, busy)) = orders.next(false, Duration::ZERO) {
            self.go_through(Ready::default(), job, busy);
        }
    }
}
