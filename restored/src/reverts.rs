//! What the instances of this daemon can be reverted to, as long as they run.

use libsnap::error::{Error, Result};
use libsnap::ids::HostPid;
use libsnap::restore::revert::{Point, Why};
use libsnap::store::{App, Store};
use libsnap::target::{Instance, Manner, Memory, PidMode, RevertReport};
use nodekit::start::{Start, What};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Clones are the same table.
#[derive(Clone, Debug, Default)]
pub struct Reverts(Arc<Mutex<HashMap<HostPid, Known>>>);

/// How an instance was brought up, and as what it can be had again.
#[derive(Clone, Debug)]
pub struct Known {
    start: Start,
    /// The network that it has joined, which lasts as long as this.
    joined: Option<Arc<OwnedFd>>,
    point: Option<Arc<Point>>,
}

/// What has come of reverting in place.
pub enum Tried {
    Done(RevertReport),
    /// It is to be brought up anew, in this network if it had joined one, for this reason.
    Anew(Box<Start>, Option<Arc<OwnedFd>>, String),
}

/// An instance in the table; dropped, it is none any more.
#[derive(Debug)]
pub struct Noted(Reverts, HostPid);

impl Drop for Noted {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

impl Reverts {
    fn lock(&self) -> MutexGuard<'_, HashMap<HostPid, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps in mind what has come up.
    pub fn note(&self, start: &Start, instance: &Instance) -> Noted {
        let mut start = start.clone();
        if let What::Restore { options, .. } = &mut start.what {
            // Who has named it may have closed it by then.
            options.joins = instance.network.map(|joined| joined.held);
        }
        let known = Known {
            start,
            joined: instance.joined.clone(),
            point: instance.point.clone(),
        };
        self.lock().insert(instance.root, known);
        Noted(self.clone(), instance.root)
    }

    /// Refused of an instance that another program has restored, or this one before it was
    /// started again.
    pub fn of(&self, app: &App) -> Result<Known> {
        let found = self.lock().get(&app.root).cloned();
        found.filter(|known| known.start.name == app.name).ok_or_else(|| {
            Error::refused(format!("cannot revert {}", app.name))
                .because("this restored has not restored it, or it has ended")
                .fix("kill it, and restore it by this daemon")
                .state("it was not touched")
        })
    }
}

impl Known {
    /// Uses ptrace: wholly on this thread.
    pub fn in_place(self, store: &Store) -> Result<Tried> {
        let Known { start, joined, point } = self;
        let name = start.name.clone();
        let because = match &point {
            None => "it was not made to be reverted in place; from now on it is".to_owned(),
            Some(point) => {
                let _busy = store.try_lock(&name)?;
                match point.revert() {
                    Ok(done) => {
                        return Ok(Tried::Done(RevertReport {
                            name,
                            manner: Manner::InPlace,
                            because: None,
                            dirty_pages: done.dirty_pages,
                            total_micros: done.total_micros,
                            phases: done.phases,
                        }));
                    }
                    Err(Why::Anew(because)) => because,
                    Err(Why::Refused(error)) => return Err(error),
                }
            }
        };
        let mut again = start;
        if let What::Restore { options, .. } = &mut again.what
            && options.pids == PidMode::New
        {
            options.revertible = true;
            options.memory = Memory::Shared;
        }
        Ok(Tried::Anew(Box::new(again), joined, because))
    }
}
