//! A used instance put back to its appshot, in place: only what it has dirtied is
//! undone.
//!
//! ```text
//!   built --arm--> Point --let go--> runs ... used
//!            |                                  | stop: every thread, PTRACE_O_EXITKILL
//!    what the kernel says of it                 | look, ask: is all as it was?  no --> anew
//!    right before it runs                       | put back: descriptors, mappings, pages
//!            ^                                  | registers, identity
//!            +---------------- let go <---------+
//! ```
//!
//! After that it is what a fresh restore would be: everything that the kernel tells of
//! it is as it was right before it ran for the first time, and every page is. Its PIDs
//! stay, and its monotonic clocks go on, as for an app that stood still. What is found to
//! be otherwise and cannot be undone is an answer ([`Why::Anew`]): the caller ends the
//! instance, which has been ended already, and restores it anew.
//!
//! From the first stop on it dies with us: it is never half put back.
//!
//! Two threads share the work: the tracer, which alone may ask and run the process, and one
//! beside it, which reads what anybody may read, and helps to copy pages:
//!
//! ```text
//!   tracer   stop | maps, descriptors | ask | put back, scan | copy | registers, go
//!   beside        | texts -----------^| flags, namespaces, mounts   | copy ^
//! ```
//!
//! Not seen: rules of Landlock, what CAP_NET_ADMIN allows in a network of its own.
//! Today: one process, however many threads; no timers, shared memory, timerfds,
//! pseudo-terminals, System V objects, POSIX message queues.

mod ask;
mod files;
mod look;
mod memory;

use super::eager::Eager;
use super::fill;
use super::opened::Opened;
use super::pager::{Lender, Pager};
use super::script::Script;
use super::skeleton::Skeleton;
use super::state::{self, Standing, Waits};
use super::vdso::Vdso;
use crate::clocks::Timeline;
use crate::error::{Error, Kind, OrFail, Result};
use crate::executor::{self, Executor, Gate};
use crate::freeze::{self, ALL_BUT_TRAP};
use crate::identity;
use crate::ids::HostPid;
use crate::image::{Appshot, Core};
use crate::ipc;
use crate::pages;
use crate::proc;
use crate::snapshot::Steps;
use crate::sys::memory::Span;
use crate::sys::ptrace::{self, Regs, Stop, reg};
use crate::target::Phase;
use ask::{Answers, Questions};
use files::Files;
use look::Look;
use memory::{Copies, Space};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// How long threads may take to stop.
const STOP_MAX: Duration = Duration::from_millis(500);

const OPTIONS: i32 = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_SUSPEND_SECCOMP | libc::PTRACE_O_TRACESYSGOOD;

/// Why an instance was not reverted in place.
#[derive(Debug)]
pub enum Why {
    /// It cannot be, and has been ended or not been touched: it is to be restored anew.
    Anew(String),
    /// It was not touched, and is not to be.
    Refused(Error),
}

impl Why {
    fn anew(reason: impl Into<String>) -> Why {
        Why::Anew(reason.into())
    }
}

impl From<Error> for Why {
    fn from(error: Error) -> Why {
        let because = error.because.map(|because| format!(": {because}"));
        Why::Anew(error.what + &because.unwrap_or_default())
    }
}

/// What was done.
#[derive(Clone, Debug)]
pub struct Reverted {
    pub dirty_pages: u64,
    pub total_micros: u64,
    pub phases: Vec<Phase>,
}

/// To what an instance can be reverted; or why it cannot be.
#[derive(Debug)]
pub struct Point(Result<Armed, String>);

/// An instance as it was right before it ran.
#[derive(Debug)]
struct Armed {
    opened: Arc<Opened>,
    renewed: bool,
    tids: Vec<HostPid>,
    gate: Gate,
    lender: Lender,
    look: Look,
    files: Files,
    space: Space,
    asked: Vec<Answers>,
    /// What is asked where an executor most likely stands.
    questions: (Executor, Vec<Questions>),
    own: Own,
    ipc: Ipc,
    /// One at a time.
    only: Mutex<()>,
}

/// The answers of all threads of what may become one, asked while the executor is there.
/// `None`: it is not such an app.
pub fn ask(skeleton: &Skeleton, shot: &Appshot) -> Result<Option<Vec<Answers>>> {
    let ([core], [husk]) = (&shot.cores[..], &skeleton.husks[..]) else {
        return Ok(None);
    };
    let tids: Vec<HostPid> = [husk.pid].into_iter().chain(husk.threads.iter().copied()).collect();
    let questions = questions(&skeleton.executor, tids.len(), core, shot);
    ask_all(&skeleton.executor, &husk.regs, &tids, questions).map(Some)
}

/// One batch for each thread; those of others than the main one in slices.
fn questions(executor: &Executor, threads: usize, core: &Core, shot: &Appshot) -> Vec<Questions> {
    let slices: Vec<Executor> = executor.slices().collect();
    let main = Questions::of_process(executor, &core.image.process.fds, &shot.manifest);
    let others = slices.iter().cycle().take(threads - 1).map(Questions::of_thread);
    [main].into_iter().chain(others).collect()
}

/// As many of the other threads answer at the same time as there are slices.
fn ask_all(executor: &Executor, regs: &Regs, tids: &[HostPid], mut questions: Vec<Questions>) -> Result<Vec<Answers>> {
    executor.run(tids[0], regs, questions[0].batch())?;
    let slices: Vec<Executor> = executor.slices().collect();
    for (some, asked) in tids[1..]
        .chunks(slices.len())
        .zip(questions[1..].chunks_mut(slices.len()))
    {
        for ((slice, tid), asked) in slices.iter().zip(some).zip(&mut *asked) {
            slice.start(*tid, regs, asked.batch())?;
        }
        for ((slice, tid), asked) in slices.iter().zip(some).zip(asked) {
            slice.finish(*tid, asked.batch())?;
        }
    }
    Ok(questions.into_iter().map(Questions::answers).collect())
}

/// What [`arm`] needs of an app that is about to run.
#[derive(Debug)]
pub struct Made<'a> {
    pub opened: &'a Arc<Opened>,
    pub skeleton: &'a Skeleton,
    pub pager: &'a Pager,
    pub vdsos: &'a [Vdso],
    pub renewed: bool,
    pub asked: Option<Vec<Answers>>,
}

impl Point {
    /// Of an app that has its registers and stands still.
    pub fn arm(made: Made<'_>) -> Point {
        Point(Armed::new(made).map_err(|why| match why {
            Why::Anew(reason) => reason,
            Why::Refused(error) => error.to_string(),
        }))
    }

    /// Puts the instance back. Uses ptrace: runs wholly on the calling thread.
    pub fn revert(&self) -> Result<Reverted, Why> {
        match &self.0 {
            Ok(armed) => armed.revert(),
            Err(reason) => Err(Why::Anew(reason.clone())),
        }
    }

    pub fn opened(&self) -> Option<&Arc<Opened>> {
        self.0.as_ref().ok().map(|armed| &armed.opened)
    }
}

impl Armed {
    fn new(made: Made<'_>) -> Result<Armed, Why> {
        let Made {
            opened,
            skeleton,
            pager,
            vdsos,
            renewed,
            asked,
        } = made;
        let asked = asked.ok_or_else(|| Why::anew("it has several processes"))?;
        let (core, husk) = (&opened.shot.cores[0], &skeleton.husks[0]);
        let record = &core.image.process;
        let init = skeleton
            .init
            .as_ref()
            .map(|init| init.pid)
            .ok_or_else(|| Why::anew("it has no init of its own"))?;
        if vdsos[0] != Vdso::Own {
            return Err(Why::anew("it has the vdso of another kernel"));
        }
        if !record.namespaces.is_empty() {
            return Err(Why::anew("it is in namespaces beside the app's own"));
        }
        if !record.posix_timers.is_empty() || record.itimers.iter().any(|timer| timer.value_ns != 0) {
            return Err(Why::anew("it has timers"));
        }
        if crate::process::trap_to_ignore(record).is_some() {
            return Err(Why::anew("it ignores SIGTRAP"));
        }
        let tids: Vec<HostPid> = [husk.pid].into_iter().chain(husk.threads.iter().copied()).collect();
        let look = Look::new(husk.pid, &tids, init)?;
        if look.has_signals() {
            return Err(Why::anew("signals wait in it"));
        }
        let mut loan = pager.lender().ask().take();
        let (faults, _) = loan
            .as_mut()
            .and_then(|loan| loan.of(0))
            .ok_or_else(|| Why::anew("its writes cannot be noted"))?;
        let full = fill::untouched(core, &vdsos[0], renewed);
        let space = Space::new(husk.pid, core, &full, faults)?;
        let executor = Executor::at(hole(&space.mapped())?);
        Ok(Armed {
            renewed,
            gate: executor::find_gate(husk.pid, &crate::memory::code(&core.image.vmas))?,
            lender: pager.lender(),
            files: Files::new(husk.pid, core, &opened.shot.manifest)?,
            space,
            questions: (executor, questions(&executor, tids.len(), core, &opened.shot)),
            own: Own::of(&skeleton.view()),
            ipc: Ipc::of(husk.pid)?,
            opened: Arc::clone(opened),
            tids,
            look,
            asked,
            only: Mutex::default(),
        })
    }

    fn core(&self) -> &Core {
        &self.opened.shot.cores[0]
    }

    fn revert(&self) -> Result<Reverted, Why> {
        let _one = self.only.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = Instant::now();
        let mut silent = |_: &str| {};
        let mut steps = Steps::new(&mut silent);
        steps.start("stop");
        // What is looked at beside takes as long.
        let eager = Eager::begin_with_others();
        let copies = OnceLock::new();
        let (stands, begun) = mpsc::sync_channel::<()>(1);
        let (looked, texts) = mpsc::sync_channel::<()>(1);
        let (copied, to_copy) = mpsc::sync_channel::<()>(1);
        let (held, dirty_pages) = std::thread::scope(|scope| {
            // Dropped on any way out: nobody is left waiting.
            let (stands, copied) = (stands, copied);
            let copies = &copies;
            // What any thread can look at, another one does, and then helps to copy.
            let beside = scope.spawn(move || {
                begun.recv().map_err(|_| unlooked())?;
                self.look.compare_texts()?;
                looked.send(()).ok();
                self.own.compare()?;
                self.ipc.compare()?;
                self.own.renew()?;
                let found = self.space.compare_flags()?;
                self.look.compare_namespaces()?;
                to_copy.recv().ok();
                copies.get().map_or(Ok(()), Copies::make)?;
                Ok::<_, Why>(found)
            });
            self.look.compare_scheduling().map_err(|why| self.unless_ended(why))?;
            let held = Held::stop(&self.tids, eager.as_ref()).map_err(|why| self.unless_ended(why))?;
            held.end_others(self.gate)?;
            let loan = self.lender.ask();
            stands.send(()).ok();
            steps.start("look");
            self.look.compare_registered()?;
            let remapped = self.space.compare()?;
            let changed = self.files.compare()?;
            steps.start("texts");
            if texts.recv().is_err() {
                return Err(beside
                    .join()
                    .map_or_else(|_| unlooked(), |looked| looked.err().unwrap_or_else(unlooked)));
            }
            steps.start("ask");
            let standing = self.enter(&remapped.now)?;
            let regs = standing.regs();
            let asked = ask_all(
                &standing.executor,
                &regs,
                &self.tids,
                self.questions(&standing.executor),
            )?;
            for (was, now) in self.asked.iter().zip(&asked) {
                if let Some(what) = was.differs(now) {
                    return Err(Why::anew(format!("the answer to {what} is another one")));
                }
            }
            steps.start("owed");
            let mut loan = loan
                .take()
                .ok_or_else(|| Why::anew("it has all its memory for itself"))?;
            steps.start("put back");
            let waiting = &asked[0].waiting;
            let mut script = Script::new(standing.executor, self.tids[0], &regs);
            let batch = script.room(self.files.calls(&changed, waiting) + 2, 1 << 14)?;
            if asked[0].brk != self.asked[0].brk {
                batch.must("brk", libc::SYS_brk, &[self.asked[0].brk]);
            }
            self.files.put_back(&changed, waiting, batch);
            self.space.put_back_mappings(&remapped, batch);
            script.flush()?;
            self.space.is_put_back(&remapped, standing.executor.span())?;
            steps.start("memory");
            let (_, owed) = loan
                .of(0)
                .ok_or_else(|| Why::anew("it has all its memory for itself"))?;
            let (to_copy, mut written) = self.space.put_back(&self.opened, owed)?;
            drop(loan);
            steps.start("copy");
            let copying = copies.get_or_init(|| to_copy);
            copied.send(()).ok();
            copying.make()?;
            steps.start("beside");
            let found = beside.join().unwrap_or_else(|_| Err(unlooked()))?;
            if !found.is_empty() {
                written = pages::union(&written, &self.space.put_back_found(&self.opened, &found)?);
            }
            steps.start("registers");
            let timeline = Timeline::begin(self.opened.shot.manifest.clocks);
            let standing = Standing {
                core: self.core(),
                executor: standing.executor,
                gate: self.gate,
                regs: &regs,
                tids: &self.tids,
                timeline: &timeline,
            };
            state::finish(&[standing], Waits::default())?;
            self.look.put_back_slack()?;
            if self.renewed {
                fill::renew(self.tids[0], self.core())?;
            }
            self.space.watch(&written)?;
            Ok::<_, Why>((held, memory::pages_of(&written)))
        })?;
        steps.start("go");
        held.let_go()?;
        drop(eager);
        Ok(Reverted {
            dirty_pages,
            total_micros: begin.elapsed().as_micros() as u64,
            phases: steps.end(),
        })
    }

    /// Why it is not reverted: for this reason, or because it is no more.
    fn unless_ended(&self, why: Why) -> Why {
        match ptrace::is_dead(self.tids[0]) {
            true => Why::Refused(
                Error::refused("cannot revert the instance")
                    .because("it has ended")
                    .fix("restore it")
                    .state("nothing of it is left"),
            ),
            false => why,
        }
    }

    fn questions(&self, executor: &Executor) -> Vec<Questions> {
        match &self.questions {
            (place, questions) if place == executor => questions.clone(),
            _ => questions(executor, self.tids.len(), self.core(), &self.opened.shot),
        }
    }

    /// Has the executor stand where nothing is.
    fn enter(&self, mapped: &[Span]) -> Result<Entered> {
        let main = self.tids[0];
        for tid in &self.tids {
            ptrace::set_sigmask(*tid, ALL_BUT_TRAP).or_fail(|| format!("cannot block the signals of task {tid}"))?;
        }
        let regs = ptrace::get_regs(main).or_fail(|| format!("cannot read the registers of task {main}"))?;
        let regs = regs.with(reg::RSP, 0).with(reg::ORIG_RAX, u64::MAX);
        let executor = Executor::infect(main, &regs, self.gate, hole(mapped)?)?;
        Ok(Entered { executor, regs })
    }
}

fn hole(mapped: &[Span]) -> Result<u64> {
    let hole = executor::find_hole(&mut mapped.to_vec(), executor::FOOTPRINT);
    hole.ok_or_else(|| Error::failed("there is no room for the executor"))
}

fn unlooked() -> Why {
    Why::anew("it cannot be looked at")
}

/// The executor in a process that was stopped.
struct Entered {
    executor: Executor,
    regs: Regs,
}

impl Entered {
    fn regs(&self) -> Regs {
        self.regs
    }
}

/// Threads of one process that stand still, and die with us. Dropped, they are ended.
struct Held<'a> {
    tids: &'a [HostPid],
    seized: usize,
    armed: bool,
}

impl<'a> Held<'a> {
    /// They come before all ordinary tasks, on our processor, until they have their
    /// registers.
    fn stop(tids: &'a [HostPid], eager: Option<&Eager>) -> Result<Held<'a>, Why> {
        let mut held = Held {
            tids,
            seized: 0,
            armed: true,
        };
        for tid in tids {
            match ptrace::seize(*tid, OPTIONS) {
                Ok(()) => {
                    held.seized += 1;
                    eager.inspect(|eager| eager.with(*tid));
                    ptrace::interrupt(*tid).or_fail(|| format!("cannot stop task {tid}"))?;
                }
                Err(Errno::EPERM) if held.seized == 0 && is_traced(*tid) => {
                    held.armed = false;
                    return Err(Why::Refused(
                        Error::new(Kind::Conflict, "cannot revert the instance")
                            .because(format!("task {tid} is traced"))
                            .fix("end the debugger or tracer first")
                            .state("it was not touched and is running"),
                    ));
                }
                Err(errno) => return Err(Why::anew(format!("task {tid} cannot be stopped: {errno}"))),
            }
        }
        let since = Instant::now();
        for tid in tids {
            stopped(*tid, since)?;
        }
        Ok(held)
    }

    /// Has the threads end that were made since, until none turns up: what they leave in
    /// memory is put back with all the rest.
    fn end_others(&self, gate: Gate) -> Result<(), Why> {
        let since = Instant::now();
        loop {
            let mut all = proc::threads(self.tids[0]).map_err(|_| Why::anew("it has ended"))?;
            all.retain(|tid| !self.tids.contains(tid));
            if all.is_empty() {
                return Ok(());
            }
            if since.elapsed() > STOP_MAX {
                return Err(Why::anew("it goes on making threads"));
            }
            all.into_iter().try_for_each(|tid| end_thread(tid, gate))?;
        }
    }

    fn let_go(mut self) -> Result<(), Why> {
        let mut ended = Vec::new();
        for tid in self.tids {
            match ptrace::detach(*tid, 0) {
                Ok(()) => {}
                // What was let go has killed it: its own affair, but for its end.
                Err(Errno::ESRCH) => ended.push(*tid),
                Err(errno) => return Err(Why::anew(format!("task {tid} cannot be let go: {errno}"))),
            }
        }
        self.armed = false;
        // The main thread comes first among them.
        ended
            .into_iter()
            .rev()
            .for_each(|tid| freeze::await_killed(self.tids[0], tid));
        Ok(())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.armed || self.seized == 0 {
            return;
        }
        let main = self.tids[0];
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(main.0), nix::sys::signal::SIGKILL).ok();
        // The main one is reported last.
        for tid in self.tids[..self.seized].iter().rev() {
            freeze::await_end(*tid);
        }
    }
}

/// Has a thread end, and no other.
fn end_thread(tid: HostPid, gate: Gate) -> Result<(), Why> {
    let failed = |errno| Why::anew(format!("task {tid}, made since, does not end: {errno}"));
    match ptrace::seize(tid, OPTIONS).and_then(|()| ptrace::interrupt(tid)) {
        Ok(()) => {}
        // It is about to.
        Err(Errno::ESRCH | Errno::EPERM) => {
            std::thread::sleep(Duration::from_micros(20));
            return Ok(());
        }
        Err(errno) => return Err(failed(errno)),
    }
    if let Err(why) = stopped(tid, Instant::now()) {
        return if proc::exists(tid) { Err(why) } else { Ok(()) };
    }
    let regs = ptrace::get_regs(tid).map_err(failed)?;
    let exit = executor::call_registers(&regs, gate, libc::SYS_exit, [0; 6]);
    ptrace::set_sigmask(tid, freeze::HELD).map_err(failed)?;
    ptrace::set_regs(tid, &exit).map_err(failed)?;
    ptrace::cont(tid, 0).map_err(failed)?;
    freeze::await_end(tid);
    Ok(())
}

fn is_traced(tid: HostPid) -> bool {
    let status = proc::Fields::status(tid).unwrap_or_default();
    status.number("TracerPid").is_some_and(|tracer| tracer != 0)
}

/// Waits for the stop. A signal that was just being delivered is none any more.
fn stopped(tid: HostPid, since: Instant) -> Result<(), Why> {
    let mut rounds = 0;
    loop {
        match ptrace::wait(tid, false) {
            Ok(Some(Stop::Trap)) => return Ok(()),
            Ok(Some(Stop::Group(signal))) => return Err(Why::anew(format!("signal {signal} has stopped it"))),
            Ok(Some(Stop::Signal(_) | Stop::Event(_) | Stop::Syscall)) => {
                ptrace::cont(tid, 0).or_fail(|| format!("cannot resume task {tid}"))?;
            }
            Ok(Some(Stop::Exited(_) | Stop::Killed(_))) | Err(_) => {
                return Err(Why::anew(format!("task {tid} has ended")));
            }
            Ok(None) if since.elapsed() > STOP_MAX => {
                return Err(Why::anew(format!("task {tid} does not stop")));
            }
            Ok(None) => ptrace::pause(&mut rounds),
        }
    }
}

/// Its IPC namespace, in which nothing is.
#[derive(Debug)]
struct Ipc {
    space: ipc::Space,
    settings: BTreeMap<String, String>,
}

impl Ipc {
    fn of(pid: HostPid) -> Result<Ipc, Why> {
        let space = ipc::Space::of(pid, true).or_fail(|| "cannot enter its IPC namespace")?;
        let settings = space.settings();
        match space.is_bare() {
            true => Ok(Ipc { space, settings }),
            false => Err(Why::anew("it has System V objects or POSIX message queues")),
        }
    }

    fn compare(&self) -> Result<(), Why> {
        match self.space.is_bare() && self.space.settings() == self.settings {
            true => Ok(()),
            false => Err(Why::anew("its IPC namespace is not what it was")),
        }
    }
}

/// The directory in which an instance finds what it is.
#[derive(Debug)]
struct Own {
    root: String,
    was: Mutex<identity::Marks>,
}

impl Own {
    fn of(root: &str) -> Own {
        Own {
            root: root.to_owned(),
            was: Mutex::new(identity::Marks::of(root)),
        }
    }

    /// Nothing has been written there but by us.
    fn compare(&self) -> Result<(), Why> {
        let was = self.was.lock().unwrap_or_else(PoisonError::into_inner);
        match was.now(&self.root) == *was {
            true => Ok(()),
            false => Err(Why::anew(format!("it has written to {}", identity::DIRECTORY))),
        }
    }

    /// It has another generation.
    fn renew(&self) -> Result<()> {
        identity::renew(&self.root)?;
        let mut was = self.was.lock().unwrap_or_else(PoisonError::into_inner);
        *was = was.now(&self.root);
        Ok(())
    }
}
