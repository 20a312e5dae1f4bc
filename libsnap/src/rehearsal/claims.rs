//! What an appshot asks for of which there is one on a machine.

use crate::files::{inet, netlink};
use crate::image::Appshot;
use crate::image::mounts::Place;
use crate::image::records::{FileKind, Manifest, OpenFile, ShmKind, SocketRecord, SocketState};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

/// Something that a rehearsal has apart from the machine's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Claim {
    /// A lock on the file of this name.
    Lock(PathBuf),
    /// A Unix socket of this name.
    Socket(PathBuf),
    /// A fifo of this name: what is in it, and who has its other end.
    Fifo(PathBuf),
    /// A file without a name in the directory of this one.
    Unlinked(PathBuf),
    /// An address of the internet.
    Address(String),
    /// The abstract name of a Unix socket.
    Abstract(String),
    /// The port id of a netlink socket, and its protocol.
    Netlink(u32, i32),
    /// What stood outside the app; its restorer gives something else.
    Outside(String),
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Claim::Lock(path) => write!(f, "lock on {}", path.display()),
            Claim::Socket(path) => write!(f, "socket {}", path.display()),
            Claim::Fifo(path) => write!(f, "fifo {}", path.display()),
            Claim::Unlinked(path) => write!(f, "unlinked file {}", path.display()),
            Claim::Address(address) => write!(f, "address {address}"),
            Claim::Abstract(name) => write!(f, "abstract socket {name}"),
            Claim::Netlink(port, protocol) => write!(f, "netlink port {port} of protocol {protocol}"),
            Claim::Outside(what) => write!(f, "{what}, outside the app"),
        }
    }
}

impl Claim {
    /// The directory of which a view of its own is needed.
    pub(super) fn directory(&self) -> Option<&Path> {
        match self {
            Claim::Lock(path) | Claim::Socket(path) | Claim::Fifo(path) | Claim::Unlinked(path) => path.parent(),
            Claim::Address(_) | Claim::Abstract(_) | Claim::Netlink(..) | Claim::Outside(_) => None,
        }
    }
}

/// In the order in which they are told.
pub(super) fn of(shot: &Appshot) -> Vec<Claim> {
    let manifest = &shot.manifest;
    let mut claims: BTreeSet<Claim> = manifest.files.iter().flat_map(|file| of_file(manifest, file)).collect();
    let fifos = manifest.pipes.iter().filter_map(|pipe| pipe.fifo.as_ref());
    claims.extend(fifos.map(|path| Claim::Fifo(path.into())));
    claims.extend(manifest.shmem.iter().filter_map(|shm| match &shm.kind {
        ShmKind::Unlinked { path, .. } => Some(Claim::Unlinked(path.into())),
        _ => None,
    }));
    claims.into_iter().collect()
}

fn of_file(manifest: &Manifest, file: &OpenFile) -> Option<Claim> {
    match &file.kind {
        FileKind::Path { path, namespace, .. } if !file.locks.is_empty() => match manifest.place(*namespace, path) {
            Place::Own(path) => Some(Claim::Lock(path.into())),
            // Each has its own.
            Place::Beside | Place::Covered => None,
        },
        FileKind::Socket(socket) => of_socket(socket),
        FileKind::Outside { what } => Some(Claim::Outside(what.clone())),
        _ => None,
    }
}

fn of_socket(socket: &SocketRecord) -> Option<Claim> {
    let name = match &socket.state {
        SocketState::Bound { name, .. } | SocketState::Listening { name, .. } => name,
        SocketState::Paired { name, .. } | SocketState::Connected { name, .. } => name,
        SocketState::Waiting { name, .. } | SocketState::Joined { name, .. } => name,
        SocketState::Established { name, .. } => name,
        SocketState::Fresh | SocketState::Severed | SocketState::Carried { .. } => return None,
    };
    let is_path = socket.domain == libc::AF_UNIX && name.get(2).is_some_and(|byte| *byte != 0);
    if socket.network.is_some() && !is_path {
        return None;
    }
    if socket.domain == libc::AF_NETLINK {
        return Some(Claim::Netlink(netlink::port(name), socket.protocol));
    }
    // As many as like have the same.
    if socket.kind == libc::SOCK_RAW {
        return None;
    }
    if socket.domain != libc::AF_UNIX {
        return inet::show_address(name).map(Claim::Address);
    }
    let name = name.get(2..).filter(|name| !name.is_empty())?;
    if name[0] == 0 {
        return Some(Claim::Abstract(format!("@{}", name[1..].escape_ascii())));
    }
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    Some(Claim::Socket(String::from_utf8_lossy(&name[..end]).into_owned().into()))
}
