//! The process that watches over a worker.
//!
//! ```text
//! worker                          guard (own session)
//!    | -- stdin: Watch ----------->  |
//!    |    stdin stays open           |  end of file there: the worker is done, or dead
//!    |                               |  no journal of it: done
//!    |                               |  one: it was killed, and what it was at is undone
//! ```
//!
//! It is started before the app is touched and ends with the worker. It has
//! nothing to do besides, so that it answers at once.

use crate::hidden::{self, Life, Process};
use libsnap::error::{OrFail, Result};
use libsnap::ids::HostPid;
use libsnap::journal;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Watch {
    run_dir: PathBuf,
    worker: HostPid,
}

/// A guard over this process. Dropped, it is told that all is well: there must
/// be no journal of ours any more.
#[derive(Debug)]
#[must_use]
pub struct Guard(Process);

impl Guard {
    pub fn start(run_dir: &Path) -> Result<Guard> {
        let mut child = hidden::spawn(Life::Guard)?;
        let watch = Watch {
            run_dir: run_dir.to_owned(),
            worker: HostPid(i32::try_from(std::process::id()).unwrap_or_default()),
        };
        let mut line = serde_json::to_vec(&watch).or_fail(|| "cannot tell the guard")?;
        line.push(b'\n');
        // A guard that cannot be told has ended; it has said why on stderr.
        let told = child.stdin.as_mut().map(|stdin| stdin.write_all(&line));
        let guard = Guard(child);
        told.transpose().or_fail(|| "cannot tell the guard")?;
        Ok(guard)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// The guard's life; answers its exit code.
pub fn main() -> u8 {
    crate::log::init(crate::log::Format::Text);
    match watch() {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(%error, "cannot undo what a killed snapshot was at");
            error.kind.exit_code()
        }
    }
}

fn watch() -> Result<()> {
    hidden::own_session()?;
    // It may outlive the directory that the worker works in.
    std::env::set_current_dir("/").or_fail(|| "cannot leave the working directory")?;
    let Watch { run_dir, worker } = hidden::read_request()?;
    std::io::stdin()
        .read_to_end(&mut Vec::new())
        .or_fail(|| "cannot watch the worker")?;
    journal::settle(&run_dir, worker).map(drop)
}
