//! The process that takes a snapshot.
//!
//! ```text
//! requester                       worker (own session)
//!    | -- stdin: Job ------------->  |
//!    | <- stdout: {"progress":..} -  |  ptrace
//!    | <- stdout: {"done":..} -----  |
//!    |    stdin stays open           |  end of file there: the requester has given
//!                                       up or died, and the worker should undo
//! ```
//!
//! A tracer that dies leaves its targets half-way. So it is not the command at
//! which a person may press Ctrl-C, nor the daemon, but a process of its own that
//! either finishes or undoes. When it is killed itself, its guard and its
//! requester undo by its journal, whoever comes first.

use crate::guard::Guard;
use crate::hidden::{self, Life, Process};
use crate::jobs::Job;
use crate::signals;
use libsnap::error::{Error, OrFail, Result};
use libsnap::journal;
use libsnap::store;
use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::io::{BufRead, BufReader, PipeWriter, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Progress(String),
    Done(Value),
    Failed(Box<Error>),
}

static CANCELLED: AtomicBool = AtomicBool::new(false);

/// In a worker: whether it should undo what it did. The one who asked has died
/// or given up, or someone told the worker itself to end.
pub fn cancelled() -> bool {
    CANCELLED.load(Ordering::Relaxed)
}

/// A worker that has its job.
#[derive(Debug)]
pub struct Working {
    child: Process,
    run_dir: PathBuf,
    /// Our end of its stdin: closing it cancels the job.
    lifeline: Arc<Mutex<Option<PipeWriter>>>,
}

/// Has `job` done by a worker, and waits for its answer.
pub fn in_worker<T: DeserializeOwned>(job: &Job, progress: &mut dyn FnMut(&str)) -> Result<T> {
    Working::start(job)?.finish(progress)
}

impl Working {
    pub fn start(job: &Job) -> Result<Working> {
        let run_dir = job.store().run_dir().to_owned();
        let mut child = hidden::spawn(Life::Worker)?;
        let lifeline = Arc::new(Mutex::new(send(&mut child, job)));
        Ok(Working {
            child,
            run_dir,
            lifeline,
        })
    }

    /// Asks the worker to undo; its answer is still to be waited for.
    pub fn canceller(&self) -> impl Fn() + Send + 'static {
        let lifeline = Arc::clone(&self.lifeline);
        move || drop(lifeline.lock().map(|mut stdin| stdin.take()))
    }

    pub fn finish<T: DeserializeOwned>(mut self, progress: &mut dyn FnMut(&str)) -> Result<T> {
        let answer = listen(&mut self.child, progress);
        let status = self.child.wait()?;
        match answer {
            Some(Message::Done(value)) => serde_json::from_value(value).or_fail(|| "cannot read the worker's answer"),
            Some(Message::Failed(error)) => Err(*error),
            _ => Err(died(status, self.undo())),
        }
    }
}

impl Working {
    /// Undoes what a dead worker was at, or waits for its guard to do so.
    fn undo(&self) -> Result<bool> {
        journal::settle(&self.run_dir, self.child.pid())
    }
}

/// A worker that dies before it has read the request is told by its exit status.
fn send(child: &mut Process, job: &Job) -> Option<PipeWriter> {
    let mut stdin = child.stdin.take()?;
    let mut line = serde_json::to_vec(job).ok()?;
    line.push(b'\n');
    stdin.write_all(&line).ok()?;
    Some(stdin)
}

/// Passes progress on until the last message.
fn listen(child: &mut Process, progress: &mut dyn FnMut(&str)) -> Option<Message> {
    let lines = BufReader::new(child.stdout.take()?).lines();
    for line in lines.map_while(std::io::Result::ok) {
        match serde_json::from_str(&line) {
            Ok(Message::Progress(step)) => progress(&step),
            Ok(last) => return Some(last),
            Err(_) => tracing::warn!(line, "the worker said something else"),
        }
    }
    None
}

fn died(status: ExitStatus, undone: Result<bool>) -> Error {
    let error = Error::failed("the snapshot worker died without an answer");
    let error = match status.signal() {
        Some(signal) => error.because(format!("signal {signal} ended it")),
        None => error.because(status),
    };
    let state = match undone {
        Ok(_) => {
            "the app was let go and is running as before; if its appshot was whole already, it has ended".to_owned()
        }
        Err(error) => format!("it could not be let go: {error}"),
    };
    error
        .state(state)
        .fix("look into the kernel log for an out-of-memory kill, then try again")
}

/// The worker's life; answers its exit code.
pub fn main() -> u8 {
    crate::log::init(crate::log::Format::Text);
    let last = match serve() {
        Ok(value) => Message::Done(value),
        Err(error) => Message::Failed(Box::new(error)),
    };
    let code = u8::from(!matches!(last, Message::Done(_)));
    say(&last);
    code
}

fn serve() -> Result<Value> {
    hidden::own_session()?;
    let job: Job = hidden::read_request()?;
    store::use_run_dir(job.store().run_dir());
    let _guard = Guard::start(job.store().run_dir())?;
    // Blocked before the second thread begins, so that it is for both.
    let signals = signals::block()?;
    std::thread::spawn(move || watch(&signals));
    job.work(&mut |step| say(&Message::Progress(step.to_owned())))
}

/// Nothing more comes on stdin: that it becomes readable means its end. Later
/// signals find the job cancelled already.
fn watch(signals: &SignalFd) {
    let stdin = std::io::stdin();
    let mut fds = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
    while let Err(rustix::io::Errno::INTR) = poll(&mut fds, None) {}
    CANCELLED.store(true, Ordering::Relaxed);
}

/// Nobody may be listening any more: the work goes on all the same.
fn say(message: &Message) {
    if let Ok(line) = serde_json::to_string(message) {
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}
