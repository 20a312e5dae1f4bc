//! TCP and UDP sockets (tcp(7), udp(7)).
//!
//! Listening and unconnected sockets are bound again, Multipath TCP ones where they
//! listen; the listen backlog is read from TCP_INFO. A connection inside the app is kept
//! ([`super::tcp`]); one whose peer is outside is refused, kept too
//! (`--tcp=established`), or restored as closed by its peer (`--tcp=close`). Queued datagrams are peeked at
//! and sent again, by the app's own socket that has the sender's address or by
//! one that has it for that moment; sockets are connected after that, since a
//! connected one takes from its peer only.
//! Refused: datagrams held back (UDP_CORK, MSG_MORE) or from an address that this
//! host cannot take, keys of a socket that listens, connections that nobody has accepted yet, what a raw socket
//! (raw(7)) has not read yet, other sockets.

use super::{Context, Description, Refused, held, refused, sockets};
use crate::error::{Error, Kind, OrFail, Result};
use crate::ids::FileId;
use crate::image::records::{FileKind, Manifest, SocketRecord, SocketState};
use crate::kernel_memory::{KernelMemory, Unread};
use crate::nsthread;
use crate::proc;
use crate::sys::fd as sysfd;
use crate::sys::{Sys, diag};
use crate::target::TcpPolicy;
use nix::poll::PollFlags;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};

const TCP_ESTABLISHED: u8 = 1;
const TCP_CLOSE_WAIT: u8 = 8;
const TCP_SYN_SENT: u8 = 2;
const TCP_SYN_RECV: u8 = 3;
const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;
/// Offsets in `struct tcp_info`; of a listening socket these two hold the
/// connections waiting and the backlog.
const TCPI_UNACKED: usize = 24;
const TCPI_SACKED: usize = 28;
/// Bytes acknowledged and received (Linux 4.1).
const TCPI_BYTES: std::ops::Range<usize> = 120..136;

pub fn socket(domain: i32, kind: i32, protocol: i32) -> Sys<OwnedFd> {
    sysfd::socket(domain, kind | libc::SOCK_CLOEXEC, protocol)
}

pub fn capture(context: &Context<'_>, description: &Description, record: &mut SocketRecord) -> Result<(), Refused> {
    record.state = match (record.kind, record.protocol) {
        (libc::SOCK_STREAM, libc::IPPROTO_TCP) => tcp(context, description, record)?,
        (libc::SOCK_DGRAM, libc::IPPROTO_UDP) => udp(context, description, record)?,
        // TCP_INFO tells of its first path only.
        (libc::SOCK_STREAM, libc::IPPROTO_MPTCP) if sockets::listens(&description.dup) => {
            tcp(context, description, record)?
        }
        (libc::SOCK_STREAM, libc::IPPROTO_MPTCP) => {
            return refused(
                "Multipath TCP sockets are not carried yet, but for listening ones",
                "close it, or turn MPTCP off in the app (GODEBUG=multipathtcp=0)",
            );
        }
        (libc::SOCK_RAW, _) => raw(context, description)?,
        (kind, protocol) => {
            return refused(
                format!("IP sockets of type {kind}, protocol {protocol} are not carried"),
                "close it before the snapshot",
            );
        }
    };
    if matches!(
        record.state,
        SocketState::Fresh | SocketState::Bound { .. } | SocketState::Connected { .. }
    ) {
        record.shutdown = shut_down(&description.dup);
    }
    Ok(())
}

/// Which directions shutdown(2) has ended, also of a socket that was not connected: of one alone only
/// the kernel's memory tells that it sends no more.
fn shut_down(socket: &OwnedFd) -> u8 {
    let kept = || {
        let (kernel, sock) = in_kernel(socket)?;
        kernel.u8(sock, "sock.sk_shutdown")
    };
    let shown = |_: Unread| {
        let events = sysfd::events(socket, libc::POLLRDHUP).unwrap_or(0);
        let both = events & libc::POLLHUP != 0 && events & libc::POLLRDHUP != 0;
        u8::from(events & libc::POLLRDHUP != 0) | if both { 2 } else { 0 }
    };
    kept().unwrap_or_else(shown) & 3
}

/// Where the kernel keeps it (`struct sock`).
pub(super) fn in_kernel(socket: &OwnedFd) -> Result<(KernelMemory, u64), Unread> {
    let kernel = KernelMemory::open()?;
    let socket = kernel.u64(kernel.file(socket)?, "file.private_data")?;
    let sock = kernel.u64(socket, "socket.sk")?;
    Ok((kernel, sock))
}

/// Whether it has keys: TCP_AO_INFO answers only who has some (Linux 6.7), and those of
/// TCP_MD5SIG stand in the kernel's memory alone.
fn signs(description: &Description) -> bool {
    let has_md5 = || {
        let (kernel, sock) = in_kernel(&description.dup)?;
        Ok::<_, Unread>(kernel.u64(sock, "tcp_sock.md5sig_info")? != 0)
    };
    diag::getsockopt(&description.dup, libc::IPPROTO_TCP, super::tcp::TCP_AO_INFO, 64).is_ok()
        || has_md5().unwrap_or(false)
}

fn name_of(description: &Description) -> Vec<u8> {
    diag::address(&description.dup, false).unwrap_or_default()
}

fn is_bound(name: &[u8]) -> bool {
    name.get(2..4).is_some_and(|port| port != [0, 0])
}

fn tcp(context: &Context<'_>, description: &Description, record: &mut SocketRecord) -> Result<SocketState, Refused> {
    if let Some(end) = context.tcp.get(description.id) {
        return Ok(end.clone()?.record(name_of(description), record));
    }
    let info = diag::getsockopt(&description.dup, libc::IPPROTO_TCP, libc::TCP_INFO, 256)
        .map_err(|e| (format!("its state cannot be read: {e}"), "try again".to_owned()))?;
    let word = |at: usize| {
        info.get(at..at + 4)
            .map_or(0, |b| i32::from_le_bytes(b.try_into().unwrap_or_default()))
    };
    if record.protocol == libc::IPPROTO_TCP && signs(description) {
        return refused(
            "keys are set for it to sign by (TCP_MD5SIG, TCP-AO), which are not carried yet",
            "let the app set them when it connects or accepts, or close it before the snapshot",
        );
    }
    // One that has ended is no fresh one, though it has no peer any more.
    let carried = info.get(TCPI_BYTES).is_some_and(|bytes| bytes != [0; 16]);
    let name = name_of(description);
    match info.first().copied().unwrap_or(0) {
        TCP_LISTEN
            if word(TCPI_UNACKED) > 0
                && context.options.tcp != TcpPolicy::Close
                && !context.held.is_held(&description.dup) =>
        {
            refused(
                format!("{} connections to it are not accepted yet", word(TCPI_UNACKED)),
                "try again, or pass --tcp=close",
            )
        }
        TCP_LISTEN => Ok(SocketState::Listening {
            name,
            file: None,
            backlog: word(TCPI_SACKED),
        }),
        TCP_CLOSE if !carried && diag::address(&description.dup, true).is_err() => Ok(if is_bound(&name) {
            SocketState::Bound { name, file: None }
        } else {
            SocketState::Fresh
        }),
        state @ (TCP_ESTABLISHED | TCP_CLOSE_WAIT) if context.held.is_held(&description.dup) => {
            held_open(context, description, name, state)
        }
        _ if may_close(context, description, &name) => Ok(SocketState::Severed),
        state => refused(
            format!(
                "a TCP connection {} ({})",
                endpoints(description),
                if state == TCP_ESTABLISHED {
                    "established"
                } else {
                    "closing"
                }
            ),
            "close the connection first, or pass --tcp=established or --tcp=close",
        ),
    }
}

/// A connection that somebody holds. Nothing may be under way: whom it is for would wait for
/// somebody else's next word. Nor anything to be read or told of it: that would wake it at once.
/// One that its peer has ended comes back so.
fn held_open(
    context: &Context<'_>,
    description: &Description,
    name: Vec<u8>,
    state: u8,
) -> Result<SocketState, Refused> {
    let dup = &description.dup;
    let quiet = under_way(dup, context.held.is_port(&name)) == Ok(false);
    let told = PollFlags::POLLIN | PollFlags::POLLPRI | PollFlags::POLLERR;
    match (state, quiet, diag::address(dup, true), held::cookie(dup)) {
        (TCP_CLOSE_WAIT, true, ..) => Ok(SocketState::Severed),
        (TCP_ESTABLISHED, true, Ok(peer), Ok(cookie)) if !sockets::has(dup, told) => {
            Ok(SocketState::Carried { name, peer, cookie })
        }
        _ => refused(
            format!(
                "something is under way over a TCP connection {}",
                endpoints(description)
            ),
            "try again once it is answered",
        ),
    }
}

fn may_close(context: &Context<'_>, description: &Description, name: &[u8]) -> bool {
    match context.options.tcp {
        TcpPolicy::Refuse | TcpPolicy::Established => false,
        TcpPolicy::Close => true,
        TcpPolicy::CloseIdle { accepted, made } => {
            let came = context.held.is_port(name);
            (if came { accepted } else { made }) && under_way(&description.dup, came).is_ok_and(|is| !is)
        }
    }
}

/// Whether something is under way over a TCP connection: bytes that one side has not read or
/// not got yet, or a request without an answer. Of one that was accepted that is what came
/// after the last bytes that were sent, of another one what was sent after the last that came.
/// Both in one tick of the kernel are taken for a request and its answer.
///
/// TCP_INFO, with segments of data since Linux 4.6; SIOCINQ and SIOCOUTQ (tcp(7)).
pub fn under_way(socket: &OwnedFd, accepted: bool) -> Sys<bool> {
    const SIOCINQ: u64 = 0x541b;
    const SIOCOUTQ: u64 = 0x5411;
    /// Milliseconds since data was sent and since it came, and segments of it.
    const SENT_AGO: usize = 44;
    const CAME_AGO: usize = 52;
    const CAME: usize = 152;
    const SENT: usize = 156;
    let info = diag::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, 256)?;
    let word = |at: usize| {
        let word = info.get(at..at + 4).and_then(|word| word.try_into().ok());
        word.map_or(0, u32::from_le_bytes)
    };
    if [TCP_SYN_SENT, TCP_SYN_RECV].contains(info.first().unwrap_or(&0)) {
        return Ok(true);
    }
    let queued = sysfd::ioctl_i32(socket, SIOCINQ)? + sysfd::ioctl_i32(socket, SIOCOUTQ)?;
    if queued > 0 {
        return Ok(true);
    }
    let (asked, answered) = ((word(CAME), word(CAME_AGO)), (word(SENT), word(SENT_AGO)));
    let ((asked, asked_ago), (answered, answered_ago)) = match accepted {
        true => (asked, answered),
        false => (answered, asked),
    };
    Ok(asked > 0 && (answered == 0 || asked_ago < answered_ago))
}

/// `127.0.0.1:6379 <- 127.0.0.1:40122`, for people.
fn endpoints(description: &Description) -> String {
    let show = |peer| {
        diag::address(&description.dup, peer)
            .ok()
            .and_then(|raw| show_address(&raw))
    };
    format!(
        "{} <- {}",
        show(false).unwrap_or_else(|| "?".into()),
        show(true).unwrap_or_else(|| "?".into())
    )
}

/// Text of a raw IPv4 or IPv6 socket address.
pub fn show_address(raw: &[u8]) -> Option<String> {
    let port = u16::from_be_bytes(raw.get(2..4)?.try_into().ok()?);
    match i32::from(u16::from_le_bytes(raw.get(..2)?.try_into().ok()?)) {
        libc::AF_INET => {
            let ip: [u8; 4] = raw.get(4..8)?.try_into().ok()?;
            Some(format!("{}:{port}", std::net::Ipv4Addr::from(ip)))
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = raw.get(8..24)?.try_into().ok()?;
            Some(format!("[{}]:{port}", std::net::Ipv6Addr::from(ip)))
        }
        _ => None,
    }
}

fn udp(context: &Context<'_>, description: &Description, record: &mut SocketRecord) -> Result<SocketState, Refused> {
    if context.frozen.is_some() {
        if sysfd::ioctl_i32(&description.dup, libc::TIOCOUTQ).unwrap_or(0) > 0 {
            return refused(
                "a datagram that it is sending is held back (UDP_CORK, MSG_MORE) or on its way",
                "let the app send it, then try again",
            );
        }
        if sockets::readable(&description.dup) {
            record.queue = sockets::peek_queue(context, description)?;
        }
        sendable(context, description, record)?;
    }
    let name = name_of(description);
    Ok(match diag::address(&description.dup, true) {
        Ok(peer) => SocketState::Connected { name, peer },
        Err(_) if is_bound(&name) => SocketState::Bound { name, file: None },
        Err(_) => SocketState::Fresh,
    })
}

/// The port of its address is its protocol's number.
fn raw(context: &Context<'_>, description: &Description) -> Result<SocketState, Refused> {
    if sockets::readable(&description.dup) {
        return refused("packets are queued in it", "let the app receive them, then try again");
    }
    let name = name_of(description);
    Ok(match diag::address(&description.dup, true) {
        Ok(peer) => SocketState::Connected { name, peer },
        // Without a port the kernel does not tell of its peer.
        Err(_) if is_connected_raw(context, description) => {
            return refused(
                "it is connected to an address without a port, which cannot be told",
                "connect it with a port that is not 0, or close it",
            );
        }
        Err(_) if has_address(&name) => SocketState::Bound { name, file: None },
        Err(_) => SocketState::Fresh,
    })
}

/// By `/proc/net/raw` and `raw6`: `2: 00000000:0001 0100007F:0000 01 ... inode`.
fn is_connected_raw(context: &Context<'_>, description: &Description) -> bool {
    const INODE: usize = 9;
    let inode = description.found.key.1.to_string();
    let pid = context.beside(&description.dup);
    let texts = ["net/raw", "net/raw6"].map(|name| proc::text(pid, name).unwrap_or_default());
    let mut lines = texts
        .iter()
        .flat_map(|text| text.lines())
        .map(|line| line.split_whitespace().collect());
    let own = lines.find(|words: &Vec<&str>| words.get(INODE) == Some(&inode.as_str()));
    own.is_none_or(|words| words[2].bytes().any(|digit| digit != b'0' && digit != b':'))
}

fn has_address(name: &[u8]) -> bool {
    let address = match name.len() {
        16 => &name[4..8],
        28 => &name[8..24],
        _ => &[],
    };
    address.iter().any(|byte| *byte != 0)
}

/// Whether each queued datagram can be sent again from where it came, and will
/// reach this socket.
fn sendable(context: &Context<'_>, description: &Description, record: &SocketRecord) -> Result<(), Refused> {
    let drain = "let the app read them, then try again";
    if record.queue.is_empty() {
        return Ok(());
    }
    if diag::getsockopt_i32(&description.dup, libc::SOL_SOCKET, libc::SO_REUSEPORT) == Ok(1) {
        return refused(
            "datagrams are queued in it, and it may share its port (SO_REUSEPORT)",
            drain,
        );
    }
    let inside = |from: &[u8]| {
        context.descriptions.iter().any(|d| {
            d.found.link.starts_with("socket:")
                && is_udp(d)
                && name_of(d) == from
                && sockets::share_network(&d.dup, &description.dup)
        })
    };
    let outside = record
        .queue
        .iter()
        .map(|message| message.from.as_slice())
        .filter(|from| !inside(from));
    for from in outside.collect::<std::collections::BTreeSet<_>>() {
        let beside = nsthread::inside(context.beside(&description.dup), &["net"], || {
            stand_in(record.domain, from)
        });
        if let Ok(Err(errno)) = beside {
            return refused(
                format!(
                    "datagrams from {} are queued in it, an address this host cannot take: {errno}",
                    shown(from)
                ),
                drain,
            );
        }
    }
    Ok(())
}

fn is_udp(description: &Description) -> bool {
    let get = |name| diag::getsockopt_i32(&description.dup, libc::SOL_SOCKET, name).unwrap_or(-1);
    get(libc::SO_PROTOCOL) == libc::IPPROTO_UDP && get(libc::SO_TYPE) == libc::SOCK_DGRAM
}

/// A socket that has the address of a sender outside the app.
fn stand_in(domain: i32, from: &[u8]) -> Sys<OwnedFd> {
    let made = socket(domain, libc::SOCK_DGRAM, libc::IPPROTO_UDP)?;
    let on = 1i32.to_le_bytes();
    diag::setsockopt(&made, libc::SOL_SOCKET, libc::SO_REUSEADDR, &on)?;
    match domain {
        libc::AF_INET => diag::setsockopt(&made, libc::IPPROTO_IP, libc::IP_TRANSPARENT, &on)?,
        _ => diag::setsockopt(&made, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, &on)?,
    }
    diag::set_address(&made, false, from)?;
    Ok(made)
}

/// Once all sockets of this network are bound: what was queued, then who is connected.
pub fn finish(made: &HashMap<FileId, OwnedFd>, manifest: &Manifest, network: Option<u32>) -> Result<()> {
    let records = || {
        manifest.files.iter().filter_map(|file| match &file.kind {
            FileKind::Socket(record)
                if record.protocol == libc::IPPROTO_UDP
                    && record.domain != libc::AF_UNIX
                    && record.network == network =>
            {
                Some((&made[&file.id], &**record))
            }
            _ => None,
        })
    };
    let names: Vec<(Vec<u8>, &OwnedFd)> = records()
        .map(|(fd, _)| (diag::address(fd, false).unwrap_or_default(), fd))
        .collect();
    for (fd, record) in records().filter(|(_, record)| !record.queue.is_empty()) {
        deliver(fd, record, &names)
            .or_fail(|| format!("cannot put back the datagrams queued in socket {}", record.ino))?;
    }
    for (fd, record) in records() {
        if let SocketState::Connected { peer, .. } = &record.state {
            diag::set_address(fd, true, peer).or_fail(|| format!("cannot connect UDP to {}", shown(peer)))?;
        }
        sockets::shut_down_again(fd, record);
    }
    Ok(())
}

fn deliver(fd: &OwnedFd, record: &SocketRecord, names: &[(Vec<u8>, &OwnedFd)]) -> Sys<()> {
    let to = reachable(diag::address(fd, false)?);
    for message in &record.queue {
        let sent = match names.iter().find(|(name, _)| *name == message.from) {
            Some((_, sender)) => diag::send_message(*sender, &message.data, Some(&to), None, &[]),
            None => diag::send_message(
                &stand_in(record.domain, &message.from)?,
                &message.data,
                Some(&to),
                None,
                &[],
            ),
        };
        if sent? != message.data.len() {
            return Err(nix::Error::EMSGSIZE);
        }
    }
    // SK_MEMINFO_DROPS: datagrams for which there was no room.
    const DROPS: usize = 8;
    let info = diag::getsockopt(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, 64)?;
    let dropped = info.as_chunks::<4>().0.get(DROPS).is_some_and(|drops| *drops != [0; 4]);
    if dropped || !sockets::readable(fd) {
        Err(nix::Error::ENOBUFS)
    } else {
        Ok(())
    }
}

/// An address that leads to a socket bound to this name: to the host itself
/// where it is bound to no address.
fn reachable(mut name: Vec<u8>) -> Vec<u8> {
    match name.len() {
        16 if name[4..8] == [0; 4] => name[4..8].copy_from_slice(&[127, 0, 0, 1]),
        28 if name[8..24] == [0; 16] => name[23] = 1,
        _ => {}
    }
    name
}

/// Where the app `moves`, what its own side of a conversation was called by the network is the
/// network's to say again. One that `closes` its connections to outside finds them closed.
pub fn restore(record: &SocketRecord, moves: bool, closes: bool) -> Result<OwnedFd> {
    let is_closed = match record.state {
        SocketState::Severed | SocketState::Carried { .. } => true,
        SocketState::Established { .. } => closes,
        _ => false,
    };
    if is_closed {
        let what = || "cannot make a closed connection";
        return match severed(record.domain) {
            Err(nix::Error::EADDRNOTAVAIL) => Err(Error::new(Kind::Unavailable, what())
                .because("its network has no loopback address")
                .fix("raise the loopback device of that network namespace: `ip link set lo up`")),
            made => made.or_fail(what),
        };
    }
    let made = socket(record.domain, record.kind, record.protocol).or_fail(|| "cannot make a socket")?;
    sockets::set_options(&made, record)?;
    match &record.state {
        // The ends of a connection come last, all together.
        SocketState::Fresh
        | SocketState::Paired { .. }
        | SocketState::Waiting { .. }
        | SocketState::Joined { .. }
        | SocketState::Established { .. }
        | SocketState::Carried { .. }
        | SocketState::Severed => {}
        SocketState::Bound { name, .. } => bind(&made, name, record)?,
        SocketState::Listening { name, backlog, .. } => {
            bind(&made, name, record)?;
            sysfd::listen(&made, *backlog).or_fail(|| format!("cannot listen on {}", shown(name)))?;
        }
        SocketState::Connected { name, peer } => {
            let anywhere = || diag::set_address(&made, false, &unspecified(name.clone()));
            match bind(&made, name, record) {
                Err(_) if moves && record.kind == libc::SOCK_DGRAM && anywhere().is_ok() => {}
                bound => bound?,
            }
            // Others have something put back first.
            if record.kind == libc::SOCK_RAW {
                diag::set_address(&made, true, peer).or_fail(|| format!("cannot connect to {}", shown(peer)))?;
            }
        }
    }
    if record.kind != libc::SOCK_DGRAM && !sockets::is_end(record) {
        sockets::shut_down_again(&made, record);
    }
    Ok(made)
}

fn shown(name: &[u8]) -> String {
    show_address(name).unwrap_or_else(|| "an address".into())
}

/// The same port of all addresses.
fn unspecified(mut name: Vec<u8>) -> Vec<u8> {
    match name.len() {
        16 => name[4..8].fill(0),
        28 => name[8..24].fill(0),
        _ => {}
    }
    name
}

/// Connections of the app that was halted may linger in TIME_WAIT: they must not
/// keep its port. SO_REUSEADDR is set for the bind and then put back.
fn bind(made: &OwnedFd, name: &[u8], record: &SocketRecord) -> Result<()> {
    let reuse = |on: i32| diag::setsockopt(made, libc::SOL_SOCKET, libc::SO_REUSEADDR, &on.to_le_bytes());
    let wanted = record
        .options
        .iter()
        .any(|o| (o.level, o.name) == (libc::SOL_SOCKET, libc::SO_REUSEADDR) && o.value.first() == Some(&1));
    if !wanted && record.kind == libc::SOCK_STREAM {
        reuse(1).ok();
    }
    let bound = diag::set_address(made, false, name);
    if !wanted && record.kind == libc::SOCK_STREAM {
        reuse(0).ok();
    }
    bound.map_err(|errno| not_bound(errno, name))
}

pub fn not_bound(errno: nix::Error, name: &[u8]) -> Error {
    let error = Error::new(Kind::Conflict, format!("cannot bind {}", shown(name))).because(errno);
    match errno {
        nix::Error::EADDRINUSE => error.fix("end the program that uses this port"),
        nix::Error::EADDRNOTAVAIL => error.fix("give this host the address, or restore on the host that has it"),
        _ => error,
    }
}

/// A connected socket whose peer has closed: reading gives what is left (nothing),
/// then the end of the stream.
fn severed(domain: i32) -> Sys<OwnedFd> {
    let listener = socket(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP)?;
    diag::set_address(&listener, false, &loopback(domain))?;
    sysfd::listen(&listener, 1)?;
    let made = socket(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP)?;
    diag::set_address(&made, true, &diag::address(&listener, false)?)?;
    drop(sysfd::accept(listener.as_raw_fd())?);
    Ok(made)
}

fn loopback(domain: i32) -> Vec<u8> {
    let mut name = vec![0u8; if domain == libc::AF_INET { 16 } else { 28 }];
    name[..2].copy_from_slice(&(domain as u16).to_le_bytes());
    if domain == libc::AF_INET {
        name[4..8].copy_from_slice(&[127, 0, 0, 1]);
    } else {
        name[23] = 1;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn what_is_under_way() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let look = |accepted: &TcpStream, made: &TcpStream| {
            // Until what was sent is there, and told to have come.
            std::thread::sleep(std::time::Duration::from_millis(60));
            let [accepted, made] = [accepted, made].map(|one| OwnedFd::from(one.try_clone().unwrap()));
            (under_way(&accepted, true).unwrap(), under_way(&made, false).unwrap())
        };
        assert_eq!(look(&server, &client), (false, false), "nobody has said anything");
        for round in 0..2 {
            client.write_all(b"?").unwrap();
            assert_eq!(look(&server, &client), (true, true), "{round}: it is not read");
            server.read_exact(&mut [0]).unwrap();
            assert_eq!(look(&server, &client), (true, true), "{round}: it is not answered");
            server.write_all(b"!").unwrap();
            assert_eq!(look(&server, &client), (false, true), "{round}: the answer is not read");
            client.read_exact(&mut [0]).unwrap();
            assert_eq!(look(&server, &client), (false, false), "{round}");
        }
        client.write_all(b"?").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        server.read_exact(&mut [0]).unwrap();
        assert_eq!(
            look(&server, &client),
            (true, true),
            "who has closed one way waits, too"
        );
    }
}
