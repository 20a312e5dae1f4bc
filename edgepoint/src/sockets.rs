//! What an app has open to others, seen through duplicates of its descriptors
//! (pidfd_getfd(2), Linux 5.6).

use crate::manifest::{Listen, Manifest};
use libsnap::error::{Error, OrFail, Result};
use libsnap::files::inet::{show_address, under_way};
use libsnap::files::sockets::SO_NETNS_COOKIE;
use libsnap::freeze;
use libsnap::ids::HostPid;
use libsnap::proc;
use libsnap::store::App;
use libsnap::sys::{diag, task};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Backlog, listen};
use nodekit::reply::on_own_thread;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

/// How often one that starts is looked at.
const LISTENS_YET: Duration = Duration::from_millis(10);

/// Sockets of an app at one moment.
#[derive(Debug, Default)]
pub struct Sockets {
    pub listening: Vec<OwnedFd>,
    /// Of the internet, to others outside or from them, and those that were accepted at a path.
    pub connections: usize,
    /// Of these: made to others, by the app.
    pub made: usize,
    /// TCP connections of both kinds over which nothing is under way.
    pub idle: usize,
    pub made_idle: usize,
    /// Ports of all that were accepted by TCP, from itself, too.
    pub accepted_at: Vec<u16>,
    /// Those outside: whether each was accepted at one of its sockets, or made.
    pub outside: Vec<(OwnedFd, bool)>,
    /// Unix sockets in which something waits to be read, where the app is stopped: it may
    /// be a connection on its way to another process of the app.
    pub unread: usize,
    /// It waits with EPOLLEXCLUSIVE: of a connection the kernel may tell it alone.
    pub exclusive: bool,
    /// Descriptors of all its processes.
    looked_at: usize,
}

/// So many descriptors of an app that runs are looked at.
pub const DESCRIPTORS_MAX: usize = 10_000;

fn too_many(app: &str) -> Error {
    Error::refused(format!("cannot see which connections {app} has"))
        .because(format!("it has more than {DESCRIPTORS_MAX} descriptors"))
        .fix("deploy it with further instances that each have fewer")
        .state("it goes on, awake")
}

impl Sockets {
    /// Of an app with more than [`DESCRIPTORS_MAX`] descriptors they are not looked for
    /// (`Kind::Refused`): that would take too long.
    pub fn of(app: &App) -> Result<Sockets> {
        Sockets::look(app, false)
    }

    /// The same, without keeping others from what the runtime does.
    pub async fn aside(app: &App) -> Result<Sockets> {
        let app = app.clone();
        on_own_thread(move || Sockets::of(&app)).await
    }

    /// Of an app that stands still.
    pub fn of_stopped(app: &App) -> Result<Sockets> {
        Sockets::look(app, true)
    }

    fn look(app: &App, stopped: bool) -> Result<Sockets> {
        let (mut found, mut unix, mut tcp) = (Sockets::default(), Vec::new(), Vec::new());
        let mut seen = HashSet::new();
        for pid in freeze::members(&app.target()?)? {
            // It may just have ended.
            let _ = found.add((pid, stopped), &mut seen, &mut unix, &mut tcp);
            if found.looked_at > DESCRIPTORS_MAX && !stopped {
                return Err(too_many(&app.name));
            }
        }
        let ports: Vec<_> = found.listening.iter().filter_map(port).collect();
        // As addresses of one kind: each end may have another.
        let end = |fd: &OwnedFd, peer: bool| {
            let address: SocketAddr = show_address(&diag::address(fd, peer).ok()?)?.parse().ok()?;
            Some((address.ip().to_canonical(), address.port()))
        };
        let ends = |fd: &OwnedFd| Some((end(fd, false)?, end(fd, true)?));
        let all: HashSet<_> = tcp.iter().filter_map(ends).collect();
        // What it has with itself goes with it.
        let inside = |fd: &OwnedFd| ends(fd).is_some_and(|(own, peer)| all.contains(&(peer, own)));
        let accepted = |fd: &OwnedFd| port(fd).filter(|port| ports.contains(port));
        found.accepted_at = tcp.iter().filter_map(accepted).map(u16::from_be_bytes).collect();
        for connection in tcp.into_iter().filter(|connection| !inside(connection)) {
            let accepted = accepted(&connection).is_some();
            let idle = under_way(&connection, accepted).is_ok_and(|is| !is);
            let (all, quiet) = match accepted {
                true => (&mut found.connections, &mut found.idle),
                false => (&mut found.made, &mut found.made_idle),
            };
            *all += 1;
            *quiet += usize::from(idle);
            found.outside.push((connection, accepted));
        }
        (found.connections, found.idle) = (found.connections + found.made, found.idle + found.made_idle);
        // An accepted one has the name of where it was.
        let places: Vec<Vec<u8>> = found.listening.iter().filter_map(name).collect();
        let accepted = unix.iter().filter_map(name).filter(|name| places.contains(name));
        found.connections += accepted.count();
        if stopped {
            let unread = |socket: &&OwnedFd| {
                let first = diag::peek_message(*socket, 1).ok().flatten();
                first.is_some_and(|first| first.control || !first.data.is_empty())
            };
            found.unread = unix.iter().filter(unread).count();
        }
        Ok(found)
    }

    fn add(
        &mut self,
        (pid, stopped): (HostPid, bool),
        seen: &mut HashSet<String>,
        unix: &mut Vec<OwnedFd>,
        tcp: &mut Vec<OwnedFd>,
    ) -> std::io::Result<()> {
        let process = task::pidfd_open(pid)?;
        let numbers = proc::numbered(&format!("/proc/{pid}/fd"))?;
        self.looked_at += numbers.len();
        if self.looked_at > DESCRIPTORS_MAX && !stopped {
            return Ok(());
        }
        for number in numbers {
            let link = proc::link(pid, &format!("fd/{number}")).unwrap_or_default();
            if link == "anon_inode:[eventpoll]" {
                self.exclusive |= is_exclusive(&proc::text(pid, &format!("fdinfo/{number}"))?);
            }
            if !link.starts_with("socket:") || !seen.insert(link) {
                continue;
            }
            let Ok(socket) = task::pidfd_getfd(process.as_fd(), number) else {
                continue;
            };
            let option = |name| diag::getsockopt_i32(&socket, libc::SOL_SOCKET, name).unwrap_or(-1);
            let stream = option(libc::SO_TYPE) == libc::SOCK_STREAM;
            match option(libc::SO_DOMAIN) {
                _ if option(libc::SO_ACCEPTCONN) == 1 => self.listening.push(socket),
                libc::AF_INET | libc::AF_INET6 if stream && diag::address(&socket, true).is_ok() => tcp.push(socket),
                libc::AF_UNIX if stream => unix.push(socket),
                _ => {}
            }
        }
        Ok(())
    }

    /// Those of an app that comes up, once it listens everywhere.
    pub async fn wait(app: &App, manifest: &Manifest, began: Instant) -> Result<Sockets> {
        let patience = manifest.ready.timeout.0;
        loop {
            let failed = || Error::failed(format!("app {} does not come up", app.name));
            let log = format!("`appshot logs {}` tells more", app.name);
            if !app.alive() {
                return Err(failed().because("it has ended").fix(log));
            }
            let sockets = match Sockets::aside(app).await {
                // Just now.
                Err(_) if !app.alive() => continue,
                sockets => sockets?,
            };
            match first_missing(&addresses(&sockets.listening), &manifest.listen, false) {
                None => return Ok(sockets),
                Some(first) if began.elapsed() > patience => {
                    let because = format!("it does not listen on {first} after {patience:?}");
                    return Err(failed().because(because).fix(log));
                }
                _ => tokio::time::sleep(LISTENS_YET).await,
            }
        }
    }
}

/// Whether it is one that others come to.
pub fn listens(socket: &OwnedFd) -> bool {
    diag::getsockopt_i32(socket, libc::SOL_SOCKET, libc::SO_ACCEPTCONN).is_ok_and(|listens| listens == 1)
}

/// The same sockets, for another thread or to be held.
pub fn copies<'a>(sockets: impl IntoIterator<Item = &'a OwnedFd>) -> Result<Vec<OwnedFd>> {
    let copies = sockets.into_iter().map(OwnedFd::try_clone);
    copies
        .collect::<std::io::Result<_>>()
        .or_fail(|| "cannot hold the sockets of the app")
}

/// Whether somebody has come to one of them whom nobody has accepted yet.
pub fn somebody_waits(sockets: &[OwnedFd]) -> bool {
    let waits = |socket| PollFd::new(socket, PollFlags::POLLIN);
    let mut polled: Vec<PollFd> = sockets.iter().map(|socket| waits(socket.as_fd())).collect();
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

/// Who comes while the app sleeps is to find room: as long a backlog as the kernel allows
/// (`net.core.somaxconn`). Beyond it clients try again after a second, then after two.
/// A Unix socket stays as it is: this would make us the one whom its clients see.
pub fn deepen<S: AsFd + AsRawFd>(listening: &S) -> nix::Result<()> {
    match diag::getsockopt_i32(listening, libc::SOL_SOCKET, libc::SO_DOMAIN)? {
        libc::AF_UNIX => Ok(()),
        _ => listen(listening, Backlog::MAXCONN),
    }
}

/// `tfd:        5 events: 10000019 data: ...`
fn is_exclusive(fdinfo: &str) -> bool {
    let events = fdinfo.split("events:").skip(1);
    let words = events.filter_map(|rest| rest.split_whitespace().next());
    let mut bits = words.filter_map(|word| u32::from_str_radix(word, 16).ok());
    bits.any(|bits| bits & libc::EPOLLEXCLUSIVE as u32 != 0)
}

/// Of a socket of the internet; as the network has it.
fn port(socket: &OwnedFd) -> Option<[u8; 2]> {
    let name = diag::address(socket, false).ok()?;
    let unix = name.starts_with(&1u16.to_le_bytes());
    name.get(2..4).filter(|_| !unix)?.try_into().ok()
}

/// Of a unix socket that has one.
fn name(socket: &OwnedFd) -> Option<Vec<u8>> {
    let name = diag::address(socket, false).ok()?;
    name.starts_with(&1u16.to_le_bytes())
        .then_some(name)
        .filter(|name| name.len() > 2)
}

/// Where sockets listen, as the network has it.
pub fn addresses(sockets: &[OwnedFd]) -> Vec<Vec<u8>> {
    let address = |socket| diag::address(socket, false).ok();
    sockets.iter().filter_map(address).collect()
}

fn place_of(name: &[u8]) -> Option<Listen> {
    match i32::from(u16::from_le_bytes(name.get(..2)?.try_into().ok()?)) {
        libc::AF_UNIX => {
            let path = name[2..].split(|byte| *byte == 0).next()?;
            Some(Listen {
                tcp: None,
                unix: Some(std::ffi::OsStr::from_bytes(path).into()),
            })
        }
        _ => Some(Listen {
            tcp: Some(show_address(name)?.parse().ok()?),
            unix: None,
        }),
    }
}

/// Whether an address, as the network has it, is one of these; just that one, or one where who comes
/// to it comes as well.
fn is_wanted(name: &[u8], wanted: &[Listen], exact: bool) -> bool {
    let is_one = |here: &Listen, wanted: &Listen| here.covers(wanted) && (!exact || wanted.covers(here));
    place_of(name).is_some_and(|here| wanted.iter().any(|wanted| is_one(&here, wanted)))
}

/// The first that is wanted and is at none of these addresses, as the network has them; see [`is_wanted`].
pub fn first_missing<'a>(names: &[impl AsRef<[u8]>], wanted: &'a [Listen], exact: bool) -> Option<&'a Listen> {
    let is_at = |wanted, name: &[u8]| is_wanted(name, std::slice::from_ref(wanted), exact);
    let is_there = |wanted| names.iter().any(|name| is_at(wanted, name.as_ref()));
    wanted.iter().find(|wanted| !is_there(*wanted))
}

/// Those of them that are in the network of this process.
pub fn of_here(sockets: Vec<OwnedFd>) -> Result<Vec<OwnedFd>> {
    let what = || "cannot tell in which network a socket is";
    let one = std::net::UdpSocket::bind(("127.0.0.1", 0)).or_fail(what)?;
    let network = |fd: &OwnedFd| diag::getsockopt(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, 8).ok();
    let own = network(&one.into());
    Ok(sockets.into_iter().filter(|socket| network(socket) == own).collect())
}

/// Of an app's listening sockets those that its manifest names.
pub fn named(sockets: &[OwnedFd], wanted: &[Listen]) -> Result<Vec<OwnedFd>> {
    let is_named = |socket: &&OwnedFd| diag::address(*socket, false).is_ok_and(|name| is_wanted(&name, wanted, false));
    copies(sockets.iter().filter(is_named))
}

impl Manifest {
    /// Whether an address, as the network has it, is one that the node opens for the app.
    pub fn opens(&self, name: &[u8]) -> bool {
        is_wanted(name, &self.listen, self.network.is_own())
    }
}

impl Listen {
    /// Whether who comes to the other place comes here.
    pub fn covers(&self, other: &Listen) -> bool {
        match (self.tcp, other.tcp) {
            (Some(own), Some(other)) => {
                let (ip, wanted) = (own.ip().to_canonical(), other.ip().to_canonical());
                own.port() == other.port() && (ip == wanted || ip.is_unspecified())
            }
            _ => self == other,
        }
    }
}

/// Their numbers here, to be named to another process.
pub fn numbers<'a>(sockets: impl IntoIterator<Item = &'a OwnedFd>) -> Vec<i32> {
    sockets.into_iter().map(AsRawFd::as_raw_fd).collect()
}
