//! Threads that make themselves what they are to be.
//!
//! ```text
//!   main thread   clone3 clone3 clone3 ...  trap
//!   each thread        own calls, then its wait or pause(2)  ...............  stop
//!   we            ............................. all done?  seize, interrupt   registers
//! ```
//!
//! All that they do stands in the payload of the batch that makes them, so a thread has
//! one stop, which is that of its registers. It is untraced before, and dies with its
//! process. Threads that are filtered (seccomp(2)) cannot do so: only the calls of one
//! that is traced are not judged.

use super::script::Script;
use super::skeleton::{OPTIONS, Skeleton};
use super::state::{self, Wait, Waits};
use crate::error::{Error, OrFail, Result};
use crate::executor::{self, Batch, CallId, Program};
use crate::ids::HostPid;
use crate::image::records::{ProcessRecord, Seccomp};
use crate::image::{Core, ThreadImage};
use crate::proc;
use crate::sys::memory;
use crate::sys::ptrace::{self, reg};
use crate::sys::task::CloneArgs;
use nix::errno::Errno;
use std::collections::HashMap;

/// Whether all threads of this process can be made so.
pub fn suits(core: &Core) -> bool {
    let mut threads = core.image.threads.iter().map(|thread| &thread.record);
    threads.all(|record| record.seccomp == Seccomp::Off && state::fits_slice(record))
}

/// Makes the threads of process `at` besides its main one, whose script this is: all that
/// is [`state::common`] to them has been added. The waits that they are in are added to `waits`.
pub fn make(skeleton: &mut Skeleton, at: usize, core: &Core, script: &mut Script<'_>, waits: &mut Waits) -> Result<()> {
    let Some((_, others)) = core.image.threads.split_first() else {
        return Ok(());
    };
    let mut rest = others;
    let mut tids = Vec::with_capacity(others.len());
    while !rest.is_empty() {
        let mut crew = Vec::new();
        let batch = script.room(0, 0)?;
        while let Some((thread, after)) = rest.split_first()
            && let Some(own) = batch.of_thread()
        {
            crew.push(Member::add(batch, own, skeleton, &core.image.process, thread)?);
            rest = after;
        }
        script.flush()?;
        let husk = &mut skeleton.husks[at];
        tids.extend(muster(husk.pid, &mut husk.threads, crew, waits)?);
    }
    skeleton.husks[at].threads = tids;
    Ok(())
}

/// A thread on its way.
struct Member {
    program: Program,
    /// And the call, unless the wait is over.
    wait: Option<(Wait, Option<CallId>)>,
}

impl Member {
    fn add(
        batch: &mut Batch,
        mut own: Batch,
        skeleton: &Skeleton,
        process: &ProcessRecord,
        thread: &ThreadImage,
    ) -> Result<Member> {
        let record = &thread.record;
        state::own_state(&mut own, record)?;
        state::finish_thread(&mut own, process, record, skeleton.inherited.as_ref())?;
        state::restrict(&mut own, record)?;
        let wait = Wait::of(thread, &skeleton.timeline).map(|wait| {
            let call = (!wait.is_over()).then(|| {
                let place = own.words(&wait.time()).address;
                own.at_last("a wait", wait.call, &wait.args(place))
            });
            (wait, call)
        });
        let args = CloneArgs {
            flags: state::THREAD | libc::CLONE_UNTRACED as u64,
            ..CloneArgs::default()
        };
        let program = batch.thread(args, record.tid.0, own);
        Ok(Member { program, wait })
    }
}

/// Waits until all have done what they had to, and stops them; answers who they are. Added
/// to `known` as soon as they are known.
fn muster(pid: HostPid, known: &mut Vec<HostPid>, mut crew: Vec<Member>, waits: &mut Waits) -> Result<Vec<HostPid>> {
    await_all(pid, &mut crew)?;
    let threads = proc::threads(pid).or_fail(|| format!("cannot list the threads of pid {pid}"))?;
    let new = threads.into_iter().filter(|tid| *tid != pid && !known.contains(tid));
    let new: Vec<HostPid> = new.collect();
    known.extend(&new);
    for tid in &new {
        let seized = ptrace::seize(*tid, OPTIONS).and_then(|()| ptrace::interrupt(*tid));
        seized.or_fail(|| unstopped(*tid))?;
    }
    let stacks: HashMap<u64, usize> = (0..)
        .zip(&crew)
        .map(|(at, member)| (member.program.stack(), at))
        .collect();
    let mut tids = vec![None; crew.len()];
    for tid in new {
        let regs = state::await_stop(tid)?;
        let at = stacks.get(&regs.get(reg::RSP)).copied();
        let at = at.ok_or_else(|| Error::failed(unstopped(tid)).because("it is none of those that were made"))?;
        let Member { program, wait } = &crew[at];
        let last = wait.map(|(wait, call)| (wait, call.map(|call| program.answer_at(call))));
        waits.settle(tid, regs, last)?;
        tids[at] = Some(tid);
    }
    let tids: Option<Vec<HostPid>> = tids.into_iter().collect();
    tids.ok_or_else(|| Error::failed(format!("pid {pid} lacks a thread that it has made")))
}

fn await_all(pid: HostPid, crew: &mut [Member]) -> Result<()> {
    let (Some(first), Some(last)) = (crew.first(), crew.last()) else {
        return Ok(());
    };
    let (start, end) = (first.program.span().start, last.program.span().end);
    let mut bytes = vec![0; (end - start) as usize];
    let mut rounds = 0;
    loop {
        memory::read(pid, start, &mut bytes).map_err(|errno| executor::lost(pid, errno))?;
        if crew.iter_mut().all(|member| member.program.is_done(&bytes, start)) {
            break;
        }
        if rounds > ptrace::SPINS && ptrace::is_dead(pid) {
            return Err(executor::lost(pid, Errno::ESRCH));
        }
        ptrace::pause_briefly(&mut rounds);
    }
    crew.iter().try_for_each(|member| member.program.judge(pid))
}

fn unstopped(tid: HostPid) -> String {
    format!("cannot stop new task {tid}")
}
