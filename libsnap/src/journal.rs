//! What a snapshot did to an app, and how it is undone when the one who took it
//! was killed (SIGKILL).
//!
//! ```text
//!   RUN_DIR/journal/PID-START-N     one file a snapshot, locked (flock) by its owner
//!     {"begin":{..}}     the app, the appshot         before anything is touched
//!     {"waits":{..}}     time-outs of its threads     before the cgroup is frozen (by rescuers too)
//!     {"turns":{..}}     when they get a processor    before any is stopped
//!     {"barrier":{..}}   packet filters               before the first is made
//!     {"repair":[..]}    TCP sockets                  before they are read in repair mode; none of
//!                                                     them afterwards
//!     {"enter":[..]}     registers, masks, places     before any register changes
//!     "left"             all that was entered is as it was, and goes on
//!     "end"              the app ends now             before its first process is killed
//!
//!   or, of a start or restore:
//!     {"birth":{..}}     the app's name               before its cgroup is made
//!
//!   or, of a husk that waits to become an app, until that has its record:
//!     {"spare":{..}}     its cgroup                   before anything is in it
//!     {"birth":{..}}     the app's name               before it becomes that
//!
//!   or, of a snapshot that programs take part in:
//!     {"asking":{..}}    the app's first process      before they are asked
//! ```
//!
//! A line counts when it is whole. The owner removes the file when the app is as
//! it was, or gone. Where the owner is dead and the file still there, the app is
//! in one of these states, and [`settle`] or [`replay`] makes it run as before:
//!
//! - its cgroup is frozen and its threads are on their way back into their calls;
//! - some threads run code of ours, or wait in it (see [`crate::executor`]), with
//!   all signals blocked, and two mappings of ours are there;
//! - some of its sockets are in repair mode, and their peers kept away;
//! - some of its processes were killed: then the rest is, for the appshot is whole.
//!
//! The half-written appshot is removed. An app that was being born is ended: its
//! processes are not whole, or nobody could find it. Who takes part in a snapshot hears that
//! it is over. A rescuer may be killed too: what it does
//! leaves the same states behind, and the next one finds the same file.

use crate::cgroup;
use crate::error::{Error, OrFail, Result};
use crate::executor::{self, Executor, Gate};
use crate::files::barrier;
use crate::files::repair::Repaired;
use crate::freeze::{self, Before, Frozen, FrozenProcess, FrozenThread, HELD};
use crate::ids::HostPid;
use crate::image;
use crate::participants;
use crate::precopy;
use crate::proc;
use crate::store::{self, Store};
use crate::sys::blob;
use crate::sys::memory::{self, PAGE};
use crate::sys::ptrace::reg;
use crate::sys::task;
use crate::target::Target;
use crate::timed::Wait;
use crate::urgent::Turn;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a killed owner may take to let go of what it traced.
const DYING: Duration = Duration::from_secs(5);
/// How long a rescuer tries to stop the app; each try has its own budget.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Begin { target: Target, dest: PathBuf },
    Waits(Vec<(HostPid, Wait)>),
    Turns(Vec<(HostPid, Turn)>),
    Repair(Vec<Repaired>),
    Barrier { name: String },
    Enter(Vec<Entered>),
    Left,
    End,
    Birth { name: String },
    Spare { cgroup: PathBuf },
    Asking { root: HostPid, start_time: u64 },
}

/// A process that foreign code is about to run in, or that runs it already.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entered {
    pub pid: HostPid,
    pub start_time: u64,
    pub gate: Gate,
    /// Where the executor stands; 0 where none does, and the process makes a
    /// userfaultfd that is closed again.
    pub base: u64,
    /// As they were before.
    pub threads: Vec<FrozenThread>,
}

impl Entered {
    pub fn new(process: &FrozenProcess, gate: Gate, base: u64) -> Result<Entered> {
        let stat = proc::kept_stat(process.pid).or_fail(|| format!("cannot read the state of pid {}", process.pid))?;
        Ok(Entered {
            pid: process.pid,
            start_time: stat.start_time,
            gate,
            base,
            threads: process.threads.clone(),
        })
    }

    /// Just calls are made through the gate, see [`crate::precopy`].
    pub fn of_gate(process: &FrozenProcess, gate: Gate) -> Result<Entered> {
        Entered::new(process, gate, 0)
    }

    fn is(&self, pid: HostPid) -> bool {
        self.pid == pid && proc::stat(pid).is_ok_and(|stat| stat.start_time == self.start_time)
    }
}

/// The journal of a snapshot that goes on. Dropped, it is removed: by then the
/// app must be as it was, or gone.
#[derive(Debug)]
#[must_use]
pub struct Journal {
    path: PathBuf,
    file: Flock<File>,
    /// Left to the next rescuer.
    stays: bool,
}

impl Journal {
    /// Begins the journal of a snapshot, before the app is touched.
    pub fn begin(target: &Target, dest: &Path) -> Result<Journal> {
        let dest = std::path::absolute(dest).or_fail(|| format!("cannot resolve {}", dest.display()))?;
        let target = target.clone();
        Journal::create(&store::run_dir(), &Line::Begin { target, dest })
    }

    /// Begins the journal of an app that is to come up under this name, which
    /// the caller has locked; it lasts until the app has its record.
    pub fn birth(store: &Store, name: &str) -> Result<Journal> {
        Journal::create(store.run_dir(), &Line::Birth { name: name.to_owned() })
    }

    /// Begins the journal of a husk that waits in this cgroup; it lasts until the
    /// husk is gone, or is an app that has its record.
    pub fn spare(store: &Store, cgroup: &Path) -> Result<Journal> {
        let cgroup = cgroup.to_owned();
        Journal::create(store.run_dir(), &Line::Spare { cgroup })
    }

    /// Begins the journal of the asking of those who take part ([`participants`]).
    pub fn asking(root: HostPid) -> Result<Journal> {
        let stat = proc::stat(root).or_fail(|| format!("cannot read the state of pid {root}"))?;
        let start_time = stat.start_time;
        Journal::create(&store::run_dir(), &Line::Asking { root, start_time })
    }

    /// Notes that the husk is to become the app of this name, which the caller has
    /// locked.
    pub fn named(&mut self, name: &str) -> Result<()> {
        self.write(&Line::Birth { name: name.to_owned() })
    }

    fn create(run_dir: &Path, first: &Line) -> Result<Journal> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let failed = || "cannot begin a journal";
        let dir = run_dir.join("journal");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .or_fail(failed)?;
        let own = HostPid(std::process::id() as i32);
        let start_time = proc::stat(own).or_fail(failed)?.start_time;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("{own}-{start_time}-{number}"));
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .or_fail(failed)?;
        let file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno);
        let mut journal = Journal {
            file: file.or_fail(failed)?,
            path,
            stays: false,
        };
        journal.write(first)?;
        Ok(journal)
    }

    /// Notes what the threads wait in: a frozen cgroup makes some of these calls
    /// fail, and later nobody could tell how much time they had left. And when they get a
    /// processor: those that are to stop may come first for it.
    pub fn before(&mut self, before: &Before) -> Result<()> {
        let waits = before.waits.iter().map(|(tid, wait)| (*tid, *wait)).collect();
        let turns = before.turns.iter().map(|(tid, turn)| (*tid, *turn)).collect();
        self.write(&Line::Turns(turns))?;
        self.write(&Line::Waits(waits))
    }

    /// Notes sockets that are about to be in repair mode: these and no others.
    pub fn repair(&mut self, repaired: Vec<Repaired>) -> Result<()> {
        self.write(&Line::Repair(repaired))
    }

    /// Notes the name of the packet filters that are about to keep peers away.
    pub fn barrier(&mut self, name: &str) -> Result<()> {
        self.write(&Line::Barrier { name: name.to_owned() })
    }

    /// Notes what the processes have, before anything of it changes.
    pub fn enter(&mut self, entered: Vec<Entered>) -> Result<()> {
        self.write(&Line::Enter(entered))
    }

    /// Notes that every process that was entered is as it was before it goes on: what
    /// it has then must not be put back later.
    pub fn left(&mut self) -> Result<()> {
        self.write(&Line::Left)
    }

    /// Notes that the app ends. The appshot is sealed: a failure to note it must
    /// not keep the app from ending.
    pub fn end(&mut self) {
        if let Err(error) = self.write(&Line::End) {
            tracing::warn!(%error, "a journal");
        }
    }

    fn write(&mut self, line: &Line) -> Result<()> {
        let failed = || format!("cannot write the journal {}", self.path.display());
        let mut text = serde_json::to_vec(line).or_fail(failed)?;
        text.push(b'\n');
        self.file.write_all(&text).or_fail(failed)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if !self.stays {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Brings back what the process `owner` was at when it ended, and waits for
/// another rescuer that is at it. Answers whether there was anything to do.
pub fn settle(run_dir: &Path, owner: HostPid) -> Result<bool> {
    let mut any = false;
    for (path, name) in journals(run_dir) {
        if name.pid == owner {
            await_end(name)?;
            any |= rescue_file(&path, None)?;
        }
    }
    Ok(any)
}

/// Brings in order whatever owners that are dead by now were at.
pub fn replay(store: &Store) -> Result<()> {
    let dead = journals(store.run_dir()).into_iter().filter(|(_, name)| !name.lives());
    for (path, _) in dead {
        rescue_file(&path, Some(store))?;
    }
    Ok(())
}

/// The owner as a file name tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name {
    pid: HostPid,
    start_time: u64,
}

impl Name {
    fn parse(name: &str) -> Option<Name> {
        let mut parts = name.split('-');
        Some(Name {
            pid: HostPid(parts.next()?.parse().ok()?),
            start_time: parts.next()?.parse().ok()?,
        })
    }

    fn lives(self) -> bool {
        store::start_time(self.pid) == Some(self.start_time)
    }
}

fn journals(run_dir: &Path) -> Vec<(PathBuf, Name)> {
    let entries = run_dir.join("journal").read_dir().into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| Some((entry.path(), Name::parse(entry.file_name().to_str()?)?)));
    named.collect()
}

/// A dying process lets go of what it traces after its files: its pidfd tells.
fn await_end(owner: Name) -> Result<()> {
    let Ok(pidfd) = task::pidfd_open(owner.pid) else {
        return Ok(());
    };
    if !owner.lives() {
        return Ok(());
    }
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(DYING).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout).or_fail(|| "cannot wait for a process")? {
        0 => Err(Error::failed(format!("process {} does not end", owner.pid))),
        _ => Ok(()),
    }
}

/// Holds the lock while it works; a file that was removed meanwhile was another
/// rescuer's.
fn rescue_file(path: &Path, store: Option<&Store>) -> Result<bool> {
    let failed = || format!("cannot read the journal {}", path.display());
    let Ok(file) = OpenOptions::new().read(true).append(true).open(path) else {
        return Ok(false);
    };
    let file = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .or_fail(failed)?;
    if file.metadata().or_fail(failed)?.nlink() == 0 {
        return Ok(false);
    }
    let text = std::fs::read_to_string(path).or_fail(failed)?;
    let mut journal = Journal {
        path: path.to_owned(),
        file,
        stays: false,
    };
    let left = Left::parse(&text);
    if let Some((root, start_time)) = left.asking {
        if store::start_time(root) == Some(start_time) {
            participants::end_asking(root);
        }
        return Ok(true);
    }
    if left.birth.is_some() || left.spare.is_some() {
        let ended = store.map_or(Ok(false), |store| left.end_unborn(store));
        journal.stays = !matches!(ended, Ok(true));
        return ended;
    }
    let begun = Instant::now();
    let done = left.rescue(journal)?;
    tracing::warn!(journal = %path.display(), micros = begun.elapsed().as_micros(), done, "its owner was killed");
    Ok(true)
}

/// Ends what had no record yet when its starter was killed. `false` when someone
/// is at that name again: then it is theirs to clear away.
fn end_birth(store: &Store, name: &str) -> Result<bool> {
    let Some(_busy) = store.lock_if_free(name)? else {
        return Ok(false);
    };
    let recorded = store.find(name)?.is_some_and(|app| app.alive());
    if let Some(group) = cgroup::of(name).filter(|group| !recorded && group.exists()) {
        cgroup::destroy(&group)?;
    }
    Ok(true)
}

/// A husk died with its owner, but for its cgroup; one that had become an app by then
/// and has its record goes on.
fn end_spare(store: &Store, cgroup: &Path) -> Result<()> {
    let mut apps = store.list()?.into_iter();
    let recorded = apps.any(|app| app.cgroup.as_deref() == Some(cgroup) && app.alive());
    match !recorded && cgroup.exists() {
        true => cgroup::destroy(cgroup),
        false => Ok(()),
    }
}

/// What a dead owner left.
#[derive(Debug, Default)]
struct Left {
    begin: Option<(Target, PathBuf)>,
    before: Before,
    repaired: Vec<Repaired>,
    barrier: Option<String>,
    entered: Vec<Entered>,
    ended: bool,
    birth: Option<String>,
    spare: Option<PathBuf>,
    asking: Option<(HostPid, u64)>,
}

impl Left {
    /// A last line without its end was not acted upon. A later note about a
    /// process stands for the earlier one.
    fn parse(text: &str) -> Left {
        let mut left = Left::default();
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            match serde_json::from_str(line) {
                Ok(Line::Begin { target, dest }) => left.begin = Some((target, dest)),
                Ok(Line::Waits(waits)) => left.before.waits = waits.into_iter().collect(),
                Ok(Line::Turns(turns)) => left.before.turns = turns.into_iter().collect(),
                Ok(Line::Repair(repaired)) => left.repaired = repaired,
                Ok(Line::Barrier { name }) => left.barrier = Some(name),
                Ok(Line::Enter(entered)) => left.entered.extend(entered),
                Ok(Line::Left) => left.entered.clear(),
                Ok(Line::End) => left.ended = true,
                Ok(Line::Birth { name }) => left.birth = Some(name),
                Ok(Line::Spare { cgroup }) => left.spare = Some(cgroup),
                Ok(Line::Asking { root, start_time }) => left.asking = Some((root, start_time)),
                Err(error) => tracing::warn!(%error, "a line of a journal"),
            }
        }
        left
    }

    /// A husk in waiting, an app without a record, or the one about to become the other.
    fn end_unborn(&self, store: &Store) -> Result<bool> {
        if let Some(cgroup) = &self.spare {
            end_spare(store, cgroup)?;
        }
        self.birth.as_ref().map_or(Ok(true), |name| end_birth(store, name))
    }

    /// The journal goes once everything is in order; otherwise it stays for the
    /// next rescuer.
    fn rescue(mut self, mut journal: Journal) -> Result<&'static str> {
        let Some((target, dest)) = self.begin.take() else {
            return Ok("nothing was begun");
        };
        let rescued = match self.ended {
            true => self.finish_end(&target),
            false => self.let_go(&target, &mut journal),
        };
        journal.stays = rescued.is_err();
        if let Some(parent) = dest.parent() {
            image::sweep(parent);
        }
        rescued.map_err(|error| error.fix(format!("the next command tries again, by {}", journal.path.display())))
    }

    /// Some processes are killed already, the appshot is whole: the rest follows.
    fn finish_end(&self, target: &Target) -> Result<&'static str> {
        for process in &self.entered {
            crate::sys::moment();
            if let Ok(pidfd) = task::pidfd_open(process.pid)
                && process.is(process.pid)
            {
                task::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL).ok();
            }
        }
        thaw(target)?;
        Ok("the rest of the app was ended")
    }

    /// Stops the app, gives every thread what it had, and lets it go.
    fn let_go(mut self, target: &Target, journal: &mut Journal) -> Result<&'static str> {
        for (tid, turn) in &self.before.turns {
            turn.give_back(*tid);
        }
        // First: where nothing else holds the app still, it cannot read from them.
        let put_back = Repaired::put_all_back(&self.repaired);
        let Some(mut frozen) = self.stop(target, journal)? else {
            self.let_peers_through();
            return Ok("the app is gone");
        };
        self.let_peers_through();
        self.take_in_strays(&frozen, journal)?;
        for process in &mut frozen.processes {
            // The last note is the one that counts.
            if let Some(entered) = self.entered.iter().rev().find(|entered| entered.is(process.pid)) {
                restore(process, entered)?;
            }
        }
        frozen.thaw();
        thaw(target)?;
        put_back.map(|()| "the app was let go")
    }

    fn let_peers_through(&self) {
        if let Some(name) = self.barrier.as_ref().filter(|name| barrier::is_name(name)) {
            barrier::lift_anywhere(name);
        }
    }

    fn stop(&mut self, target: &Target, journal: &mut Journal) -> Result<Option<Frozen>> {
        let group = freeze::group_of(target);
        let begun = Instant::now();
        loop {
            let also: Vec<HostPid> = self.entered.iter().filter(|e| e.is(e.pid)).map(|e| e.pid).collect();
            if group.is_some_and(|group| !group.exists()) {
                return Ok(None);
            }
            // Where it is held still, only the journal knows: by its owner, or by a
            // rescuer that was killed.
            if !group.is_some_and(cgroup::is_held) {
                self.before = freeze::before(target)?;
                journal.before(&self.before)?;
            }
            match freeze::freeze_with(target, &also, self.before.clone()) {
                Ok(frozen) if frozen.processes.is_empty() => return Ok(None),
                Ok(frozen) => return Ok(Some(frozen)),
                Err(error) if begun.elapsed() > PATIENCE => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// A child that a thread of the app forked after the owner's death has the
    /// executor's mappings too. Removing them needs a thread of it: noted first.
    fn take_in_strays(&mut self, frozen: &Frozen, journal: &mut Journal) -> Result<()> {
        let mut found = Vec::new();
        for process in &frozen.processes {
            if self.entered.iter().any(|entered| entered.is(process.pid)) {
                continue;
            }
            let carries = self.entered.iter().find(|entered| carries(process.pid, entered.base));
            if let Some(parent) = carries {
                found.push(Entered::new(process, parent.gate, parent.base)?);
            }
        }
        if !found.is_empty() {
            journal.enter(found.clone())?;
            self.entered.append(&mut found);
        }
        Ok(())
    }
}

/// Whether the executor's code stands at `base`, or the page for it; without one,
/// whether there is a userfaultfd.
fn carries(pid: HostPid, base: u64) -> bool {
    if base == 0 {
        return !precopy::userfaultfds(pid).is_empty();
    }
    let code = blob::executor();
    let mut found = vec![0; code.len()];
    let ours = memory::read(pid, base, &mut found).is_ok() && (found == code || found.iter().all(|byte| *byte == 0));
    ours && remains(pid, base).unwrap_or(false)
}

/// Gives the threads of one process what they had and removes our mappings.
fn restore(process: &mut FrozenProcess, entered: &Entered) -> Result<()> {
    for thread in &mut process.threads {
        let Some(kept) = entered.threads.iter().find(|kept| kept.tid == thread.tid) else {
            continue;
        };
        if is_held(thread, entered) {
            *thread = kept.clone();
        } else if thread.sigmask == HELD {
            // Between its registers and its mask.
            thread.sigmask = kept.sigmask;
            thread.rights = kept.rights;
        }
        thread.turn = kept.turn;
    }
    let main = process.main();
    if entered.base == 0 {
        close_ours(process, entered.gate)?;
    }
    let left = match remains(process.pid, entered.base)? {
        true => main
            .prepare()
            .and_then(|()| process.leave(Executor::at(entered.base), entered.gate)),
        false => process.threads[1..].iter().try_for_each(FrozenThread::recover),
    };
    main.recover()?;
    left
}

/// Closes the userfaultfd that the process made for us: it had none before.
fn close_ours(process: &FrozenProcess, gate: Gate) -> Result<()> {
    let main = process.main();
    for fd in precopy::userfaultfds(process.pid) {
        let failed = || format!("cannot close a descriptor of ours in pid {}", process.pid);
        main.prepare()?;
        let closed = executor::call_through(main.tid, &main.regs, gate, libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0]);
        main.recover()?;
        closed?.or_fail(failed)?;
    }
    Ok(())
}

/// Whether the thread stands where only we can have sent it: all signals are
/// blocked first, and let through last.
fn is_held(thread: &FrozenThread, entered: &Entered) -> bool {
    thread.sigmask == HELD && entered.gate.holds(entered.base, thread.regs.get(reg::RIP))
}

/// Whether anything of ours is mapped: one or both parts, nothing but ours.
fn remains(pid: HostPid, base: u64) -> Result<bool> {
    let maps = proc::mappings(pid).or_fail(|| format!("cannot read the mappings of pid {pid}"))?;
    let inside = maps
        .iter()
        .filter(|map| map.start < base + executor::FOOTPRINT && map.end > base);
    let ours = |map: &proc::Mapping| {
        let both = (map.start, map.end, map.prot()) == (base, base + executor::FOOTPRINT, 7);
        let code = (map.start, map.end, map.prot()) == (base, base + PAGE, 5);
        let data = (map.start, map.end, map.prot()) == (base + PAGE, base + executor::FOOTPRINT, 3);
        (both || code || data) && map.ino == 0 && !map.shared
    };
    let (inside, ours): (Vec<_>, Vec<_>) = (inside.clone().collect(), inside.filter(|map| ours(map)).collect());
    Ok(!inside.is_empty() && inside.len() == ours.len())
}

fn thaw(target: &Target) -> Result<()> {
    match freeze::group_of(target).filter(|group| group.exists()) {
        Some(group) => cgroup::freeze(group, false),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_does_not_count() {
        let whole = "{\"begin\":{\"target\":{\"pid\":7},\"dest\":\"/x/y\"}}\n\"end\"\n";
        assert!(Left::parse(whole).ended);
        let torn = &whole[..whole.len() - 1];
        let left = Left::parse(torn);
        assert!(!left.ended);
        assert_eq!(left.begin.unwrap().1, Path::new("/x/y"));
    }

    #[test]
    fn a_name_tells_its_owner() {
        let owner = Name {
            pid: HostPid(12),
            start_time: 3456,
        };
        assert_eq!(Name::parse("12-3456-0"), Some(owner));
        assert_eq!(Name::parse("12"), None);
    }
}
