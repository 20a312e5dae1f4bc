//! Memory that comes while the app runs already: threads of the restoring program
//! that answer page faults, and fill the rest in the background.
//!
//! ```text
//!   app touches a page --> userfaultfd --> pager: read leaf, verify, UFFDIO_COPY
//!   first second: only what is touched        |     (what it was is noted)
//!   then: all the rest, between the faults    v     (clones: only what is touched)
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
//! instance is never on wrong memory: it is whole, or gone. The other way round,
//! a byte through that socket asks for all the memory at once ([`hurry`]).

use super::opened::Opened;
use super::owed::Owed;
use super::working_set::{Touched, WorkingSet};
use super::{ahead, eager, huge};
use crate::error::{OrFail, Result};
use crate::ids::HostPid;
use crate::image::{LEAF, Place, Segment};
use crate::sys::fd as sysfd;
use crate::sys::memory::{self, PAGE, Span};
use crate::sys::task::{self, SchedAttr};
use crate::sys::uffd::{Event, State, Userfault};
use crate::target::Stdio;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long only what is touched is brought, so that it can be told from the rest.
const FIRST: Duration = Duration::from_secs(1);
/// Who touches so many pages until then needs all of them.
const FIRST_PAGES_MAX: usize = 4096;
/// Pages brought at once where an app goes through its memory in order.
const AHEAD_MAX: u64 = 16;
/// Pages that never held anything are told to be empty so many at a time: who allocates
/// comes to the next ones, and need not wait for anybody then.
const EMPTY_MIN: u64 = 16;
const EMPTY_MAX: u64 = 512;
/// After the kernel has refused because an act is under way.
const AGAIN: Duration = Duration::from_micros(20);
/// Userfaultfds in one queue; some 200 messages fit.
const KEPT_MAX: usize = 100;
/// Entries of a robust list that the kernel looks at (ROBUST_LIST_LIMIT).
const ROBUST_MAX: usize = 2048;
/// Threads that answer, at most.
const THREADS_MAX: usize = 4;

/// The memory of one process that is owed.
#[derive(Debug)]
struct Space {
    /// Whose it is.
    debt: u64,
    /// The process, if it is one of the appshot.
    pid: HostPid,
    /// Its place among the cores.
    core: usize,
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

/// The memory of one process that was not put in place at once.
#[derive(Debug)]
pub struct Left {
    /// The place of the process among the cores.
    pub core: usize,
    pub pid: HostPid,
    pub faults: Userfault,
    pub owed: Owed,
}

/// When the memory comes that nobody has touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// In the background.
    Soon,
    /// Never, unless someone asks for all of it.
    WhenTouched,
}

/// What a worker is told.
enum Told {
    Owe(u64, Box<Debt>, Vec<Space>),
    /// The app runs; this is its init.
    Runs(u64, OwnedFd, Stdio),
    /// It was given up before it ran.
    Forget(u64),
    /// What is owed is asked for: nobody else is to change it.
    Lend(u64, SyncSender<Lent>),
    /// It comes back.
    Back(u64, Lent),
    /// All memory of all instances is wanted.
    All,
}

/// Spaces by their numbers.
type Lent = Vec<(u64, Space)>;

/// From whom the memory owed to an instance that stands still can be taken over.
#[derive(Clone, Copy, Debug)]
pub struct Lender {
    debt: u64,
    worker: &'static Worker,
}

impl Lender {
    /// Asks for it; the answer comes while something else is done.
    pub fn ask(&self) -> Asked {
        let (sender, answer) = mpsc::sync_channel(1);
        // An instance stands still until it comes.
        if let Some(task) = self.worker.task.get() {
            eager::hurry(*task);
        }
        self.worker.tell(Told::Lend(self.debt, sender));
        Asked { lender: *self, answer }
    }
}

/// A loan that was asked for.
#[derive(Debug)]
pub struct Asked {
    lender: Lender,
    answer: Receiver<Lent>,
}

impl Asked {
    /// `None` where the instance gets, or has, all its memory for itself.
    pub fn take(self) -> Option<Loan> {
        let spaces = self.answer.recv().ok()?;
        let lender = self.lender;
        Some(Loan { lender, spaces })
    }
}

/// What is owed to an instance, in other hands. Dropped, it goes back.
#[derive(Debug)]
pub struct Loan {
    lender: Lender,
    spaces: Lent,
}

impl Loan {
    /// The descriptor of a process by its place among the cores, and what it is owed.
    pub fn of(&mut self, core: usize) -> Option<(&Userfault, &mut Owed)> {
        let mut own = self.spaces.iter_mut().map(|(_, space)| space);
        let space = own.find(|space| space.original && space.core == core)?;
        Some((&space.faults, &mut space.owed))
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let spaces = std::mem::take(&mut self.spaces);
        self.lender.worker.tell(Told::Back(self.lender.debt, spaces));
    }
}

/// Instances to which something is owed.
static OWING: AtomicUsize = AtomicUsize::new(0);

/// Gives every instance all its memory: then they need this program no more. Answers
/// whether that was done in time.
pub fn settle(time: Duration) -> bool {
    let end = Instant::now() + time;
    Worker::all().iter().for_each(|worker| worker.tell(Told::All));
    while OWING.load(Ordering::Acquire) > 0 {
        if Instant::now() > end {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}

/// The memory owed to one instance. Dropped before the app runs, nothing is.
#[derive(Debug)]
pub struct Pager {
    debt: u64,
    worker: &'static Worker,
    /// For the init.
    pub hold: Hold,
    running: bool,
}

impl Pager {
    /// Brings what is known to be needed first, then has the rest owed.
    pub fn start(opened: &Arc<Opened>, left: Vec<Left>, rest: Rest) -> Result<Pager> {
        static DEBTS: AtomicU64 = AtomicU64::new(1);
        let failed = || "cannot start the pager";
        let debt = DEBTS.fetch_add(1, Ordering::Relaxed);
        let processes = left.iter().map(|left| (left.core, left.pid)).collect();
        let spaces = left.into_iter().map(|left| Space {
            pid: left.pid,
            debt,
            core: left.core,
            faults: left.faults,
            owed: left.owed,
            original: true,
            last: (0, 0),
        });
        let mut spaces: Vec<Space> = spaces.collect();
        let known = opened.working_set();
        for (core, address, bytes) in known.iter().flat_map(|known| known.pieces()) {
            if let Some(space) = spaces.iter_mut().find(|space| space.core == core) {
                space.bring_first(address, bytes).or_fail(failed)?;
            }
        }
        for space in &mut spaces {
            space.bring_wills(opened)?;
        }
        let (lifeline, end) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).or_fail(failed)?;
        let (ours, queue) = sysfd::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET).or_fail(failed)?;
        let mut keeper = Keeper {
            queue: ours.try_clone().or_fail(failed)?,
            kept: 0,
        };
        for space in &spaces {
            keeper.keep(&space.faults)?;
        }
        let debt_of = Debt {
            opened: Arc::clone(opened),
            rest,
            hurried: false,
            stage: Stage::Made,
            touched: Vec::new(),
            known,
            processes,
            init: None,
            stdio: Stdio::Null,
            lent: false,
            lifeline: end.into(),
            calls: ours,
            keeper,
        };
        let worker = Worker::of(debt)?;
        OWING.fetch_add(1, Ordering::AcqRel);
        worker.tell(Told::Owe(debt, Box::new(debt_of), spaces));
        Ok(Pager {
            debt,
            worker,
            hold: Hold { lifeline, queue },
            running: false,
        })
    }

    pub fn lender(&self) -> Lender {
        Lender {
            debt: self.debt,
            worker: self.worker,
        }
    }

    /// The app runs from now on, below this init. If it has to be ended, that is told
    /// where its output goes.
    pub fn runs(mut self, init: HostPid, stdio: &Stdio) -> Result<()> {
        let pidfd = task::pidfd_open(init).or_fail(|| "cannot open the instance's init")?;
        self.running = true;
        self.worker.tell(Told::Runs(self.debt, pidfd, stdio.clone()));
        Ok(())
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        if !self.running {
            self.worker.tell(Told::Forget(self.debt));
        }
    }
}

/// Asks the pager of a running app for all its memory at once. `init` is the app's.
pub fn hurry(init: HostPid) {
    let asked = || {
        let pidfd = task::pidfd_open(init).ok()?;
        for entry in std::fs::read_dir(format!("/proc/{init}/fd")).ok()?.flatten() {
            let link = std::fs::read_link(entry.path()).ok()?;
            if link.to_string_lossy().starts_with("socket:") {
                let number = entry.file_name().to_string_lossy().parse().ok()?;
                let queue = task::pidfd_getfd(pidfd.as_fd(), number).ok()?;
                nix::unistd::write(&queue, b"h").ok()?;
            }
        }
        Some(())
    };
    // One that has just let go has all its memory.
    let _ = asked();
}

static WORKERS: OnceLock<Vec<Worker>> = OnceLock::new();

/// A thread that answers for some of the instances.
#[derive(Debug)]
struct Worker {
    told: Mutex<Sender<Told>>,
    wake: OwnedFd,
    /// Its thread, once that has begun.
    task: Arc<OnceLock<HostPid>>,
}

impl Worker {
    /// The one that a debt belongs to. They live as long as the program.
    fn of(debt: u64) -> Result<&'static Worker> {
        static STARTING: Mutex<()> = Mutex::new(());
        let _one = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        if WORKERS.get().is_none() {
            // A descriptor is needed for every process that is owed memory, also those that apps fork
            // meanwhile: one that cannot be had ends the app.
            sysfd::raise_limit();
            let count = crate::image::processors().min(THREADS_MAX);
            let workers: Vec<Worker> = (0..count).map(|_| Worker::start()).collect::<Result<_>>()?;
            WORKERS.get_or_init(|| workers);
        }
        let workers = Worker::all();
        Ok(&workers[debt as usize % workers.len()])
    }

    /// Those that were started.
    fn all() -> &'static [Worker] {
        WORKERS.get().map_or(&[], |workers| workers)
    }

    fn start() -> Result<Worker> {
        let failed = || "cannot start the pager";
        let (tell, told) = mpsc::channel();
        let wake = sysfd::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).or_fail(failed)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).or_fail(failed)?;
        let mut work = Work {
            told,
            ordinary: None,
            wake: wake.try_clone().or_fail(failed)?,
            epoll,
            debts: BTreeMap::new(),
            spaces: BTreeMap::new(),
            born: 0,
            prune_at: 64,
            faults: VecDeque::new(),
        };
        work.watch(&work.wake, Token::Wake).or_fail(failed)?;
        let named = thread::Builder::new().name("pager".into());
        let task = Arc::new(OnceLock::new());
        let begun = Arc::clone(&task);
        let go = move || {
            let own = HostPid(nix::unistd::gettid().as_raw());
            eager::at_large();
            work.ordinary = task::sched_getattr(own).ok().map(|ordinary| (own, ordinary));
            begun.get_or_init(|| own);
            work.go();
        };
        named.spawn(go).or_fail(failed)?;
        Ok(Worker {
            told: Mutex::new(tell),
            wake,
            task,
        })
    }

    fn tell(&self, what: Told) {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        // The thread ends with the program.
        told.send(what).ok();
        nix::unistd::write(&self.wake, &1u64.to_ne_bytes()).ok();
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

    /// Puts in place what the kernel looks at when a thread ends: it does not wait for
    /// pages then, and mutexes that it holds would stay locked, joiners wait for ever.
    fn bring_wills(&mut self, opened: &Opened) -> Result<()> {
        for thread in &opened.shot.cores[self.core].image.threads {
            let record = &thread.record;
            self.bring_word(opened, record.tid_address)?;
            let head = record.robust_list.0;
            // struct robust_list_head: the first entry, where a lock stands from there,
            // the entry that is being added.
            let offset = self.bring_word(opened, head + 8)?.unwrap_or_default();
            let pending = self.bring_word(opened, head + 16)?.unwrap_or_default();
            let mut entry = self.bring_word(opened, head)?.unwrap_or_default();
            self.bring_word(opened, (pending & !1).wrapping_add(offset))?;
            for _ in 0..ROBUST_MAX {
                let at = entry & !1;
                if at == head || at == 0 {
                    break;
                }
                self.bring_word(opened, at.wrapping_add(offset))?;
                entry = self.bring_word(opened, at)?.unwrap_or_default();
            }
        }
        Ok(())
    }

    /// Puts the page of an aligned word in place; the word, if it is stored.
    fn bring_word(&mut self, opened: &Opened, address: u64) -> Result<Option<u64>> {
        let segments = &opened.shot.cores[self.core].segments;
        let segment = Segment::at(segments, address);
        let Some(segment) = segment.filter(|_| address.is_multiple_of(4)) else {
            return Ok(None);
        };
        let page = address / PAGE * PAGE;
        let place = segment.place().ahead(page - segment.vaddr);
        let leaf = place.offset / LEAF as u64 * LEAF as u64;
        let content = opened.with_leaf(place.part, leaf, |content| {
            let from = (place.offset - leaf) as usize;
            content[from..from + PAGE as usize].to_vec()
        })?;
        self.bring_first(page, &content)?;
        let word = content[(address - page) as usize..].first_chunk();
        Ok(word.map(|word| u64::from_le_bytes(*word)))
    }

    fn done(&mut self, result: Result<(), Errno>, span: Span) -> Result<Brought> {
        match result {
            Ok(()) => {}
            Err(Errno::EAGAIN) => return Ok(Brought::Again),
            Err(Errno::ESRCH) => {
                self.owed = Owed::default();
                return Ok(Brought::Gone);
            }
            // Not registered any more, or there already: whoever waits there sees for
            // himself. The kernel wakes nobody then.
            Err(Errno::ENOENT | Errno::EEXIST) => self.faults.wake(span.start).or_fail(|| "cannot wake the app")?,
            Err(errno) => return Err(errno).or_fail(|| "cannot put memory back"),
        }
        self.owed.remove(span);
        Ok(Brought::Done)
    }

    /// How many pages to bring for a fault at `page`: more where the last one led here.
    fn ahead(&self, page: u64, most: u64) -> u64 {
        match self.last {
            (end, pages) if end == page => (2 * pages).min(most),
            _ => 1,
        }
    }

    /// Tells of pages behind this one, which never held anything, that nor did they. They
    /// take no memory until they are written.
    fn empty_ahead(&mut self, start: u64, page: u64) {
        // What is owed may arrive anywhere.
        if self.owed.is_unsettled() {
            return;
        }
        let pages = self.ahead(page, EMPTY_MAX).max(EMPTY_MIN);
        let end = start + pages * PAGE;
        let end = self
            .owed
            .within(Span { start, end })
            .next()
            .map_or(end, |owed| owed.start);
        // Where it fails, as at the end of a mapping, each is asked for.
        if end > start && self.faults.zero(start, (end - start) / PAGE).is_ok() {
            self.last = (end, pages);
        }
    }
}

/// How far an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It does not run yet; the kernel may touch its memory all the same.
    Made,
    /// What it touches is noted until then.
    First(Instant),
    /// All the rest is brought.
    Filling,
    /// What is touched is brought.
    Waiting,
    /// It cannot be served, and has been killed.
    Failed,
}

/// What is owed to one instance.
#[derive(Debug)]
struct Debt {
    opened: Arc<Opened>,
    rest: Rest,
    /// Someone waits for all of it.
    hurried: bool,
    stage: Stage,
    /// Core and address of pages that were asked for.
    touched: Vec<(usize, u64)>,
    /// What was known to be needed.
    known: Option<Arc<WorkingSet>>,
    /// Those of the appshot, our children as long as they are made.
    processes: Vec<(usize, HostPid)>,
    init: Option<OwnedFd>,
    /// Its spaces are in other hands.
    lent: bool,
    /// Where the app's output goes.
    stdio: Stdio,
    lifeline: File,
    /// Something comes here when all the memory is wanted.
    calls: OwnedFd,
    keeper: Keeper,
}

/// Has userfaultfds held by the init, in the queue of its socket, or in that of a
/// socket in its queue, and so on.
#[derive(Debug)]
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

/// Who has something to say, as a number for epoll.
#[derive(Clone, Copy, Debug)]
enum Token {
    Wake,
    Space(u64),
    /// The init of a debt has ended.
    Init(u64),
    /// All its memory is wanted.
    Call(u64),
}

impl From<Token> for u64 {
    fn from(token: Token) -> u64 {
        match token {
            Token::Wake => 0,
            Token::Space(id) => id << 2 | 1,
            Token::Init(id) => id << 2 | 2,
            Token::Call(id) => id << 2 | 3,
        }
    }
}

impl From<u64> for Token {
    fn from(number: u64) -> Token {
        match number & 3 {
            1 => Token::Space(number >> 2),
            2 => Token::Init(number >> 2),
            3 => Token::Call(number >> 2),
            _ => Token::Wake,
        }
    }
}

struct Work {
    told: Receiver<Told>,
    wake: OwnedFd,
    epoll: Epoll,
    debts: BTreeMap<u64, Debt>,
    spaces: BTreeMap<u64, Space>,
    /// Spaces ever.
    born: u64,
    /// At so many, those that are gone are looked for.
    prune_at: usize,
    faults: VecDeque<Fault>,
    /// Its thread, and how that is scheduled when nobody hurries it.
    ordinary: Option<(HostPid, SchedAttr)>,
}

impl Work {
    fn go(mut self) {
        loop {
            let time = self.patience();
            self.listen_to_all(time);
            self.settle();
            while self.answer_all() {
                self.listen_to_all(EpollTimeout::ZERO);
                self.settle();
            }
            self.advance();
            self.fill_some();
        }
    }

    fn watch(&self, fd: impl AsFd, token: Token) -> Result<(), Errno> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token.into());
        self.epoll.add(fd, event)
    }

    /// How long nothing has to be done by itself.
    fn patience(&self) -> EpollTimeout {
        let now = Instant::now();
        let mut wait: Option<Duration> = (!self.faults.is_empty()).then_some(Duration::from_millis(1));
        for debt in self.debts.values() {
            let own = match debt.stage {
                Stage::Filling => Duration::ZERO,
                Stage::First(until) => until.saturating_duration_since(now) + Duration::from_millis(1),
                Stage::Made | Stage::Waiting | Stage::Failed => continue,
            };
            wait = Some(wait.map_or(own, |wait| wait.min(own)));
        }
        wait.map_or(EpollTimeout::NONE, |wait| {
            EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::MAX)
        })
    }

    /// Takes note of all that was said and done.
    fn listen_to_all(&mut self, mut time: EpollTimeout) {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = self.epoll.wait(&mut events, time).unwrap_or(0);
            for event in &events[..count] {
                match Token::from(event.data()) {
                    Token::Wake => self.listen(),
                    Token::Space(id) => self.listen_to(id),
                    Token::Init(id) => self.forget(id),
                    Token::Call(id) => self.called(id),
                }
            }
            if count < events.len() {
                return;
            }
            time = EpollTimeout::ZERO;
        }
    }

    fn listen(&mut self) {
        nix::unistd::read(&self.wake, &mut [0; 8]).ok();
        while let Ok(told) = self.told.try_recv() {
            match told {
                Told::Owe(id, debt, spaces) => {
                    self.watch(&debt.calls, Token::Call(id)).ok();
                    self.debts.insert(id, *debt);
                    for space in spaces {
                        self.serve(space);
                    }
                }
                Told::Runs(id, init, stdio) => {
                    let watched = self.watch(&init, Token::Init(id));
                    if let Some(debt) = self.debts.get_mut(&id) {
                        debt.init = Some(init);
                        debt.stdio = stdio;
                        debt.stage = Stage::First(Instant::now() + FIRST);
                    }
                    if watched.or_fail(|| "cannot watch an instance").is_err() {
                        self.fail(id, &"its end could not be seen");
                    }
                }
                Told::Forget(id) => self.forget(id),
                Told::Lend(id, to) => {
                    self.lend(id, &to);
                    // It was hurried.
                    if let Some((own, ordinary)) = &self.ordinary {
                        task::sched_setattr(*own, ordinary).ok();
                    }
                }
                Told::Back(id, spaces) => self.take_back(id, spaces),
                Told::All => {
                    let all: Vec<u64> = self.debts.keys().copied().collect();
                    all.into_iter().for_each(|id| self.called(id));
                }
            }
        }
    }

    /// Only of an instance that is owed memory until it ends.
    fn lend(&mut self, id: u64, to: &SyncSender<Lent>) {
        let ours = |debt: &&mut Debt| debt.rest == Rest::WhenTouched && debt.stage != Stage::Failed;
        let Some(debt) = self.debts.get_mut(&id).filter(ours) else {
            return;
        };
        debt.lent = true;
        let own = self.spaces.iter().filter(|(_, space)| space.debt == id);
        let own: Vec<u64> = own.map(|(at, _)| *at).collect();
        let spaces = own.into_iter().filter_map(|at| Some((at, self.spaces.remove(&at)?)));
        let spaces = spaces.collect();
        if let Err(mpsc::SendError(spaces)) = to.send(spaces) {
            self.take_back(id, spaces);
        }
    }

    fn take_back(&mut self, id: u64, spaces: Lent) {
        if let Some(debt) = self.debts.get_mut(&id) {
            debt.lent = false;
            self.spaces.extend(spaces);
        }
    }

    fn serve(&mut self, space: Space) {
        let id = self.born;
        self.born += 1;
        let debt = space.debt;
        let watched = self.watch(&space.faults, Token::Space(id));
        self.spaces.insert(id, space);
        if let Err(errno) = watched {
            self.fail(debt, &errno);
        }
        if self.spaces.len() > self.prune_at {
            self.spaces
                .retain(|_, space| space.original || space.faults.state() != State::Gone);
            self.prune_at = 2 * self.spaces.len() + 64;
        }
    }

    /// Nobody is left to whom something could be owed.
    fn forget(&mut self, id: u64) {
        self.close(id);
        self.settled(id);
    }

    fn close(&mut self, id: u64) {
        self.spaces.retain(|_, space| space.debt != id);
    }

    /// Nothing is owed to it any more, and whoever has to know knows.
    fn settled(&mut self, id: u64) {
        if self.debts.remove(&id).is_some() {
            OWING.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// All its memory is wanted.
    fn called(&mut self, id: u64) {
        if let Some(debt) = self.debts.get_mut(&id) {
            // Once is enough; and an init that has ended is heard of elsewhere.
            self.epoll.delete(&debt.calls).ok();
            match debt.stage {
                Stage::First(_) => debt.stage = Stage::First(Instant::now()),
                Stage::Waiting => debt.stage = Stage::Filling,
                Stage::Made | Stage::Filling | Stage::Failed => {}
            }
            debt.rest = Rest::Soon;
            debt.hurried = true;
        }
    }

    /// The app must not go on with what it has. What is closed before all of it is
    /// dead would read as zeroes: it is kept until then.
    fn fail(&mut self, id: u64, error: &dyn std::fmt::Display) {
        let Some(debt) = self.debts.get_mut(&id) else { return };
        if debt.stage == Stage::Failed {
            return;
        }
        let made = debt.stage == Stage::Made;
        debt.stage = Stage::Failed;
        tracing::error!(appshot = %debt.opened.shot.path.display(), %error, "the app is ended");
        match &debt.init {
            Some(init) => {
                last_words(&debt.stdio, error);
                task::pidfd_send_signal(init.as_fd(), libc::SIGKILL).ok();
            }
            // Who makes it may wait for a call in it that waits for us. The init lets
            // nobody live without us.
            None if made => {
                for (_, pid) in &debt.processes {
                    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.0), nix::sys::signal::SIGKILL).ok();
                }
                self.forget(id);
            }
            None => {}
        }
    }

    fn listen_to(&mut self, id: u64) {
        let Some(space) = self.spaces.get_mut(&id) else { return };
        let debt_id = space.debt;
        let events = match space.faults.events() {
            Ok(events) => events,
            Err(errno) => return self.fail(debt_id, &errno),
        };
        for event in events {
            let (Some(space), Some(debt)) = (self.spaces.get_mut(&id), self.debts.get_mut(&debt_id)) else {
                return;
            };
            match event {
                Event::Fault { page, write } => self.faults.push_back(Fault { space: id, page, write }),
                Event::Remove(span) => space.owed.remove(span),
                Event::Unmap(span) => space.owed.unmap(span),
                Event::Remap { from, to, len } => space.owed.shift(from, to, len),
                Event::Fork(faults) => {
                    if let Err(error) = debt.keeper.keep(&faults) {
                        return self.fail(debt_id, &error);
                    }
                    let owed = space.owed.clone();
                    let child = Space {
                        faults,
                        owed,
                        original: false,
                        ..*space
                    };
                    self.serve(child);
                }
            }
        }
    }

    /// Once all that was done is known, nothing is uncertain.
    fn settle(&mut self) {
        let unsettled = self.spaces.values_mut().filter(|space| space.owed.is_unsettled());
        for space in unsettled {
            match space.faults.state() {
                State::Gone => space.owed = Owed::default(),
                State::Changing => {}
                State::Quiet => space.owed.settle(),
            }
        }
    }

    /// Answers every fault that can be; whether any was.
    fn answer_all(&mut self) -> bool {
        let mut answered = false;
        for _ in 0..self.faults.len() {
            let Some(fault) = self.faults.pop_front() else { break };
            let Some(debt) = self.spaces.get(&fault.space).map(|space| space.debt) else {
                continue;
            };
            match self.answer(fault) {
                Ok(Brought::Done | Brought::Gone) => answered = true,
                Ok(Brought::Again) => self.faults.push_back(fault),
                Err(error) => self.fail(debt, &error),
            }
        }
        answered
    }

    fn answer(&mut self, fault: Fault) -> Result<Brought> {
        let Fault { space: at, page, write } = fault;
        let Some(space) = self.spaces.get_mut(&at) else {
            return Ok(Brought::Gone);
        };
        if space.owed.is_uncertain(page) {
            return Ok(Brought::Again);
        }
        let pages = space.ahead(page, AHEAD_MAX);
        let one = Span {
            start: page,
            end: page + PAGE,
        };
        let Some((span, place)) = space.owed.at(page) else {
            // It never held anything, or the app has thrown it away.
            let result = match write {
                true => space.faults.try_copy(page, &[0; PAGE as usize]).map(drop),
                false => space.faults.zero(page, 1),
            };
            if result.is_ok() {
                space.empty_ahead(one.end, page);
            }
            return space.done(result, one);
        };
        let end = span.end.min(page + pages * PAGE);
        let copied = self.copy(at, Span { start: page, end }, place)?;
        if let (Brought::Done, Some(space)) = (&copied, self.spaces.get_mut(&at)) {
            let end = space.owed.at(page).map_or(end, |_| page);
            space.last = (end, pages);
            let debt = self.debts.get_mut(&space.debt);
            if let Some(debt) = debt.filter(|debt| space.original && debt.is_noting()) {
                let pages = (page..end).step_by(PAGE as usize);
                debt.touched.extend(pages.map(|page| (space.core, page)));
            }
        }
        Ok(copied)
    }

    /// Brings as much of the span as lies in one leaf, stored from this place on.
    fn copy(&mut self, at: u64, span: Span, Place { part, offset }: Place) -> Result<Brought> {
        let Some(space) = self.spaces.get_mut(&at) else {
            return Ok(Brought::Gone);
        };
        let Some(debt) = self.debts.get(&space.debt).filter(|debt| debt.stage != Stage::Failed) else {
            return Ok(Brought::Gone);
        };
        let leaf = offset / LEAF as u64 * LEAF as u64;
        let end = span.end.min(span.start + (leaf + LEAF as u64 - offset));
        let span = Span { start: span.start, end };
        let from = (offset - leaf) as usize;
        let bytes = from..from + span.len() as usize;
        let copied = debt
            .opened
            .with_leaf(part, leaf, |content| space.faults.try_copy(span.start, &content[bytes]))?;
        let (result, bytes) = match copied {
            Ok(copied) => (Ok(()), copied as u64),
            // One page at a time: the others may still be owed.
            Err(errno) => (Err(errno), PAGE),
        };
        let end = span.start + bytes;
        space.done(result, Span { start: span.start, end })
    }

    /// Takes each instance on to its next stage.
    fn advance(&mut self) {
        let now = Instant::now();
        for debt in self.debts.values_mut() {
            if let Stage::First(until) = debt.stage
                && (until <= now || debt.touched.len() > FIRST_PAGES_MAX)
            {
                debt.note();
                debt.stage = match debt.rest {
                    Rest::Soon => Stage::Filling,
                    Rest::WhenTouched => Stage::Waiting,
                };
            }
        }
    }

    /// Brings a piece that nobody has asked for to each instance that is to get all.
    fn fill_some(&mut self) {
        let is_filling = |debt: &Debt| debt.stage == Stage::Filling && !debt.lent;
        let filling = self.debts.iter().filter(|(_, debt)| is_filling(debt));
        let filling: Vec<u64> = filling.map(|(id, _)| *id).collect();
        for id in filling {
            let own = self.spaces.iter().filter(|(_, space)| space.debt == id);
            let mut owing = own.clone().filter_map(|(at, space)| Some((*at, space.owed.first()?)));
            let Some((at, (span, place))) = owing.next() else {
                match own.clone().any(|(_, space)| space.owed.is_unsettled()) {
                    true => thread::sleep(AGAIN),
                    false => self.end(id),
                }
                continue;
            };
            match self.copy(at, span, place) {
                Ok(Brought::Done | Brought::Gone) => {}
                Ok(Brought::Again) => thread::sleep(AGAIN),
                Err(error) => self.fail(id, &error),
            }
        }
    }

    /// All is there. Init lets go last, so that who sees it without descriptors sees
    /// ordinary memory; what is asked for meanwhile waits these microseconds.
    ///
    /// Closing the descriptors is not enough: a process that is being forked off this one
    /// has copies of them until it executes its program.
    fn end(&mut self, id: u64) {
        let mut huge = Vec::new();
        for space in self.spaces.values().filter(|space| space.debt == id) {
            // What was unmapped meanwhile, or executed another program, needs nothing.
            for span in space.owed.mapped() {
                space.faults.unregister(span).ok();
            }
            if let Some(debt) = self.debts.get(&id).filter(|_| space.original) {
                let had = huge::had(&debt.opened.shot.cores[space.core]);
                huge.extend((!had.is_empty()).then_some((space.pid, had)));
            }
        }
        self.close(id);
        // That takes a tenth of a millisecond each, and others wait for their pages.
        let collapse = move || huge.iter().for_each(|(pid, spans)| memory::collapse(*pid, spans));
        if let Some(debt) = self.debts.get_mut(&id) {
            match debt.hurried {
                // Who asked is to find the memory as it was.
                true => collapse(),
                false => drop(thread::spawn(collapse)),
            }
            // An init that is gone needs nothing.
            debt.lifeline.write_all(b"d").ok();
        }
        self.settled(id);
    }
}

/// Says why the app ends.
fn last_words(stdio: &Stdio, error: &dyn std::fmt::Display) {
    let words = format!("appshot: the app is ended, its memory cannot be brought: {error}\n");
    let told = match stdio {
        Stdio::Log(path) => OpenOptions::new()
            .append(true)
            .open(path)
            .and_then(|mut log| log.write_all(words.as_bytes())),
        Stdio::Inherit => std::io::stderr().write_all(words.as_bytes()),
        Stdio::Null => Ok(()),
    };
    if let Err(error) = told {
        tracing::warn!(%error, "the app's log does not tell why it has ended");
    }
}

impl Debt {
    /// Writes down what was needed first. That may take long, and nobody who waits for a
    /// page shall wait for it.
    fn note(&mut self) {
        let pages = std::mem::take(&mut self.touched);
        let (known, processes) = (self.known.take(), self.processes.clone());
        let opened = Arc::clone(&self.opened);
        let keep = move || {
            let files = ahead::touched(&opened, &processes);
            let touched = Touched { pages, files };
            if let Err(error) = opened.keep_working_set(known.as_deref(), touched) {
                tracing::debug!(%error, "no working set is kept");
            }
        };
        // Without a thread there is none.
        thread::Builder::new().name("working-set".into()).spawn(keep).ok();
    }

    fn is_noting(&self) -> bool {
        matches!(self.stage, Stage::Made | Stage::First(_))
    }
}
