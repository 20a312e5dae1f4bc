//! TCP and UDP sockets (tcp(7), udp(7)).
//!
//! Listening and unconnected sockets are bound again; the listen backlog is read
//! from TCP_INFO. A connection whose peer is outside the app is refused, or
//! restored as closed by its peer (`--tcp=close`). Refused: queued datagrams,
//! connections that nobody has accepted yet, raw and other sockets.

use super::{Context, Description, Refused, refused, sockets};
use crate::error::{Error, Kind, OrFail, Result};
use crate::image::records::{SocketRecord, SocketState};
use crate::sys::fd as sysfd;
use crate::sys::{Sys, diag};
use crate::target::TcpPolicy;
use std::os::fd::{AsRawFd, OwnedFd};

const TCP_ESTABLISHED: u8 = 1;
const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;
/// Offsets in `struct tcp_info`; of a listening socket these two hold the
/// connections waiting and the backlog.
const TCPI_UNACKED: usize = 24;
const TCPI_SACKED: usize = 28;

pub fn socket(domain: i32, kind: i32, protocol: i32) -> Sys<OwnedFd> {
    sysfd::socket(domain, kind | libc::SOCK_CLOEXEC, protocol)
}

pub fn capture(context: &Context<'_>, description: &Description, record: &mut SocketRecord) -> Result<(), Refused> {
    record.state = match (record.kind, record.protocol) {
        (libc::SOCK_STREAM, libc::IPPROTO_TCP) => tcp(context, description)?,
        (libc::SOCK_DGRAM, libc::IPPROTO_UDP) => udp(context, description)?,
        (_, 262) => return refused("Multipath TCP sockets are not carried yet", "turn MPTCP off in the app (GODEBUG=multipathtcp=0)"),
        (kind, protocol) => {
            return refused(format!("IP sockets of type {kind}, protocol {protocol} are not carried"), "close it before the snapshot");
        }
    };
    Ok(())
}

fn name_of(description: &Description) -> Vec<u8> {
    diag::address(&description.dup, false).unwrap_or_default()
}

fn is_bound(name: &[u8]) -> bool {
    name.get(2..4).is_some_and(|port| port != [0, 0])
}

fn tcp(context: &Context<'_>, description: &Description) -> Result<SocketState, Refused> {
    let info = diag::getsockopt(&description.dup, libc::IPPROTO_TCP, libc::TCP_INFO, 256)
        .map_err(|e| (format!("its state cannot be read: {e}"), "try again".to_owned()))?;
    let word = |at: usize| info.get(at..at + 4).map_or(0, |b| i32::from_le_bytes(b.try_into().unwrap_or_default()));
    let name = name_of(description);
    match info.first().copied().unwrap_or(0) {
        TCP_LISTEN if word(TCPI_UNACKED) > 0 && context.options.tcp == TcpPolicy::Refuse => refused(
            format!("{} connections to it are not accepted yet", word(TCPI_UNACKED)),
            "try again, or pass --tcp=close",
        ),
        TCP_LISTEN => Ok(SocketState::Listening {
            name,
            file: None,
            backlog: word(TCPI_SACKED),
        }),
        TCP_CLOSE if diag::address(&description.dup, true).is_err() => Ok(if is_bound(&name) {
            SocketState::Bound { name, file: None }
        } else {
            SocketState::Fresh
        }),
        _ if context.options.tcp == TcpPolicy::Close => Ok(SocketState::Severed),
        state => refused(
            format!("a TCP connection {} ({})", endpoints(description), if state == TCP_ESTABLISHED { "established" } else { "closing" }),
            "close the connection first, or pass --tcp=close",
        ),
    }
}

/// `127.0.0.1:6379 <- 127.0.0.1:40122`, for people.
fn endpoints(description: &Description) -> String {
    let show = |peer| diag::address(&description.dup, peer).ok().and_then(|raw| show_address(&raw));
    format!("{} <- {}", show(false).unwrap_or_else(|| "?".into()), show(true).unwrap_or_else(|| "?".into()))
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

fn udp(context: &Context<'_>, description: &Description) -> Result<SocketState, Refused> {
    if context.frozen && sockets::waiting(&description.dup) > 0 {
        return refused("datagrams that the app has not read are queued in it", "let the app read them, then try again");
    }
    let name = name_of(description);
    Ok(match diag::address(&description.dup, true) {
        Ok(peer) => SocketState::Connected { name, peer },
        Err(_) if is_bound(&name) => SocketState::Bound { name, file: None },
        Err(_) => SocketState::Fresh,
    })
}

pub fn restore(record: &SocketRecord) -> Result<OwnedFd> {
    if record.state == SocketState::Severed {
        return severed(record.domain).or_fail(|| "cannot make a closed connection");
    }
    let made = socket(record.domain, record.kind, record.protocol).or_fail(|| "cannot make a socket")?;
    sockets::set_options(&made, record)?;
    match &record.state {
        SocketState::Fresh | SocketState::Paired { .. } | SocketState::Severed => {}
        SocketState::Bound { name, .. } => bind(&made, name, record)?,
        SocketState::Listening { name, backlog, .. } => {
            bind(&made, name, record)?;
            sysfd::listen(&made, *backlog).or_fail(|| format!("cannot listen on {}", shown(name)))?;
        }
        SocketState::Connected { name, peer } => {
            bind(&made, name, record)?;
            diag::set_address(&made, true, peer).or_fail(|| format!("cannot connect UDP to {}", shown(peer)))?;
        }
    }
    Ok(made)
}

fn shown(name: &[u8]) -> String {
    show_address(name).unwrap_or_else(|| "an address".into())
}

/// Connections of the app that was halted may linger in TIME_WAIT: they must not
/// keep its port. SO_REUSEADDR is set for the bind and then put back.
fn bind(made: &OwnedFd, name: &[u8], record: &SocketRecord) -> Result<()> {
    let reuse = |on: i32| diag::setsockopt(made, libc::SOL_SOCKET, libc::SO_REUSEADDR, &on.to_le_bytes());
    let wanted = record.options.iter().any(|o| (o.level, o.name) == (libc::SOL_SOCKET, libc::SO_REUSEADDR) && o.value.first() == Some(&1));
    if !wanted && record.kind == libc::SOCK_STREAM {
        reuse(1).ok();
    }
    let bound = diag::set_address(made, false, name);
    if !wanted && record.kind == libc::SOCK_STREAM {
        reuse(0).ok();
    }
    bound.map_err(|errno| {
        let error = Error::new(Kind::Conflict, format!("cannot bind {}", shown(name))).because(errno);
        match errno {
            nix::Error::EADDRINUSE => error.fix("end the program that uses this port"),
            nix::Error::EADDRNOTAVAIL => error.fix("give this host the address, or restore on the host that has it"),
            _ => error,
        }
    })
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
