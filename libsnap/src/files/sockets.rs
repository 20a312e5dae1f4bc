//! Sockets of every family: what they share (options, queues, names).
//!
//! Options are compared with those of a fresh socket of the same kind; only
//! what differs is recorded and set again.

use super::{Builder, Context, Description, Refused, inet, refused, unix};
use crate::error::{OrFail, Result};
use crate::image::records::{FileKind, Message, SockOpt, SocketRecord};
use crate::sys::diag;
use crate::sys::fd as sysfd;
use std::os::fd::{AsRawFd, OwnedFd};

const SOL_TCP: i32 = libc::IPPROTO_TCP;
const SOL_UDP: i32 = libc::IPPROTO_UDP;

/// Options that can be read and set. Buffer sizes are set first: data queued
/// needs their room.
const OPTIONS: [(i32, i32); 47] = [
    (libc::SOL_SOCKET, libc::SO_SNDBUF),
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_BROADCAST),
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE),
    (libc::SOL_SOCKET, libc::SO_DONTROUTE),
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
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
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    (SOL_TCP, libc::TCP_NODELAY),
    (SOL_TCP, libc::TCP_KEEPIDLE),
    (SOL_TCP, libc::TCP_KEEPINTVL),
    (SOL_TCP, libc::TCP_KEEPCNT),
    (SOL_TCP, libc::TCP_SYNCNT),
    (SOL_TCP, libc::TCP_DEFER_ACCEPT),
    (SOL_TCP, libc::TCP_USER_TIMEOUT),
    (SOL_TCP, libc::TCP_CONGESTION),
    (SOL_TCP, libc::TCP_FASTOPEN),
    (SOL_UDP, libc::UDP_SEGMENT),
];

pub fn capture(context: &Context<'_>, description: &Description) -> Result<FileKind, Refused> {
    let dup = &description.dup;
    let get = |name| diag::getsockopt_i32(dup, libc::SOL_SOCKET, name).unwrap_or(-1);
    let mut record = SocketRecord {
        ino: description.found.key.1,
        domain: get(libc::SO_DOMAIN),
        kind: get(libc::SO_TYPE),
        protocol: get(libc::SO_PROTOCOL),
        state: crate::image::records::SocketState::Fresh,
        options: Vec::new(),
        shutdown: 0,
        queue: Vec::new(),
    };
    if get(libc::SO_ERROR) > 0 {
        return refused("a socket error that the app has not read yet", "try again");
    }
    match record.domain {
        libc::AF_UNIX => unix::capture(context, description, &mut record)?,
        libc::AF_INET | libc::AF_INET6 => inet::capture(context, description, &mut record)?,
        libc::AF_NETLINK => return refused("netlink sockets are not carried yet", "close it before the snapshot"),
        other => return refused(format!("sockets of address family {other} are not carried"), "close it before the snapshot"),
    }
    record.options = options(description, &record);
    Ok(FileKind::Socket(Box::new(record)))
}

fn fresh(record: &SocketRecord) -> crate::sys::Sys<OwnedFd> {
    inet::socket(record.domain, record.kind, record.protocol)
}

fn options(description: &Description, record: &SocketRecord) -> Vec<SockOpt> {
    let Ok(fresh) = fresh(record) else { return Vec::new() };
    let differs = |(level, name): &(i32, i32)| {
        let value = diag::getsockopt(&description.dup, *level, *name, 16).ok()?;
        let usual = diag::getsockopt(&fresh, *level, *name, 16).ok();
        (usual.as_ref() != Some(&value)).then_some(SockOpt {
            level: *level,
            name: *name,
            value,
        })
    };
    OPTIONS.iter().filter_map(differs).collect()
}

/// Sets the recorded options; those that decide who may bind come before bind.
pub fn set_options(fd: &OwnedFd, record: &SocketRecord) -> Result<()> {
    for option in &record.options {
        let (name, value) = forced(option);
        diag::setsockopt(fd, option.level, name, &value).or_fail(|| {
            format!("cannot set socket option {}:{} again", option.level, option.name)
        })?;
    }
    Ok(())
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

pub fn restore(builder: &Builder<'_>, record: &SocketRecord, unix: &mut unix::Sockets) -> Result<OwnedFd> {
    match record.domain {
        libc::AF_UNIX => unix.open(builder, record),
        _ => inet::restore(record),
    }
}

/// Messages waiting in a socket, left where they are: SO_PEEK_OFF walks over
/// them.
pub fn peek_queue(description: &Description) -> Result<Vec<Message>, Refused> {
    let dup = &description.dup;
    let unread = |e: nix::Error| (format!("its queued data cannot be read: {e}"), "try again".to_owned());
    let before = diag::getsockopt_i32(dup, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap_or(-1);
    diag::setsockopt(dup, libc::SOL_SOCKET, libc::SO_PEEK_OFF, &0i32.to_le_bytes()).map_err(unread)?;
    let walked = walk_queue(description);
    diag::setsockopt(dup, libc::SOL_SOCKET, libc::SO_PEEK_OFF, &before.to_le_bytes()).map_err(unread)?;
    walked
}

fn walk_queue(description: &Description) -> Result<Vec<Message>, Refused> {
    const LONGEST: usize = 1 << 20;
    let mut queue = Vec::new();
    loop {
        match diag::peek_message(&description.dup, LONGEST) {
            Ok(None) => return Ok(queue),
            Ok(Some(peeked)) if peeked.control => {
                return refused("descriptors or credentials are in flight in its queue", "let the app receive them first");
            }
            // End of the stream, or an empty datagram that peeking cannot pass.
            Ok(Some(peeked)) if peeked.data.is_empty() => return Ok(queue),
            Ok(Some(peeked)) => queue.push(Message {
                data: peeked.data,
                from: peeked.from,
            }),
            Err(errno) => return refused(format!("its queued data cannot be read: {errno}"), "try again"),
        }
    }
}

/// Bytes waiting to be read (FIONREAD).
pub fn waiting(fd: &OwnedFd) -> i32 {
    sysfd::ioctl_i32(fd, libc::FIONREAD).unwrap_or(0)
}

pub fn raw(fd: &OwnedFd) -> i32 {
    fd.as_raw_fd()
}
