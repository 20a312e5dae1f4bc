//! Memory that comes while the app runs already: a thread of the restoring program
//! that answers its page faults, and fills the rest in the background.
//!
//! ```text
//!   app touches a page --> userfaultfd --> pager: read leaf, verify, UFFDIO_COPY
//!   first second: only what is touched        |     (what it was is noted)
//!   then: all the rest, between the faults    v
//!   in the end: ordinary memory, nobody in between
//! ```
//!
//! Anonymous memory stays that: what the app does to it (madvise, mremap, munmap,
//! fork) is told by the kernel, and the pager owes what is left of it. The kernel
//! lets nothing be copied between such an act and our reading of it (EAGAIN), so
//! acts go before faults, and what was refused is tried again after them.
//!
//! If nobody held the userfaultfds, pages that are owed would read as zeroes. So
//! they also lie in the queue of a socket that the instance's init holds, which
//! kills the whole app when the pager's process dies ([`crate::sys::blob`]). An
//! instance is never on wrong memory: it is whole, or gone.

use super::opened::Opened;
use super::owed::Owed;
use super::working_set::{Run, WorkingSet};
use crate::error::{OrFail, Result};
use crate::ids::HostPid;
use crate::image::LEAF;
use crate::sys::fd as sysfd;
use crate::sys::memory::{PAGE, Span};
use crate::sys::task;
use crate::sys::uffd::{Event, Userfault};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

/// How long only what is touched is brought, so that it can be told from the rest.
const FIRST: Duration = Duration::from_secs(1);
/// Verified leaves kept at hand.
const LEAVES: usize = 64;
/// Pages brought at once where an app goes through its memory in order.
const AHEAD_MAX: u64 = 16;
/// After the kernel has refused because an act is under way.
const AGAIN: Duration = Duration::from_micros(20);

/// Userfaultfds in one queue; some 200 messages fit.
const KEPT_MAX: usize = 100;

/// The memory of one process that is owed.
#[derive(Debug)]
struct Space {
    /// Its place among the cores, and its part's among the parts.
    core: usize,
    part: usize,
    faults: Userfault,
    owed: Owed,
    /// A process of the appshot, not a child forked since.
    original: bool,
    /// Behind the last page brought, and how many it were.
    last: (u64, u64),
}

/// What the app waits for.
#[derive(Clone, Copy, Debug)]
struct Fault {
    space: u64,
    page: u64,
    write: bool,
}

/// What an init must hold while memory is owed.
#[derive(Debug)]
pub struct Hold {
    /// Tells whether the pager lives.
    pub lifeline: OwnedFd,
    /// Userfaultfds lie in its queue.
    pub queue: OwnedFd,
}

enum Told {
    /// The app runs; this is its init.
    Runs(OwnedFd),
}

/// A pager at work. Dropped before the app runs, it ends.
#[derive(Debug)]
pub struct Pager {
    tell: Sender<Told>,
    wake: OwnedFd,
    /// For the init.
    pub hold: Hold,
}

/// The memory of one process that was not put in place at once.
#[derive(Debug)]
pub struct Left {
    /// The place of the process among the cores.
    pub core: usize,
    pub faults: Userfault,
    pub owed: Owed,
}

impl Pager {
    /// Brings what is known to be needed first, then starts the thread.
    pub fn start(opened: &Arc<Opened>, left: Vec<Left>) -> Result<Pager> {
        let failed = || "cannot start the pager";
        let parts = opened.core_parts();
        let spaces = left.into_iter().map(|left| Space {
            core: left.core,
            part: parts[left.core],
            faults: left.faults,
            owed: left.owed,
            original: true,
            last: (0, 0),
        });
        let mut spaces: Vec<Space> = spaces.collect();
        let known = WorkingSet::read(opened);
        for (core, address, bytes) in known.iter().flat_map(WorkingSet::pieces) {
            if let Some(space) = spaces.iter_mut().find(|space| space.core == core) {
                space.bring_first(address, bytes).or_fail(failed)?;
            }
        }
        let (lifeline, end) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).or_fail(failed)?;
        let (ours, queue) = sysfd::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET).or_fail(failed)?;
        let mut keeper = Keeper { queue: ours, kept: 0 };
        for space in &spaces {
            keeper.keep(&space.faults)?;
        }
        let (tell, told) = mpsc::channel();
        let wake = sysfd::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).or_fail(failed)?;
        let work = Work {
            opened: Arc::clone(opened),
            born: spaces.len() as u64,
            prune_at: 2 * spaces.len() + 16,
            spaces: (0..).zip(spaces).collect(),
            leaves: VecDeque::new(),
            faults: VecDeque::new(),
            touched: Vec::new(),
            known: known.map(WorkingSet::into_runs).unwrap_or_default(),
            told,
            wake: wake.try_clone().or_fail(failed)?,
            lifeline: end.into(),
            keeper,
        };
        let named = thread::Builder::new().name("pager".into());
        named.spawn(move || work.go()).or_fail(failed)?;
        let hold = Hold { lifeline, queue };
        Ok(Pager { tell, wake, hold })
    }

    /// The app runs from now on, below this init.
    pub fn runs(self, init: HostPid) -> Result<()> {
        let pidfd = task::pidfd_open(init).or_fail(|| "cannot open the instance's init")?;
        // The thread ends only before this, or with the app.
        self.tell.send(Told::Runs(pidfd)).ok();
        self.wake();
        Ok(())
    }

    fn wake(&self) {
        nix::unistd::write(&self.wake, &1u64.to_ne_bytes()).ok();
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        let (closed, _) = mpsc::channel();
        self.tell = closed;
        self.wake();
    }
}

/// What the kernel said about a page.
enum Brought {
    Done,
    /// There is nobody any more to bring it to.
    Gone,
    /// Something is being done to the memory: read what, and try again.
    Again,
}

impl Space {
    /// Puts pages in place before the app runs.
    fn bring_first(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        let mut at = 0;
        while at < bytes.len() {
            let page = address + at as u64;
            let Some((span, _)) = self.owed.at(page) else {
                at += PAGE as usize;
                continue;
            };
            let end = bytes.len().min(at + span.len() as usize);
            let copied = self
                .faults
                .copy(page, &bytes[at..end])
                .or_fail(|| "cannot put memory back")?;
            let copied = copied.max(PAGE as usize);
            let end = page + copied as u64;
            self.owed.remove(Span { start: page, end });
            at += copied;
        }
        Ok(())
    }

    fn done(&mut self, result: Result<(), Errno>, span: Span) -> Result<Brought> {
        match result {
            Ok(()) => {}
            Err(Errno::EAGAIN) => return Ok(Brought::Again),
            Err(Errno::ESRCH) => {
                self.owed = Owed::default();
                return Ok(Brought::Gone);
            }
            // Not registered any more: whoever waited there sees for himself.
            Err(Errno::ENOENT) => {}
            Err(Errno::EEXIST) => self.faults.wake(span.start).or_fail(|| "cannot wake the app")?,
            Err(errno) => return Err(errno).or_fail(|| "cannot put memory back"),
        }
        self.owed.remove(span);
        Ok(Brought::Done)
    }

    /// The process has ended or executed another program.
    fn is_gone(&self) -> bool {
        // Only a stack may reach up to there; stacks are not registered.
        const TOP: u64 = 0x7fff_ffff_e000;
        self.faults.zero(TOP, 1) == Err(Errno::ESRCH)
    }

    /// How many pages to bring for a fault at `page`: more where the last one led here.
    fn ahead(&self, page: u64) -> u64 {
        match self.last {
            (end, pages) if end == page => (2 * pages).min(AHEAD_MAX),
            _ => 1,
        }
    }
}

struct Work {
    opened: Arc<Opened>,
    /// By number; each gets one of its own.
    spaces: BTreeMap<u64, Space>,
    born: u64,
    /// At so many, those that are gone are looked for.
    prune_at: usize,
    /// The last ones used: part, offset, content.
    leaves: VecDeque<(usize, u64, Vec<u8>)>,
    faults: VecDeque<Fault>,
    /// Core and address of pages that were asked for.
    touched: Vec<(usize, u64)>,
    /// What was known to be needed.
    known: Vec<Run>,
    told: Receiver<Told>,
    wake: OwnedFd,
    lifeline: File,
    keeper: Keeper,
}

/// Has userfaultfds held by the init, in the queue of its socket, or in that of a
/// socket in its queue, and so on.
struct Keeper {
    queue: OwnedFd,
    kept: usize,
}

impl Keeper {
    fn keep(&mut self, faults: &Userfault) -> Result<()> {
        let failed = || "cannot keep a userfaultfd";
        if self.kept == KEPT_MAX {
            let (ours, inner) = sysfd::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET).or_fail(failed)?;
            sysfd::send_fds(&self.queue, &[inner.as_fd()]).or_fail(failed)?;
            (self.queue, self.kept) = (ours, 0);
        }
        self.kept += 1;
        sysfd::send_fds(&self.queue, &[faults.as_fd()]).or_fail(failed)
    }
}

impl Work {
    /// Until nothing is owed, or nobody is left to whom it could be.
    fn go(mut self) {
        let Some(init) = self.until_it_runs() else {
            return;
        };
        match self.run(&init) {
            Ok(true) => self.end(),
            // Everything of it is gone.
            Ok(false) => {}
            Err(error) => {
                // It must not go on with what it has; and what is closed before all are
                // dead would read as zeroes.
                tracing::error!(appshot = %self.opened.shot.path.display(), %error, "the app is ended");
                task::pidfd_send_signal(init.as_fd(), libc::SIGKILL).ok();
                while !has_ended(&init) {
                    poll_one(&init, PollFlags::POLLIN, PollTimeout::NONE);
                }
            }
        }
    }

    /// Serves what the kernel itself touches while the processes are made; `None`
    /// when they are given up.
    fn until_it_runs(&mut self) -> Option<OwnedFd> {
        loop {
            match self.told.try_recv() {
                Ok(Told::Runs(init)) => return Some(init),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {}
            }
            if let Err(error) = self.serve() {
                tracing::error!(%error, "cannot serve a process that is being made");
                return None;
            }
            self.wait(None, None);
        }
    }

    /// Answers whether all is filled; otherwise the app has ended.
    fn run(&mut self, init: &OwnedFd) -> Result<bool> {
        let begin = Instant::now();
        let mut noted = false;
        loop {
            self.serve()?;
            let left = FIRST.saturating_sub(begin.elapsed());
            if left.is_zero() && !noted {
                noted = true;
                self.note();
            }
            match (noted, self.faults.is_empty()) {
                // Something is under way: give it the time to be told.
                (_, false) => thread::sleep(AGAIN),
                (true, true) => {
                    if !self.fill_some()? {
                        break;
                    }
                }
                (false, true) => self.wait(Some(init), Some(left)),
            }
            if has_ended(init) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// All is there: init lets go last, so that who sees it without descriptors sees
    /// ordinary memory. What is asked for meanwhile waits these microseconds.
    fn end(mut self) {
        self.spaces.clear();
        // An init that is gone needs nothing.
        self.lifeline.write_all(b"d").ok();
    }

    /// Waits until somebody wants something.
    fn wait(&self, init: Option<&OwnedFd>, time: Option<Duration>) {
        let time = match (self.faults.is_empty(), time) {
            // They wait for an act to end.
            (false, _) => PollTimeout::from(1u8),
            (true, None) => PollTimeout::NONE,
            (true, Some(time)) => PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX),
        };
        let fds = self.spaces.values().map(|space| space.faults.as_fd());
        let fds = fds.chain([self.wake.as_fd()]).chain(init.map(|init| init.as_fd()));
        let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        poll(&mut fds, time).ok();
        nix::unistd::read(&self.wake, &mut [0; 8]).ok();
    }

    /// Takes note of all that was done, then answers what is waited for.
    fn serve(&mut self) -> Result<()> {
        loop {
            let ready = self.ready();
            for at in &ready {
                self.listen(*at)?;
            }
            if ready.is_empty() && !self.answer_all()? {
                return Ok(());
            }
        }
    }

    /// Spaces that have something to say.
    fn ready(&self) -> Vec<u64> {
        let fds = self.spaces.values().map(|space| space.faults.as_fd());
        let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        poll(&mut fds, PollTimeout::ZERO).ok();
        let said = self.spaces.keys().zip(&fds);
        said.filter(|(_, fd)| fd.any().unwrap_or(false))
            .map(|(at, _)| *at)
            .collect()
    }

    fn listen(&mut self, at: u64) -> Result<()> {
        let Some(space) = self.spaces.get_mut(&at) else {
            return Ok(());
        };
        let mut children = Vec::new();
        for event in space.faults.events().or_fail(|| "cannot read a userfaultfd")? {
            match event {
                Event::Fault { page, write } => self.faults.push_back(Fault { space: at, page, write }),
                Event::Remove(span) => drop(space.owed.remove(span)),
                Event::Remap { from, to, len } => space.owed.shift(from, to, len),
                Event::Fork(faults) => {
                    self.keeper.keep(&faults)?;
                    children.push(Space {
                        faults,
                        owed: space.owed.clone(),
                        original: false,
                        ..*space
                    });
                }
            }
        }
        for child in children {
            self.spaces.insert(self.born, child);
            self.born += 1;
        }
        if self.spaces.len() > self.prune_at {
            self.spaces.retain(|_, space| !space.is_gone());
            self.prune_at = 2 * self.spaces.len() + 16;
        }
        Ok(())
    }

    /// Answers every fault that can be; whether any was.
    fn answer_all(&mut self) -> Result<bool> {
        let mut answered = false;
        for _ in 0..self.faults.len() {
            let Some(fault) = self.faults.pop_front() else { break };
            match self.answer(fault)? {
                Brought::Done | Brought::Gone => answered = true,
                Brought::Again => self.faults.push_back(fault),
            }
        }
        Ok(answered)
    }

    fn answer(&mut self, Fault { space: at, page, write }: Fault) -> Result<Brought> {
        let Some(space) = self.spaces.get_mut(&at) else {
            return Ok(Brought::Gone);
        };
        let pages = space.ahead(page);
        let one = Span {
            start: page,
            end: page + PAGE,
        };
        let Some((span, offset)) = space.owed.at(page) else {
            // It never held anything, or the app has thrown it away.
            let result = match write {
                true => space.faults.try_copy(page, &[0; PAGE as usize]).map(drop),
                false => space.faults.zero(page, 1),
            };
            return space.done(result, one);
        };
        let end = span.end.min(page + pages * PAGE);
        let copied = self.copy(at, Span { start: page, end }, offset)?;
        if let (Brought::Done, Some(space)) = (&copied, self.spaces.get_mut(&at)) {
            let end = space.owed.at(page).map_or(end, |_| page);
            space.last = (end, pages);
            if space.original {
                let pages = (page..end).step_by(PAGE as usize);
                self.touched.extend(pages.map(|page| (space.core, page)));
            }
        }
        Ok(copied)
    }

    /// Brings as much of the span as lies in one leaf, stored from `offset` on.
    fn copy(&mut self, at: u64, span: Span, offset: u64) -> Result<Brought> {
        let Some(space) = self.spaces.get_mut(&at) else {
            return Ok(Brought::Gone);
        };
        let leaf = offset / LEAF as u64 * LEAF as u64;
        let end = span.end.min(span.start + (leaf + LEAF as u64 - offset));
        let span = Span { start: span.start, end };
        let from = (offset - leaf) as usize;
        let (part, bytes) = (space.part, from..from + span.len() as usize);
        let content = leaf_of(&self.opened, &mut self.leaves, part, leaf)?;
        match space.faults.try_copy(span.start, &content[bytes]) {
            Ok(copied) => {
                let end = span.start + copied as u64;
                space.done(Ok(()), Span { start: span.start, end })
            }
            // One page at a time: the others may still be owed.
            Err(errno) => {
                let end = span.start + PAGE;
                space.done(Err(errno), Span { start: span.start, end })
            }
        }
    }

    /// Brings a piece that nobody has asked for; `false` when nothing is owed.
    fn fill_some(&mut self) -> Result<bool> {
        let owing = |(at, space): (&u64, &Space)| Some((*at, space.owed.first()?));
        let Some((at, (span, offset))) = self.spaces.iter().find_map(owing) else {
            return Ok(false);
        };
        if let Brought::Again = self.copy(at, span, offset)? {
            thread::sleep(AGAIN);
        }
        Ok(true)
    }

    /// Writes down what was needed first.
    fn note(&mut self) {
        let touched = std::mem::take(&mut self.touched);
        if let Err(error) = WorkingSet::keep(&self.opened, &self.known, touched) {
            tracing::debug!(%error, "no working set is kept");
        }
    }
}

fn poll_one(fd: &OwnedFd, events: PollFlags, time: PollTimeout) -> PollFlags {
    let mut fds = [PollFd::new(fd.as_fd(), events)];
    poll(&mut fds, time).ok();
    fds[0].revents().unwrap_or(PollFlags::empty())
}

fn has_ended(process: &OwnedFd) -> bool {
    !poll_one(process, PollFlags::POLLIN, PollTimeout::ZERO).is_empty()
}

/// A verified leaf, from those at hand or from the appshot.
fn leaf_of<'a>(
    opened: &Opened,
    leaves: &'a mut VecDeque<(usize, u64, Vec<u8>)>,
    part: usize,
    offset: u64,
) -> Result<&'a [u8]> {
    let found = leaves.iter().position(|leaf| (leaf.0, leaf.1) == (part, offset));
    let at = match found {
        Some(at) => at,
        None => {
            let mut content = match leaves.len() < LEAVES {
                true => Vec::new(),
                false => leaves.pop_back().map(|leaf| leaf.2).unwrap_or_default(),
            };
            opened.digests.read_leaf(&opened.pieces, part, offset, &mut content)?;
            leaves.push_front((part, offset, content));
            0
        }
    };
    Ok(&leaves[at].2)
}
