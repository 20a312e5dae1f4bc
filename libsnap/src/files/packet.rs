//! packet(7) sockets: whose packets they get, and how.
//!
//! Protocol and device are told by getsockname(2), memberships (promiscuous mode, multicast)
//! and what is mapped by sock_diag(7). Made again without a protocol, a socket gets nothing
//! until its options and its filter are set and it is bound.
//! Refused: packets not read yet, which nobody can send again; rings; fanout groups; a device
//! that is down or gone.

use super::{Context, Description, Refused, refused, sockets};
use crate::error::{Error, OrFail, Result};
use crate::image::records::{SockOpt, SocketRecord, SocketState};
use crate::nsthread;
use crate::sys::diag;
use std::os::fd::OwnedFd;

/// `struct sockaddr_ll`: family, protocol, device, kind of device, of packet, hardware address.
const PROTOCOL: std::ops::Range<usize> = 2..4;
const DEVICE: std::ops::Range<usize> = 4..8;
const ADDRESS_BYTES: usize = 20;
/// `struct packet_mreq`.
pub const MEMBERSHIP: (i32, i32) = (libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP);

pub fn is_carried(record: &SocketRecord) -> bool {
    [libc::SOCK_RAW, libc::SOCK_DGRAM].contains(&record.kind)
}

pub fn capture(context: &Context<'_>, description: &Description, record: &mut SocketRecord) -> Result<(), Refused> {
    if !is_carried(record) {
        return refused(
            format!("packet sockets of type {} are not carried", record.kind),
            "close it before the snapshot",
        );
    }
    let pid = context.beside(&description.dup);
    let told = nsthread::inside(pid, &["net"], diag::packet_sockets);
    let told = told.and_then(|told| told.map_err(Into::into));
    let mut told = told.map_err(|error| {
        let reason = format!("what it gets cannot be told (sock_diag): {error}");
        (reason, "load the module af_packet_diag, or close the socket".to_owned())
    })?;
    let Some(mut told) = told.remove(&record.ino) else {
        return refused(
            "it belongs to another network namespace",
            "snapshot the app from its own network namespace",
        );
    };
    let name = diag::address(&description.dup, false).unwrap_or_default();
    let is_bound = name.get(PROTOCOL).is_some_and(|protocol| protocol != [0, 0]);
    if told.rings {
        return refused(
            "a ring is mapped to it (PACKET_RX_RING, PACKET_TX_RING)",
            "close it before the snapshot",
        );
    }
    if told.fanout {
        return refused(
            "it is in a fanout group (PACKET_FANOUT)",
            "close it before the snapshot",
        );
    }
    if is_bound && !told.running {
        return refused(
            "its network device is down or gone",
            "let the app close it, or raise the device",
        );
    }
    if sockets::readable(&description.dup) {
        return refused("packets are queued in it", "let the app receive them, then try again");
    }
    // The kernel lists the newest first.
    told.memberships.sort();
    let memberships = told.memberships.into_iter().map(|value| SockOpt {
        level: MEMBERSHIP.0,
        name: MEMBERSHIP.1,
        value,
    });
    record.options.extend(memberships);
    record.state = match is_bound || name.get(DEVICE).is_some_and(|device| device != [0; 4]) {
        true => SocketState::Bound { name, file: None },
        false => SocketState::Fresh,
    };
    Ok(())
}

pub fn restore(record: &SocketRecord) -> Result<OwnedFd> {
    let made = sockets::fresh(record).or_fail(|| "cannot make a packet socket")?;
    sockets::set_options(&made, record)?;
    let SocketState::Bound { name, .. } = &record.state else {
        return Ok(made);
    };
    let mut whole = name.clone();
    whole.resize(ADDRESS_BYTES.max(name.len()), 0);
    let device = name.get(DEVICE).and_then(|device| device.try_into().ok());
    let failed = || {
        let device = device.map_or(0, u32::from_le_bytes);
        format!("cannot bind a packet socket to network device {device} again")
    };
    diag::set_address(&made, false, &whole).or_fail(failed)?;
    // Another device may have the number: it has another hardware address, or kind.
    if diag::address(&made, false).or_fail(failed)? != *name {
        return Err(Error::failed(failed())
            .because("that is another device here")
            .fix("restore it where the device is"));
    }
    Ok(made)
}
