//! The process that takes a snapshot.
//!
//! ```text
//! requester                       worker (own session)
//!    | -- stdin: Job ------------->  |
//!    | <- stdout: {"progress":..} -  |  ptrace
//!    | <- stdout: {"done":..} -----  |
//!    |    stdin stays open           |  end of file there: the requester is gone
//! ```
//!
//! A tracer that dies leaves its targets stopped half-way. So it is not the
//! command at which a person may press Ctrl-C, nor the daemon, but a process
//! of its own that either finishes or undoes.

use crate::hidden;
use crate::jobs::Job;
use libsnap::error::{Error, OrFail, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ExitCode, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Progress(String),
    Done(Value),
    Failed(Box<Error>),
}

static REQUESTER_GONE: AtomicBool = AtomicBool::new(false);

/// In a worker: whether the one who asked has died or given up. The engine
/// may ask between two steps and undo what it did.
pub fn requester_gone() -> bool {
    REQUESTER_GONE.load(Ordering::Relaxed)
}

/// Has `job` done by a worker, and waits for its answer.
pub fn in_worker<T: DeserializeOwned>(job: &Job, progress: &mut dyn FnMut(&str)) -> Result<T> {
    let mut child = hidden::spawn(hidden::WORKER)?;
    // Held until the answer is here: its end tells the worker that we are gone.
    let lifeline = send(&mut child, job);
    let answer = listen(&mut child, progress);
    let status = child.wait().or_fail(|| "cannot wait for the worker")?;
    drop(lifeline);
    match answer {
        Some(Message::Done(value)) => {
            serde_json::from_value(value).or_fail(|| "cannot read the worker's answer")
        }
        Some(Message::Failed(error)) => Err(*error),
        _ => Err(died(status)),
    }
}

/// A worker that dies before it has read the request is told by its exit status.
fn send(child: &mut Child, job: &Job) -> Option<ChildStdin> {
    let mut stdin = child.stdin.take()?;
    let mut line = serde_json::to_vec(job).ok()?;
    line.push(b'\n');
    stdin.write_all(&line).ok()?;
    Some(stdin)
}

/// Passes progress on until the last message.
fn listen(child: &mut Child, progress: &mut dyn FnMut(&str)) -> Option<Message> {
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

fn died(status: ExitStatus) -> Error {
    let error = Error::failed("the snapshot worker died without an answer");
    let error = match status.signal() {
        Some(signal) => error.because(format!("signal {signal} ended it")),
        None => error.because(status),
    };
    error
        .state("not known: `appshot ps` tells whether the app runs or stands still")
        .fix("look into the kernel log for an out-of-memory kill, then try again")
}

/// The worker's life.
pub fn main() -> ExitCode {
    crate::log::init(crate::log::Format::Text);
    let last = match serve() {
        Ok(value) => Message::Done(value),
        Err(error) => Message::Failed(Box::new(error)),
    };
    let code = u8::from(!matches!(last, Message::Done(_)));
    say(&last);
    ExitCode::from(code)
}

fn serve() -> Result<Value> {
    hidden::own_session()?;
    let job: Job = hidden::read_request()?;
    std::thread::spawn(watch_requester);
    job.work(&mut |step| say(&Message::Progress(step.to_owned())))
}

/// The requester writes nothing more; its death closes the pipe.
fn watch_requester() {
    let mut byte = [0];
    while let Ok(1) = std::io::stdin().read(&mut byte) {}
    REQUESTER_GONE.store(true, Ordering::Relaxed);
}

/// Nobody may be listening any more: the work goes on all the same.
fn say(message: &Message) {
    if let Ok(line) = serde_json::to_string(message) {
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}
