//! Snapshots of an app that runs on, one every so often.
//!
//! ```text
//! due     |---------|---------|---------|---------|-------
//! taken   [###]     [##############]    [###]     [###]     what falls due meanwhile is skipped
//! stored  PREFIX-20260131-120000 ... the newest N of them: the oldest goes once a
//!         newer one is sealed, unless somebody needs it
//! ```
//!
//! There is one at a time, each in a worker of its own, so that nobody's death leaves
//! the app or the store half-way. The app stands still for a tenth of the time at most:
//! otherwise the next one is put off.
//!
//! Each stores what differs from the one before; each Nth is whole, so that those whose
//! pages others borrow go too: there are at most 2 N.

use crate::jobs::{Job, Place, Snapshot};
use crate::process;
use crate::worker::Working;
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::ids::HostPid;
use libsnap::store::{Judged, Store, Stored, now_unix_ms, validate};
use libsnap::survey;
use libsnap::target::{Hooks, SnapshotOptions, SnapshotReport, Target};
use libsnap::units::{is_stamp, stamp};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Why they are taken.
const CAUSE: &str = "periodic";
/// Their names tell seconds.
const EVERY_MIN: Duration = Duration::from_secs(1);
/// The app runs for so many times what it stands still.
const STANDSTILL_SHARE: u32 = 10;

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Series {
    pub store: Store,
    /// Name of an app, or a PID.
    pub target: String,
    pub every: Duration,
    /// So many are kept.
    pub keep: usize,
    /// What their names begin with.
    pub prefix: String,
    pub options: SnapshotOptions,
}

/// What happens meanwhile.
#[derive(Debug)]
pub enum Event<'a> {
    Taken(&'a SnapshotReport),
    /// One that was more than are to be kept.
    Removed(&'a str),
    /// The same, but somebody needs it; told once.
    Needed(&'a Judged),
    /// So many fell due while the last one was taken.
    Skipped {
        count: u32,
        took: Duration,
    },
    /// The app stood still for so long that the next one comes after this time.
    PutOff {
        stood: Duration,
        next: Duration,
    },
    /// One could not be taken; the next one may.
    Failed(&'a Error),
}

/// Why there are no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Stopped,
    /// The app has ended.
    Gone,
}

impl Series {
    /// `prefix` is the app's name by default.
    pub fn new(store: Store, target: String, prefix: Option<String>, every: Duration, keep: usize) -> Result<Series> {
        if every < EVERY_MIN || keep == 0 {
            return Err(Error::new(Kind::Usage, "such a series of snapshots is not possible")
                .because("one a second is the most, and one must be kept"));
        }
        let app = survey::app_name(&store.target(&target)?);
        let prefix = prefix.unwrap_or(app);
        validate(&format!("{prefix}-{}", stamp(0)))?;
        Ok(Series {
            store,
            target,
            every,
            keep,
            prefix,
            options: SnapshotOptions::default(),
        })
    }

    /// Takes them until `stop` says so or the app ends. If the first one cannot be taken,
    /// that is the answer.
    pub fn run(&self, stop: &Stop, tell: &mut dyn FnMut(Event<'_>)) -> Result<End> {
        let app = self.open()?;
        let mut past = Past::default();
        let mut due = Instant::now();
        let mut taken = 0;
        let mut last: Option<PathBuf> = None;
        let mut put_off = false;
        loop {
            let began = Instant::now();
            let mut pause = Duration::ZERO;
            let parent = last.take().filter(|_| taken % self.keep != 0);
            match self.take(stop, parent) {
                Ok(report) => {
                    taken += 1;
                    last = Some(report.appshot.clone());
                    tell(Event::Taken(&report));
                    self.thin_out(&report.app, &mut past, tell);
                    let stood = Duration::from_micros(report.frozen_micros);
                    pause = stood * STANDSTILL_SHARE;
                    if pause > self.every && !put_off {
                        tell(Event::PutOff { stood, next: pause });
                    }
                    put_off = pause > self.every;
                }
                Err(error) => match stop.until(Instant::now(), &app)? {
                    Some(end) => return Ok(end),
                    None if taken == 0 => return Err(error),
                    None => tell(Event::Failed(&error)),
                },
            }
            due += self.every;
            let skipped = skipped(due, Instant::now(), self.every);
            if skipped > 0 {
                due += self.every * skipped;
                let (count, took) = (skipped, began.elapsed());
                tell(Event::Skipped { count, took });
            }
            due = due.max(began + pause);
            if let Some(end) = stop.until(due, &app)? {
                return Ok(end);
            }
        }
    }

    /// The process whose end is the app's.
    fn open(&self) -> Result<OwnedFd> {
        match self.store.target(&self.target)? {
            Target::App { name, .. } => process::open_child(&self.store.get(&name)?),
            Target::Pid(HostPid(pid)) => process::open(HostPid(pid)),
        }
    }

    fn take(&self, stop: &Stop, parent: Option<PathBuf>) -> Result<SnapshotReport> {
        let job = Job::Snapshot(Snapshot {
            store: self.store.clone(),
            target: self.target.clone(),
            place: Place::Store {
                tag: Some(self.free_name()?),
                replace: false,
            },
            options: SnapshotOptions {
                leave_running: true,
                parent,
                ..self.options.clone()
            },
            // Those that its owner declared.
            hooks: Hooks::default(),
            cause: Some(CAUSE.to_owned()),
        });
        let working = Working::start(&job)?;
        stop.meanwhile(working.canceller(), || working.finish(&mut |_| {}))
    }

    /// For now; later where the clock was set back.
    fn free_name(&self) -> Result<String> {
        let now = now_unix_ms()? / 1000;
        let mut names = (now..).map(|second| format!("{}-{}", self.prefix, stamp(second)));
        let free = names.find(|name| !self.store.appshot_path(name).exists());
        free.ok_or_else(|| Error::failed("there is no name left"))
    }

    /// What cannot be removed now is tried again the next time.
    fn thin_out(&self, app: &str, past: &mut Past, tell: &mut dyn FnMut(Event<'_>)) {
        let ours = |stored: &Stored| {
            let time = stored
                .name
                .strip_prefix(&self.prefix)
                .and_then(|rest| rest.strip_prefix('-'));
            stored.app.as_deref() == Some(app) && time.is_some_and(is_stamp)
        };
        match self.store.keep_newest(self.keep, ours, &mut past.known) {
            Ok((removed, needed)) => {
                removed.iter().for_each(|gone| tell(Event::Removed(&gone.name)));
                for kept in needed.iter().filter(|kept| past.told.insert(kept.name.clone())) {
                    tell(Event::Needed(kept));
                }
            }
            Err(error) => tell(Event::Failed(&error)),
        }
    }
}

/// What a series remembers of the store.
#[derive(Debug, Default)]
struct Past {
    known: Vec<Stored>,
    /// That these are needed has been told.
    told: BTreeSet<String>,
}

/// How many have fallen due since `due`.
fn skipped(due: Instant, now: Instant, every: Duration) -> u32 {
    let late = now.saturating_duration_since(due).as_nanos();
    u32::try_from(late.div_ceil(every.as_nanos().max(1))).unwrap_or(u32::MAX)
}

/// By which a series is ended from elsewhere. Clones are the same.
#[derive(Clone, Debug)]
pub struct Stop(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    stopped: AtomicBool,
    /// Readable once it is stopped.
    event: OwnedFd,
    cancel: Mutex<Cancel>,
}

/// Gives up what is going on.
#[derive(Default)]
struct Cancel(Option<Box<dyn Fn() + Send>>);

impl std::fmt::Debug for Cancel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Cancel").field(&self.0.is_some()).finish()
    }
}

impl Stop {
    pub fn new() -> Result<Stop> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Stop(Arc::new(Shared {
            stopped: AtomicBool::new(false),
            event: event.or_fail(|| "cannot make an eventfd")?,
            cancel: Mutex::default(),
        })))
    }

    /// A snapshot that is being taken is undone, unless it is being sealed already.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        let _ = rustix::io::write(&self.0.event, &1u64.to_ne_bytes());
        self.cancel();
    }

    fn cancel(&self) {
        let cancel = self.0.cancel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cancel) = &cancel.0 {
            cancel();
        }
    }

    fn meanwhile<T>(&self, cancel: impl Fn() + Send + 'static, job: impl FnOnce() -> T) -> T {
        let set = |cancel| *self.0.cancel.lock().unwrap_or_else(PoisonError::into_inner) = Cancel(cancel);
        set(Some(Box::new(cancel)));
        if self.0.stopped.load(Ordering::SeqCst) {
            self.cancel();
        }
        let done = job();
        set(None);
        done
    }

    /// Waits for that moment; answers what came before.
    fn until(&self, moment: Instant, app: &OwnedFd) -> Result<Option<End>> {
        loop {
            let mut fds = [
                PollFd::new(&self.0.event, PollFlags::IN),
                PollFd::new(app, PollFlags::IN),
            ];
            let left = moment.saturating_duration_since(Instant::now());
            match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                ready => ready.or_fail(|| "cannot wait for the next snapshot")?,
            };
            return Ok(match fds.map(|fd| !fd.revents().is_empty()) {
                [true, _] => Some(End::Stopped),
                [false, true] => Some(End::Gone),
                [false, false] => None,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_falls_due_meanwhile_is_counted() {
        let (due, every) = (Instant::now(), Duration::from_secs(10));
        let at = |seconds| skipped(due, due + Duration::from_secs(seconds), every);
        assert_eq!([0, 1, 10, 11, 29].map(at), [0, 1, 1, 2, 3]);
        assert_eq!(skipped(due + every, due, every), 0);
    }

    #[test]
    fn a_stop_wakes_and_cancels() {
        let own = process::open(HostPid(i32::try_from(std::process::id()).unwrap())).unwrap();
        let stop = Stop::new().unwrap();
        assert_eq!(stop.until(Instant::now(), &own).unwrap(), None);
        let cancelled = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&cancelled);
        stop.meanwhile(move || seen.store(true, Ordering::SeqCst), || stop.stop());
        assert!(cancelled.load(Ordering::SeqCst));
        let far = Instant::now() + Duration::from_secs(600);
        assert_eq!(stop.until(far, &own).unwrap(), Some(End::Stopped));
    }
}
