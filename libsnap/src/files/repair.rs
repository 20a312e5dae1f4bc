//! The repair mode of a TCP socket (TCP_REPAIR of `linux/tcp.h`, Linux 3.5; takes
//! CAP_NET_ADMIN in its network).
//!
//! A socket in it shows its queues and sequence numbers, and takes others; it connects and
//! is closed without a word to its peer. Its owner can neither read nor write meanwhile.
//! To leave it without a probe of the peer's window needs Linux 4.19, and takes
//! SO_REUSEADDR from the socket, which is set again.

use super::{Description, Member, inet};
use crate::error::{OrFail, Result};
use crate::ids::HostPid;
use crate::image::records::FdEntry;
use crate::proc;
use crate::sys::{Sys, diag, task};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

const TCP: i32 = libc::IPPROTO_TCP;
const ON: i32 = 1;
/// TCP_REPAIR_OFF: the peer is asked for its window.
const OFF: i32 = 0;
/// TCP_REPAIR_OFF_NO_WP.
const OFF_SILENTLY: i32 = -1;
const TCP_TIMESTAMP: i32 = 24;
const TCP_REPAIR_WINDOW: i32 = 29;

/// What is shown and taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    Received = 1,
    Sent = 2,
}

/// `struct tcp_repair_window`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Sequence number of the segment by which the peer told its window last.
    pub told_at: u32,
    /// What may be sent, and the most that ever might be.
    pub peer: u32,
    pub peer_max: u32,
    /// What was offered to the peer, counted from `own_from`.
    pub own: u32,
    pub own_from: u32,
}

/// A socket that is in repair mode as long as this lives.
#[derive(Debug)]
#[must_use]
pub struct Repair<'a> {
    socket: &'a OwnedFd,
    reuse: i32,
}

impl<'a> Repair<'a> {
    pub fn enter(socket: &'a OwnedFd) -> Sys<Repair<'a>> {
        let reuse = reuse(socket)?;
        crate::sys::moment();
        set(socket, libc::TCP_REPAIR, ON)?;
        Ok(Repair { socket, reuse })
    }

    pub fn leave(self) -> Sys<()> {
        let (socket, reuse) = (self.socket, self.reuse);
        std::mem::forget(self);
        leave(socket, reuse)
    }

    /// It is in repair mode from now on, until [`leave`]. Answers the SO_REUSEADDR that it had.
    pub fn stays(self) -> i32 {
        let reuse = self.reuse;
        std::mem::forget(self);
        reuse
    }

    /// For as long as the answer lives: with none chosen nobody can write to the socket.
    pub fn choose(&self, queue: Queue) -> Sys<Chosen<'a>> {
        set(self.socket, libc::TCP_REPAIR_QUEUE, queue as i32)?;
        Ok(Chosen(self.socket))
    }

    /// The largest segment that the peer takes.
    pub fn mss(&self) -> Sys<u32> {
        diag::getsockopt_i32(self.socket, TCP, libc::TCP_MAXSEG).map(|mss| mss as u32)
    }

    pub fn window(&self) -> Sys<Window> {
        let bytes = diag::getsockopt(self.socket, TCP, TCP_REPAIR_WINDOW, 20)?;
        let words = bytes.as_chunks::<4>().0;
        let words: Vec<u32> = words.iter().map(|word| u32::from_ne_bytes(*word)).collect();
        match words[..] {
            [told_at, peer, peer_max, own, own_from] => Ok(Window {
                told_at,
                peer,
                peer_max,
                own,
                own_from,
            }),
            _ => Err(nix::Error::EINVAL),
        }
    }

    pub fn set_window(&self, window: Window) -> Sys<()> {
        let Window {
            told_at,
            peer,
            peer_max,
            own,
            own_from,
        } = window;
        let bytes = [told_at, peer, peer_max, own, own_from].map(u32::to_ne_bytes).concat();
        diag::setsockopt(self.socket, TCP, TCP_REPAIR_WINDOW, &bytes)
    }

    /// The clock of its time stamps (Linux 3.9); its lowest bit tells whether it counts microseconds.
    pub fn timestamp(&self) -> Sys<u32> {
        diag::getsockopt_i32(self.socket, TCP, TCP_TIMESTAMP).map(|time| time as u32)
    }

    pub fn set_timestamp(&self, time: u32) -> Sys<()> {
        set(self.socket, TCP_TIMESTAMP, time as i32)
    }

    /// What the two ends have agreed on (`struct tcp_repair_opt`, by the kinds of RFC 793,
    /// 7323 and 2018).
    pub fn agree(&self, mss: u32, scales: Option<(u8, u8)>, sack: bool, timestamps: bool) -> Sys<()> {
        const MSS: u32 = 2;
        const WINDOW_SCALE: u32 = 3;
        const SACK_PERMITTED: u32 = 4;
        const TIMESTAMPS: u32 = 8;
        let scales = scales.map(|(peer, own)| (WINDOW_SCALE, u32::from(peer) | u32::from(own) << 16));
        let agreed = [
            Some((MSS, mss)),
            scales,
            sack.then_some((SACK_PERMITTED, 0)),
            timestamps.then_some((TIMESTAMPS, 0)),
        ];
        let words = agreed.into_iter().flatten().flat_map(|(kind, value)| [kind, value]);
        let bytes: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
        diag::setsockopt(self.socket, TCP, libc::TCP_REPAIR_OPTIONS, &bytes)
    }
}

/// A queue that is shown and taken. Chosen, that of what was received would take what somebody
/// writes, and the other take for sent what falls due to be sent.
#[derive(Debug)]
#[must_use]
pub struct Chosen<'a>(&'a OwnedFd);

impl Chosen<'_> {
    /// The number of the next byte that is written, or comes.
    pub fn sequence(&self) -> Sys<u32> {
        diag::getsockopt_i32(self.0, TCP, libc::TCP_QUEUE_SEQ).map(|number| number as u32)
    }

    /// The same of one that is not connected yet.
    pub fn set_sequence(&self, number: u32) -> Sys<()> {
        set(self.0, libc::TCP_QUEUE_SEQ, number as i32)
    }
}

impl Drop for Chosen<'_> {
    fn drop(&mut self) {
        const NONE: i32 = 0;
        if let Err(errno) = set(self.0, libc::TCP_REPAIR_QUEUE, NONE) {
            tracing::warn!(%errno, "a queue of a TCP socket stays chosen");
        }
    }
}

impl Drop for Repair<'_> {
    fn drop(&mut self) {
        if let Err(errno) = leave(self.socket, self.reuse) {
            tracing::warn!(%errno, "a TCP socket stays in repair mode");
        }
    }
}

/// Whether the kernel, and who we are, let us.
pub fn works() -> bool {
    let socket = inet::socket(libc::AF_INET, libc::SOCK_STREAM, TCP);
    socket.is_ok_and(|socket| Repair::enter(&socket).and_then(Repair::leave).is_ok())
}

/// Whether somebody has the socket in repair mode.
pub fn is_on(socket: &OwnedFd) -> bool {
    diag::getsockopt_i32(socket, TCP, libc::TCP_REPAIR).is_ok_and(|mode| mode != 0)
}

/// Whoever closes it from now on does so without a word: no end of a connection lingers.
pub fn end_silently(socket: &OwnedFd) -> Sys<()> {
    crate::sys::moment();
    set(socket, libc::TCP_REPAIR, ON)
}

/// Has the kernel ask the peer for its window: that hears where this end is, and tells where it is itself.
/// Nobody writes to the socket meanwhile.
pub fn probe(socket: &OwnedFd, reuse: i32) -> Sys<()> {
    set(socket, libc::TCP_REPAIR, ON)?;
    leave_by(socket, OFF, reuse)
}

/// Out of repair mode, without a word to the peer.
pub fn leave(socket: &OwnedFd, reuse: i32) -> Sys<()> {
    leave_by(socket, OFF_SILENTLY, reuse)
}

fn leave_by(socket: &OwnedFd, how: i32, reuse: i32) -> Sys<()> {
    crate::sys::moment();
    set(socket, libc::TCP_REPAIR, how)?;
    crate::sys::moment();
    set_reuse(socket, reuse)
}

fn set(socket: &OwnedFd, name: i32, value: i32) -> Sys<()> {
    diag::setsockopt(socket, TCP, name, &value.to_ne_bytes())
}

fn reuse(socket: &OwnedFd) -> Sys<i32> {
    diag::getsockopt_i32(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR)
}

fn set_reuse(socket: &OwnedFd, reuse: i32) -> Sys<()> {
    diag::setsockopt(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, &reuse.to_ne_bytes())
}

/// A socket of the app that is about to be in repair mode, as a journal notes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repaired {
    pid: HostPid,
    start_time: u64,
    fd: i32,
    ino: u64,
    reuse: i32,
}

impl Repaired {
    /// Once for each process that has it: any of them may have ended when it is looked for.
    pub fn of(members: &[Member], fds: &[Vec<FdEntry>], description: &Description) -> Result<Vec<Repaired>> {
        let failed = || format!("cannot look at {}", description.found.object());
        let reuse = reuse(&description.dup).or_fail(failed)?;
        let holders = members.iter().zip(fds).filter_map(|(member, fds)| {
            let held = fds.iter().find(|entry| entry.file == description.id)?;
            Some((member.pid, held.fd.0))
        });
        let noted = holders.map(|(pid, fd)| {
            Ok(Repaired {
                pid,
                start_time: proc::kept_stat(pid).or_fail(failed)?.start_time,
                fd,
                ino: description.found.key.1,
                reuse,
            })
        });
        noted.collect()
    }

    /// Puts all back, for who has died over them: each once. The first error counts, when all
    /// else was done.
    pub fn put_all_back(noted: &[Repaired]) -> Result<()> {
        let mut done = HashSet::new();
        let mut first = Ok(());
        for repaired in noted {
            if done.contains(&repaired.ino) {
                continue;
            }
            match repaired.put_back() {
                Ok(true) => drop(done.insert(repaired.ino)),
                Ok(false) => {}
                Err(error) => first = first.and(Err(error)),
            }
        }
        first
    }

    /// Puts the socket back as it was when it was noted; `false` when this process has it no
    /// more.
    fn put_back(&self) -> Result<bool> {
        let failed = || format!("cannot take fd {} of pid {} out of repair mode", self.fd, self.pid);
        let lives = || proc::stat(self.pid).is_ok_and(|stat| stat.start_time == self.start_time);
        let Ok(pidfd) = task::pidfd_open(self.pid) else {
            return Ok(false);
        };
        if !lives() {
            return Ok(false);
        }
        let socket = match task::pidfd_getfd(pidfd.as_fd(), self.fd) {
            // Of one that ends just now: one or the other, as the kernel is.
            Err(nix::Error::EBADF | nix::Error::ESRCH) => return Ok(false),
            socket => File::from(socket.or_fail(failed)?),
        };
        if socket.metadata().or_fail(failed)?.ino() != self.ino {
            return Ok(false);
        }
        leave(&OwnedFd::from(socket), self.reuse).or_fail(failed)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    fn noted(pid: i32, start_time: u64, socket: &OwnedFd) -> Repaired {
        Repaired {
            pid: HostPid(pid),
            start_time,
            fd: socket.as_raw_fd(),
            ino: File::from(socket.try_clone().unwrap()).metadata().unwrap().ino(),
            reuse: 1,
        }
    }

    /// It is found at whoever has it still.
    #[test]
    fn a_socket_is_put_back_whose_first_holder_is_gone() {
        if !works() {
            return;
        }
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let ends = [0, 1].map(|_| OwnedFd::from(TcpStream::connect(listener.local_addr().unwrap()).unwrap()));
        let own = std::process::id() as i32;
        let start_time = proc::stat(HostPid(own)).unwrap().start_time;
        let mut all = Vec::new();
        for end in &ends {
            std::mem::forget(Repair::enter(end).unwrap());
            // Neither the process of this number nor the one of that start.
            all.extend(
                [(i32::MAX, 1), (own, start_time + 1), (own, start_time)].map(|(pid, start)| noted(pid, start, end)),
            );
        }
        // A number that is another file's by now.
        all[2].fd = ends[1].as_raw_fd();
        Repaired::put_all_back(&all).unwrap();
        assert!(is_on(&ends[0]) && !is_on(&ends[1]));
        assert_eq!(reuse(&ends[1]), Ok(1));
        all[2].fd = ends[0].as_raw_fd();
        Repaired::put_all_back(&all).unwrap();
        assert!(!is_on(&ends[0]));
    }

    #[test]
    fn nothing_is_chosen_but_for_a_look() {
        if !works() {
            return;
        }
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = OwnedFd::from(stream.try_clone().unwrap());
        let repair = Repair::enter(&socket).unwrap();
        let number = repair.choose(Queue::Received).unwrap().sequence().unwrap();
        assert!(std::io::Write::write(&mut stream, b"stray").is_err());
        assert_eq!(repair.choose(Queue::Received).unwrap().sequence(), Ok(number));
        repair.leave().unwrap();
        std::io::Write::write_all(&mut stream, b"again").unwrap();
    }
}
