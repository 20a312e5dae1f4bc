//! Listening sockets, and TCP connections, that somebody holds open while the app sleeps.
//!
//! ```text
//!   holder ── socket, with its backlog ──┬── app, until its snapshot has ended it
//!                                        └── app, since its restore
//! ```
//!
//! Who connects in between waits in the backlog (listen(2)) and is accepted by the
//! restored app: it has the very same socket, under the same number. Several instances
//! can have it at once.
//!
//! A connection is the very same one, too: its peer notices nothing, and what it sends waits in the
//! socket. One instance has it; who holds it lets go of it then, or its end would stay unseen.

use super::inet;
use crate::error::{Error, Kind, OrFail, Result};
use crate::ids::HostPid;
use crate::image::records::{FileKind, Manifest, SocketRecord, SocketState};
use crate::sys::{Sys, diag, task};
use crate::target::HeldDescriptor;
use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Sockets of a holder, as descriptors of ours.
#[derive(Debug, Default)]
pub struct Held(Vec<Socket>);

#[derive(Debug)]
struct Socket {
    domain: i32,
    kind: i32,
    /// Raw, as getsockname(2) tells it.
    name: Vec<u8>,
    /// Of a connection, as getpeername(2) does.
    peer: Option<Vec<u8>>,
    fd: OwnedFd,
}

impl Held {
    /// Takes what an app of this manifest is to have again.
    pub fn take(sockets: &[HeldDescriptor], manifest: &Manifest) -> Result<Held> {
        let taken = sockets.iter().map(|socket| {
            let what = || format!("cannot take socket {} of process {}", socket.fd, socket.pid);
            let fd = socket.open().or_fail(what)?;
            let listens = diag::getsockopt_i32(&fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN).or_fail(what)? != 0;
            let taken = match (Socket::of(fd), listens) {
                // It has ended meanwhile: as its record says, it comes back as closed.
                (Err(_), false) => return Ok(None),
                (taken, _) => taken.or_fail(what)?,
            };
            match sockets_of(manifest).any(|record| taken.suits(record)) {
                true => Ok(Some(taken)),
                false if !listens => Ok(None),
                false => Err(Error::new(Kind::Usage, what())
                    .because("the app has no such socket")
                    .fix("name the sockets that the app had")),
            }
        });
        let taken = taken.filter_map(Result::transpose);
        taken.collect::<Result<_>>().map(Held)
    }

    /// The socket that this one was, if it is held.
    pub fn get(&self, record: &SocketRecord) -> std::io::Result<Option<OwnedFd>> {
        let mut own = self.0.iter().filter(|_| record.network.is_none());
        let held = own.find(|socket| socket.suits(record));
        held.map(|socket| socket.fd.try_clone()).transpose()
    }
}

/// What an app of this manifest listens on, for one who is to hold it: of these sockets
/// those that it has, and of other internet sockets, made anew, those that are wanted by their
/// addresses (raw). The rest is made by the restore.
pub fn complete(manifest: &Manifest, sockets: &[OwnedFd], wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<OwnedFd>> {
    let what = || "cannot take over a socket";
    let own = |fd: &OwnedFd| Socket::of(fd.try_clone().or_fail(what)?).or_fail(what);
    let held = Held(sockets.iter().map(own).collect::<Result<_>>()?);
    let complete = listening(manifest).map(|record| match held.get(record).or_fail(what)? {
        None if record.domain != libc::AF_UNIX && listens_at(record).is_some_and(&wanted) => {
            inet::restore(record, false, false).map(Some)
        }
        had => Ok(had),
    });
    complete.filter_map(Result::transpose).collect()
}

/// Of these connections those that an app of this manifest is to have again.
pub fn carried(manifest: &Manifest, connections: Vec<OwnedFd>) -> Vec<OwnedFd> {
    let known = connections.into_iter().filter_map(|fd| Socket::of(fd).ok());
    known
        .filter(|socket| socket.peer.is_some() && sockets_of(manifest).any(|record| socket.suits(record)))
        .map(|socket| socket.fd)
        .collect()
}

fn sockets_of(manifest: &Manifest) -> impl Iterator<Item = &SocketRecord> {
    manifest.files.iter().filter_map(|file| match &file.kind {
        // Nobody holds one of a network that only the app has.
        FileKind::Socket(record) if record.network.is_none() => Some(&**record),
        _ => None,
    })
}

/// Where the app of this manifest listens, raw.
pub fn places(manifest: &Manifest) -> impl Iterator<Item = &[u8]> {
    listening(manifest).filter_map(listens_at)
}

fn listens_at(record: &SocketRecord) -> Option<&[u8]> {
    match &record.state {
        SocketState::Listening { name, .. } => Some(name),
        _ => None,
    }
}

fn listening(manifest: &Manifest) -> impl Iterator<Item = &SocketRecord> {
    sockets_of(manifest).filter(|record| matches!(record.state, SocketState::Listening { .. }))
}

impl Socket {
    fn of(fd: OwnedFd) -> Sys<Socket> {
        let option = |name| diag::getsockopt_i32(&fd, libc::SOL_SOCKET, name);
        let peer = match option(libc::SO_ACCEPTCONN)? {
            0 if option(libc::SO_PROTOCOL)? == libc::IPPROTO_TCP => Some(diag::address(&fd, true)?),
            0 => return Err(nix::Error::EINVAL),
            _ => None,
        };
        Ok(Socket {
            peer,
            domain: option(libc::SO_DOMAIN)?,
            kind: option(libc::SO_TYPE)?,
            name: diag::address(&fd, false)?,
            fd,
        })
    }

    fn suits(&self, record: &SocketRecord) -> bool {
        let (name, peer) = match &record.state {
            SocketState::Listening { name, .. } => (name, None),
            // The same addresses may be another connection's by now.
            SocketState::Carried {
                name,
                peer,
                cookie: own,
            } if cookie(&self.fd) == Ok(*own) => (name, Some(peer)),
            _ => return false,
        };
        (self.domain, self.kind, &self.name) == (record.domain, record.kind, name) && self.peer.as_ref() == peer
    }
}

impl HeldDescriptor {
    /// One of this process, which has to stay open until it is taken.
    pub fn own(descriptor: &impl AsRawFd) -> HeldDescriptor {
        HeldDescriptor {
            pid: HostPid(std::process::id().cast_signed()),
            fd: descriptor.as_raw_fd(),
        }
    }

    /// As a descriptor of this process (pidfd_getfd(2), Linux 5.6).
    pub fn open(&self) -> Sys<OwnedFd> {
        task::pidfd_getfd(task::pidfd_open(self.pid)?.as_fd(), self.fd)
    }
}

/// What is known of sockets that somebody holds, looked at once.
#[derive(Debug, Default)]
pub struct Known {
    cookies: HashSet<u64>,
    /// Of listening ones of the internet, as the network has them.
    ports: HashSet<[u8; 2]>,
}

impl Known {
    pub fn of(held: &[HeldDescriptor]) -> Known {
        let mut known = Known::default();
        for fd in held.iter().filter_map(|socket| socket.open().ok()) {
            known.cookies.extend(cookie(&fd).ok());
            let listening = Socket::of(fd).ok().filter(|socket| socket.peer.is_none());
            let port = listening.filter(|socket| socket.domain != libc::AF_UNIX);
            known.ports.extend(port.and_then(|socket| port_of(&socket.name)));
        }
        known
    }

    /// Whether somebody holds this socket of the app: who waits in its backlog is not lost.
    pub fn is_held(&self, socket: &OwnedFd) -> bool {
        cookie(socket).is_ok_and(|own| self.cookies.contains(&own))
    }

    /// Whether one of them has the port of this address: what has it was accepted there.
    pub fn is_port(&self, name: &[u8]) -> bool {
        port_of(name).is_some_and(|port| self.ports.contains(&port))
    }

    /// Whether it is one of them, or was accepted there: an app that has a network of its own may
    /// have such sockets of the network of who holds them.
    pub fn came_by(&self, socket: &OwnedFd) -> bool {
        let of_internet = diag::getsockopt_i32(socket, libc::SOL_SOCKET, libc::SO_DOMAIN)
            .is_ok_and(|domain| [libc::AF_INET, libc::AF_INET6].contains(&domain));
        of_internet && (self.is_held(socket) || diag::address(socket, false).is_ok_and(|name| self.is_port(&name)))
    }
}

fn port_of(name: &[u8]) -> Option<[u8; 2]> {
    name.get(2..4)?.try_into().ok()
}

/// What tells a socket from all others since boot (socket(7), Linux 4.12).
pub fn cookie(socket: &OwnedFd) -> Sys<u64> {
    let cookie = diag::getsockopt(socket, libc::SOL_SOCKET, libc::SO_COOKIE, 8)?;
    let cookie = cookie.try_into().map_err(|_| nix::Error::EINVAL)?;
    Ok(u64::from_ne_bytes(cookie))
}
