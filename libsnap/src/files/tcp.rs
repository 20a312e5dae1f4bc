//! TCP connections of which the app has both ends, and those that are to go on with their peers
//! outside (tcp(7)).
//!
//! Ends are told by their addresses. While the app stands still nobody writes or reads, but
//! the kernel goes on to deliver what one end has sent: so all that was sent is read first,
//! then all that was received, and what is in both is taken for received.
//!
//! ```text
//!    written by one end ──────────────────────────────────────────────┐
//!    ├── read by the other ──┼── its queue ──┼── unsent ──┼── its end ┤
//!                            │            received        │
//!                          `queue`                     `unsent`, `shutdown`
//! ```
//!
//! Read and written back in repair mode ([`super::repair`]): both ends are connected and have
//! their queues before either leaves it, with sequence numbers of our choice, and all
//! that was received is acknowledged. Then each writes what is unsent, as the app
//! did, and ends its side where it had: the kernel sends of it what it would.
//!
//! With a peer outside (`--tcp=established`) the numbers are those that it counts by, and what is not
//! acknowledged is as it was: sent, or still to be sent. [`Barrier`]: the peer is kept away from the first
//! look on until the app is let go, here or elsewhere. Where it has ended its side, that is told the socket
//! by a segment of ours. Then it is asked for its window, so that it hears from the app at once.
//!
//! When the app is ended, its ends go without a word: their addresses are free at once.
//! A look ([MSG_PEEK]) stops at a mark of urgent data, also where that was received already:
//! what is behind it shows by the numbers only (sock_diag(7)).
//!
//! Refused: explicit congestion notification, urgent data, protocols on top (TLS in the
//! kernel), keys (TCP_MD5SIG, TCP-AO), counts of what was sent (SO_ZEROCOPY, time stamps),
//! ends in repair mode, ends connected with themselves, ends that others have open too. Not
//! kept: what the kernel has measured (round trips, congestion, counters of TCP_INFO).
//!
//! [MSG_PEEK]: https://man7.org/linux/man-pages/man2/recv.2.html

use super::barrier::{self, Barrier, Way};
use super::repair::{self, Queue, Repair, Repaired, Window};
use super::segment::Segment;
use super::{Description, Member, Network, Refused, held, holders, in_flight, inet, refused, sockets};
use crate::error::{Error, Kind, OrFail, Result};
use crate::ids::{FileId, HostPid};
use crate::image::limits;
use crate::image::records::FdEntry;
use crate::image::records::{Connection, FileKind, Manifest, Message, Numbers, PeerEnd, SocketRecord, SocketState};
use crate::journal::Journal;
use crate::nsthread;
use crate::sys::diag::TcpEnds;
use crate::sys::{Sys, diag, fd as sysfd, task};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

const TCP: i32 = libc::IPPROTO_TCP;
const TCP_WINDOW_CLAMP: i32 = 10;
const TCP_ULP: i32 = 31;
pub const TCP_AO_INFO: i32 = 40;
const SO_BINDTOIFINDEX: i32 = 62;

/// States of an end (`net/tcp_states.h`).
const ESTABLISHED: u8 = 1;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const CLOSING: u8 = 11;

/// Bits of [`SocketRecord::shutdown`].
const RECEIVE: u8 = 1;
const SEND: u8 = 2;

/// One end of a connection.
#[derive(Clone, Debug)]
pub struct End {
    to: To,
    shutdown: u8,
    /// Bytes in its queues when it was looked at first.
    waiting: u64,
    queue: Vec<u8>,
    connection: Connection,
}

/// Where the other is.
#[derive(Clone, Debug)]
enum To {
    /// By its inode.
    Inside(u64),
    /// By its address, as getpeername(2) tells it.
    Outside(Vec<u8>, Numbers),
}

/// By their descriptions, or why they are refused.
type Found = HashMap<FileId, Result<End, Refused>>;

/// The ends of an app.
#[derive(Debug, Default)]
pub struct Ends {
    found: Found,
    /// As a journal has them.
    repaired: Vec<Repaired>,
    /// Their peers are kept away. Lifted when it is dropped.
    barrier: Option<Barrier>,
}

impl Ends {
    pub fn get(&self, id: FileId) -> Option<&Result<End, Refused>> {
        self.found.get(&id)
    }
}

/// What is to be looked at.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub members: &'a [Member],
    /// The app's own first.
    pub networks: &'a [Network],
    pub descriptions: &'a [Description],
    pub fds: &'a [Vec<FdEntry>],
    /// What somebody holds is none of ours.
    pub held: &'a held::Known,
    /// Connections to outside go on, too.
    pub established: bool,
}

/// Finds them, and looks into them where the app stands still: then there is a journal.
pub fn look(wanted: Wanted<'_>, journal: Option<&mut Journal>) -> Result<Ends> {
    let Wanted {
        members, networks, fds, ..
    } = wanted;
    let (pairs, mut alone) = pairs(wanted.descriptions);
    let own = networks.first();
    // Of a network that the app has made nobody outside is a peer.
    let is_own = |end: &Description| own.is_some_and(|own| sockets::network_cookie(&end.dup).ok() == own.cookie);
    alone.retain(|(end, ..)| wanted.established && is_own(end) && !wanted.held.is_held(&end.dup));
    let mut ends = Ends::default();
    let (Some(own), false) = (own, pairs.is_empty() && alone.is_empty()) else {
        return Ok(ends);
    };
    let failed = || "cannot ask for TCP connections (sock_diag)";
    let can_bar = || alone.is_empty() || barrier::works();
    let told = networks.iter().map(|network| {
        let opened = nsthread::inside(network.pid, &["net"], TcpEnds::open).or_fail(failed)?;
        Ok((network.cookie.clone().unwrap_or_default(), opened.or_fail(failed)?))
    });
    let looker = Looker {
        works: repair::works(),
        can_bar: nsthread::inside(own.pid, &["net"], can_bar).or_fail(failed)?,
        told: told.collect::<Result<_>>()?,
    };
    let inside: Vec<&Description> = pairs.iter().flat_map(|(one, other)| [*one, *other]).collect();
    let all: Vec<&Description> = inside
        .iter()
        .copied()
        .chain(alone.iter().map(|(end, _)| *end))
        .collect();
    let sockets: HashSet<u64> = all.iter().map(|end| end.found.key.1).collect();
    let strangers = holders::outside(members, &sockets);
    for (at, end) in all.iter().enumerate() {
        // One that dies over it would leave nobody who could find it.
        let found = in_flight::in_a_process(members, &end.found)
            .and_then(|()| looker.judge(end, inside.get(at ^ 1).copied()))
            .and_then(|found| held_inside(found, strangers.get(&end.found.key.1)));
        ends.found.insert(end.id, found);
    }
    bound(&mut ends.found);
    let Some(journal) = journal.filter(|_| ends.found.values().all(Result::is_ok)) else {
        return Ok(ends);
    };
    if !alone.is_empty() {
        let name = barrier::new_name()?;
        journal.barrier(&name)?;
        let ways: Vec<Way> = alone.iter().map(|(_, way)| *way).collect();
        let raise = || Barrier::raise(&name, &ways);
        ends.barrier = Some(nsthread::inside(own.pid, &["net"], raise).or_fail(failed)??);
        // What was past the filters when they came is in the queues by then.
        task::membarrier_global().or_fail(|| "cannot wait for what is on its way")?;
    }
    for end in &all {
        ends.repaired.extend(Repaired::of(members, fds, end)?);
    }
    journal.repair(ends.repaired.clone())?;
    let read = looker.read(&all).or_fail(|| "cannot read the app's TCP connections");
    journal.repair(Vec::new())?;
    let read = read?;
    for (at, end) in all.iter().enumerate() {
        if let Some(found) = ends.found.get_mut(&end.id) {
            let other = inside.get(at ^ 1).map(|_| &read[at ^ 1]);
            let whole = found.clone().and_then(|found| match other {
                Some(other) => read[at].against(other, found),
                None => read[at].alone(found),
            });
            *found = whole;
        }
    }
    Ok(ends)
}

/// Where an end is: its network, its own address, its peer's.
type Place = (Vec<u8>, Address, Address);
/// Also of version 4 where a socket of version 6 has it; with the device of a local one.
type Address = (IpAddr, u16, u32);

type Pair<'a> = (&'a Description, &'a Description);

/// Those of which the app has both ends, and all others with the way to their peers.
fn pairs(descriptions: &[Description]) -> (Vec<Pair<'_>>, Vec<(&Description, Way)>) {
    let mut alone: HashMap<Place, &Description> = HashMap::new();
    let mut pairs = Vec::new();
    for end in descriptions {
        let Some((network, own, peer)) = place(end) else {
            continue;
        };
        if own == peer {
            pairs.push((end, end));
            continue;
        }
        let place = (network, own, peer);
        match alone.remove(&(place.0.clone(), peer, own)) {
            Some(other) => pairs.push((other, end)),
            None => drop(alone.insert(place, end)),
        }
    }
    let way = |(ip, port, _): Address| SocketAddr::new(ip, port);
    let alone = alone
        .into_iter()
        .map(|((_, own, peer), end)| (end, (way(own), way(peer))));
    (pairs, alone.collect())
}

fn place(end: &Description) -> Option<Place> {
    if !end.found.link.starts_with("socket:") {
        return None;
    }
    let get = |name| diag::getsockopt_i32(&end.dup, libc::SOL_SOCKET, name).ok();
    let is_internet = get(libc::SO_DOMAIN).is_some_and(|domain| [libc::AF_INET, libc::AF_INET6].contains(&domain));
    if !is_internet || get(libc::SO_PROTOCOL) != Some(TCP) {
        return None;
    }
    let peer = parse(&diag::address(&end.dup, true).ok()?)?;
    let own = parse(&diag::address(&end.dup, false).ok()?)?;
    let network = sockets::network_cookie(&end.dup);
    Some((network.unwrap_or_default(), own, peer))
}

fn parse(raw: &[u8]) -> Option<Address> {
    let port = u16::from_be_bytes(*raw.get(2..)?.first_chunk()?);
    match i32::from(u16::from_ne_bytes(*raw.first_chunk()?)) {
        libc::AF_INET => Some((Ipv4Addr::from(*raw.get(4..)?.first_chunk::<4>()?).into(), port, 0)),
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(*raw.get(8..)?.first_chunk::<16>()?);
            Some((
                ip.to_canonical(),
                port,
                u32::from_ne_bytes(*raw.get(24..)?.first_chunk()?),
            ))
        }
        _ => None,
    }
}

/// Others run meanwhile: they would find it in repair mode, also when the app has ended.
fn held_inside(end: End, stranger: Option<&HostPid>) -> Result<End, Refused> {
    match stranger {
        Some(pid) => refused(
            format!("a TCP connection that a process outside the app has open too: pid {pid}"),
            "close it there",
        ),
        None => Ok(end),
    }
}

/// What is in all queues goes through our memory, and stands in the manifest as hex.
fn bound(ends: &mut Found) {
    let waiting: u64 = ends.values().flatten().map(|end| end.waiting).sum();
    if waiting <= limits::MANIFEST_BYTES / 2 {
        return;
    }
    for end in ends
        .values_mut()
        .filter(|end| end.as_ref().is_ok_and(|end| end.waiting > 0))
    {
        *end = refused(
            "more than 256 MB wait in TCP connections that are kept",
            "let the app receive what it was sent",
        );
    }
}

/// Looks into ends.
#[derive(Debug)]
struct Looker {
    /// Repair mode does.
    works: bool,
    /// Peers outside can be kept away.
    can_bar: bool,
    /// By the networks of the app.
    told: Vec<(Vec<u8>, TcpEnds)>,
}

/// What is counted by the bytes that an end has sent would begin anew.
fn counts_nothing(socket: &OwnedFd) -> Result<(), Refused> {
    /// SOF_TIMESTAMPING_OPT_ID
    const OPT_ID: i32 = 1 << 7;
    let get = |name| diag::getsockopt_i32(socket, libc::SOL_SOCKET, name).unwrap_or(0);
    if get(libc::SO_ZEROCOPY) != 0 {
        return refused(
            "a TCP connection that may lend its memory to the kernel (SO_ZEROCOPY)",
            "let the app send without MSG_ZEROCOPY, and not set SO_ZEROCOPY",
        );
    }
    if get(libc::SO_TIMESTAMPING) & OPT_ID != 0 {
        return refused(
            "a TCP connection whose time stamps have numbers (SOF_TIMESTAMPING_OPT_ID)",
            "let the app set SO_TIMESTAMPING without that",
        );
    }
    Ok(())
}

fn marked<T>() -> Result<T, Refused> {
    refused(
        "a mark of urgent data in what a TCP connection has received, which is not carried",
        "let the app read on behind it",
    )
}

fn unread(errno: nix::Error) -> Refused {
    let reason = format!("the state of a TCP connection cannot be read: {errno}");
    (reason, "try again".into())
}

/// Of `struct tcp_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Info {
    state: u8,
    options: u8,
    /// The peer's, and its own.
    scales: (u8, u8),
}

impl Info {
    const TIMESTAMPS: u8 = 1;
    const SACK: u8 = 2;
    const WINDOW_SCALE: u8 = 4;
    const ECN: u8 = 8;

    fn of(socket: &OwnedFd) -> Sys<Info> {
        let info = diag::getsockopt(socket, TCP, libc::TCP_INFO, 8)?;
        match info[..] {
            [state, _, _, _, _, options, scales, ..] => Ok(Info {
                state,
                options,
                scales: (scales & 15, scales >> 4),
            }),
            _ => Err(nix::Error::EINVAL),
        }
    }

    fn has(self, option: u8) -> bool {
        self.options & option != 0
    }

    /// Whether this side was ended: the kernel counts that as a byte.
    fn ended(self) -> bool {
        [FIN_WAIT1, FIN_WAIT2, CLOSING, LAST_ACK].contains(&self.state)
    }

    /// Whether the peer's end has come.
    fn peer_ended(self) -> bool {
        [CLOSE_WAIT, CLOSING, LAST_ACK].contains(&self.state)
    }

    /// As far as the state tells them.
    fn numbers(self) -> Numbers {
        let peer_ended = match self.state {
            CLOSE_WAIT | LAST_ACK => PeerEnd::First,
            CLOSING => PeerEnd::Second,
            _ => PeerEnd::No,
        };
        Numbers {
            peer_ended,
            ..Numbers::default()
        }
    }

    fn is_open(self) -> bool {
        self.state == ESTABLISHED || self.ended() || self.peer_ended()
    }
}

/// What an end tells in repair mode.
#[derive(Debug)]
struct Read {
    mss: u32,
    /// All that is not acknowledged, and what number comes after it.
    sent: Vec<u8>,
    sent_to: u32,
    /// How much of it that is, and how much of that was not sent.
    open: usize,
    unsent: usize,
    /// All that is not read, and what number comes after it.
    queue: Vec<u8>,
    received_to: u32,
    /// It is, up to a mark only.
    marked: bool,
    info: Info,
    window: Window,
    clamp: u32,
    timestamp: u32,
}

impl Looker {
    /// What can be told while the app runs; `peer` where that is inside.
    fn judge(&self, end: &Description, peer: Option<&Description>) -> Result<End, Refused> {
        if peer.is_some_and(|peer| peer.id == end.id) {
            return refused("a TCP connection with itself", "close it before the snapshot");
        }
        if peer.is_none() && !self.can_bar {
            return refused(
                "the peer of a TCP connection cannot be kept away while the app is not there (nf_tables)",
                "take the snapshot as root, on a kernel with CONFIG_NF_TABLES_INET, or pass --tcp=close",
            );
        }
        if !self.works {
            return refused(
                "the queues of a TCP connection cannot be read (TCP_REPAIR)",
                "take the snapshot as root, on Linux 4.19 or later",
            );
        }
        if repair::is_on(&end.dup) {
            return refused(
                "a TCP connection that is in repair mode",
                "let the app take it out of that (TCP_REPAIR)",
            );
        }
        let ulp = diag::getsockopt(&end.dup, TCP, TCP_ULP, 16).unwrap_or_default();
        if ulp.first().is_some_and(|letter| *letter != 0) {
            return refused(
                "a TCP connection that has a protocol in the kernel (TLS)",
                "turn kernel TLS off in the app",
            );
        }
        counts_nothing(&end.dup)?;
        let events = sysfd::events(&end.dup, libc::POLLPRI | libc::POLLRDHUP).map_err(unread)?;
        if events & libc::POLLPRI != 0 {
            return refused(
                "urgent data of a TCP connection waits in it, which is not carried",
                "let the app receive it first",
            );
        }
        let info = Info::of(&end.dup).map_err(unread)?;
        if !info.is_open() {
            return refused("a TCP connection is being made or closed", "try again");
        }
        if info.has(Info::ECN) {
            return refused(
                "a TCP connection that uses explicit congestion notification, which is not carried",
                "set net.ipv4.tcp_ecn to 0, and have the app connect again",
            );
        }
        let sends_no_more = if info.ended() { SEND } else { 0 };
        let receives_no_more = if events & libc::POLLRDHUP != 0 { RECEIVE } else { 0 };
        let waiting = self.waiting(end, info)?;
        let connection = Connection {
            scales: info.has(Info::WINDOW_SCALE).then_some(info.scales),
            sack: info.has(Info::SACK),
            timestamps: info.has(Info::TIMESTAMPS),
            ..Connection::default()
        };
        let to = match peer {
            Some(peer) => To::Inside(peer.found.key.1),
            None => To::Outside(diag::address(&end.dup, true).map_err(unread)?, info.numbers()),
        };
        Ok(End {
            to,
            shutdown: sends_no_more | receives_no_more,
            waiting,
            queue: Vec::new(),
            connection,
        })
    }

    /// Bytes in both queues; refuses those that a look does not show.
    fn waiting(&self, end: &Description, info: Info) -> Result<u64, Refused> {
        let ioctl = |request| sysfd::ioctl_i32(&end.dup, request).map_err(unread);
        let told = self.ask(end).map_err(|errno| {
            let reason = format!("a TCP connection that sock_diag does not show in its network: {errno}");
            (reason, "try again, on a kernel with CONFIG_INET_DIAG".to_owned())
        })?;
        // TCP_AO_INFO answers who has keys only. Linux 6.7.
        if told.signs || diag::getsockopt(&end.dup, TCP, TCP_AO_INFO, 64).is_ok() {
            return refused(
                "a TCP connection that signs what it sends (TCP_MD5SIG, TCP-AO)",
                "connect it without keys",
            );
        }
        // Some may have come in between.
        let before = ioctl(libc::FIONREAD)?;
        let queued = queued(self.ask(end).map_err(unread)?, info);
        let shown = ioctl(libc::FIONREAD)?;
        if before == shown && (shown as usize) < queued {
            return marked();
        }
        Ok(queued as u64 + ioctl(libc::TIOCOUTQ)? as u64)
    }

    fn ask(&self, end: &Description) -> Sys<diag::TcpEnd> {
        let (network, own, peer) = place(end).ok_or(nix::Error::ENOTCONN)?;
        let mut networks = self.told.iter();
        let (_, told) = networks
            .find(|(known, _)| *known == network)
            .ok_or(nix::Error::ENOENT)?;
        let device = diag::getsockopt_i32(&end.dup, libc::SOL_SOCKET, SO_BINDTOIFINDEX);
        let device = device.map_or(own.2, |device| device as u32);
        let [from, to] = [own, peer].map(|(ip, port, _)| SocketAddr::new(ip, port));
        let told = told.find(from, to, device)?;
        match told.inode == end.found.key.1 {
            true => Ok(told),
            false => Err(nix::Error::ENOENT),
        }
    }

    /// The ends of pairs, two after each other.
    fn read(&self, ends: &[&Description]) -> Sys<Vec<Read>> {
        let repairs = ends.iter().map(|end| Repair::enter(&end.dup));
        let repairs = repairs.collect::<Sys<Vec<_>>>()?;
        let sent = ends.iter().zip(&repairs);
        let sent = sent
            .map(|(end, repair)| read_sent(&end.dup, repair))
            .collect::<Sys<Vec<_>>>()?;
        let all = ends.iter().zip(&repairs).zip(sent);
        all.map(|((end, repair), sent)| {
            let received = self.read_received(end, repair)?;
            Ok(Read {
                mss: repair.mss()?,
                sent: sent.bytes,
                sent_to: sent.to,
                open: sent.open,
                unsent: sent.unsent,
                timestamp: repair.timestamp()?,
                queue: received.queue,
                received_to: received.to,
                marked: received.marked,
                info: received.info,
                window: repair.window()?,
                clamp: diag::getsockopt_i32(&end.dup, TCP, TCP_WINDOW_CLAMP)? as u32,
            })
        })
        .collect()
    }

    /// Again where something has come meanwhile.
    fn read_received(&self, end: &Description, repair: &Repair<'_>) -> Sys<Received> {
        const TRIES: usize = 100;
        let socket = &end.dup;
        for _ in 0..TRIES {
            let chosen = repair.choose(Queue::Received)?;
            let before = (chosen.sequence()?, Info::of(socket)?);
            let (number, info) = before;
            let queued = queued(self.ask(end)?, info);
            let queue = peek(socket, queued)?;
            let after = (chosen.sequence()?, Info::of(socket)?);
            drop(chosen);
            if before == after {
                return Ok(Received {
                    marked: queue.len() != queued,
                    queue,
                    to: number.wrapping_sub(u32::from(info.peer_ended())),
                    info,
                });
            }
        }
        Err(nix::Error::EAGAIN)
    }
}

/// How many bytes of it are not read.
fn queued(told: diag::TcpEnd, info: Info) -> usize {
    // The end is read, or the last.
    told.unread.saturating_sub(u32::from(info.peer_ended())) as usize
}

/// What is not read of an end.
#[derive(Debug)]
struct Received {
    queue: Vec<u8>,
    marked: bool,
    to: u32,
    info: Info,
}

/// What is not acknowledged of an end.
#[derive(Debug)]
struct Sent {
    /// Some before it may be there, too.
    bytes: Vec<u8>,
    to: u32,
    open: usize,
    unsent: usize,
}

fn read_sent(socket: &OwnedFd, repair: &Repair<'_>) -> Sys<Sent> {
    /// SIOCOUTQNSD
    const NOT_SENT: u64 = 0x894b;
    // The first segment is shown in whole, some of it acknowledged or not.
    const SEGMENT_MAX: usize = 1 << 16;
    let ended = Info::of(socket)?.ended();
    let count = |request| Ok(sysfd::ioctl_i32(socket, request)?.max(0) as usize);
    // With the queue chosen what falls due to be sent would count as sent.
    let (queued, unsent) = (count(libc::TIOCOUTQ)?, count(NOT_SENT)?);
    let chosen = repair.choose(Queue::Sent)?;
    let sent_to = chosen.sequence()?.wrapping_sub(u32::from(ended));
    // All up to the last byte, or EFAULT.
    let bytes = match queued {
        0 => Vec::new(),
        queued => peek(socket, queued + SEGMENT_MAX)?,
    };
    // The end of this side is counted as long as it is not acknowledged, or not sent.
    let without_end = |count: usize| count.saturating_sub(usize::from(ended));
    Ok(Sent {
        bytes,
        to: sent_to,
        open: without_end(queued),
        unsent: without_end(unsent),
    })
}

/// Looks at the chosen queue; nothing comes later than asked for.
fn peek(socket: &OwnedFd, bytes: usize) -> Sys<Vec<u8>> {
    if bytes == 0 {
        return Ok(Vec::new());
    }
    let peeked = diag::peek_message(socket, bytes)?;
    Ok(peeked.map_or_else(Vec::new, |peeked| peeked.data))
}

impl Read {
    /// This end, of which `peer` is the other.
    fn against(&self, peer: &Read, end: End) -> Result<End, Refused> {
        if self.marked {
            return marked();
        }
        let unsent = self.sent_to.wrapping_sub(peer.received_to) as usize;
        let received = self.sent.len().checked_sub(unsent);
        let Some(received) = received.filter(|_| !peer.info.peer_ended() || unsent == 0) else {
            return refused("the two ends of a TCP connection do not fit together", "try again");
        };
        Ok(self.whole(self.sent[received..].to_vec(), end))
    }

    /// This end, of which the other is outside.
    fn alone(&self, mut end: End) -> Result<End, Refused> {
        if self.marked {
            return marked();
        }
        let Some(acknowledged) = self.sent.len().checked_sub(self.open) else {
            return refused(
                "what a TCP connection has sent changes while it is looked at",
                "try again",
            );
        };
        if let To::Outside(_, numbers) = &mut end.to {
            *numbers = Numbers {
                acknowledged: self.sent_to.wrapping_sub(self.open as u32),
                in_flight: self.open.saturating_sub(self.unsent) as u32,
                received: self.received_to,
                told_at: self.window.told_at,
                peer_window: self.window.peer,
                timestamp: self.timestamp,
                // It may have ended since it was looked at first.
                ..self.info.numbers()
            };
        }
        if self.info.peer_ended() {
            end.shutdown |= RECEIVE;
        }
        Ok(self.whole(self.sent[acknowledged..].to_vec(), end))
    }

    fn whole(&self, unsent: Vec<u8>, end: End) -> End {
        // What it has offered reaches to there; what has come since is part of it.
        let offered = self.window.own_from.wrapping_add(self.window.own);
        let taken = self.received_to.wrapping_add(u32::from(self.info.peer_ended()));
        let window = offered.wrapping_sub(taken) as i32;
        let connection = Connection {
            mss: self.mss,
            window: window.max(0) as u32,
            peer_window_max: self.window.peer_max,
            clamp: self.clamp,
            unsent,
            ..end.connection
        };
        End {
            queue: self.queue.clone(),
            connection,
            ..end
        }
    }
}

impl End {
    /// What is recorded of it.
    pub fn record(&self, name: Vec<u8>, record: &mut SocketRecord) -> SocketState {
        record.shutdown = self.shutdown;
        if !self.queue.is_empty() {
            record.queue = vec![Message {
                data: self.queue.clone(),
                from: Vec::new(),
                sender: None,
                rights: Vec::new(),
            }];
        }
        let connection = Box::new(self.connection.clone());
        match &self.to {
            To::Inside(peer) => SocketState::Joined {
                name,
                peer: *peer,
                connection,
            },
            To::Outside(peer, numbers) => SocketState::Established {
                name,
                peer: peer.clone(),
                connection,
                numbers: *numbers,
            },
        }
    }
}

/// Sockets that go without a word when their app is ended. Dropped before that, their peers
/// are let through again.
#[derive(Debug, Default)]
pub struct Ending {
    sockets: Vec<OwnedFd>,
    repaired: Vec<Repaired>,
    barrier: Option<Barrier>,
}

impl Ending {
    pub fn of(ends: Ends, descriptions: Vec<Description>) -> Ending {
        let own = descriptions.into_iter().filter(|end| ends.found.contains_key(&end.id));
        Ending {
            sockets: own.map(|end| end.dup).collect(),
            repaired: ends.repaired,
            barrier: ends.barrier,
        }
    }

    /// By which name peers are kept away.
    pub fn barrier(&self) -> Option<String> {
        self.barrier.as_ref().map(|barrier| barrier.name().to_owned())
    }

    /// The app is about to be killed. What fails leaves its addresses taken for a minute. Should we die over
    /// it, the journal has them put back: it does not say yet that the app ends.
    pub fn begin(&mut self, journal: &mut Journal) {
        if self.sockets.is_empty() {
            return;
        }
        if let Err(error) = journal.repair(std::mem::take(&mut self.repaired)) {
            tracing::warn!(%error, "a journal");
        }
        end_silently(&self.sockets);
        if let Some(barrier) = &mut self.barrier {
            barrier.stays();
        }
    }
}

fn end_silently(sockets: &[OwnedFd]) {
    for socket in sockets {
        if let Err(errno) = repair::end_silently(socket) {
            tracing::warn!(%errno, "an end of a TCP connection lingers");
        }
    }
}

/// A socket that is made again as an end.
struct Made<'a> {
    fd: &'a OwnedFd,
    record: &'a SocketRecord,
    name: &'a [u8],
    peer: Peer<'a>,
    connection: &'a Connection,
}

#[derive(Clone, Copy)]
enum Peer<'a> {
    Inside(u64),
    Outside(&'a [u8], &'a Numbers),
}

/// How the windows of an end were told.
struct Offer {
    peer: u32,
    own: u32,
    told_at: u32,
}

/// Connections that are to go on with their peers, which are kept away. They are in repair mode: whoever
/// closes them now, also by dying, does so without a word.
#[derive(Debug)]
pub struct Resumed {
    ends: Vec<Resuming>,
    barrier: Barrier,
}

/// One of them, with the SO_REUSEADDR that it had. `teller`: what it is told by that its peer has ended, once
/// it has ended its own side; a socket of the network, in which nobody is any more by then.
#[derive(Debug)]
struct Resuming {
    fd: OwnedFd,
    record: SocketRecord,
    reuse: i32,
    teller: Option<OwnedFd>,
}

impl Resumed {
    /// Lets the peers through: the app is about to run, and nothing else is in the way.
    pub fn go(self) -> Result<()> {
        self.complete()?;
        self.barrier.lift()?;
        for Resuming { fd, reuse, .. } in &self.ends {
            if let Err(errno) = repair::probe(fd, *reuse) {
                tracing::warn!(%errno, "the peer of a TCP connection is not asked for its window");
            }
        }
        Ok(())
    }

    /// Has them as the app had them, with what it has to send; nothing goes out yet. For one that stands
    /// still that is all.
    pub fn complete(&self) -> Result<()> {
        let ends = self.ends.iter();
        let mut made = ends.filter_map(|one| Some((Made::of(&one.fd, &one.record)?, one)));
        made.try_for_each(|(end, one)| end.complete(one.reuse, one.teller.as_ref()))
    }
}

/// Connects again those that are to go on with their peers outside, once all sockets exist.
pub fn resume(made: &HashMap<FileId, OwnedFd>, manifest: &Manifest) -> Result<Option<Resumed>> {
    let mut ends = Vec::new();
    for end in all_made(made, manifest) {
        if let Peer::Outside(peer, numbers) = end.peer {
            ends.push((end, peer, numbers));
        }
    }
    let (false, Some(name)) = (ends.is_empty(), &manifest.barrier) else {
        return Ok(None);
    };
    let way = |end: &Made<'_>, peer: &[u8]| {
        let [own, peer] = [parse(end.name)?, parse(peer)?].map(|(ip, port, _)| SocketAddr::new(ip, port));
        Some((own, peer))
    };
    let ways: Vec<Way> = ends.iter().filter_map(|(end, peer, _)| way(end, peer)).collect();
    let mut barrier = Barrier::raise(name, &ways)?;
    // Should this fail, the next one goes on.
    barrier.stays();
    let mut resumed = Resumed {
        ends: Vec::new(),
        barrier,
    };
    for (end, peer, numbers) in ends {
        let (reuse, teller) = end.resume(peer, numbers)?;
        resumed.ends.push(Resuming {
            fd: end.fd.try_clone().or_fail(|| "cannot hold a TCP connection")?,
            record: end.record.clone(),
            reuse,
            teller,
        });
    }
    Ok(Some(resumed))
}

fn all_made<'a>(made: &'a HashMap<FileId, OwnedFd>, manifest: &'a Manifest) -> impl Iterator<Item = Made<'a>> {
    manifest.files.iter().filter_map(|file| match &file.kind {
        FileKind::Socket(record) => Made::of(&made[&file.id], record),
        _ => None,
    })
}

/// Once all sockets exist and those that listen are bound: connects the ends.
pub fn finish(made: &HashMap<FileId, OwnedFd>, manifest: &Manifest) -> Result<()> {
    let ends: HashMap<u64, Made<'_>> = all_made(made, manifest).map(|end| (end.record.ino, end)).collect();
    let mut pairs = Vec::new();
    for end in ends.values() {
        // Validated with the manifest: each has its other.
        if let Peer::Inside(peer) = end.peer
            && end.record.ino < peer
        {
            pairs.extend(ends.get(&peer).map(|other| [end, other]));
        }
    }
    let built = pairs.iter().map(|pair| Ok((pair, build(pair)?)));
    for (pair, repairs) in built.collect::<Result<Vec<_>>>()? {
        let [one, other] = pair;
        let failed = || format!("cannot restore the TCP connection {}", shown(one, other));
        repairs.into_iter().try_for_each(Repair::leave).or_fail(failed)?;
        for end in pair {
            end.send(0).or_fail(failed)?;
        }
        for end in pair {
            end.shut().or_fail(failed)?;
            end.set_rest()?;
        }
    }
    Ok(())
}

/// Connects two ends in repair mode, and gives them their queues.
fn build<'a>([one, other]: &[&'a Made<'a>; 2]) -> Result<[Repair<'a>; 2]> {
    let failed = || format!("cannot restore the TCP connection {}", shown(one, other));
    let mut begin = [[0; 4]; 2];
    for number in &mut begin {
        crate::sys::random(number).or_fail(failed)?;
    }
    let [own, peers] = begin.map(u32::from_ne_bytes);
    let repairs = [
        Repair::enter(one.fd).or_fail(failed)?,
        Repair::enter(other.fd).or_fail(failed)?,
    ];
    let ends = [(one, own, peers), (other, peers, own)];
    for ((end, sent_to, received_to), repair) in ends.iter().zip(&repairs) {
        diag::set_address(end.fd, false, end.name).map_err(|errno| inet::not_bound(errno, end.name))?;
        end.count_from(repair, *sent_to, *received_to).or_fail(failed)?;
    }
    for ((end, peer, received_to), repair) in [(one, other, peers), (other, one, own)].into_iter().zip(&repairs) {
        end.keep_unscaled().or_fail(failed)?;
        let to = seen_by(end.record.domain, peer.name).or_fail(failed)?;
        diag::set_address(end.fd, true, &to).map_err(|errno| taken(errno, failed()))?;
        let offer = Offer {
            peer: peer.offers(end),
            own: end.offers(peer),
            told_at: received_to,
        };
        end.agree(repair, &offer).or_fail(failed)?;
    }
    Ok(repairs)
}

fn shown(one: &Made<'_>, other: &Made<'_>) -> String {
    told(one.name, other.name)
}

fn told(own: &[u8], peer: &[u8]) -> String {
    let [own, peer] = [own, peer].map(|name| inet::show_address(name).unwrap_or_else(|| "?".into()));
    format!("{own} <- {peer}")
}

fn taken(errno: nix::Error, failed: String) -> Error {
    match errno {
        nix::Error::EADDRNOTAVAIL | nix::Error::EADDRINUSE => Error::new(Kind::Conflict, failed)
            .because("there is one with these addresses, or was less than a minute ago (TIME_WAIT)")
            .needs("a network in which the two ports are free")
            .fix("end the app that has it, wait a minute, or restore it in a network of its own (--network own)"),
        errno => Error::failed(failed).because(errno),
    }
}

/// The address as a socket of this family has it.
fn seen_by(domain: i32, name: &[u8]) -> Sys<Vec<u8>> {
    let family = (domain as u16).to_ne_bytes();
    let mapped = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets();
    match (domain, name.len()) {
        (libc::AF_INET, 28) => Ok([&family, &name[2..4], &name[20..24], &[0; 8]].concat()),
        (libc::AF_INET6, 16) => Ok([&family, &name[2..4], &[0; 4], &mapped[..12], &name[4..8], &[0; 4]].concat()),
        (libc::AF_INET, 16) | (libc::AF_INET6, 28) => Ok(name.to_vec()),
        _ => Err(nix::Error::EINVAL),
    }
}

impl<'a> Made<'a> {
    fn of(fd: &'a OwnedFd, record: &'a SocketRecord) -> Option<Made<'a>> {
        match &record.state {
            SocketState::Joined { name, peer, connection } => Some(Made {
                fd,
                record,
                name,
                peer: Peer::Inside(*peer),
                connection,
            }),
            SocketState::Established {
                name,
                peer,
                connection,
                numbers,
            } => Some(Made {
                fd,
                record,
                name,
                peer: Peer::Outside(peer, numbers),
                connection,
            }),
            _ => None,
        }
    }

    fn queue(&self) -> &'a [u8] {
        self.record.queue.first().map_or(&[], |message| &message.data)
    }

    /// The numbers that it has before its queue comes.
    fn count_from(&self, repair: &Repair<'_>, sent_to: u32, received_to: u32) -> Sys<()> {
        repair.choose(Queue::Sent)?.set_sequence(sent_to)?;
        let received = repair.choose(Queue::Received)?;
        received.set_sequence(received_to.wrapping_sub(self.queue().len() as u32))
    }

    /// connect(2) reckons by which power of two windows are told, from the largest there may
    /// be, and nothing takes that back where none was agreed on.
    fn keep_unscaled(&self) -> Sys<()> {
        let largest = i32::from(u16::MAX);
        match self.connection.scales {
            None => diag::setsockopt(self.fd, TCP, TCP_WINDOW_CLAMP, &largest.to_ne_bytes()),
            Some(_) => Ok(()),
        }
    }

    /// What it has of the connection, after connect(2).
    fn agree(&self, repair: &Repair<'_>, offer: &Offer) -> Sys<()> {
        let own = self.connection;
        repair.agree(own.mss, own.scales, own.sack, own.timestamps)?;
        let received = repair.choose(Queue::Received)?;
        // What the kernel keeps beside the bytes is not what it was.
        sockets::make_room(self.fd, libc::SO_RCVBUFFORCE)?;
        send_all(self.fd, self.queue())?;
        sockets::set_buffer(self.fd, self.record, libc::SO_RCVBUF)?;
        let received_to = received.sequence()?;
        drop(received);
        repair.set_window(Window {
            told_at: offer.told_at,
            peer: offer.peer,
            peer_max: own.peer_window_max.max(offer.peer),
            own: offer.own,
            own_from: received_to,
        })?;
        let clamp = (own.clamp as i32).to_ne_bytes();
        diag::setsockopt(self.fd, TCP, TCP_WINDOW_CLAMP, &clamp)?;
        self.fit_segments()
    }

    /// How much the peer may send. The end of its side counts as a byte: where that is next it
    /// has come already, and must not wait for room.
    fn offers(&self, peer: &Made<'_>) -> u32 {
        let ended = self.record.shutdown & RECEIVE != 0 && peer.record.shutdown & SEND != 0;
        let least = u32::from(ended && peer.connection.unsent.is_empty());
        self.connection.window.max(least)
    }

    /// The size of its segments was reckoned at connect(2), before the peer's was known. To
    /// set options of its packets has it reckoned again: those that it has, or none.
    fn fit_segments(&self) -> Sys<()> {
        const IPV6_2292PKTOPTIONS: i32 = 6;
        let set = |level, name, value: &[u8]| diag::setsockopt(self.fd, level, name, value);
        match parse(self.name) {
            Some((IpAddr::V6(_), ..)) => {
                // `struct cmsghdr`, of another level than IPv6's: a list of options that is empty.
                let ignored = [&16u64.to_ne_bytes()[..], &TCP.to_ne_bytes(), &[0; 4]].concat();
                set(libc::IPPROTO_IPV6, IPV6_2292PKTOPTIONS, &ignored)?;
                set(libc::IPPROTO_IPV6, IPV6_2292PKTOPTIONS, &[])
            }
            _ => {
                let (level, name) = (libc::IPPROTO_IP, libc::IP_OPTIONS);
                let mut options = self.record.options.iter();
                let recorded = options.find(|option| (option.level, option.name) == (level, name));
                set(level, name, recorded.map_or(&[], |option| &option.value))
            }
        }
    }

    /// All that is unsent but for the first bytes of it.
    fn send(&self, sent: usize) -> Sys<()> {
        sockets::make_room(self.fd, libc::SO_SNDBUFFORCE)?;
        send_all(self.fd, &self.connection.unsent[sent..])
    }

    /// What would have been in the way before.
    fn set_rest(&self) -> Result<()> {
        sockets::set_buffers(self.fd, self.record)?;
        sockets::set_late_options(self.fd, self.record)
    }

    /// Is again where it was with a peer outside, in repair mode.
    fn resume(&self, peer: &[u8], numbers: &Numbers) -> Result<(i32, Option<OwnedFd>)> {
        let failed = || format!("cannot go on with the TCP connection {}", told(self.name, peer));
        let repair = Repair::enter(self.fd).or_fail(failed)?;
        diag::set_address(self.fd, false, self.name).map_err(|errno| inet::not_bound(errno, self.name))?;
        self.count_from(&repair, numbers.acknowledged, numbers.received)
            .or_fail(failed)?;
        self.keep_unscaled().or_fail(failed)?;
        diag::set_address(self.fd, true, peer).map_err(|errno| taken(errno, failed()))?;
        let offer = Offer {
            peer: numbers.peer_window,
            own: self.connection.window.max(u32::from(numbers.peer_ended != PeerEnd::No)),
            told_at: numbers.told_at,
        };
        self.agree(&repair, &offer).or_fail(failed)?;
        if self.connection.timestamps {
            repair.set_timestamp(numbers.timestamp).or_fail(failed)?;
        }
        let in_flight = numbers.in_flight as usize;
        let sent = repair.choose(Queue::Sent).or_fail(failed)?;
        sockets::make_room(self.fd, libc::SO_SNDBUFFORCE).or_fail(failed)?;
        send_all(self.fd, &self.connection.unsent[..in_flight]).or_fail(failed)?;
        drop(sent);
        let teller = (numbers.peer_ended != PeerEnd::No).then(|| self.teller());
        let mut teller = teller.transpose().or_fail(failed)?;
        if numbers.peer_ended == PeerEnd::First
            && let Some(teller) = teller.take()
        {
            self.hear_end(peer, numbers, &teller).or_fail(failed)?;
        }
        Ok((repair.stays(), teller))
    }

    fn teller(&self) -> Sys<OwnedFd> {
        let (own, port, _) = parse(self.name).ok_or(nix::Error::EINVAL)?;
        Segment::socket(SocketAddr::new(own, port), barrier::MARK)
    }

    /// Leaves repair mode, sends what is unsent, and ends what was ended.
    fn complete(&self, reuse: i32, teller: Option<&OwnedFd>) -> Result<()> {
        let Peer::Outside(peer, numbers) = self.peer else {
            return Ok(());
        };
        let failed = || format!("cannot go on with the TCP connection {}", told(self.name, peer));
        repair::leave(self.fd, reuse).or_fail(failed)?;
        self.send(numbers.in_flight as usize).or_fail(failed)?;
        self.shut().or_fail(failed)?;
        if let Some(teller) = teller {
            self.hear_end(peer, numbers, teller).or_fail(failed)?;
        }
        self.set_rest()
    }

    /// Has the socket hear that its peer has ended: by the segment that the peer would send.
    fn hear_end(&self, peer: &[u8], numbers: &Numbers, teller: &OwnedFd) -> Sys<()> {
        const TRIES: u32 = 10_000;
        let (Some((own, own_port, _)), Some((from, port, _))) = (parse(self.name), parse(peer)) else {
            return Err(nix::Error::EINVAL);
        };
        let scale = self.connection.scales.map_or(0, |(peer, _)| peer);
        let segment = Segment {
            from: SocketAddr::new(from, port),
            to: SocketAddr::new(own, own_port),
            sequence: numbers.received,
            acknowledged: numbers.acknowledged,
            window: (numbers.peer_window >> scale).min(u32::from(u16::MAX)) as u16,
        };
        segment.send(teller)?;
        for _ in 0..TRIES {
            if Info::of(self.fd)?.peer_ended() {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
        Err(nix::Error::ETIMEDOUT)
    }

    /// Ends what was ended.
    fn shut(&self) -> Sys<()> {
        let both = [(RECEIVE, libc::SHUT_RD), (SEND, libc::SHUT_WR)];
        let mut wanted = both.into_iter().filter(|(bit, _)| self.record.shutdown & bit != 0);
        wanted.try_for_each(|(_, how)| sysfd::shutdown(self.fd, how))
    }
}

fn send_all(socket: &OwnedFd, mut bytes: &[u8]) -> Sys<()> {
    while !bytes.is_empty() {
        let sent = diag::send_message(socket, bytes, None, None, &[])?;
        bytes = bytes.get(sent..).filter(|_| sent > 0).ok_or(nix::Error::EMSGSIZE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_as_the_other_family_has_it() {
        let four = [2u16.to_ne_bytes().to_vec(), vec![1, 2, 127, 0, 0, 1], vec![0; 8]].concat();
        let six = seen_by(libc::AF_INET6, &four).unwrap();
        assert_eq!(parse(&six), parse(&four));
        assert_eq!(seen_by(libc::AF_INET, &six).unwrap(), four);
        assert_eq!(seen_by(libc::AF_INET6, &six).unwrap(), six);
        assert!(seen_by(libc::AF_INET, &four[..15]).is_err());
        assert_eq!(parse(&four[..7]), None);
    }
}
