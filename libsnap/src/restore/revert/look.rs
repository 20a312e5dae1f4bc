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
pub struct Text(File);

impl Text {
    pub fn open(path: &str) -> Result<Text> {
        let file = File::open(path);
        file.map(Text).or_fail(|| format!("cannot open {path}"))
    }

    pub fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 4 << 10];
        let mut filled = 0;
        loop {
            match self.0.read_at(&mut bytes[filled..], filled as u64)? {
                0 => break,
                got => filled += got,
            }
            if bytes.len() - filled < 2 << 10 {
                bytes.resize(4 * bytes.len(), 0);
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
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
    fn of(self, text: Vec<u8>) -> Vec<u8> {
        match self {
            Kept::All => text,
            Kept::Status => {
                let lines = text.split_inclusive(|byte| *byte == b'\n');
                let told = lines.filter(|line| STATUS.iter().any(|key| line.starts_with(key)));
                told.flatten().copied().collect()
            }
            Kept::Stat => {
                let name = text.iter().rposition(|byte| *byte == b')').unwrap_or(0);
                let fields = text[name..].split(|byte| *byte == b' ');
                // The name is the second field of proc(5).
                let told = (2..).zip(fields).filter(|(number, _)| STAT.contains(number));
                told.flat_map(|(_, field)| [field, b" "].concat()).collect()
            }
        }
    }
}

/// Parent, group, session, terminal; code, stack, data, heap, arguments, environment.
const STAT: [i32; 14] = [4, 5, 6, 7, 26, 27, 28, 45, 46, 47, 48, 49, 50, 51];

#[derive(Debug)]
struct Told {
    what: String,
    text: Text,
    kept: Kept,
    was: Vec<u8>,
}

/// Links of one directory.
#[derive(Debug)]
struct Links {
    directory: File,
    was: Vec<(&'static str, OsString)>,
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
    threads: Vec<Thread>,
}

const OF_PROCESS: [&str; 9] = [
    "auxv",
    "cgroup",
    "coredump_filter",
    "limits",
    "mountinfo",
    "oom_score_adj",
    "personality",
    "timens_offsets",
    "timers",
];
const NAMESPACES: [&str; 10] = [
    "cgroup",
    "ipc",
    "mnt",
    "net",
    "pid",
    "pid_for_children",
    "time",
    "time_for_children",
    "user",
    "uts",
];

impl Look {
    pub fn new(pid: HostPid, tids: &[HostPid], init: HostPid) -> Result<Look> {
        let mut look = Look {
            told: Vec::new(),
            links: Vec::new(),
            threads: tids.iter().map(|tid| Thread::new(*tid)).collect::<Result<_>>()?,
        };
        look.tell(
            "other processes",
            format!("/proc/{init}/task/{init}/children"),
            Kept::All,
        )?;
        look.tell("stat", format!("/proc/{pid}/stat"), Kept::Stat)?;
        for name in OF_PROCESS {
            look.tell(name, format!("/proc/{pid}/{name}"), Kept::All)?;
        }
        look.link(format!("/proc/{pid}"), &["cwd", "exe", "root"])?;
        for tid in tids {
            let task = format!("/proc/{pid}/task/{tid}");
            look.tell("status", format!("{task}/status"), Kept::Status)?;
            look.link(format!("{task}/ns"), &NAMESPACES)?;
        }
        Ok(look)
    }

    fn tell(&mut self, what: &str, path: String, kept: Kept) -> Result<()> {
        let text = Text::open(&path)?;
        let was = kept.of(text.read().or_fail(|| format!("cannot read {path}"))?);
        self.told.push(Told {
            what: what.to_owned(),
            text,
            kept,
            was,
        });
        Ok(())
    }

    fn link(&mut self, path: String, names: &[&'static str]) -> Result<()> {
        let directory = File::open(&path).or_fail(|| format!("cannot open {path}"))?;
        let links = names.iter().filter_map(|name| {
            let link = readlinkat(directory.as_fd(), *name).ok()?;
            Some((*name, link))
        });
        let was = links.collect();
        self.links.push(Links { directory, was });
        Ok(())
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

    /// All else is as it was, or why it is not.
    pub fn compare(&self) -> Result<(), Why> {
        for told in &self.told {
            let now = told
                .text
                .read()
                .map_err(|_| Why::anew(format!("its {} cannot be read", told.what)))?;
            let now = told.kept.of(now);
            if now != told.was {
                let line = other_line(&told.was, &now);
                return Err(Why::anew(format!("its {} in /proc has changed: {line}", told.what)));
            }
        }
        for links in &self.links {
            for (name, was) in &links.was {
                if readlinkat(links.directory.as_fd(), *name).as_ref() != Ok(was) {
                    return Err(Why::anew(format!("its {name} in /proc has changed")));
                }
            }
        }
        for thread in &self.threads {
            if Registered::look(thread.tid) != thread.registered {
                return Err(Why::anew(format!("task {} is registered otherwise", thread.tid)));
            }
        }
        Ok(())
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

/// The first line that is not what it was.
fn other_line(was: &[u8], now: &[u8]) -> String {
    let lines = |text| <[u8]>::split(text, |byte| *byte == b'\n');
    let pair = lines(now).zip(lines(was)).find(|(now, was)| now != was);
    let line = pair.map_or(&b"it ends"[..], |(now, _)| now);
    String::from_utf8_lossy(line).replace('\t', " ")
}
