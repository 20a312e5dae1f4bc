//! What a worker does.

use crate::{hooks, worker};
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::rehearsal::mark;
use libsnap::store::{Lock, Store};
use libsnap::target::{CheckReport, Hooks, SnapshotOptions, SnapshotReport, Target};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Job {
    Snapshot(Snapshot),
}

impl Job {
    pub fn store(&self) -> &Store {
        match self {
            Job::Snapshot(job) => &job.store,
        }
    }

    pub fn work(&self, progress: &mut dyn FnMut(&str)) -> Result<Value> {
        match self {
            Job::Snapshot(job) => serde_json::to_value(job.take(progress)?).or_fail(|| "cannot write the report"),
        }
    }
}

/// A snapshot of an app or PID, into the store or a directory of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    pub store: Store,
    /// Name of an app, or a PID.
    pub target: String,
    pub place: Place,
    pub options: SnapshotOptions,
    /// What the app is told before, beside what its record says.
    pub hooks: Hooks,
    /// Why it is taken, where that was said; one word.
    #[serde(default)]
    pub cause: Option<String>,
}

/// What stands for a cause that nobody has told: somebody wanted it.
const OPERATOR: &str = "operator";

/// Where the appshot goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Into the store under the app's name, or under this one.
    Store { tag: Option<String>, replace: bool },
    /// A new directory.
    Path(PathBuf),
}

impl Snapshot {
    /// The lock is the worker's: it must outlive a requester that is killed.
    fn take(&self, progress: &mut dyn FnMut(&str)) -> Result<SnapshotReport> {
        let began = Instant::now();
        let target = self.store.target(&self.target)?;
        let name = name_of(&target);
        let _busy = self.store.try_lock(&name)?;
        let (tag, _tag_busy) = self.tag(&name)?;
        let _parent_busy = self.parent(&name, &tag)?;
        let dest = self.dest(&tag)?;
        let mut options = with_log(&self.store, &target, self.options.clone())?;
        if let Place::Store { .. } = self.place {
            options.room = self.store.room(&tag)?;
        }
        progress("hooks");
        let mut told = hooks::before_snapshot(&self.hooks(&target)?, &target, &worker::cancelled)?;
        let mut step = |step: &str| {
            // The app that runs on need not wait for its rehearsal.
            if step == libsnap::rehearsal::STEP && options.leave_running {
                drop(told.take());
            }
            progress(step);
        };
        let taken = libsnap::snapshot::snapshot_unless(&worker::cancelled, &target, &dest, &options, &mut step);
        drop(told);
        let mut report = taken?;
        report.appshot = self.settled(&tag, dest)?;
        if let Some(rehearsal) = &report.rehearsal
            && let Err(error) = mark::write(&report.appshot, rehearsal)
        {
            tracing::warn!(%error, "how its rehearsal went is not kept");
        }
        let sleeps = !self.options.leave_running && !report.is_unverified();
        self.note(&target, began.elapsed(), sleeps.then_some(&report.appshot))?;
        Ok(report)
    }

    /// With those that its owner declared.
    fn hooks(&self, target: &Target) -> Result<Hooks> {
        let declared = match target {
            Target::App { name, .. } => self.store.get(name)?.hooks,
            Target::Pid(_) => Hooks::default(),
        };
        Ok(self.hooks.clone().or(&declared))
    }

    /// The name in the store, locked where it is not the app's own.
    fn tag(&self, name: &str) -> Result<(String, Option<Lock>)> {
        match &self.place {
            Place::Store { tag: Some(tag), .. } if tag != name => {
                libsnap::store::validate(tag)?;
                Ok((tag.clone(), Some(self.store.try_lock(tag)?)))
            }
            _ => Ok((name.to_owned(), None)),
        }
    }

    /// Nobody removes or replaces the parent meanwhile, nor does this snapshot.
    fn parent(&self, name: &str, tag: &str) -> Result<Option<Lock>> {
        let parent = self.options.parent.as_deref();
        let Some(stored) = parent.and_then(|parent| self.store.stored_name(parent)) else {
            return Ok(None);
        };
        if stored == tag && matches!(self.place, Place::Store { replace: true, .. }) {
            return Err(
                Error::new(Kind::Usage, "the appshot would take the place of its parent")
                    .because(format!("both are to be called {tag}"))
                    .fix("give the new one a name of its own with --tag")
                    .state("nothing was touched"),
            );
        }
        match stored == tag || stored == name {
            true => Ok(None),
            false => self.store.try_lock(&stored).map(Some),
        }
    }

    fn dest(&self, tag: &str) -> Result<PathBuf> {
        match &self.place {
            Place::Path(path) => Ok(path.clone()),
            Place::Store { replace, .. } => self.store.new_appshot_path(tag, *replace),
        }
    }

    fn settled(&self, tag: &str, dest: PathBuf) -> Result<PathBuf> {
        match self.place {
            Place::Path(_) => Ok(dest),
            Place::Store { .. } => {
                self.store.settle(tag)?;
                Ok(self.store.appshot_path(tag))
            }
        }
    }

    /// Notes the snapshot in the app's record, and where the app lives on once it was ended; waits
    /// for that end.
    fn note(&self, target: &Target, took: Duration, asleep_in: Option<&PathBuf>) -> Result<()> {
        let Target::App { name, .. } = target else {
            return Ok(());
        };
        let app = self.store.get(name)?;
        let note = |app: &mut libsnap::store::App| {
            app.was_taken(self.cause.as_deref().unwrap_or(OPERATOR), took);
            if asleep_in.is_some() {
                app.appshot = asleep_in.cloned();
            }
        };
        self.store.update(&app, note)?;
        if asleep_in.is_none() {
            return Ok(());
        }
        // The init ends a moment after the processes: whoever comes next must
        // not find the app running.
        if let Ok(child) = crate::process::open_child(&app) {
            crate::process::wait(&child, Some(crate::ending::KILL_PATIENCE))?;
        }
        Ok(())
    }
}

/// What a snapshot of `name_or_pid` would refuse; touches nothing.
pub fn check(store: &Store, name_or_pid: &str, options: SnapshotOptions) -> Result<CheckReport> {
    let target = store.target(name_or_pid)?;
    let options = with_log(store, &target, options)?;
    libsnap::snapshot::check(&target, &options)
}

/// The record of an app knows its log.
fn with_log(store: &Store, target: &Target, options: SnapshotOptions) -> Result<SnapshotOptions> {
    let log = match target {
        Target::App { name, .. } => store.get(name)?.log,
        Target::Pid(_) => None,
    };
    Ok(SnapshotOptions { log, ..options })
}

/// An app's name; a process tree without one is named for its program and PID.
fn name_of(target: &Target) -> String {
    match target {
        Target::App { name, .. } => name.clone(),
        Target::Pid(pid) => {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("{}-{pid}", libsnap::store::from_command(comm.trim_end()))
        }
    }
}
