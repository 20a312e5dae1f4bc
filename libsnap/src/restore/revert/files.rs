//! Descriptors of a process that stands still, against those that it had before it ran.
//!
//! What was opened since is closed. Offsets, status flags and what epoll instances watch
//! are set again. Everything else must be as it was: the object behind each number, its
//! content, who shares it.

use super::Why;
use super::look::Text;
use crate::error::{OrFail, Result};
use crate::executor::Batch;
use crate::files::{sockets, uring};
use crate::ids::HostPid;
use crate::image::Core;
use crate::image::records::{EpollWatch, FileKind, Manifest, SocketState};
use crate::proc;
use crate::sys::task::{self, Compare};
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// Flags that fcntl(2) can set.
const SETTABLE: u32 = (libc::O_NONBLOCK | libc::O_APPEND | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME) as u32;

/// One descriptor as it was.
#[derive(Debug)]
struct Had {
    fd: i32,
    link: String,
    told: Text,
    info: Info,
    /// Calls that set again what its use changes.
    seeks: bool,
    watches: Vec<(i32, u32, u64)>,
}

/// `fdinfo` of a descriptor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Info {
    pos: u64,
    flags: u32,
    /// What an epoll instance watches: number, line.
    watched: BTreeSet<(i32, String)>,
    rest: Vec<String>,
}

impl Info {
    fn parse(text: &[u8]) -> Info {
        let mut info = Info::default();
        for line in String::from_utf8_lossy(text).lines() {
            let (key, value) = line.split_once(':').unwrap_or((line, ""));
            match key {
                "pos" => info.pos = value.trim().parse().unwrap_or(0),
                "flags" => info.flags = u32::from_str_radix(value.trim(), 8).unwrap_or(0),
                "tfd" => {
                    let number = value.split_whitespace().next();
                    let number = number.and_then(|word| word.parse().ok()).unwrap_or(-1);
                    info.watched.insert((number, line.to_owned()));
                }
                _ => info.rest.push(line.to_owned()),
            }
        }
        info
    }
}

/// The descriptors of a process.
#[derive(Debug)]
pub struct Files {
    pid: HostPid,
    had: Vec<Had>,
    /// Pairs of places that look alike, and whether they share one description.
    alike: Vec<(usize, usize, bool)>,
}

/// What has to be done to them.
#[derive(Debug, Default)]
pub struct Changed {
    /// Opened since.
    new: Vec<i32>,
    offsets: Vec<usize>,
    flags: Vec<usize>,
}

/// Why a process that has such a file is not reverted in place.
fn is_unfit(kind: &FileKind, manifest: &Manifest) -> Option<&'static str> {
    let empty = |ino: &u64| {
        manifest
            .pipes
            .iter()
            .any(|pipe| pipe.ino == *ino && pipe.data.is_empty())
    };
    match kind {
        FileKind::Path { .. }
        | FileKind::Eventfd { .. }
        | FileKind::Signalfd { .. }
        | FileKind::Epoll { .. }
        | FileKind::Inotify { .. }
        | FileKind::Namespace { .. }
        | FileKind::Outside { .. } => None,
        FileKind::Pipe { ino } if empty(ino) => None,
        FileKind::Pipe { .. } => Some("it has a pipe with something in it"),
        FileKind::Socket(socket) if !socket.queue.is_empty() => Some("it has a socket with something in it"),
        FileKind::Socket(socket)
            if ![libc::AF_UNIX, libc::AF_INET, libc::AF_INET6].contains(&socket.domain)
                || socket.kind == libc::SOCK_RAW =>
        {
            Some("it has a socket of another kind than unix(7), tcp(7) and udp(7)")
        }
        // Only its length can be asked for.
        FileKind::Socket(socket) if socket.options.iter().any(|o| (o.level, o.name) == sockets::FILTER) => {
            Some("it has a socket with a filter")
        }
        FileKind::Socket(socket) => match socket.state {
            SocketState::Severed | SocketState::Carried { .. } | SocketState::Established { .. } => {
                Some("it has a connection that was closed or given back")
            }
            SocketState::Joined { .. } => Some("it has a TCP connection with itself"),
            _ => None,
        },
        FileKind::Timerfd { .. } => Some("it has a timerfd"),
        FileKind::Uring(_) => Some("it has an io_uring"),
        FileKind::Mqueue { .. } => Some("it has a POSIX message queue"),
        FileKind::Pidfd { .. } => Some("it has a pidfd"),
        FileKind::Unlinked { .. } | FileKind::Memfd { .. } => Some("it has a file without a name"),
        FileKind::Pty(_) | FileKind::PtySlave { .. } => Some("it has a pseudo-terminal"),
    }
}

impl Files {
    /// Right before the process runs.
    pub fn new(pid: HostPid, core: &Core, manifest: &Manifest) -> Result<Files, Why> {
        let failed = |error: crate::error::Error| Why::anew(error.to_string());
        let mut had: Vec<Had> = Vec::new();
        for entry in &core.image.process.fds {
            let file = &manifest.files[entry.file.0 as usize];
            if let Some(unfit) = is_unfit(&file.kind, manifest) {
                return Err(Why::anew(unfit));
            }
            let fd = entry.fd.0;
            let told = Text::open(&format!("/proc/{pid}/fdinfo/{fd}")).map_err(failed)?;
            let info = told.read().or_fail(|| "cannot read fdinfo").map_err(failed)?;
            let watches = match &file.kind {
                FileKind::Epoll { watches } if watches.iter().any(EpollWatch::is_disarmed) => {
                    // To set it anew would arm it.
                    return Err(Why::anew("it watches a file for one event, which has come"));
                }
                FileKind::Epoll { watches } if watches.iter().any(|watch| watch.away) => {
                    return Err(Why::anew("it watches a file that has no number"));
                }
                FileKind::Epoll { watches } => watches.iter().map(|w| (w.fd.0, w.events, w.data)).collect(),
                _ => Vec::new(),
            };
            had.push(Had {
                fd,
                link: proc::link(pid, &format!("fd/{fd}"))
                    .or_fail(|| "cannot read fd")
                    .map_err(failed)?,
                told,
                info: Info::parse(&info),
                seeks: matches!(file.kind, FileKind::Path { .. } | FileKind::Outside { .. }),
                watches,
            });
        }
        had.sort_by_key(|had| had.fd);
        let mut alike = Vec::new();
        for (at, one) in had.iter().enumerate() {
            for (other, with) in had.iter().enumerate().skip(at + 1) {
                if one.link == with.link {
                    alike.push((at, other, same(pid, one.fd, with.fd)));
                }
            }
        }
        Ok(Files { pid, had, alike })
    }

    /// What its use has changed, where that can be undone.
    pub fn compare(&self) -> Result<Changed, Why> {
        let pid = self.pid;
        let now =
            proc::numbered(&format!("/proc/{pid}/fd")).map_err(|_| Why::anew("its descriptors cannot be read"))?;
        let known: BTreeSet<i32> = self.had.iter().map(|had| had.fd).collect();
        let mut changed = Changed {
            new: now.into_iter().filter(|fd| !known.contains(fd)).collect(),
            ..Changed::default()
        };
        let new: BTreeSet<i32> = changed.new.iter().copied().collect();
        for fd in &changed.new {
            let link = proc::link(pid, &format!("fd/{fd}")).unwrap_or_default();
            if [uring::LINK, "anon_inode:[userfaultfd]"].contains(&link.as_str()) {
                return Err(Why::anew(format!("it has opened {link}")));
            }
        }
        for (at, had) in self.had.iter().enumerate() {
            let fd = had.fd;
            let other = || Why::anew(format!("its descriptor {fd} ({}) is not what it was", had.link));
            let link = proc::link(pid, &format!("fd/{fd}")).map_err(|_| other())?;
            let info = Info::parse(&had.told.read().map_err(|_| other())?);
            let watched = info.watched.iter().filter(|(fd, _)| !new.contains(fd));
            // What is watched for is set again; by number and object it is told apart.
            let same = |(fd, line): &(i32, String)| (*fd, line.split("pos:").nth(1).map(str::to_owned));
            if link != had.link
                || info.rest != had.info.rest
                || !watched.map(same).eq(had.info.watched.iter().map(same))
                || (info.flags ^ had.info.flags) & !SETTABLE & !(libc::O_CLOEXEC as u32) != 0
            {
                return Err(other());
            }
            if info.pos != had.info.pos {
                match had.seeks {
                    true => changed.offsets.push(at),
                    false => return Err(other()),
                }
            }
            if info.flags != had.info.flags {
                changed.flags.push(at);
            }
        }
        for (one, other, shared) in &self.alike {
            let (one, other) = (self.had[*one].fd, self.had[*other].fd);
            if same(pid, one, other) != *shared {
                return Err(Why::anew(format!("descriptors {one} and {other} are shared otherwise")));
            }
        }
        Ok(changed)
    }

    /// Room for the calls of [`Files::put_back`].
    pub fn calls(&self, changed: &Changed, waiting: &[(i32, u32)]) -> usize {
        let connections: u32 = waiting.iter().map(|(_, count)| count).sum();
        let watches: usize = self.had.iter().map(|had| had.watches.len()).sum();
        5 * self.had.len() + changed.new.len() + 2 * watches + connections as usize + 2
    }

    /// Undoes that. `waiting`: connections that nobody has accepted are closed too.
    pub fn put_back(&self, changed: &Changed, waiting: &[(i32, u32)], batch: &mut Batch) {
        for had in &self.had {
            let Some((_, count)) = waiting.iter().find(|(fd, _)| *fd == had.fd) else {
                continue;
            };
            let set = |batch: &mut Batch, flags: u32| {
                let args = [had.fd as u64, libc::F_SETFL as u64, u64::from(flags & SETTABLE)];
                batch.must("fcntl(F_SETFL)", libc::SYS_fcntl, &args);
            };
            if *count > 0 {
                set(batch, had.info.flags | libc::O_NONBLOCK as u32);
                for _ in 0..*count {
                    let flags = libc::SOCK_NONBLOCK as u64;
                    batch.call("accept4", libc::SYS_accept4, &[had.fd as u64, 0, 0, flags]);
                }
                set(batch, had.info.flags);
            }
        }
        // Nobody is waited for.
        let off = batch.words(&[0]).address;
        for fd in &changed.new {
            let option = [*fd as u64, libc::SOL_SOCKET as u64, libc::SO_LINGER as u64, off, 8];
            batch.call("setsockopt(SO_LINGER)", libc::SYS_setsockopt, &option);
        }
        if !changed.new.is_empty() || waiting.iter().any(|(_, count)| *count > 0) {
            let mut from = 0;
            for had in &self.had {
                if had.fd as u64 > from {
                    batch.must("close_range", libc::SYS_close_range, &[from, had.fd as u64 - 1, 0]);
                }
                from = had.fd as u64 + 1;
            }
            batch.must("close_range", libc::SYS_close_range, &[from, u64::from(u32::MAX), 0]);
        }
        for at in &changed.offsets {
            let had = &self.had[*at];
            let args = [had.fd as u64, had.info.pos, libc::SEEK_SET as u64];
            batch.must("lseek", libc::SYS_lseek, &args);
        }
        for at in &changed.flags {
            let had = &self.had[*at];
            let flags = u64::from(had.info.flags & SETTABLE);
            batch.must(
                "fcntl(F_SETFL)",
                libc::SYS_fcntl,
                &[had.fd as u64, libc::F_SETFL as u64, flags],
            );
            let cloexec = u64::from(had.info.flags & libc::O_CLOEXEC as u32 != 0);
            batch.must(
                "fcntl(F_SETFD)",
                libc::SYS_fcntl,
                &[had.fd as u64, libc::F_SETFD as u64, cloexec],
            );
        }
        // Set anew, what is ready is told anew, as to who has just begun to watch.
        for had in &self.had {
            for (fd, events, data) in &had.watches {
                let mut event = events.to_le_bytes().to_vec();
                event.extend_from_slice(&data.to_le_bytes());
                let event = batch.bytes(&event).address;
                let mut control = |operation: i32| {
                    let args = [had.fd as u64, operation as u64, *fd as u64, event];
                    batch.must("epoll_ctl", libc::SYS_epoll_ctl, &args);
                };
                if events & libc::EPOLLEXCLUSIVE as u32 != 0 {
                    // Such a watch cannot be changed.
                    control(libc::EPOLL_CTL_DEL);
                    control(libc::EPOLL_CTL_ADD);
                } else {
                    control(libc::EPOLL_CTL_MOD);
                }
            }
        }
    }
}

/// Whether two descriptors share one description.
fn same(pid: HostPid, one: i32, other: i32) -> bool {
    task::kcmp(pid, pid, Compare::File, one, other) == Ok(Ordering::Equal)
}
