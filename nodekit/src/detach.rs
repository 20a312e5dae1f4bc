//! The detached supervisor: the parent of an app that was started with `-d`.

use crate::descriptors;
use crate::hidden::{self, Life};
use crate::signals;
use crate::start::{Start, Started};
use crate::supervise::supervise;
use libsnap::error::{Error, OrFail, Result};
use nix::sys::signalfd::SignalFd;
use std::io::{Read, Write};

/// Brings an app up under a supervisor of its own, and returns when it runs.
pub fn spawn(start: Start) -> Result<Started> {
    let mut child = hidden::spawn(Life::Supervisor)?;
    // It waits for its request still.
    descriptors::give_back(child.pid());
    let what = || "the supervisor died before the app was up";
    let store = start.store.clone();
    let mut request = serde_json::to_vec(&start.logged()).or_fail(what)?;
    request.push(b'\n');
    let mut answer = String::new();
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&request).or_fail(what)?;
    }
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut answer).or_fail(what)?;
    }
    if answer.is_empty() {
        let status = child.wait().or_fail(what)?;
        store.recover()?;
        return Err(Error::failed(what()).because(status).state("nothing was left behind"));
    }
    // The child is not waited for: it lives as long as the app.
    serde_json::from_str::<Result<Started>>(&answer).map_err(|e| Error::failed(what()).because(e))?
}

/// The supervisor's life; answers its exit code.
pub fn main() -> u8 {
    let (started, start, signals) = match bring_up() {
        Ok(up) => up,
        Err(error) => {
            let code = error.kind.exit_code();
            tell(&Err(error));
            return code;
        }
    };
    let (app, _joined) = (started.app.clone(), started.instance.joined.clone());
    tell(&Ok(started));
    match hidden::let_go().and_then(|()| supervise(&start.store, &app, &signals)) {
        Ok(_) => 0,
        Err(error) => error.kind.exit_code(),
    }
}

/// A signal to end us gives up a restore, as in the foreground.
fn bring_up() -> Result<(Started, Start, SignalFd)> {
    hidden::own_session()?;
    let mut start: Start = hidden::read_request()?;
    libsnap::store::use_run_dir(start.store.run_dir());
    let signals = signals::block()?;
    let started = start.go_unless(&|| signals::waiting(&signals))?;
    Ok((started, start, signals))
}

fn tell(answer: &Result<Started>) {
    if let Ok(text) = serde_json::to_string(answer) {
        let _ = std::io::stdout().write_all(text.as_bytes());
        let _ = std::io::stdout().flush();
    }
}
