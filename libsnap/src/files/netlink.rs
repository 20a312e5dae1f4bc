//! netlink(7) sockets between the app and the kernel.
//!
//! Port id and peer are told by getsockname(2), getpeername(2) and sock_diag(7); memberships
//! of groups are an option like others (NETLINK_LIST_MEMBERSHIPS, Linux 4.2). A socket is
//! bound to the port id that it had, which the kernel makes of a process's number: another
//! program of the same network namespace may have it by the time of the restore.
//! Refused: queued messages and answers under way, which only the kernel can send;
//! protocols of which the kernel keeps more for a socket than it tells (generic netlink,
//! netfilter, audit, connector).

use super::{Context, Description, Refused, refused, sockets};
use crate::error::{Error, Kind, OrFail, Result};
use crate::image::records::{SocketRecord, SocketState};
use crate::nsthread;
use crate::sys::diag;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

const NETLINK_CONNECTED: u8 = 1;
/// How long a port id may be taken: name resolution has one for a moment, under the
/// number of its process, and processes of other PID namespaces have the same.
const TAKEN_MAX: Duration = Duration::from_millis(100);
const TAKEN_INTERVAL: Duration = Duration::from_micros(500);
/// `struct sockaddr_nl`: family, padding, port id, groups.
const PORT: std::ops::Range<usize> = 4..8;
const ADDRESS_BYTES: usize = 12;

/// Protocols of which a socket is known by its address and options.
const CARRIED: [i32; 6] = [
    libc::NETLINK_ROUTE,
    libc::NETLINK_USERSOCK,
    libc::NETLINK_SOCK_DIAG,
    libc::NETLINK_XFRM,
    libc::NETLINK_FIB_LOOKUP,
    libc::NETLINK_KOBJECT_UEVENT,
];

pub fn is_carried(record: &SocketRecord) -> bool {
    let kind = [libc::SOCK_RAW, libc::SOCK_DGRAM].contains(&record.kind);
    kind && CARRIED.contains(&record.protocol)
}

pub fn capture(context: &Context<'_>, description: &Description, record: &mut SocketRecord) -> Result<(), Refused> {
    if !is_carried(record) {
        return refused(
            format!(
                "netlink sockets of protocol {} are not carried: the kernel does not tell all that it keeps for one",
                record.protocol
            ),
            "close it before the snapshot",
        );
    }
    let pid = context.beside(&description.dup);
    let told = nsthread::inside(pid, &["net"], || diag::netlink_sockets(record.protocol as u8));
    let told = told.and_then(|told| told.map_err(Into::into));
    let mut told = told.map_err(|error| {
        let reason = format!("what it is connected with cannot be told (sock_diag): {error}");
        (reason, "load the module netlink_diag, or close the socket".to_owned())
    })?;
    // The kernel lists those only that are bound or in a group.
    let told = told.remove(&record.ino).unwrap_or_default();
    if told.answering || sockets::readable(&description.dup) {
        return refused("netlink messages are queued in it", "let the app receive them first");
    }
    let asked = diag::getsockopt(&description.dup, libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID, 4);
    if told.all_namespaces && asked.is_err() {
        return refused(
            "it listens to all network namespaces, which this kernel does not let be read",
            "close it before the snapshot",
        );
    }
    let name = diag::address(&description.dup, false).unwrap_or_default();
    record.state = if told.state == NETLINK_CONNECTED {
        let peer = diag::address(&description.dup, true).unwrap_or_default();
        SocketState::Connected { name, peer }
    } else if port(&name) != 0 {
        SocketState::Bound { name, file: None }
    } else {
        SocketState::Fresh
    };
    Ok(())
}

/// The port id of a raw address; 0: none.
pub fn port(name: &[u8]) -> u32 {
    let word = name.get(PORT).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_le_bytes)
}

/// Groups by their numbers, from what NETLINK_LIST_MEMBERSHIPS tells.
pub fn groups(bitmap: &[u8]) -> impl Iterator<Item = u32> {
    let bits = (0..bitmap.len() * 8).filter(|bit| bitmap[bit / 8] & 1 << (bit % 8) != 0);
    bits.map(|bit| bit as u32 + 1)
}

pub fn restore(record: &SocketRecord) -> Result<OwnedFd> {
    let made = sockets::fresh(record).or_fail(|| "cannot make a netlink socket")?;
    sockets::set_options(&made, record)?;
    match &record.state {
        SocketState::Bound { name, .. } => bind(&made, name)?,
        SocketState::Connected { name, peer } => {
            bind(&made, name)?;
            diag::set_address(&made, true, peer).or_fail(|| "cannot connect a netlink socket again")?;
        }
        _ => {}
    }
    Ok(made)
}

/// With the groups that the address names: those are what the bind makes of them.
fn bind(made: &OwnedFd, name: &[u8]) -> Result<()> {
    let failed = || format!("cannot give a netlink socket its port id {} again", port(name));
    if name.len() != ADDRESS_BYTES {
        return Err(Error::failed(failed()).because("its address is malformed"));
    }
    let begin = Instant::now();
    let mut bound = diag::set_address(made, false, name);
    while bound == Err(nix::Error::EADDRINUSE) && begin.elapsed() < TAKEN_MAX {
        thread::sleep(TAKEN_INTERVAL);
        bound = diag::set_address(made, false, name);
    }
    bound.map_err(|errno| match errno {
        nix::Error::EADDRINUSE => Error::new(Kind::Conflict, failed())
            .because("another program of this network namespace has it")
            .fix("end that program, or give the instance a network of its own (--network)"),
        errno => Error::failed(failed()).because(errno),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_count_from_one() {
        assert_eq!(groups(&[0b1000_0001, 0, 1]).collect::<Vec<_>>(), [1, 8, 17]);
        assert_eq!(groups(&[]).count(), 0);
    }

    #[test]
    fn the_port_id_stands_behind_the_family() {
        assert_eq!(port(&[16, 0, 0, 0, 7, 1, 0, 0, 0, 0, 0, 0]), 263);
        assert_eq!(port(&[16, 0, 0]), 0);
    }
}
