//! The second lives of every program: a process of its own that reads its
//! request on stdin and answers on stdout.
//!
//! A program with one thread forks: that costs a tenth of a start. One with
//! several is started again from `/proc/self/exe` with the life's name as its
//! only argument: a fork of it may only call async-signal-safe functions.

use libsnap::error::{Error, OrFail, Result};
use libsnap::ids::HostPid;
use libsnap::sys::task::{Forked, fork_alone};
use std::ffi::{CString, OsStr};
use std::fs::OpenOptions;
use std::io::{BufRead, PipeReader, PipeWriter, pipe};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::panic::catch_unwind;
use std::process::{Command, ExitCode, ExitStatus};

/// A request longer than this was not written by us.
const REQUEST_BYTES_MAX: u64 = 1 << 20;

/// What a process can be besides the program that a person called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Takes a snapshot.
    Worker,
    /// Brings up an app that is detached, and owns it.
    Supervisor,
    /// Undoes what a worker was at when it is killed.
    Guard,
    /// Keeps descriptors of a daemon open when it is killed.
    Keeper,
}

impl Life {
    const ALL: [Life; 4] = [Life::Worker, Life::Supervisor, Life::Guard, Life::Keeper];

    fn argument(self) -> &'static str {
        match self {
            Life::Worker => "--worker",
            Life::Supervisor => "--supervise",
            Life::Guard => "--guard",
            Life::Keeper => "--keep",
        }
    }

    /// Answers the exit code.
    fn live(self) -> u8 {
        libsnap::sys::live_as(self.argument());
        // For ps(1): the arguments of a fork are those of the one that forked.
        if let Ok(name) = CString::new(self.argument().replacen("--", "appshot-", 1)) {
            nix::sys::prctl::set_name(&name).ok();
        }
        match self {
            Life::Worker => crate::worker::main(),
            Life::Supervisor => crate::detach::main(),
            Life::Guard => crate::guard::main(),
            Life::Keeper => crate::keeper::main(),
        }
    }
}

/// Runs the hidden life that the arguments ask for; every `main` begins here,
/// while the process has no other thread.
pub fn dispatch() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let (first, second) = (arguments.next()?, arguments.next());
    let asked = |life: &Life| first == OsStr::new(life.argument()) && second.is_none();
    let life = Life::ALL.into_iter().find(asked)?;
    Some(ExitCode::from(life.live()))
}

/// A process that lives one of the lives.
#[derive(Debug)]
pub struct Process {
    pid: HostPid,
    pub stdin: Option<PipeWriter>,
    pub stdout: Option<PipeReader>,
}

impl Process {
    pub fn pid(&self) -> HostPid {
        self.pid
    }

    pub fn wait(&self) -> Result<ExitStatus> {
        let what = || format!("cannot wait for process {}", self.pid);
        let pid = rustix::process::Pid::from_raw(self.pid.0);
        loop {
            match rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno).or_fail(what),
                Ok(Some((_, status))) => return Ok(ExitStatus::from_raw(status.as_raw())),
                Ok(None) => return Err(Error::failed(what())),
            }
        }
    }
}

pub fn spawn(life: Life) -> Result<Process> {
    begin(life, fork_alone)
}

/// The same with nothing open that is ours: not a fork in any case.
pub fn spawn_anew(life: Life) -> Result<Process> {
    begin(life, || Ok(None))
}

fn begin(life: Life, fork: impl FnOnce() -> nix::Result<Option<Forked>>) -> Result<Process> {
    let what = || format!("cannot start this program again as {}", life.argument());
    let (request, stdin) = pipe().or_fail(what)?;
    let (stdout, answer) = pipe().or_fail(what)?;
    let pid = match fork().or_fail(what)? {
        Some(Forked::Child) => {
            // Who holds a pipe's other end itself never sees its end.
            drop((stdin, stdout));
            std::process::exit(live_here(life, request, answer))
        }
        Some(Forked::Parent(pid)) => pid,
        None => start_again(life, request, answer).or_fail(what)?,
    };
    Ok(Process {
        pid,
        stdin: Some(stdin),
        stdout: Some(stdout),
    })
}

/// The caller's frames stand below on this stack: nothing may unwind into them.
fn live_here(life: Life, request: PipeReader, answer: PipeWriter) -> i32 {
    let placed = nix::unistd::dup2_stdin(&request).and_then(|()| nix::unistd::dup2_stdout(&answer));
    drop((request, answer));
    match placed {
        Ok(()) => catch_unwind(|| life.live()).map_or(101, i32::from),
        Err(_) => 1,
    }
}

/// `/proc/self/exe` is the very file that runs now, also after an upgrade has
/// replaced it.
fn start_again(life: Life, request: PipeReader, answer: PipeWriter) -> std::io::Result<HostPid> {
    let name = std::env::args_os().next();
    let child = Command::new("/proc/self/exe")
        .arg0(name.as_deref().unwrap_or(OsStr::new("appshot")))
        .arg(life.argument())
        .stdin(request)
        .stdout(answer)
        .spawn()?;
    i32::try_from(child.id()).map(HostPid).map_err(std::io::Error::other)
}

/// Leaves the caller's session and terminal: Ctrl-C there does not reach us.
pub fn own_session() -> Result<()> {
    nix::unistd::setsid().or_fail(|| "cannot begin a session")?;
    Ok(())
}

/// Lets go of the caller's terminal, pipes and directory. Closing stdout tells
/// the caller that the answer is complete.
pub fn let_go() -> Result<()> {
    let what = || "cannot let go of the caller's stdio";
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .or_fail(what)?;
    nix::unistd::dup2_stdin(&null).or_fail(what)?;
    nix::unistd::dup2_stdout(&null).or_fail(what)?;
    nix::unistd::dup2_stderr(&null).or_fail(what)?;
    std::env::set_current_dir("/").or_fail(what)
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
