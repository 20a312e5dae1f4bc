//! Sockets of every family: what they share (options, queues, names).
//!
//! Options are compared with those of a fresh socket of the same kind; only
//! what differs is recorded and set again. Two of them are read by one name and set by
//! another: a filter of what comes (SO_GET_FILTER, SO_ATTACH_FILTER) and the groups of a
//! netlink socket.

use super::looked::Look;
use super::{
    Builder, Context, Description, Member, Refused, inet, multicast, netlink, packet, refused, unix, virtual_pid,
};
use crate::error::{OrFail, Result};
use crate::image::limits;
use crate::image::records::{FileKind, Message, Sender, SockOpt, SocketRecord, SocketState};
use crate::netns;
use crate::sys::Sys;
use crate::sys::diag::{self, Peeked};
use crate::sys::fd as sysfd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

const SOL_TCP: i32 = libc::IPPROTO_TCP;
const SOL_UDP: i32 = libc::IPPROTO_UDP;
/// Linux 5.14.
pub const SO_NETNS_COOKIE: i32 = 71;
const SOL_RAW: i32 = libc::IPPROTO_RAW;
const PACKET_IGNORE_OUTGOING: i32 = 23;
const PACKET_VNET_HDR_SZ: i32 = 24;
const IPV6_MULTICAST_ALL: i32 = 29;
const SO_RCVMARK: i32 = 75;
const SO_PASSPIDFD: i32 = 76;
const SO_RCVPRIORITY: i32 = 82;
const SO_PASSRIGHTS: i32 = 83;
const IP_RECVERR_RFC4884: i32 = 26;
const IP_LOCAL_PORT_RANGE: i32 = 51;
/// The same number of ICMPv6 sockets.
const ICMP_FILTER: i32 = 1;
/// IP_OPTIONS; all others have less, but for those that stand in packets (ipv6(7)).
const LONGEST: usize = 40;
/// As many units of eight bytes as a byte counts, and one.
const LONGEST_HEADER: usize = 2048;
/// In packets of version 6 before all that is sent: for every router, for where they go, the way.
pub const HEADERS: [(i32, i32); 4] = [
    (libc::IPPROTO_IPV6, libc::IPV6_HOPOPTS),
    (libc::IPPROTO_IPV6, libc::IPV6_RTHDRDSTOPTS),
    (libc::IPPROTO_IPV6, libc::IPV6_RTHDR),
    (libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS),
];

const TCP_NOTSENT_LOWAT: i32 = 25;
const TCP_INQ: i32 = 36;

/// Whether the sizes of the buffers were set (SOCK_SNDBUF_LOCK, SOCK_RCVBUF_LOCK): the kernel
/// does not change them by itself then. Linux 5.14.
const SO_BUF_LOCK: i32 = 72;

const PRIORITY: (i32, i32) = (libc::SOL_SOCKET, libc::SO_PRIORITY);
const TYPE_OF_SERVICE: (i32, i32) = (libc::IPPROTO_IP, libc::IP_TOS);

/// Options that can be read and set. Buffer sizes are set first: data queued
/// needs their room.
pub const OPTIONS: [(i32, i32); 141] = [
    (libc::SOL_SOCKET, libc::SO_SNDBUF),
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    (libc::SOL_SOCKET, SO_BUF_LOCK),
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_BROADCAST),
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE),
    (libc::SOL_SOCKET, libc::SO_DONTROUTE),
    (libc::SOL_SOCKET, libc::SO_MARK),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    (libc::SOL_SOCKET, libc::SO_RCVTIMEO),
    (libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    (libc::SOL_SOCKET, libc::SO_PASSCRED),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMP),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS),
    (libc::SOL_SOCKET, libc::SO_BUSY_POLL),
    (libc::SOL_SOCKET, libc::SO_NO_CHECK),
    (libc::SOL_SOCKET, libc::SO_BINDTODEVICE),
    (libc::SOL_SOCKET, libc::SO_LOCK_FILTER),
    (libc::SOL_SOCKET, libc::SO_PASSSEC),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPING),
    (libc::SOL_SOCKET, libc::SO_RXQ_OVFL),
    (libc::SOL_SOCKET, libc::SO_SELECT_ERR_QUEUE),
    (libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE),
    (libc::SOL_SOCKET, libc::SO_ZEROCOPY),
    (libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL),
    (libc::SOL_SOCKET, SO_RCVMARK),
    (libc::SOL_SOCKET, SO_PASSPIDFD),
    (libc::SOL_SOCKET, SO_RCVPRIORITY),
    (libc::SOL_SOCKET, SO_PASSRIGHTS),
    (libc::SOL_NETLINK, libc::NETLINK_PKTINFO),
    (libc::SOL_NETLINK, libc::NETLINK_BROADCAST_ERROR),
    (libc::SOL_NETLINK, libc::NETLINK_NO_ENOBUFS),
    (libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID),
    (libc::SOL_NETLINK, libc::NETLINK_CAP_ACK),
    (libc::SOL_NETLINK, libc::NETLINK_EXT_ACK),
    (libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK),
    (libc::SOL_NETLINK, libc::NETLINK_LIST_MEMBERSHIPS),
    (libc::SOL_PACKET, libc::PACKET_AUXDATA),
    (libc::SOL_PACKET, libc::PACKET_ORIGDEV),
    (libc::SOL_PACKET, libc::PACKET_COPY_THRESH),
    (libc::SOL_PACKET, libc::PACKET_VERSION),
    (libc::SOL_PACKET, libc::PACKET_RESERVE),
    (libc::SOL_PACKET, libc::PACKET_LOSS),
    (libc::SOL_PACKET, libc::PACKET_VNET_HDR),
    (libc::SOL_PACKET, PACKET_VNET_HDR_SZ),
    (libc::SOL_PACKET, libc::PACKET_TIMESTAMP),
    (libc::SOL_PACKET, libc::PACKET_TX_HAS_OFF),
    (libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS),
    (libc::SOL_PACKET, PACKET_IGNORE_OUTGOING),
    (SOL_RAW, ICMP_FILTER),
    (libc::IPPROTO_ICMPV6, ICMP_FILTER),
    (SOL_RAW, libc::IPV6_CHECKSUM),
    (libc::IPPROTO_IPV6, libc::IPV6_CHECKSUM),
    (libc::IPPROTO_IPV6, libc::IPV6_HDRINCL),
    (libc::IPPROTO_IP, libc::IP_HDRINCL),
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::IPPROTO_IP, libc::IP_TTL),
    (libc::IPPROTO_IP, libc::IP_RECVERR),
    (libc::IPPROTO_IP, libc::IP_PKTINFO),
    (libc::IPPROTO_IP, libc::IP_RECVTTL),
    (libc::IPPROTO_IP, libc::IP_RECVTOS),
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
    (libc::IPPROTO_IP, libc::IP_FREEBIND),
    (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
    (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP),
    (libc::IPPROTO_IP, libc::IP_OPTIONS),
    (libc::IPPROTO_IP, libc::IP_RECVOPTS),
    (libc::IPPROTO_IP, libc::IP_RETOPTS),
    (libc::IPPROTO_IP, libc::IP_PASSSEC),
    (libc::IPPROTO_IP, libc::IP_RECVORIGDSTADDR),
    (libc::IPPROTO_IP, libc::IP_MINTTL),
    (libc::IPPROTO_IP, libc::IP_NODEFRAG),
    (libc::IPPROTO_IP, libc::IP_CHECKSUM),
    (libc::IPPROTO_IP, libc::IP_RECVFRAGSIZE),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_IF),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_ALL),
    (libc::IPPROTO_IP, libc::IP_UNICAST_IF),
    (libc::IPPROTO_IP, IP_RECVERR_RFC4884),
    (libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP),
    (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    (libc::IPPROTO_IPV6, IPV6_MULTICAST_ALL),
    (libc::IPPROTO_IPV6, libc::IPV6_FLOWINFO_SEND),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPOPTS),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVRTHDR),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVDSTOPTS),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPATHMTU),
    (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_AUTOFLOWLABEL),
    (libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVORIGDSTADDR),
    (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_IF),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVFRAGSIZE),
    (libc::IPPROTO_IPV6, libc::IPV6_FREEBIND),
    (libc::IPPROTO_IPV6, libc::IPV6_ADDR_PREFERENCES),
    // The way may stand behind what is for those on it: that comes later.
    HEADERS[0],
    HEADERS[2],
    HEADERS[1],
    HEADERS[3],
    (SOL_TCP, libc::TCP_MAXSEG),
    (SOL_TCP, libc::TCP_NODELAY),
    (SOL_TCP, libc::TCP_CORK),
    (SOL_TCP, libc::TCP_LINGER2),
    (SOL_TCP, TCP_NOTSENT_LOWAT),
    (SOL_TCP, TCP_INQ),
    (SOL_TCP, libc::TCP_KEEPIDLE),
    (SOL_TCP, libc::TCP_KEEPINTVL),
    (SOL_TCP, libc::TCP_KEEPCNT),
    (SOL_TCP, libc::TCP_SYNCNT),
    (SOL_TCP, libc::TCP_DEFER_ACCEPT),
    (SOL_TCP, libc::TCP_USER_TIMEOUT),
    (SOL_TCP, libc::TCP_CONGESTION),
    (SOL_TCP, libc::TCP_FASTOPEN),
    (SOL_TCP, libc::TCP_LINGER2),
    (SOL_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS),
    (SOL_TCP, libc::TCP_NOTSENT_LOWAT),
    (SOL_TCP, libc::TCP_SAVE_SYN),
    (SOL_TCP, libc::TCP_FASTOPEN_CONNECT),
    (SOL_TCP, libc::TCP_FASTOPEN_NO_COOKIE),
    (SOL_TCP, libc::TCP_INQ),
    (SOL_UDP, libc::UDP_NO_CHECK6_TX),
    (SOL_UDP, libc::UDP_NO_CHECK6_RX),
    (SOL_UDP, libc::UDP_GRO),
    (SOL_UDP, libc::UDP_SEGMENT),
    (SOL_UDP, libc::UDP_CORK),
    // The kernel derives it from IP_TOS when that is set: it comes after.
    PRIORITY,
];

/// A filter of what comes, as `struct sock_filter`s. Its length is counted in these: it is
/// none of [`OPTIONS`], which are read by their bytes.
pub const FILTER: (i32, i32) = (libc::SOL_SOCKET, libc::SO_GET_FILTER);

pub fn capture(context: &Context<'_>, description: &Description) -> Result<FileKind, Refused> {
    let dup = &description.dup;
    let get = |name| diag::getsockopt_i32(dup, libc::SOL_SOCKET, name).unwrap_or(-1);
    let mut record = SocketRecord {
        ino: description.found.key.1,
        domain: get(libc::SO_DOMAIN),
        kind: get(libc::SO_TYPE),
        protocol: get(libc::SO_PROTOCOL),
        network: None,
        state: SocketState::Fresh,
        options: Vec::new(),
        shutdown: 0,
        queue: Vec::new(),
    };
    // Whoever has it may have come to be in another one since.
    match context.network_of(dup) {
        Some(network) => record.network = network.number,
        None if context.held.came_by(dup) => {}
        None => {
            return refused(
                "it belongs to a network namespace in which no process of the app is",
                "close it, or open it again in the namespace of the app",
            );
        }
    }
    // -1: it does not.
    if get(libc::SO_PEEK_OFF) >= 0 {
        return looks_with_offset();
    }
    match record.domain {
        libc::AF_UNIX => unix::capture(context, description, &mut record)?,
        libc::AF_INET | libc::AF_INET6 => {
            inet::capture(context, description, &mut record)?;
            has_addresses(context, dup, &record)?;
            if let SocketState::Carried { .. } = record.state {
                return Ok(FileKind::Socket(Box::new(record)));
            }
            record.options.extend(multicast::groups(context, description, &record)?);
        }
        libc::AF_NETLINK => netlink::capture(context, description, &mut record)?,
        libc::AF_PACKET => packet::capture(context, description, &mut record)?,
        other => {
            return refused(
                format!("sockets of address family {other} are not carried"),
                "close it before the snapshot",
            );
        }
    }
    // The end of a connection is made again without any, or has all its own.
    if !matches!(record.state, SocketState::Severed | SocketState::Carried { .. }) {
        has_no_error(dup)?;
        // Once it is locked a filter can be changed no more.
        let mut all: Vec<SockOpt> = filter(dup)?.into_iter().collect();
        all.extend(options(context, description, &record)?);
        record.options.splice(0..0, all);
    }
    Ok(FileKind::Socket(Box::new(record)))
}

/// What is bound or connected beside the app's own network had a loopback device that was up, and
/// has nothing else to be made again by.
fn has_addresses(context: &Context<'_>, dup: &OwnedFd, record: &SocketRecord) -> Result<(), Refused> {
    let needs = record.network.is_some() && record.state != SocketState::Fresh;
    match needs && !netns::has_loopback(context.beside(dup)) {
        true => refused(
            "the loopback device of its network namespace has been taken down",
            "raise it (`ip link set lo up`), or close the socket",
        ),
        false => Ok(()),
    }
}

/// What tells a network namespace from all others since boot.
pub fn network_cookie(socket: &OwnedFd) -> Sys<Vec<u8>> {
    diag::getsockopt(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE, 8)
}

/// Whether two sockets were made in one network, as far as the kernel tells it.
pub fn share_network(one: &OwnedFd, other: &OwnedFd) -> bool {
    network_cookie(one) == network_cookie(other)
}

/// SO_ERROR would take it from the app, and so would a look at what is queued.
fn has_no_error(dup: &OwnedFd) -> Result<(), Refused> {
    match has(dup, PollFlags::POLLERR) {
        true => refused("a socket error that the app has not read yet", "let the app read it"),
        false => Ok(()),
    }
}

fn looks_with_offset<T>() -> Result<T, Refused> {
    refused(
        "it looks at what is queued with an offset (SO_PEEK_OFF), which is not carried",
        "set SO_PEEK_OFF to -1 before the snapshot",
    )
}

fn filter(dup: &OwnedFd) -> Result<Option<SockOpt>, Refused> {
    let found = diag::socket_filter(dup).map_err(|errno| {
        let reason = format!("a filter is attached to it that cannot be read: {errno}");
        (reason, "detach it before the snapshot".to_owned())
    })?;
    let (level, name) = FILTER;
    Ok((!found.is_empty()).then_some(SockOpt {
        level,
        name,
        value: found,
    }))
}

pub fn fresh(record: &SocketRecord) -> Sys<OwnedFd> {
    inet::socket(record.domain, record.kind, record.protocol)
}

/// Whether sockets of this kind have options of this level.
pub fn has_level(record: &SocketRecord, level: i32) -> bool {
    let ip = [libc::AF_INET, libc::AF_INET6].contains(&record.domain);
    match level {
        libc::SOL_SOCKET => true,
        libc::SOL_NETLINK => record.domain == libc::AF_NETLINK,
        libc::SOL_PACKET => record.domain == libc::AF_PACKET,
        libc::IPPROTO_IP => ip,
        libc::IPPROTO_IPV6 => record.domain == libc::AF_INET6,
        SOL_RAW | libc::IPPROTO_ICMPV6 => ip && record.kind == libc::SOCK_RAW,
        SOL_UDP => ip && record.kind == libc::SOCK_DGRAM,
        _ => ip && record.kind == libc::SOCK_STREAM,
    }
}

/// What each of [`OPTIONS`] is at first, where a kind of socket has it.
pub type Usual = Vec<Option<Vec<u8>>>;

fn all_options(fd: &OwnedFd, record: &SocketRecord) -> Usual {
    let get = |(level, name): &(i32, i32)| {
        let has = has_level(record, *level);
        let longest = if HEADERS.contains(&(*level, *name)) {
            LONGEST_HEADER
        } else {
            LONGEST
        };
        has.then(|| diag::getsockopt(fd, *level, *name, longest).ok()).flatten()
    };
    OPTIONS.iter().map(get).collect()
}

fn options(context: &Context<'_>, description: &Description, record: &SocketRecord) -> Result<Vec<SockOpt>, Refused> {
    let kind = (record.domain, record.kind, record.protocol);
    let mut known = context.usual.borrow_mut();
    let usual = match known.entry(kind) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(place) => {
            let fresh = fresh(record).map_err(|errno| {
                let reason = format!("no socket can be made to hold its options against: {errno}");
                (reason, "let the host make sockets of its kind".to_owned())
            })?;
            place.insert(all_options(&fresh, record))
        }
    };
    let found = all_options(&description.dup, record).into_iter();
    let found: Vec<_> = found.zip(usual.iter()).zip(OPTIONS).collect();
    let has_type = found
        .iter()
        .any(|((value, usual), option)| *option == TYPE_OF_SERVICE && value != *usual);
    let differs = found.into_iter().filter(|((value, usual), option)| match record.state {
        _ if is_end(record) && BUFFERS.contains(option) => true,
        _ if is_end(record) && RECKONED.contains(option) => false,
        // Set together with a size.
        _ if *option == (libc::SOL_SOCKET, SO_BUF_LOCK) => false,
        _ if *option == PRIORITY => has_type || value != *usual,
        _ => value != *usual,
    });
    let options = differs.filter_map(|((value, _), (level, name))| {
        let option = SockOpt {
            level,
            name,
            value: value?,
        };
        Some(option.evened())
    });
    Ok(options.collect())
}

/// What the buffers of a connection have grown to, whether they were set or not.
const BUFFERS: [(i32, i32); 3] = [
    (libc::SOL_SOCKET, libc::SO_SNDBUF),
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    (libc::SOL_SOCKET, SO_BUF_LOCK),
];

/// What a connection shows here is the kernel's: the segments that it sends, how far and by
/// which device the first of its peer had come, what bind(2) makes of a socket.
const RECKONED: [(i32, i32); 6] = [
    (SOL_TCP, libc::TCP_MAXSEG),
    // Of no use any more; a new one would put its connect(2) off.
    (SOL_TCP, libc::TCP_FASTOPEN_CONNECT),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
];

impl SockOpt {
    /// Buffers are set to twice a number: to no odd one.
    fn evened(mut self) -> SockOpt {
        let is_size = BUFFERS[..2].contains(&(self.level, self.name));
        if let Some(lowest) = self.value.first_mut().filter(|_| is_size) {
            *lowest &= !1;
        }
        self
    }
}

/// Who sent a message is noted by what is set when it is sent: set once all that
/// was queued is back. And what keeps an end of a connection from connecting or sending.
fn is_late(record: &SocketRecord, option: &SockOpt) -> bool {
    const OF_MESSAGES: [(i32, i32); 3] = [
        (libc::SOL_SOCKET, libc::SO_PASSCRED),
        (libc::SOL_SOCKET, SO_PASSPIDFD),
        (libc::SOL_SOCKET, SO_PASSRIGHTS),
    ];
    const OF_ENDS: [(i32, i32); 2] = [(libc::SOL_SOCKET, libc::SO_TIMESTAMPING), (SOL_TCP, TCP_NOTSENT_LOWAT)];
    // What tells it that its peer has ended does not come by a device, nor by its filter.
    const OF_OUTWARD: [(i32, i32); 5] = [
        OF_ENDS[0],
        OF_ENDS[1],
        (libc::SOL_SOCKET, libc::SO_BINDTODEVICE),
        FILTER,
        (libc::SOL_SOCKET, libc::SO_LOCK_FILTER),
    ];
    let late: &[(i32, i32)] = match (record.domain, &record.state) {
        // At a listener nothing is queued, and who waits there has taken this over (Linux 6.16).
        (libc::AF_UNIX, SocketState::Listening { .. }) => &[],
        (libc::AF_UNIX, _) => &OF_MESSAGES,
        (_, SocketState::Joined { .. }) => &OF_ENDS,
        (_, SocketState::Established { .. }) => &OF_OUTWARD,
        _ => &[],
    };
    late.contains(&(option.level, option.name))
}

/// Appshots of former versions have it of ends, too.
fn is_left_out(record: &SocketRecord, option: &SockOpt) -> bool {
    is_end(record) && RECKONED.contains(&(option.level, option.name))
}

/// Whether it is the end of a TCP connection that is made again.
pub fn is_end(record: &SocketRecord) -> bool {
    matches!(
        record.state,
        SocketState::Joined { .. } | SocketState::Established { .. }
    )
}

/// Whether a snapshot makes such a record at all. The restorer has rights that the
/// app has not: it must not be talked into a raw socket.
pub fn is_carried(record: &SocketRecord) -> bool {
    let kind = match record.domain {
        libc::AF_UNIX => [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET].contains(&record.kind),
        libc::AF_INET | libc::AF_INET6 => {
            let pair = (record.kind, record.protocol);
            [
                (libc::SOCK_STREAM, libc::IPPROTO_TCP),
                (libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
                (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
            ]
            .contains(&pair)
                || record.kind == libc::SOCK_RAW
        }
        libc::AF_PACKET => packet::is_carried(record),
        libc::AF_NETLINK => netlink::is_carried(record),
        _ => false,
    };
    kind && record.options.iter().all(|option| {
        OPTIONS.contains(&(option.level, option.name))
            || is_filter(option)
            || is_membership(option)
            || multicast::is_group(option)
    })
}

fn is_membership(option: &SockOpt) -> bool {
    (option.level, option.name) == packet::MEMBERSHIP
}

fn is_filter(option: &SockOpt) -> bool {
    let whole = option.value.len().is_multiple_of(diag::INSTRUCTION_BYTES);
    (option.level, option.name) == FILTER && whole && !option.value.is_empty()
}

/// Sets the recorded options; those that decide who may bind come before bind.
pub fn set_options(fd: &OwnedFd, record: &SocketRecord) -> Result<()> {
    let now = |option: &&SockOpt| !is_late(record, option) && !is_left_out(record, option);
    set(fd, record.options.iter().filter(now))
}

pub fn set_late_options(fd: &OwnedFd, record: &SocketRecord) -> Result<()> {
    set(fd, record.options.iter().filter(|option| is_late(record, option)))
}

fn set<'a>(fd: &OwnedFd, options: impl Iterator<Item = &'a SockOpt>) -> Result<()> {
    for option in options {
        set_one(fd, option).or_fail(|| format!("cannot set socket option {}:{} again", option.level, option.name))?;
    }
    Ok(())
}

/// Sets the sizes of the buffers again, as they were.
pub fn set_buffers(fd: &OwnedFd, record: &SocketRecord) -> Result<()> {
    let is_one = |option: &&SockOpt| BUFFERS.contains(&(option.level, option.name));
    set(fd, record.options.iter().filter(is_one))
}

/// The same of one of them.
pub fn set_buffer(fd: &OwnedFd, record: &SocketRecord, which: i32) -> Sys<()> {
    let is_it = |option: &&SockOpt| (option.level, option.name) == (libc::SOL_SOCKET, which);
    record.options.iter().filter(is_it).try_for_each(|option| {
        let (name, value) = forced(option);
        diag::setsockopt(fd, option.level, name, &value)
    })
}

/// A buffer (SO_SNDBUFFORCE, SO_RCVBUFFORCE) that takes whatever was queued.
pub fn make_room(fd: &OwnedFd, which: i32) -> Sys<()> {
    const ENOUGH: i32 = 1 << 29;
    diag::setsockopt(fd, libc::SOL_SOCKET, which, &ENOUGH.to_ne_bytes())
}

fn set_one(fd: &OwnedFd, option: &SockOpt) -> Sys<()> {
    match (option.level, option.name) {
        FILTER => diag::attach_filter(fd, &option.value),
        (libc::SOL_NETLINK, libc::NETLINK_LIST_MEMBERSHIPS) => {
            let join = |group: u32| {
                let add = libc::NETLINK_ADD_MEMBERSHIP;
                diag::setsockopt(fd, libc::SOL_NETLINK, add, &group.to_le_bytes())
            };
            netlink::groups(&option.value).try_for_each(join)
        }
        _ => {
            let (name, value) = forced(option);
            diag::setsockopt(fd, option.level, name, &value)
        }
    }
}

/// The kernel doubles the buffer sizes it is given, and caps them unless forced.
fn forced(option: &SockOpt) -> (i32, Vec<u8>) {
    let half = || match option.value.as_slice().try_into().map(i32::from_le_bytes) {
        Ok(size) => (size / 2).to_le_bytes().to_vec(),
        Err(_) => option.value.clone(),
    };
    match (option.level, option.name) {
        (libc::SOL_SOCKET, libc::SO_SNDBUF) => (libc::SO_SNDBUFFORCE, half()),
        (libc::SOL_SOCKET, libc::SO_RCVBUF) => (libc::SO_RCVBUFFORCE, half()),
        (_, name) => (name, option.value.clone()),
    }
}

pub fn restore(builder: &Builder<'_>, record: &SocketRecord, unix: &mut unix::Sockets<'_>) -> Result<OwnedFd> {
    if let Some(held) = builder
        .held
        .get(record)
        .or_fail(|| "cannot give the app its socket back")?
    {
        return Ok(held);
    }
    match record.domain {
        libc::AF_UNIX => unix.open(record),
        libc::AF_NETLINK => netlink::restore(record),
        libc::AF_PACKET => packet::restore(record),
        _ => inet::restore(record, builder.joined, builder.closes),
    }
}

/// Messages waiting in a socket, left where they are.
pub fn peek_queue(context: &Context<'_>, description: &Description) -> Result<Vec<Message>, Refused> {
    if let Some(queue) = context.queues.get(&description.id) {
        return queue.clone();
    }
    let queue = look_into(context.members, description)?;
    if queue.iter().any(|(_, rights)| !rights.is_empty()) {
        return refused("descriptors have come into its queue just now", "try again");
    }
    Ok(queue.into_iter().map(|(message, _)| message).collect())
}

/// A message and the descriptors that came with it.
pub type Queued = (Message, Vec<OwnedFd>);

/// SO_PEEK_OFF walks over the messages. Of a unix socket the senders' credentials come with
/// them; that they do also tells an empty packet from the end.
pub fn look_into(members: &[Member], description: &Description) -> Result<Vec<Queued>, Refused> {
    let dup = &description.dup;
    has_no_error(dup)?;
    let get = |name| diag::getsockopt_i32(dup, libc::SOL_SOCKET, name).map_err(unread);
    let (domain, kind) = (get(libc::SO_DOMAIN)?, get(libc::SO_TYPE)?);
    if get(libc::SO_PEEK_OFF)? >= 0 {
        return looks_with_offset();
    }
    let set = |name: i32, value: i32| {
        let set = diag::setsockopt(dup, libc::SOL_SOCKET, name, &value.to_le_bytes());
        set.map_err(unread)
    };
    let asks =
        domain != libc::AF_UNIX || diag::getsockopt_i32(dup, libc::SOL_SOCKET, libc::SO_PASSCRED).map_err(unread)? != 0;
    // A stream has no empty messages.
    let look = (kind != libc::SOCK_STREAM).then(|| Look::begin(description.found.key.1));
    let look = look.transpose()?;
    if !asks {
        set(libc::SO_PASSCRED, 1)?;
    }
    let walked = first_if_empty(members, description, (domain, kind)).and_then(|first| {
        set(libc::SO_PEEK_OFF, 0)?;
        let walked = walk_queue(members, description, (domain, kind));
        set(libc::SO_PEEK_OFF, -1)?;
        Ok(first.into_iter().chain(walked?).collect())
    });
    if !asks {
        set(libc::SO_PASSCRED, 0)?;
    }
    let queue: Vec<Queued> = walked?;
    look.map_or(Ok(()), |look| look.end(queue.iter().map(|(message, _)| message)))?;
    Ok(queue)
}

fn unread(errno: nix::Error) -> Refused {
    let reason = format!("its queued data cannot be read: {errno}");
    (reason, "try again".into())
}

/// The first message where it is an empty one: looked at like this, whoever did that, it
/// does not show on the way.
fn first_if_empty(
    members: &[Member],
    description: &Description,
    (domain, kind): (i32, i32),
) -> Result<Option<Queued>, Refused> {
    if kind == libc::SOCK_STREAM {
        return Ok(None);
    }
    let unix = domain == libc::AF_UNIX;
    let first = diag::peek_message(&description.dup, 1).map_err(unread)?;
    let empty = first.filter(|peeked| peeked.data.is_empty());
    if unix && empty.as_ref().is_some_and(|peeked| peeked.control) {
        return too_much_beside();
    }
    let empty = empty.filter(|peeked| !unix || peeked.credentials.is_some());
    empty.map(|peeked| message(members, peeked)).transpose()
}

fn walk_queue(
    members: &[Member],
    description: &Description,
    (domain, kind): (i32, i32),
) -> Result<Vec<Queued>, Refused> {
    const MESSAGE_MAX: usize = 1 << 20;
    let unix = domain == libc::AF_UNIX;
    let mut queue: Vec<Queued> = Vec::new();
    // In bytes: where in a stream the next look begins.
    let mut at = 0;
    while queue.len() < limits::MESSAGES_PER_SOCKET {
        match diag::peek_message(&description.dup, MESSAGE_MAX) {
            Ok(None) => return Ok(queue),
            Ok(Some(peeked)) if peeked.control && unix => return too_much_beside(),
            Ok(Some(peeked)) if peeked.cut => {
                return refused(
                    "a message of more than 1 MiB is queued in it",
                    "let the app receive it first",
                );
            }
            // The end; a stream has credentials there, too.
            Ok(Some(peeked)) if kind == libc::SOCK_STREAM && peeked.data.is_empty() => return Ok(queue),
            Ok(Some(peeked)) if unix && peeked.credentials.is_none() => return Ok(queue),
            Ok(Some(mut peeked)) => {
                let bytes = peeked.data.len();
                if kind == libc::SOCK_STREAM && !peeked.rights.is_empty() {
                    let before = before_rights(&description.dup, at, bytes).map_err(unread)?;
                    if before > 0 {
                        let data = peeked.data.drain(..before).collect();
                        let plain = Peeked {
                            data,
                            from: peeked.from.clone(),
                            rights: Vec::new(),
                            ..peeked
                        };
                        queue.push(message(members, plain)?);
                    }
                }
                at += bytes;
                queue.push(message(members, peeked)?);
            }
            Err(errno) => return Err(unread(errno)),
        }
    }
    refused("too many messages are queued in it", "let the app receive them first")
}

fn too_much_beside<T>() -> Result<T, Refused> {
    refused(
        "a message with more beside it than can be looked at is queued in it",
        "let the app receive it first",
    )
}

/// How many bytes of a stream a look shows from `at` on that come before those with which
/// descriptors came: it goes on over what was written without any. Leaves the next look
/// where it was, behind `bytes`.
fn before_rights(dup: &OwnedFd, at: usize, bytes: usize) -> Sys<usize> {
    let look_from = |at: usize| {
        let at = i32::try_from(at).map_err(|_| nix::Error::EOVERFLOW)?;
        diag::setsockopt(dup, libc::SOL_SOCKET, libc::SO_PEEK_OFF, &at.to_le_bytes())
    };
    look_from(at)?;
    let before = diag::peek_all_but_last(dup, bytes)?;
    look_from(at + bytes)?;
    Ok(before)
}

fn message(members: &[Member], peeked: Peeked) -> Result<Queued, Refused> {
    let message = Message {
        sender: peeked.credentials.map_or(Ok(None), |known| sender(members, known))?,
        data: peeked.data,
        from: peeked.from,
        rights: Vec::new(),
    };
    Ok((message, peeked.rights))
}

/// The process by the app's number; none where nothing was noted.
fn sender(members: &[Member], (pid, uid, gid): (i32, u32, u32)) -> Result<Option<Sender>, Refused> {
    if pid == 0 {
        return Ok(None);
    }
    match virtual_pid(members, pid) {
        Some(pid) => Ok(Some(Sender { pid, uid, gid })),
        None => refused(
            "a message with the credentials of a process outside the app is queued in it",
            "let the app receive it first",
        ),
    }
}

/// Whether there is something to read: also an empty message, or the end.
pub fn readable(fd: &OwnedFd) -> bool {
    has(fd, PollFlags::POLLIN)
}

pub fn has(fd: &OwnedFd, event: PollFlags) -> bool {
    let mut polled = [PollFd::new(fd.as_fd(), event)];
    poll(&mut polled, PollTimeout::ZERO).ok();
    polled[0].revents().is_some_and(|events| events.contains(event))
}

/// Ends directions again that were ended. One that is not connected says that it is not, and does; a closed
/// peer has ended both already.
pub fn shut_down_again(fd: &OwnedFd, record: &SocketRecord) {
    // 1 receive, 2 send, 3 both: shutdown(2) counts from 0.
    if (1..=3).contains(&record.shutdown) {
        sysfd::shutdown(fd, i32::from(record.shutdown) - 1).ok();
    }
}

pub fn listens(fd: &OwnedFd) -> bool {
    diag::getsockopt_i32(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN) == Ok(1)
}

/// Bytes waiting to be read (FIONREAD).
pub fn waiting(fd: &OwnedFd) -> i32 {
    sysfd::ioctl_i32(fd, libc::FIONREAD).unwrap_or(0)
}

pub fn raw(fd: &OwnedFd) -> i32 {
    fd.as_raw_fd()
}
