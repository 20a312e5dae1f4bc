//! `kill` and `rm`.

use crate::cli;
use libsnap::error::{Error, Kind, Result};
use libsnap::store::{App, State, Store};
use nodekit::{process, supervise};
use std::time::Duration;

const SIGKILL: i32 = 9;

/// A killed app is gone within microseconds, unless a task is stuck in the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// The end of an app is written down by its supervisor shortly after.
const RECORD_PATIENCE: Duration = Duration::from_millis(500);

pub fn kill(store: &Store, args: &cli::Kill) -> Result<u8> {
    let app = store.get(&args.name)?;
    if args.signal == SIGKILL {
        kill_all(store, &app)?;
    } else {
        process::signal(&app, args.signal)?;
    }
    Ok(0)
}

/// When this returns the app is gone, and written down as gone.
fn kill_all(store: &Store, app: &App) -> Result<()> {
    let child = process::open_child(app)?;
    process::signal(app, SIGKILL)?;
    if !process::wait(&child, Some(KILL_PATIENCE))? {
        return Err(Error::failed(format!("app {} did not end", app.name))
            .because("a task is stuck in the kernel")
            .fix("try again when the device or file system it waits for answers"));
    }
    settle(store, app)
}

/// Waits for the supervisor to write the end down; a dead one's work is done for it.
fn settle(store: &Store, app: &App) -> Result<()> {
    if let Some(supervisor) = app.supervisor.and_then(|pid| process::open(pid).ok()) {
        process::wait(&supervisor, Some(RECORD_PATIENCE))?;
    }
    match store.find(&app.name)? {
        Some(now) if now.same_instance(app) && now.exit.is_none() => {
            supervise::finish(store, app, Some(128 + SIGKILL)).map(drop)
        }
        _ => Ok(()),
    }
}

pub fn rm(store: &Store, args: &cli::Rm) -> Result<u8> {
    let _busy = store.try_lock(&args.name)?;
    let view = store.view(&args.name)?;
    if view.alive() {
        return Err(
            Error::new(Kind::Conflict, format!("app {} is running", args.name))
                .fix(format!("end it with `appshot kill {}`", args.name)),
        );
    }
    if view.state == State::Asleep && !args.appshot {
        return Err(
            Error::new(Kind::Conflict, format!("app {} is asleep", args.name))
                .because("all that is left of it is its appshot")
                .fix("pass --appshot to delete that too"),
        );
    }
    forget(store, &args.name, args.appshot)
}

fn forget(store: &Store, name: &str, appshot: bool) -> Result<u8> {
    if let Some(cgroup) = store.find(name)?.and_then(|app| app.cgroup)
        && cgroup.exists()
    {
        libsnap::cgroup::destroy(&cgroup)?;
    }
    if appshot && store.appshot_path(name).exists() {
        store.remove_appshot(name)?;
    }
    store.remove_log(name)?;
    store.remove(name)?;
    Ok(0)
}
