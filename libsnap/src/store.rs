//! The registry of apps and appshots: plain files, no daemon.
//!
//! ```text
//! RUN_DIR  (/run/appshot)           gone after a reboot, as the processes are
//!   boot                            the boot that the records are of
//!   apps/NAME.json                  one record an app
//!   locks/NAME.op                   held while a snapshot or restore of NAME goes on
//!   locks/NAME.record               held for one change of the record
//!   usage/INSTANCE.json             the last counters of one that has ended
//! DATA_DIR (/var/lib/appshot)       stays
//!   appshots/NAME.appshot           sealed appshots: directories, or packed
//!   appshots/.NAME.appshot.next     a sealed successor, not yet in its place
//!   logs/NAME.log                   output of detached apps
//!   usage/                          what `perfd` keeps; where it is there, apps are metered
//!   quota                           bytes that all appshots may take together
//! ```
//!
//! Records are replaced whole (temporary file, rename), so a reader sees the old
//! or the new one; those of another boot are swept away. What a record says about processes is checked
//! against `/proc` each time it is read: nothing has to be told that an app died.

mod app;
mod appshots;
mod boot;
mod collect;
mod files;
mod inventory;
mod names;
mod packing;
mod quota;
mod readings;
mod view;

pub use app::{App, State, Taken, start_time};
pub use appshots::{AppshotEntry, SUFFIX, nobody_needs};
pub use boot::id as boot_id;
pub use collect::{Collected, Judged, Leftover, Rules};
pub use files::{Lock, absolute, directory, read_json, remove as remove_file, stems, sync_parent, write_json};
pub use inventory::{Need, Stored};
pub use names::{closest, from_command, validate, version_name, version_named};
pub use quota::Room;
pub use readings::Reading;
pub use view::View;

use crate::error::{Error, Kind, OrFail, Result};
use crate::ids::HostPid;
use crate::target::Target;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub const DEFAULT_RUN_DIR: &str = "/run/appshot";
pub const DEFAULT_DATA_DIR: &str = "/var/lib/appshot";
pub const RUN_DIR_ENV: &str = "APPSHOT_RUN_DIR";
pub const DATA_DIR_ENV: &str = "APPSHOT_DATA_DIR";

/// Writing an app's end down and clearing its cgroup away takes a few
/// milliseconds, on a busy machine some more.
const SUPERVISOR_PATIENCE: Duration = Duration::from_millis(500);

static RUN_DIR: OnceLock<PathBuf> = OnceLock::new();

/// What libsnap notes by itself goes to this run directory from now on, unless
/// another was named before.
pub fn use_run_dir(run_dir: &Path) {
    RUN_DIR.set(run_dir.to_owned()).ok();
}

/// The run directory of this process: the one named, or that of the environment.
pub fn run_dir() -> PathBuf {
    let named = RUN_DIR.get().cloned();
    named.unwrap_or_else(|| std::env::var_os(RUN_DIR_ENV).map_or_else(|| DEFAULT_RUN_DIR.into(), PathBuf::from))
}

/// An open registry: two directories that exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    run_dir: PathBuf,
    data_dir: PathBuf,
}

impl Store {
    /// Opens the registry, making its directories where they are missing.
    pub fn open(run_dir: &Path, data_dir: &Path) -> Result<Store> {
        // Sockets stand in the run directory: members of their group must reach them.
        files::directory(run_dir, 0o755)?;
        files::directory(data_dir, 0o700)?;
        let store = Store {
            run_dir: files::absolute(run_dir)?,
            data_dir: files::absolute(data_dir)?,
        };
        for dir in [store.run_dir.join("apps"), store.locks_dir()] {
            files::directory(&dir, 0o700)?;
        }
        boot::sweep(&store.run_dir)?;
        for dir in [store.data_dir.join("appshots"), store.data_dir.join("logs")] {
            files::directory(&dir, 0o700)?;
        }
        Ok(store)
    }

    /// Finishes or undoes what processes of ours that were killed have left: apps
    /// in the middle of a snapshot, appshots half-written or half-removed, files of locks.
    pub fn recover(&self) -> Result<()> {
        self.sweep();
        crate::cgroup::sweep_rehearsals();
        crate::journal::replay(self)?;
        files::sweep_locks(&self.locks_dir())
    }

    fn locks_dir(&self) -> PathBuf {
        self.run_dir.join("locks")
    }

    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Whose appshots stay, whatever the records tell: empty files, called as apps are.
    fn pins_dir(&self) -> PathBuf {
        self.data_dir.join("pinned")
    }

    /// Has the appshots of this app stay, those of its versions too: it is deployed.
    pub fn pin(&self, name: &str) -> Result<()> {
        names::validate(name)?;
        files::directory(&self.pins_dir(), 0o700)?;
        let path = self.pins_dir().join(name);
        if path.exists() {
            return Ok(());
        }
        let made = std::fs::File::create(&path).and_then(|_| files::sync_parent(&path));
        made.or_fail(|| format!("cannot write {}", path.display()))
    }

    pub fn unpin(&self, name: &str) -> Result<()> {
        names::validate(name)?;
        files::remove(&self.pins_dir().join(name))
    }

    pub fn pinned(&self) -> Result<Vec<String>> {
        match self.pins_dir() {
            dir if dir.exists() => files::stems(&dir, ""),
            _ => Ok(Vec::new()),
        }
    }

    /// Where the output of a detached app goes.
    pub fn log_path(&self, name: &str) -> PathBuf {
        self.data_dir.join("logs").join(format!("{name}.log"))
    }

    pub fn remove_log(&self, name: &str) -> Result<()> {
        names::validate(name)?;
        files::remove(&self.log_path(name))
    }

    fn record_path(&self, name: &str) -> PathBuf {
        self.run_dir.join("apps").join(format!("{name}.json"))
    }

    fn lock_path(&self, name: &str, what: &str) -> PathBuf {
        self.locks_dir().join(format!("{name}.{what}"))
    }

    /// All apps with a record, by name.
    pub fn list(&self) -> Result<Vec<App>> {
        let names = files::stems(&self.run_dir.join("apps"), ".json")?;
        // A record may be removed between the listing and the reading.
        names.iter().filter_map(|name| self.find(name).transpose()).collect()
    }

    /// The record of an app, if there is one.
    pub fn find(&self, name: &str) -> Result<Option<App>> {
        names::validate(name)?;
        files::read_json(&self.record_path(name))
    }

    /// The record of an app that must be there.
    pub fn get(&self, name: &str) -> Result<App> {
        match self.find(name)? {
            Some(app) => Ok(app),
            None => Err(self.unknown(name)),
        }
    }

    /// Writes a record, replacing the one of that name.
    pub fn put(&self, app: &App) -> Result<()> {
        names::validate(&app.name)?;
        let _held = self.record_lock(&app.name)?;
        files::write_json(&self.record_path(&app.name), app)
    }

    /// Changes the record of the instance that started at `started_unix_ms`.
    /// A later instance of the same name is left alone.
    pub fn update(&self, app: &App, change: impl FnOnce(&mut App)) -> Result<Option<App>> {
        let _held = self.record_lock(&app.name)?;
        let Some(mut current) = self.find(&app.name)? else {
            return Ok(None);
        };
        if !current.same_instance(app) {
            return Ok(None);
        }
        change(&mut current);
        files::write_json(&self.record_path(&app.name), &current)?;
        Ok(Some(current))
    }

    /// Forgets an app; its appshot and log stay.
    pub fn remove(&self, name: &str) -> Result<()> {
        names::validate(name)?;
        let _held = self.record_lock(name)?;
        files::remove(&self.record_path(name))
    }

    /// Takes the right to snapshot, restore or remove `name`; a second taker is
    /// refused. The supervisor of an app that has just ended is no second one:
    /// it writes that down under the lock, and is waited for.
    pub fn try_lock(&self, name: &str) -> Result<Lock> {
        let path = self.lock_path(name, "op");
        let deadline = Instant::now() + SUPERVISOR_PATIENCE;
        let lock = loop {
            match Lock::try_take(&path)? {
                Some(lock) => break lock,
                None if Instant::now() > deadline => return Err(busy(name)),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        self.settle(name)?;
        Ok(lock)
    }

    /// The same for who cannot do anything but let it be.
    pub(crate) fn lock_if_free(&self, name: &str) -> Result<Option<Lock>> {
        names::validate(name)?;
        Lock::try_take(&self.lock_path(name, "op"))
    }

    /// The same, waiting for the one who holds it.
    pub fn wait_lock(&self, name: &str) -> Result<Lock> {
        Lock::take(&self.lock_path(name, "op"))
    }

    fn record_lock(&self, name: &str) -> Result<Lock> {
        Lock::take(&self.lock_path(name, "record"))
    }

    /// Fails when an app of this name is alive; answers the record of one that was.
    pub fn vacant(&self, name: &str) -> Result<Option<App>> {
        match self.find(name)? {
            Some(app) if app.alive() => Err(Error::new(Kind::Conflict, format!("app {name} is already running"))
                .because(format!("pid {} belongs to it", app.child()))
                .fix("choose another name with --name, or end it with `appshot kill`")),
            other => Ok(other),
        }
    }

    /// What the engine is to act on: an app by name, or a process tree by PID.
    /// The PID of an app's first process or init means that app.
    pub fn target(&self, name_or_pid: &str) -> Result<Target> {
        match name_or_pid.parse::<i32>() {
            Ok(pid) => self.target_of_pid(HostPid(pid)),
            Err(_) => self.get(name_or_pid)?.target(),
        }
    }

    fn target_of_pid(&self, pid: HostPid) -> Result<Target> {
        let known = self.list()?.into_iter().find(|app| app.has_pid(pid));
        match known {
            Some(app) => app.target(),
            None if start_time(pid).is_some() => Ok(Target::Pid(pid)),
            None => Err(Error::new(Kind::NotFound, format!("there is no process {pid}"))
                .fix("`appshot ps` lists the apps, `ps -e` all processes")),
        }
    }

    /// Every app and every appshot without a record, as `ps` shows them.
    pub fn views(&self) -> Result<Vec<View>> {
        let mut views: Vec<View> = self.list()?.iter().map(|app| app.view(self)).collect();
        for entry in self.appshots()? {
            if !views.iter().any(|view| view.name == entry.name) {
                views.push(View::of_appshot(&entry));
            }
        }
        views.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(views)
    }

    /// One line of [`Store::views`].
    pub fn view(&self, name: &str) -> Result<View> {
        names::validate(name)?;
        let found = self.views()?.into_iter().find(|view| view.name == name);
        found.ok_or_else(|| self.unknown(name))
    }

    /// "There is no such app", with the nearest name that there is.
    pub fn unknown(&self, name: &str) -> Error {
        let error = Error::new(Kind::NotFound, format!("there is no app {name:?}"));
        let views = self.views().unwrap_or_default();
        if views.iter().any(|view| view.name == name) {
            return error
                .because("there is only an appshot of that name")
                .fix(format!("wake it with `appshot restore {name}`"));
        }
        match names::closest(name, views.iter().map(|view| view.name.as_str())) {
            Some(near) => error.fix(format!("did you mean {near:?}?")),
            None => error.fix("`appshot ps` lists the apps"),
        }
    }
}

fn busy(name: &str) -> Error {
    Error::new(Kind::Conflict, format!("app {name} is busy"))
        .because("a snapshot, restore or removal of it is going on")
        .fix("wait until it has ended")
}

/// Milliseconds since the Unix epoch.
pub fn now_unix_ms() -> Result<u64> {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .or_fail(|| "the clock stands before 1970")?;
    u64::try_from(since.as_millis()).or_fail(|| "the clock stands too far in the future")
}

#[cfg(test)]
mod tests;
