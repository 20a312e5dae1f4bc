//! What the kernel tells of a process that stands still: texts and links below /proc,
//! held open. They must be as they were right before it ran for the first time.

use super::Why;
use crate::error::{OrFail, Result};
use crate::ids::HostPid;
use crate::sys::ptrace;
use crate::sys::task::{self, SchedAttr};
use nix::fcntl::readlinkat;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

/// A file of /proc that stays open.
#[derive(Debug)]
pub struct Text {
    file: File,
    /// Read row by row: a reading ends behind the last row that had room.
    rows: bool,
}

impl Text {
    /// One that the kernel makes in one piece.
    pub fn open(path: &str) -> Result<Text> {
        let file = File::open(path).or_fail(|| format!("cannot open {path}"))?;
        Ok(Text { file, rows: false })
    }

    /// One that it makes row by row.
    pub fn open_rows(path: &str) -> Result<Text> {
        Ok(Text {
            rows: true,
            ..Text::open(path)?
        })
    }

    pub fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let len = self.read_into(&mut bytes)?.len();
        bytes.truncate(len);
        Ok(bytes)
    }

    /// The same into a buffer that is used again, and grown where it is too small.
    pub fn read_into<'b>(&self, buffer: &'b mut Vec<u8>) -> io::Result<&'b [u8]> {
        /// What the kernel shows at once of a text in rows, and more than most of the others.
        const AT_ONCE: usize = 4 << 10;
        let mut filled = 0;
        loop {
            if buffer.len() < filled + AT_ONCE {
                buffer.resize((2 * buffer.len()).max(filled + AT_ONCE), 0);
            }
            let room = buffer.len() - filled;
            let got = self.file.read_at(&mut buffer[filled..], filled as u64)?;
            filled += got;
            if got == 0 || !self.rows && got < room {
                return Ok(&buffer[..filled]);
            }
        }
    }
}

/// Which part of a text must be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    All,
    /// `status`: all but what passes by itself.
    Status,
    /// `stat`: group, session, terminal, and the marks of the address space.
    Stat,
}

/// Lines of `status` that say what a task is, and not how much it has used.
const STATUS: [&[u8]; 29] = [
    b"Name:",
    b"Threads:",
    b"Umask:",
    b"PPid:",
    b"Uid:",
    b"Gid:",
    b"Groups:",
    b"NStgid:",
    b"NSpid:",
    b"NSpgid:",
    b"NSsid:",
    b"VmLck:",
    b"VmPin:",
    b"THP_enabled:",
    b"SigPnd:",
    b"ShdPnd:",
    b"SigIgn:",
    b"SigCgt:",
    b"CapInh:",
    b"CapPrm:",
    b"CapEff:",
    b"CapBnd:",
    b"CapAmb:",
    b"NoNewPrivs:",
    b"Seccomp:",
    b"Seccomp_filters:",
    b"Speculation_Store_Bypass:",
    b"Mems_allowed:",
    b"x86_Thread_features:",
];

impl Kept {
    /// Whether what must be the same is; else what is not.
    fn compare<'t>(self, was: &[u8], now: &'t [u8]) -> Result<(), &'t [u8]> {
        if was == now {
            return Ok(());
        }
        match self {
            Kept::All => differ(lines(was), lines(now), |_| true),
            Kept::Status => differ(lines(was), lines(now), |line| {
                STATUS.iter().any(|key| line.starts_with(key))
            }),
            Kept::Stat => differ(stat_fields(was), stat_fields(now), |_| true),
        }
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

/// Those that tell what a process is.
fn stat_fields(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let name = text.iter().rposition(|byte| *byte == b')').unwrap_or(0);
    // The name is the second field of proc(5).
    let fields = (2..).zip(text[name..].split(|byte| *byte == b' '));
    fields
        .filter(|(number, _)| STAT.contains(number))
        .map(|(_, field)| field)
}

/// The first part that counts, and is not in both at the same place among those that do.
fn differ<'w, 'n>(
    was: impl Iterator<Item = &'w [u8]>,
    now: impl Iterator<Item = &'n [u8]>,
    counts: impl Fn(&[u8]) -> bool,
) -> Result<(), &'n [u8]> {
    let (mut was, mut now) = (was.fuse(), now.fuse());
    loop {
        let (mut had, mut has) = (was.next(), now.next());
        if had != has {
            while had.is_some_and(|part| !counts(part)) {
                had = was.next();
            }
            while has.is_some_and(|part| !counts(part)) {
                has = now.next();
            }
        }
        match (had, has) {
            (None, None) => return Ok(()),
            (had, has) if had == has => {}
            (_, has) => return Err(has.unwrap_or(b"it ends")),
        }
    }
}

/// Parent, group, session, terminal; code, stack, data, heap, arguments, environment.
const STAT: [i32; 14] = [4, 5, 6, 7, 26, 27, 28, 45, 46, 47, 48, 49, 50, 51];

#[derive(Debug)]
struct Told {
    what: &'static str,
    text: Text,
    kept: Kept,
    was: Vec<u8>,
}

impl Told {
    fn new(what: &'static str, text: Text, kept: Kept) -> Result<Told> {
        let was = text.read().or_fail(|| format!("cannot read {what} of a process"))?;
        Ok(Told { what, text, kept, was })
    }

    fn compare(&self, buffer: &mut Vec<u8>) -> Result<(), Why> {
        let now = self.text.read_into(buffer);
        let now = now.map_err(|_| Why::anew(format!("its {} cannot be read", self.what)))?;
        self.kept.compare(&self.was, now).map_err(|part| {
            let part = String::from_utf8_lossy(part).replace('\t', " ");
            Why::anew(format!("its {} in /proc has changed: {part}", self.what))
        })
    }
}

/// Links of one directory.
#[derive(Debug)]
struct Links {
    directory: File,
    was: Vec<(&'static str, OsString)>,
}

impl Links {
    fn new(path: String, names: &[&'static str]) -> Result<Links> {
        let directory = File::open(&path).or_fail(|| format!("cannot open {path}"))?;
        let links = names.iter().filter_map(|name| {
            let link = readlinkat(directory.as_fd(), *name).ok()?;
            Some((*name, link))
        });
        let was = links.collect();
        Ok(Links { directory, was })
    }

    fn compare(&self) -> Result<(), Why> {
        let other =
            |(name, was): &&(&'static str, OsString)| readlinkat(self.directory.as_fd(), *name).as_ref() != Ok(was);
        match self.was.iter().find(other) {
            Some((name, _)) => Err(Why::anew(format!("its {name} in /proc has changed"))),
            None => Ok(()),
        }
    }
}

/// How a thread is scheduled.
#[derive(Debug, PartialEq)]
struct Scheduled {
    sched: (u32, u64, i32, u32),
    affinity: Vec<u64>,
    /// Nanoseconds; the kernel resets it as priorities change.
    slack: Vec<u8>,
}

/// What else of a thread is asked for from outside.
#[derive(Debug, PartialEq)]
struct Registered {
    ioprio: i32,
    robust_list: (u64, u64),
    rseq: (u64, u32, u32),
    dispatched: bool,
}

#[derive(Debug)]
struct Thread {
    tid: HostPid,
    slack: Text,
    scheduled: Scheduled,
    registered: Registered,
}

impl Thread {
    fn new(tid: HostPid) -> Result<Thread> {
        let slack = Text::open(&format!("/proc/{tid}/timerslack_ns"))?;
        Ok(Thread {
            scheduled: Scheduled::look(tid, &slack),
            registered: Registered::look(tid),
            tid,
            slack,
        })
    }
}

impl Scheduled {
    fn look(tid: HostPid, slack: &Text) -> Scheduled {
        let SchedAttr {
            policy,
            flags,
            nice,
            priority,
            ..
        } = task::sched_getattr(tid).unwrap_or_default();
        Scheduled {
            sched: (policy, flags, nice, priority),
            affinity: task::sched_getaffinity(tid).unwrap_or_default(),
            slack: slack.read().unwrap_or_default(),
        }
    }
}

impl Registered {
    fn look(tid: HostPid) -> Registered {
        Registered {
            ioprio: task::ioprio_get(tid).unwrap_or(0),
            robust_list: task::robust_list(tid).unwrap_or_default(),
            rseq: ptrace::rseq(tid).unwrap_or_default(),
            dispatched: ptrace::user_dispatch(tid).unwrap_or(false),
        }
    }
}

/// One process.
#[derive(Debug)]
pub struct Look {
    told: Vec<Told>,
    links: Vec<Links>,
    /// What takes long, and is looked at beside.
    mounts: Told,
    namespaces: Vec<Links>,
    threads: Vec<Thread>,
}

const OF_PROCESS: [&str; 7] = [
    "auxv",
    "cgroup",
    "coredump_filter",
    "limits",
    "oom_score_adj",
    "personality",
    "timens_offsets",
];
const NAMESPACES: [&str; 10] = [
    "cgroup",
    "ipc",
    "mnt",
    "net",
    "pid_for_children",
    "time_for_children",
    "uts",
    "pid",
    "time",
    "user",
];
/// So many of these each thread may have for itself; a process with several threads cannot
/// leave the others (setns(2), unshare(2)).
const OF_THREAD: usize = 7;

impl Look {
    pub fn new(pid: HostPid, tids: &[HostPid], init: HostPid) -> Result<Look> {
        let threads: Vec<Thread> = tids.iter().map(|tid| Thread::new(*tid)).collect::<Result<_>>()?;
        let process = format!("/proc/{pid}");
        let rows = |what, path: String| Told::new(what, Text::open_rows(&path)?, Kept::All);
        let whole = |what, path: String, kept| Told::new(what, Text::open(&path)?, kept);
        let mut told = vec![
            rows("other processes", format!("/proc/{init}/task/{init}/children"))?,
            rows("timers", format!("{process}/timers"))?,
            whole("stat", format!("{process}/stat"), Kept::Stat)?,
        ];
        for name in OF_PROCESS {
            told.push(whole(name, format!("{process}/{name}"), Kept::All)?);
        }
        let mut namespaces = Vec::new();
        for tid in tids {
            let task = format!("{process}/task/{tid}");
            told.push(whole("status", format!("{task}/status"), Kept::Status)?);
            let own = if *tid == pid { NAMESPACES.len() } else { OF_THREAD };
            namespaces.push(Links::new(format!("{task}/ns"), &NAMESPACES[..own])?);
        }
        Ok(Look {
            told,
            links: vec![Links::new(process.clone(), &["cwd", "exe", "root"])?],
            mounts: rows("mountinfo", format!("{process}/mountinfo"))?,
            namespaces,
            threads,
        })
    }

    /// Whether signals wait, which a look cannot tell one from another.
    pub fn has_signals(&self) -> bool {
        let waits = |line: &[u8]| {
            let queue = line.strip_prefix(b"SigPnd:").or(line.strip_prefix(b"ShdPnd:"));
            queue.is_some_and(|mask| mask.iter().any(|byte| !b"\t 0".contains(byte)))
        };
        let status = self.told.iter().filter(|told| told.kept == Kept::Status);
        status.flat_map(|told| told.was.split(|byte| *byte == b'\n')).any(waits)
    }

    /// Threads are scheduled as they were; before anybody hurries them.
    pub fn compare_scheduling(&self) -> Result<(), Why> {
        for thread in &self.threads {
            if Scheduled::look(thread.tid, &thread.slack) != thread.scheduled {
                return Err(Why::anew(format!("task {} is scheduled otherwise", thread.tid)));
            }
        }
        Ok(())
    }

    /// What the kernel tells by texts is as it was, or why it is not. No thread of the
    /// process may run meanwhile: signals that come and go are told, too.
    pub fn compare_texts(&self) -> Result<(), Why> {
        let mut buffer = Vec::new();
        self.told.iter().try_for_each(|told| told.compare(&mut buffer))?;
        self.links.iter().try_for_each(Links::compare)
    }

    /// Mounts and namespaces.
    pub fn compare_namespaces(&self) -> Result<(), Why> {
        self.mounts.compare(&mut Vec::new())?;
        self.namespaces.iter().try_for_each(Links::compare)
    }

    /// What only its tracer is told.
    pub fn compare_registered(&self) -> Result<(), Why> {
        let other = |thread: &&Thread| Registered::look(thread.tid) != thread.registered;
        match self.threads.iter().find(other) {
            Some(thread) => Err(Why::anew(format!("task {} is registered otherwise", thread.tid))),
            None => Ok(()),
        }
    }

    /// Gives threads the slack of their timers back, once they are scheduled as they were.
    pub fn put_back_slack(&self) -> Result<(), Why> {
        for thread in &self.threads {
            let was = &thread.scheduled.slack;
            if thread.slack.read().as_ref().ok() != Some(was) {
                let written = std::fs::write(format!("/proc/{}/timerslack_ns", thread.tid), was);
                written.map_err(|e| Why::anew(format!("task {} does not get its slack: {e}", thread.tid)))?;
            }
        }
        Ok(())
    }
}
