//! sock_diag(7): who is connected with whom.

use super::fd as sysfd;
use super::{Sys, check};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const UDIAG_SHOW_NAME: u32 = 1;
const UDIAG_SHOW_VFS: u32 = 2;
const UDIAG_SHOW_PEER: u32 = 4;
const UDIAG_SHOW_ICONS: u32 = 8;
const UDIAG_SHOW_RQLEN: u32 = 16;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_VFS: u16 = 1;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_ICONS: u16 = 3;
const UNIX_DIAG_RQLEN: u16 = 4;
const UNIX_DIAG_SHUTDOWN: u16 = 6;

/// What sock_diag tells of one unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnixSocket {
    pub state: u8,
    /// Where it is bound; that of an accepted one is where it was accepted.
    pub name: Vec<u8>,
    /// The last 32 bits of the inode of its file, where it is bound to a path.
    pub file: Option<u32>,
    /// Inode of the peer; 0 when that is no file any more, or not yet: not accepted.
    pub peer: u64,
    /// Inodes of connections not yet accepted (of a listening socket).
    pub waiting: Vec<u64>,
    /// Listening: pending connections and backlog. Otherwise bytes queued.
    pub queue: (u32, u32),
    pub shutdown: u8,
}

/// All unix sockets of this network namespace, by inode.
pub fn unix_sockets() -> Sys<HashMap<u64, UnixSocket>> {
    let mut found = HashMap::new();
    dump(&unix_request(), &mut |body| {
        let (inode, socket) = unix_message(body);
        found.insert(inode, socket);
    })?;
    Ok(found)
}

/// A TCP connection of this network namespace that is open at this end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpConnection {
    /// This end.
    pub local: SocketAddr,
    /// 0 as long as nobody has accepted it.
    pub inode: u64,
}

/// All TCP connections of a family (AF_INET, AF_INET6) that are open at this end:
/// established, or closed by their peer only. Those that came by version 4 to a socket of
/// version 6 are of its family. Costs about a millisecond, and more where there are
/// thousands.
pub fn tcp_connections(family: i32) -> Sys<Vec<TcpConnection>> {
    let mut found = Vec::new();
    dump(&tcp_request(family as u8), &mut |body| {
        found.extend(tcp_message(body));
    })?;
    Ok(found)
}

/// What sock_diag tells of one end of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpEnd {
    pub inode: u64,
    /// From the next byte that is read to the next that comes, by their numbers; an end
    /// that has come is one, too.
    pub unread: u32,
    /// It has keys to sign by (TCP_MD5SIG); told to who has CAP_NET_ADMIN.
    pub signs: bool,
}

/// Asks for single TCP connections of one network namespace.
#[derive(Debug)]
pub struct TcpEnds(OwnedFd);

impl TcpEnds {
    /// Of this thread's.
    pub fn open() -> Sys<TcpEnds> {
        asking().map(TcpEnds)
    }

    /// Of these addresses, here and there; `device` where the socket is bound to one.
    /// ENOENT: there is none.
    pub fn find(&self, own: SocketAddr, peer: SocketAddr, device: u32) -> Sys<TcpEnd> {
        let request = request(libc::NLM_F_REQUEST, &tcp_end_request(own, peer, device));
        send(self.0.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut buffer = vec![0u8; 64 * 1024];
        let got = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut found = None;
        messages(&buffer[..got], &mut |body| found = found.or(tcp_end_message(body)))?;
        found.ok_or(Errno::ENOENT)
    }
}

/// What sock_diag tells of one netlink socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetlinkSocket {
    pub state: u8,
    /// The kernel is in the middle of a long answer.
    pub answering: bool,
    pub all_namespaces: bool,
}

/// The netlink sockets of a protocol in this network namespace, by inode: those that are
/// bound or in a group.
pub fn netlink_sockets(protocol: u8) -> Sys<HashMap<u64, NetlinkSocket>> {
    let mut found = HashMap::new();
    dump(&netlink_request(protocol), &mut |body| {
        found.extend(netlink_message(body));
    })?;
    Ok(found)
}

/// What sock_diag tells of one packet socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketSocket {
    /// It gets packets: it has a protocol, and its device is up.
    pub running: bool,
    pub rings: bool,
    pub fanout: bool,
    /// `struct packet_mreq` of each, as often as it was asked for.
    pub memberships: Vec<Vec<u8>>,
}

/// The packet sockets of this network namespace, by inode.
pub fn packet_sockets() -> Sys<HashMap<u64, PacketSocket>> {
    let mut found = HashMap::new();
    dump(&packet_request(), &mut |body| {
        found.extend(packet_message(body));
    })?;
    Ok(found)
}

fn asking() -> Sys<OwnedFd> {
    netlink(libc::NETLINK_SOCK_DIAG)
}

/// A socket to ask the kernel by, of this thread's network namespace (netlink(7)).
pub fn netlink(protocol: i32) -> Sys<OwnedFd> {
    sysfd::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol)
}

/// All that there are.
fn dump(asked: &[u8], each: &mut impl FnMut(&[u8])) -> Sys<()> {
    dump_all(libc::NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, asked, each)
}

/// All that a request of this kind lists, message by message (netlink(7)).
pub fn dump_all(protocol: i32, kind: u16, asked: &[u8], each: &mut impl FnMut(&[u8])) -> Sys<()> {
    let fd = netlink(protocol)?;
    let request = request_of(kind, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, asked);
    send(fd.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut buffer = vec![0u8; 256 * 1024];
    loop {
        let got = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if !messages(&buffer[..got], each)? {
            return Ok(());
        }
    }
}

/// Sends requests that are acknowledged, which the kernel is done with when they are sent. The
/// first error counts.
pub fn order(fd: &OwnedFd, requests: &[u8]) -> Sys<()> {
    send(fd.as_raw_fd(), requests, MsgFlags::empty())?;
    let mut buffer = vec![0u8; 64 * 1024];
    let mut first = Ok(());
    loop {
        let got = match recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN) => return first,
            got => got?,
        };
        let code = buffer[..got].get(16..20).and_then(|code| code.try_into().ok());
        match code.map_or(-libc::EBADMSG, i32::from_ne_bytes) {
            0 => {}
            code => first = first.and(Err(Errno::from_raw(code.wrapping_neg()))),
        }
    }
}

/// `nlmsghdr` before what is asked for.
fn request(flags: i32, body: &[u8]) -> Vec<u8> {
    request_of(SOCK_DIAG_BY_FAMILY, flags, body)
}

pub fn request_of(kind: u16, flags: i32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&(16 + body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&(flags as u16).to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(body);
    bytes
}

/// `unix_diag_req`, asking for every socket in every state.
fn unix_request() -> Vec<u8> {
    let mut bytes = vec![libc::AF_UNIX as u8, 0, 0, 0];
    bytes.extend_from_slice(&u32::MAX.to_le_bytes());
    bytes.extend_from_slice(&0u32.to_le_bytes());
    let show = UDIAG_SHOW_NAME | UDIAG_SHOW_VFS | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN;
    bytes.extend_from_slice(&show.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes
}

/// `inet_diag_req_v2`, asking for the states TCP_ESTABLISHED and TCP_CLOSE_WAIT.
fn tcp_request(family: u8) -> Vec<u8> {
    let mut bytes = vec![family, libc::IPPROTO_TCP as u8, 0, 0];
    bytes.extend_from_slice(&(1u32 << 1 | 1 << 8).to_le_bytes());
    bytes.extend_from_slice(&[0; 48]);
    bytes
}

/// `inet_diag_req_v2`, asking for one by its addresses.
fn tcp_end_request(own: SocketAddr, peer: SocketAddr, device: u32) -> Vec<u8> {
    let family = if own.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // INET_DIAG_INFO: keys are told beside it only.
    const INFO: u8 = 1 << 1;
    let mut bytes = vec![family as u8, libc::IPPROTO_TCP as u8, INFO, 0];
    bytes.extend_from_slice(&u32::MAX.to_le_bytes());
    bytes.extend_from_slice(&own.port().to_be_bytes());
    bytes.extend_from_slice(&peer.port().to_be_bytes());
    for end in [own, peer] {
        let mut ip = [0; 16];
        match end.ip() {
            IpAddr::V4(four) => ip[..4].copy_from_slice(&four.octets()),
            IpAddr::V6(six) => ip = six.octets(),
        }
        bytes.extend_from_slice(&ip);
    }
    bytes.extend_from_slice(&device.to_le_bytes());
    // INET_DIAG_NOCOOKIE
    bytes.extend_from_slice(&[0xff; 8]);
    bytes
}

/// `inet_diag_msg`: families and states, the addresses, then words.
fn tcp_end_message(body: &[u8]) -> Option<TcpEnd> {
    const INET_DIAG_MD5SIG: u16 = 18;
    let head = body.get(..72)?;
    Some(TcpEnd {
        inode: u64::from(u32_at(head, 68)),
        unread: u32_at(head, 56),
        signs: attributes(&body[72..]).any(|(kind, _)| kind == INET_DIAG_MD5SIG),
    })
}

/// `netlink_diag_req`, asking for the flags of each.
fn netlink_request(protocol: u8) -> Vec<u8> {
    const NDIAG_SHOW_FLAGS: u32 = 16;
    shown_request(libc::AF_NETLINK, protocol, NDIAG_SHOW_FLAGS)
}

/// What the two are alike in: family, protocol, no inode, what is to be shown, no cookie.
fn shown_request(family: i32, protocol: u8, show: u32) -> Vec<u8> {
    let mut bytes = vec![family as u8, protocol, 0, 0];
    bytes.extend_from_slice(&0u32.to_le_bytes());
    bytes.extend_from_slice(&show.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes
}

/// `netlink_diag_msg`, by inode.
fn netlink_message(body: &[u8]) -> Option<(u64, NetlinkSocket)> {
    const NETLINK_DIAG_FLAGS: u16 = 4;
    const CB_RUNNING: u32 = 1;
    const LISTEN_ALL_NSID: u32 = 16;
    let head = body.get(..28)?;
    let flags = attributes(&body[28..]).find(|(kind, value)| *kind == NETLINK_DIAG_FLAGS && value.len() >= 4);
    let flags = flags.map_or(0, |(_, value)| u32_at(value, 0));
    let socket = NetlinkSocket {
        state: head[3],
        answering: flags & CB_RUNNING != 0,
        all_namespaces: flags & LISTEN_ALL_NSID != 0,
    };
    Some((u64::from(u32_at(head, 16)), socket))
}

/// `packet_diag_req`, asking for all of it but filters and memory.
fn packet_request() -> Vec<u8> {
    const PACKET_SHOW: u32 = 1 | 2 | 4 | 8;
    shown_request(libc::AF_PACKET, 0, PACKET_SHOW)
}

/// `packet_diag_msg`, by inode.
fn packet_message(body: &[u8]) -> Option<(u64, PacketSocket)> {
    const PACKET_DIAG_INFO: u16 = 0;
    const PACKET_DIAG_MCLIST: u16 = 1;
    const PACKET_DIAG_RX_RING: u16 = 2;
    const PACKET_DIAG_TX_RING: u16 = 3;
    const PACKET_DIAG_FANOUT: u16 = 4;
    const PDI_RUNNING: u32 = 1;
    let head = body.get(..16)?;
    let mut socket = PacketSocket::default();
    for (kind, value) in attributes(&body[16..]) {
        match kind {
            // `packet_diag_info`: the last of six words are flags.
            PACKET_DIAG_INFO if value.len() >= 24 => socket.running = u32_at(value, 20) & PDI_RUNNING != 0,
            // `packet_diag_mclist`: device, count, type and length, up to 32 bytes of address.
            PACKET_DIAG_MCLIST => {
                let entries = value.as_chunks::<44>().0.iter();
                let each = entries.flat_map(|entry| {
                    let mreq = [&entry[..4], &entry[8..12], &entry[12..20]].concat();
                    std::iter::repeat_n(mreq, u32_at(entry, 4).min(0xffff) as usize)
                });
                socket.memberships.extend(each);
            }
            PACKET_DIAG_RX_RING | PACKET_DIAG_TX_RING => socket.rings = true,
            PACKET_DIAG_FANOUT => socket.fanout = true,
            _ => {}
        }
    }
    Some((u64::from(u32_at(head, 4)), socket))
}

/// `struct nlattr`, padded.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = [(4 + value.len() as u16).to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// `nlattr`s: kind and value of each.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_le_bytes(*bytes.first_chunk()?));
        let value = bytes.get(4..len)?;
        let kind = u16_at(bytes, 2);
        bytes = &bytes[len.next_multiple_of(4).min(bytes.len())..];
        Some((kind, value))
    })
}

/// Reads one datagram of an answer; false once the dump is done.
pub fn messages(mut bytes: &[u8], each: &mut impl FnMut(&[u8])) -> Sys<bool> {
    while bytes.len() >= 16 {
        let len = u32_at(bytes, 0) as usize;
        if len < 16 || len > bytes.len() {
            return Err(Errno::EBADMSG);
        }
        match i32::from(u16_at(bytes, 4)) {
            libc::NLMSG_DONE => return Ok(false),
            libc::NLMSG_ERROR => {
                let code = bytes[16..len].first_chunk().map_or(0, |code| i32::from_le_bytes(*code));
                return Err(Errno::from_raw(code.wrapping_neg()));
            }
            _ => each(&bytes[16..len]),
        }
        bytes = &bytes[len.next_multiple_of(4).min(bytes.len())..];
    }
    Ok(true)
}

/// `inet_diag_msg`.
pub fn tcp_message(body: &[u8]) -> Option<TcpConnection> {
    let (port, ip) = (body.get(4..6)?, body.get(8..24)?);
    let ip: [u8; 16] = ip.try_into().ok()?;
    let ip = match i32::from(body[0]) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3])),
        _ => Ipv6Addr::from(ip).to_canonical(),
    };
    let local = SocketAddr::new(ip, u16::from_be_bytes(port.try_into().ok()?));
    let inode = body.get(68..72)?;
    let inode = u64::from(u32::from_le_bytes(inode.try_into().ok()?));
    Some(TcpConnection { local, inode })
}

/// `unix_diag_msg`, by inode.
pub fn unix_message(body: &[u8]) -> (u64, UnixSocket) {
    let mut socket = UnixSocket::default();
    if body.len() < 16 {
        return (0, socket);
    }
    socket.state = body[2];
    let inode = u64::from(u32_at(body, 4));
    for (kind, value) in attributes(&body[16..]) {
        match kind {
            UNIX_DIAG_NAME => socket.name = value.to_vec(),
            UNIX_DIAG_VFS if value.len() >= 8 => socket.file = Some(u32_at(value, 0)),
            UNIX_DIAG_PEER if value.len() >= 4 => socket.peer = u64::from(u32_at(value, 0)),
            UNIX_DIAG_ICONS => {
                socket.waiting = value.chunks_exact(4).map(|c| u64::from(u32_at(c, 0))).collect();
            }
            UNIX_DIAG_RQLEN if value.len() >= 8 => {
                socket.queue = (u32_at(value, 0), u32_at(value, 4));
            }
            UNIX_DIAG_SHUTDOWN if !value.is_empty() => socket.shutdown = value[0],
            _ => {}
        }
    }
    (inode, socket)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// getsockopt(2) as raw bytes, at most `max`.
pub fn getsockopt(fd: &impl AsRawFd, level: i32, name: i32, max: usize) -> Sys<Vec<u8>> {
    let mut value = vec![0u8; max];
    let mut len = max as libc::socklen_t;
    // SAFETY: `value` is live and `len` is its length.
    check(i64::from(unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &mut len)
    }))?;
    value.truncate(len as usize);
    Ok(value)
}

/// getsockopt(2) of what is named in the value itself, which holds the answer then.
pub fn getsockopt_of(fd: &impl AsRawFd, level: i32, name: i32, value: &mut [u8]) -> Sys<()> {
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: `value` is live and `len` is its length.
    check(i64::from(unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &mut len)
    }))
    .map(drop)
}

pub fn getsockopt_i32(fd: &impl AsRawFd, level: i32, name: i32) -> Sys<i32> {
    let value = getsockopt(fd, level, name, 4)?;
    Ok(value.try_into().map_or(0, i32::from_le_bytes))
}

/// `struct sock_filter`.
pub const INSTRUCTION_BYTES: usize = 8;

/// The classic filter that is attached to a socket: 8 bytes an instruction; empty where
/// there is none. EACCES: it is none of these (eBPF).
pub fn socket_filter(fd: &impl AsRawFd) -> Sys<Vec<u8>> {
    let get = |to: *mut u8, mut count: libc::socklen_t| {
        // SAFETY: `to` has room for `count` instructions, in which the kernel counts here.
        let got = unsafe {
            libc::getsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_GET_FILTER,
                to.cast(),
                &mut count,
            )
        };
        check(i64::from(got)).map(|_| count)
    };
    let count = get(std::ptr::null_mut(), 0)?;
    let mut filter = vec![0u8; count as usize * INSTRUCTION_BYTES];
    if count > 0 && get(filter.as_mut_ptr(), count)? != count {
        return Err(Errno::EAGAIN);
    }
    Ok(filter)
}

/// Attaches such a filter.
pub fn attach_filter(fd: &impl AsRawFd, filter: &[u8]) -> Sys<()> {
    let mut code: Vec<libc::sock_filter> = Vec::with_capacity(filter.len() / 8);
    code.extend(filter.as_chunks::<8>().0.iter().map(|bytes| libc::sock_filter {
        code: u16_at(bytes, 0),
        jt: bytes[2],
        jf: bytes[3],
        k: u32_at(bytes, 4),
    }));
    let program = libc::sock_fprog {
        len: u16::try_from(code.len()).map_err(|_| Errno::EINVAL)?,
        filter: code.as_mut_ptr(),
    };
    // SAFETY: the program and its instructions are live.
    check(i64::from(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    }))
    .map(drop)
}

pub fn setsockopt(fd: &impl AsRawFd, level: i32, name: i32, value: &[u8]) -> Sys<()> {
    // SAFETY: `value` is live and its length is passed.
    check(i64::from(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    }))
    .map(drop)
}

/// getsockname(2) or getpeername(2) as raw address bytes.
pub fn address(fd: &impl AsRawFd, peer: bool) -> Sys<Vec<u8>> {
    let mut bytes = vec![0u8; 128];
    let mut len = 128 as libc::socklen_t;
    let to = bytes.as_mut_ptr().cast();
    // SAFETY: `bytes` is live and `len` is its length.
    let got = unsafe {
        if peer {
            libc::getpeername(fd.as_raw_fd(), to, &mut len)
        } else {
            libc::getsockname(fd.as_raw_fd(), to, &mut len)
        }
    };
    check(i64::from(got))?;
    bytes.truncate(len as usize);
    Ok(bytes)
}

/// bind(2) or connect(2) with raw address bytes.
pub fn set_address(fd: &impl AsRawFd, connect: bool, name: &[u8]) -> Sys<()> {
    let (at, len) = (name.as_ptr().cast(), name.len() as libc::socklen_t);
    // SAFETY: `name` is live and its length is passed.
    let got = unsafe {
        if connect {
            libc::connect(fd.as_raw_fd(), at, len)
        } else {
            libc::bind(fd.as_raw_fd(), at, len)
        }
    };
    check(i64::from(got)).map(drop)
}

/// A message looked at without taking it.
#[derive(Debug)]
pub struct Peeked {
    pub data: Vec<u8>,
    pub from: Vec<u8>,
    /// Process, user and group of the sender, where the socket asks for them.
    pub credentials: Option<(i32, u32, u32)>,
    /// Descriptors that came with it, as ours.
    pub rights: Vec<OwnedFd>,
    /// It carries more besides than there was room for.
    pub control: bool,
    /// The data did not fit.
    pub cut: bool,
}

/// recvmsg(2) with MSG_PEEK; `None` when there is nothing (left) to read.
pub fn peek_message(fd: &impl AsRawFd, max: usize) -> Sys<Option<Peeked>> {
    let mut data = vec![0u8; max];
    let mut from = [0u8; 128];
    let mut iov = libc::iovec {
        iov_base: data.as_mut_ptr().cast(),
        iov_len: max,
    };
    // SAFETY: all zeroes is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &mut iov;
    header.msg_iovlen = 1;
    header.msg_name = from.as_mut_ptr().cast();
    header.msg_namelen = 128;
    // Room for SCM_CREDENTIALS, SCM_MAX_FD descriptors, and a name of security.
    let mut control = [0u64; 256];
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header names live buffers with their lengths.
    let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &mut header, flags) };
    if got < 0 && Errno::last() == Errno::EAGAIN {
        return Ok(None);
    }
    data.truncate(check(got as libc::c_long)? as usize);
    let words = (header.msg_controllen as usize).div_ceil(8).min(control.len());
    let (credentials, rights) = beside(&control[..words]);
    Ok(Some(Peeked {
        data,
        from: from[..(header.msg_namelen as usize).min(128)].to_vec(),
        credentials,
        rights,
        control: header.msg_flags & libc::MSG_CTRUNC != 0,
        cut: header.msg_flags & libc::MSG_TRUNC != 0,
    }))
}

/// How much of the next `bytes` of a stream was written before the last of them was: the
/// kernel copies what was written at once in whole or not at all, and here the last byte
/// has no place.
pub fn peek_all_but_last(fd: &impl AsRawFd, bytes: usize) -> Sys<usize> {
    let Some(room) = bytes.checked_sub(1).filter(|room| *room > 0) else {
        return Ok(0);
    };
    let mut data = vec![0u8; room];
    let nowhere = std::ptr::without_provenance_mut(1);
    let mut pieces =
        [(data.as_mut_ptr().cast(), room), (nowhere, 1)].map(|(iov_base, iov_len)| libc::iovec { iov_base, iov_len });
    // SAFETY: all zeroes is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = pieces.as_mut_ptr();
    header.msg_iovlen = pieces.len();
    // SAFETY: the first piece is live; the second is no memory of ours, which the kernel
    // answers with EFAULT. There is no room for descriptors.
    let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &mut header, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    match check(got as libc::c_long) {
        Err(Errno::EFAULT) => Ok(0),
        other => other.map(|bytes| bytes as usize),
    }
}

/// Level and type of a control message, as its second word has them.
const fn control_kind(kind: i32) -> u64 {
    libc::SOL_SOCKET as u64 | (kind as u64) << 32
}
const CREDENTIALS: u64 = control_kind(libc::SCM_CREDENTIALS);
const RIGHTS: u64 = control_kind(libc::SCM_RIGHTS);
/// A pidfd of the sender, for who has set SO_PASSPIDFD (Linux 6.5).
const PIDFD: u64 = control_kind(4);

/// Credentials and descriptors of control messages: each is its length in bytes, level and
/// type, then what it says, to whole words.
fn beside(mut control: &[u64]) -> (Option<(i32, u32, u32)>, Vec<OwnedFd>) {
    let (mut credentials, mut rights) = (None, Vec::new());
    while let [len, kind, rest @ ..] = control {
        let Some(bytes) = (*len as usize).checked_sub(16) else {
            break;
        };
        let (said, next) = rest.split_at(bytes.div_ceil(8).min(rest.len()));
        let halves = said.iter().flat_map(|word| [*word as u32, (*word >> 32) as u32]);
        let mut halves = halves.take(bytes / 4);
        match *kind {
            CREDENTIALS => {
                let mut next = || halves.next().unwrap_or_default();
                credentials = Some((next() as i32, next(), next()));
            }
            // SAFETY: the kernel has just made these descriptors for us, and nobody else knows them.
            RIGHTS => rights.extend(halves.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })),
            // SAFETY: as above; a negative one stands for none.
            PIDFD => halves
                .filter(|fd| (*fd as i32) >= 0)
                .for_each(|fd| drop(unsafe { OwnedFd::from_raw_fd(fd as i32) })),
            _ => {}
        }
        control = next;
    }
    (credentials, rights)
}

/// sendmsg(2) without blocking: to an address, with credentials, where given, and with
/// descriptors.
pub fn send_message(
    fd: &impl AsRawFd,
    data: &[u8],
    to: Option<&[u8]>,
    credentials: Option<(i32, u32, u32)>,
    rights: &[BorrowedFd<'_>],
) -> Sys<usize> {
    let mut iov = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: all zeroes is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &mut iov;
    header.msg_iovlen = 1;
    if let Some(to) = to {
        header.msg_name = to.as_ptr().cast_mut().cast();
        header.msg_namelen = to.len() as libc::socklen_t;
    }
    let mut control = Vec::new();
    let mut add = |kind: u64, said: &[u32]| {
        control.extend([16 + 4 * said.len() as u64, kind]);
        control.extend(
            said.chunks(2)
                .map(|half| u64::from(half[0]) | u64::from(*half.get(1).unwrap_or(&0)) << 32),
        );
    };
    if let Some((pid, uid, gid)) = credentials {
        add(CREDENTIALS, &[pid as u32, uid, gid]);
    }
    if !rights.is_empty() {
        let numbers: Vec<u32> = rights.iter().map(|fd| fd.as_raw_fd() as u32).collect();
        add(RIGHTS, &numbers);
    }
    if !control.is_empty() {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control[..]);
    }
    // SAFETY: the header names live buffers with their lengths; the kernel only
    // reads them.
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    check(sent as libc::c_long).map(|n| n as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_and_a_cut_one_too() {
        let mut message = [20u32.to_le_bytes(), 2u32.to_le_bytes(), [0; 4], [0; 4]].concat();
        let mut each = |_: &[u8]| panic!("there is none");
        message.extend((-libc::EPERM).to_le_bytes());
        assert_eq!(messages(&message, &mut each), Err(Errno::EPERM));
        message[16..].copy_from_slice(&i32::MIN.to_le_bytes());
        assert!(messages(&message, &mut each).is_err());
        message[0] = 16;
        assert!(messages(&message[..16], &mut each).is_err());
    }

    /// One that waits, one that was accepted, and none that was closed here.
    #[test]
    fn connections_are_told() {
        for (ip, family) in [("127.0.0.1", libc::AF_INET), ("::1", libc::AF_INET6)] {
            let listener = std::net::TcpListener::bind((ip, 0)).unwrap();
            let local = listener.local_addr().unwrap();
            let here = || -> Vec<TcpConnection> {
                let all = tcp_connections(family).unwrap();
                all.into_iter().filter(|one| one.local == local).collect()
            };
            assert_eq!(here(), []);
            let mut peer = std::net::TcpStream::connect(local).unwrap();
            assert_eq!(here(), [TcpConnection { local, inode: 0 }]);
            let (mut accepted, client) = listener.accept().unwrap();
            let end = || TcpEnds::open().unwrap().find(client, local, 0).unwrap();
            assert_eq!((end().unread, end().signs), (0, false));
            std::io::Write::write_all(&mut accepted, b"four").unwrap();
            assert_eq!(end().unread, 4);
            std::io::Read::read_exact(&mut peer, &mut [0; 4]).unwrap();
            assert_eq!(end().unread, 0);
            let none = TcpEnds::open().unwrap().find(client, client, 0);
            assert!(none.is_err() || none.unwrap().inode != end().inode);
            assert!(matches!(here()[..], [one] if one.inode != 0));
            drop(peer);
            assert_eq!(here().len(), 1, "closed by its peer only");
            drop(accepted);
            assert_eq!(here(), []);
        }
    }

    #[test]
    fn unix_sockets_have_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let _waits = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let _open = (
            std::os::unix::net::UnixStream::connect(&path).unwrap(),
            listener.accept().unwrap(),
        );
        let name = path.as_os_str().as_encoded_bytes();
        let all = unix_sockets().unwrap();
        let here: Vec<&UnixSocket> = all.values().filter(|socket| socket.name.starts_with(name)).collect();
        let queues: u32 = here
            .iter()
            .filter(|socket| socket.state == 10)
            .map(|socket| socket.queue.0)
            .sum();
        assert_eq!((here.len(), queues), (2, 1), "{here:?}");
    }
}
