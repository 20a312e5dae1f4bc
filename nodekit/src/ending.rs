//! Ending an app at once, and following the end of one that is not our child.

use crate::{process, supervise};
use libsnap::error::{Error, Result};
use libsnap::store::{App, Store};
use std::path::Path;
use std::time::Duration;

pub const SIGKILL: i32 = 9;

/// A killed app is gone within microseconds, unless a task is stuck in the kernel.
pub const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// The end of an app is written down by its supervisor shortly after.
const RECORD_PATIENCE: Duration = Duration::from_millis(500);
const RECORD_INTERVAL: Duration = Duration::from_millis(5);

/// When this returns the app is gone, and written down as gone.
pub fn kill_all(store: &Store, app: &App) -> Result<()> {
    let child = process::open_child(app)?;
    process::signal(app, SIGKILL)?;
    if !process::wait(&child, Some(KILL_PATIENCE))? {
        return Err(Error::failed(format!("app {} did not end", app.name))
            .because("a task is stuck in the kernel")
            .fix("try again when the device or file system it waits for answers"));
    }
    settle(store, app, Some(128 + SIGKILL))
}

/// Waits for the supervisor of an app that has ended to write that down; a dead
/// one's work is done for it, with what is known of the exit code.
pub fn settle(store: &Store, app: &App, code: Option<i32>) -> Result<()> {
    match written_down(store, app)? {
        true => Ok(()),
        false => supervise::finish(store, app, code).map(drop),
    }
}

/// Whether the end of an app that has ended stands in its record; waits a
/// moment for its supervisor, if that one lives.
pub fn written_down(store: &Store, app: &App) -> Result<bool> {
    let supervised = app.supervisor.is_some_and(|pid| process::open(pid).is_ok());
    let mut patience = if supervised { RECORD_PATIENCE } else { Duration::ZERO };
    loop {
        match store.find(&app.name)? {
            Some(now) if now.same_instance(app) && now.exit.is_none() => {}
            _ => return Ok(true),
        }
        if patience.is_zero() {
            return Ok(false);
        }
        std::thread::sleep(RECORD_INTERVAL);
        patience = patience.saturating_sub(RECORD_INTERVAL);
    }
}

/// Follows the apps whose supervisor is dead. Their exit code is lost, unless it had
/// been written down: the kernel tells it to the parent alone.
pub fn adopt_orphans(store: &Store) -> Result<()> {
    let orphaned = |app: &App| app.supervisor.is_none_or(|pid| process::open(pid).is_err());
    let left = |app: &App| app.exit.is_none() || app.cgroup.as_deref().is_some_and(Path::exists);
    for app in store.list()?.into_iter().filter(left) {
        if orphaned(&app) {
            tracing::info!(app = app.name, "its supervisor is gone: followed from here");
            let store = store.clone();
            std::thread::spawn(move || follow(&store, &app));
        }
    }
    Ok(())
}

fn follow(store: &Store, app: &App) {
    let ended = match process::open_child(app) {
        Ok(child) => process::wait(&child, None).map(drop),
        Err(_) => Ok(()),
    };
    if let Err(error) = ended.and_then(|()| supervise::finish(store, app, app.exit)) {
        tracing::warn!(app = app.name, %error, "cannot write down its end");
    }
}
