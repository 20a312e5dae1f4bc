//! What a task is to do, gathered into as few batches as there is room for.
//!
//! A batch costs two switches between processes whatever is in it, so the calls
//! that build a process are strung together and their results looked at in the
//! end. Scripts of different processes run at the same time:
//!
//! ```text
//!   script 1: add add add  start ......... finish
//!   script 2:                    add add  start .......... finish
//! ```

use crate::error::{Error, OrFail, Result};
use crate::executor::{Batch, Born, CallId, Executor};
use crate::ids::HostPid;
use crate::sys::ptrace::Regs;
use nix::errno::Errno;

/// What a call is expected to answer.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    Exactly(u64),
    /// Success, or an error that says it had been done before.
    OkOr(Errno),
}

/// To what the calls of a task can be added.
pub trait Calls {
    /// A batch with room for `calls` more calls and `payload` more bytes.
    fn room(&mut self, calls: usize, payload: usize) -> Result<&mut Batch>;

    /// Adds a call without payload that must succeed.
    fn must(&mut self, name: &'static str, number: i64, args: &[u64]) -> Result<CallId> {
        Ok(self.room(1, 0)?.must(name, number, args))
    }
}

/// What was there has been run if need be.
impl Calls for Script<'_> {
    fn room(&mut self, calls: usize, payload: usize) -> Result<&mut Batch> {
        Script::room(self, calls, payload)
    }
}

/// Where there is no room it is an error.
impl Calls for Batch {
    fn room(&mut self, calls: usize, payload: usize) -> Result<&mut Batch> {
        match self.has_room(calls, payload) {
            true => Ok(self),
            false => Err(Error::failed("a thread has more to do than there is room for")),
        }
    }
}

#[derive(Debug)]
pub struct Script<'a> {
    executor: Executor,
    tid: HostPid,
    regs: &'a Regs,
    batch: Batch,
    wanted: Vec<(CallId, &'static str, Wanted)>,
}

impl<'a> Script<'a> {
    /// For a task that is stopped with the executor in its memory.
    pub fn new(executor: Executor, tid: HostPid, regs: &'a Regs) -> Script<'a> {
        Script {
            executor,
            tid,
            regs,
            batch: executor.batch(),
            wanted: Vec::new(),
        }
    }

    pub fn tid(&self) -> HostPid {
        self.tid
    }

    pub fn executor(&self) -> Executor {
        self.executor
    }

    /// The batch, with room for `calls` more calls and `payload` more bytes: what
    /// was there has been run if need be.
    pub fn room(&mut self, calls: usize, payload: usize) -> Result<&mut Batch> {
        if !self.batch.has_room(calls, payload) {
            self.flush()?;
        }
        Ok(&mut self.batch)
    }

    /// Adds a call without payload that must succeed.
    pub fn must(&mut self, name: &'static str, number: i64, args: &[u64]) -> Result<CallId> {
        Ok(self.room(1, 0)?.must(name, number, args))
    }

    /// The call must answer just this.
    pub fn expect(&mut self, call: CallId, what: &'static str, answer: u64) {
        self.wanted.push((call, what, Wanted::Exactly(answer)));
    }

    /// The call may fail with this error.
    pub fn tolerate(&mut self, call: CallId, what: &'static str, errno: Errno) {
        self.wanted.push((call, what, Wanted::OkOr(errno)));
    }

    /// Runs what was added; answers the tasks that it made.
    pub fn flush(&mut self) -> Result<Born> {
        if self.batch.is_empty() {
            return Ok(Born::new());
        }
        self.begin()?;
        self.settle().map(|(born, _)| born)
    }

    /// Runs what was added now; answers it with its results.
    pub fn run(&mut self) -> Result<Batch> {
        self.begin()?;
        self.settle().map(|(_, batch)| batch)
    }

    /// Its last batch ends with this call, in which the task is stopped. Answers where it
    /// writes the answer, should it come back from it.
    pub fn at_last(&mut self, payload: &[u64], call: impl FnOnce(u64) -> (i64, [u64; 6])) -> Result<u64> {
        let batch = self.room(2, 8 * payload.len())?;
        let place = batch.words(payload).address;
        let (number, args) = call(place);
        let last = batch.at_last("a wait", number, &args);
        let answer = batch.answer_at(last);
        self.executor = self.executor.parking();
        Ok(answer)
    }

    /// Sets the task to work and goes on.
    pub fn start(self) -> Result<Running<'a>> {
        self.begin()?;
        Ok(Running(self))
    }

    fn begin(&self) -> Result<()> {
        match self.batch.is_empty() {
            true => Ok(()),
            false => self.executor.start(self.tid, self.regs, &self.batch),
        }
    }

    fn end(&mut self) -> Result<()> {
        match self.batch.is_empty() {
            true => Ok(()),
            false => self.settle().map(drop),
        }
    }

    fn settle(&mut self) -> Result<(Born, Batch)> {
        let mut batch = std::mem::replace(&mut self.batch, self.executor.batch());
        let born = self.executor.finish(self.tid, &mut batch)?;
        for (call, what, wanted) in self.wanted.drain(..) {
            let failed = || format!("{what} failed in pid {}", self.tid);
            match (batch.result(call), wanted) {
                (Ok(got), Wanted::Exactly(answer)) if got != answer => {
                    return Err(Error::failed(failed()).because(format!("it answered {got} instead of {answer}")));
                }
                (Err(errno), Wanted::OkOr(harmless)) if errno == harmless => {}
                (result, _) => result.map(drop).or_fail(failed)?,
            }
        }
        Ok((born, batch))
    }
}

/// A script whose last batch is under way.
#[derive(Debug)]
#[must_use = "the task is at work until it is finished"]
pub struct Running<'a>(Script<'a>);

impl Running<'_> {
    pub fn finish(mut self) -> Result<()> {
        self.0.end()
    }
}

/// Runs what was added to all of them, at the same time. None makes a task.
pub fn run_all(scripts: &mut [Script<'_>]) -> Result<()> {
    let begun = scripts.iter().map(|script| script.begin());
    let begun: Vec<Result<()>> = begun.collect();
    let started = begun.into_iter().zip(scripts);
    let ends: Vec<Result<()>> = started
        .map(|(begun, script)| begun.and_then(|()| script.end()))
        .collect();
    ends.into_iter().collect()
}

/// Waits for all of them; the first error is answered once they all stand still.
pub fn finish_all(running: Vec<Running<'_>>) -> Result<()> {
    let ends: Vec<Result<()>> = running.into_iter().map(Running::finish).collect();
    ends.into_iter().collect()
}
