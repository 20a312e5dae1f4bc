//! The second lives of every program: started again from `/proc/self/exe` with
//! one of these as its only argument, the request on stdin, the answer on stdout.

use libsnap::error::{Error, OrFail, Result};
use libsnap::store::RUN_DIR_ENV;
use std::ffi::OsStr;
use std::io::BufRead;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

pub const WORKER: &str = "--worker";
pub const SUPERVISE: &str = "--supervise";
pub const GUARD: &str = "--guard";

/// A request longer than this was not written by us.
const REQUEST_BYTES_MAX: u64 = 1 << 20;

/// Runs the hidden life that the arguments ask for; every `main` begins here,
/// while the process has no other thread.
pub fn dispatch() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let (first, second) = (arguments.next()?, arguments.next());
    let life: fn() -> ExitCode = match (first.to_str()?, second) {
        (WORKER, None) => crate::worker::main,
        (SUPERVISE, None) => crate::detach::main,
        (GUARD, None) => crate::guard::main,
        _ => return None,
    };
    Some(life())
}

/// Starts this program again, with this run directory. `/proc/self/exe` is the
/// very file that runs now, also after an upgrade has replaced it.
pub fn spawn(life: &str, run_dir: &Path) -> Result<Child> {
    let name = std::env::args_os().next();
    Command::new("/proc/self/exe")
        .arg0(name.as_deref().unwrap_or(OsStr::new("appshot")))
        .arg(life)
        .env(RUN_DIR_ENV, run_dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .or_fail(|| format!("cannot start this program again as {life}"))
}

/// Leaves the caller's session and terminal: Ctrl-C there does not reach us.
pub fn own_session() -> Result<()> {
    nix::unistd::setsid().or_fail(|| "cannot begin a session")?;
    Ok(())
}

/// The request: one line of JSON on stdin.
pub fn read_request<T: serde::de::DeserializeOwned>() -> Result<T> {
    let mut line = String::new();
    let stdin = std::io::stdin().lock();
    std::io::Read::take(stdin, REQUEST_BYTES_MAX)
        .read_line(&mut line)
        .or_fail(|| "cannot read the request")?;
    serde_json::from_str(&line).map_err(|e| Error::failed("cannot read the request").because(e))
}
