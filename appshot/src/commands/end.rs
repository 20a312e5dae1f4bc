//! `kill` and `rm`.

use crate::cli;
use libsnap::clocks::boottime_ns;
use libsnap::error::{Error, Kind, Result};
use libsnap::store::{State, Store};
use nodekit::{ending, process};

pub fn kill(store: &Store, args: &cli::Kill) -> Result<u8> {
    let app = store.get(&args.name)?;
    if args.signal == ending::SIGKILL {
        ending::kill_all(store, &app)?;
        return Ok(0);
    }
    let child = process::open_child(&app)?;
    process::signal(&app, args.signal)?;
    if args.wait {
        process::wait(&child, None)?;
        ending::settle(store, &app, None)?;
    }
    Ok(0)
}

pub fn rm(store: &Store, args: &cli::Rm) -> Result<u8> {
    let _busy = store.try_lock(&args.name)?;
    let view = store.view(&args.name)?;
    if view.alive() {
        return Err(Error::new(Kind::Conflict, format!("app {} is running", args.name))
            .fix(format!("end it with `appshot kill {}`", args.name)));
    }
    if view.state == State::Asleep && !args.appshot {
        return Err(Error::new(Kind::Conflict, format!("app {} is asleep", args.name))
            .because("all that is left of it is its appshot")
            .fix("pass --appshot to delete that too"));
    }
    forget(store, &args.name, args.appshot)
}

fn forget(store: &Store, name: &str, appshot: bool) -> Result<u8> {
    if let Some(app) = store.find(name)? {
        store.clear_cgroup(&app, boottime_ns())?;
    }
    if appshot && store.appshot_path(name).exists() {
        store.remove_appshot(name)?;
    }
    store.remove_log(name)?;
    store.remove(name)?;
    Ok(0)
}
