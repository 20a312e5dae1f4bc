//! Sockets with their addresses and queues.

use super::{Inspection, address};
use libsnap::image::records::{FileKind, SocketRecord, SocketState};
use nodekit::out;

pub fn text(inspection: &Inspection) -> String {
    let rows: Vec<Vec<String>> = inspection
        .manifest
        .files
        .iter()
        .filter_map(|file| match &file.kind {
            FileKind::Socket(socket) => Some(row(&file.id.to_string(), socket)),
            _ => None,
        })
        .collect();
    out::table(&["FILE", "KIND", "STATE", "LOCAL", "PEER", "QUEUED"], &rows)
}

fn row(file: &str, socket: &SocketRecord) -> Vec<String> {
    let (state, local, peer) = state(&socket.state);
    let queued: usize = socket.queue.iter().map(|message| message.data.len()).sum();
    vec![
        file.to_owned(),
        kind(socket),
        state.to_owned(),
        local,
        peer,
        queued.to_string(),
    ]
}

/// `inet stream`; numbers where a family or type has no name here.
pub fn kind(socket: &SocketRecord) -> String {
    let family = match socket.domain {
        1 => "unix".to_owned(),
        2 => "inet".to_owned(),
        10 => "inet6".to_owned(),
        16 => "netlink".to_owned(),
        other => format!("family {other}"),
    };
    // SOCK_NONBLOCK and SOCK_CLOEXEC may stand beside the type.
    let kind = match socket.kind & 0xf {
        1 => "stream".to_owned(),
        2 => "datagram".to_owned(),
        3 => "raw".to_owned(),
        5 => "seqpacket".to_owned(),
        other => format!("type {other}"),
    };
    format!("{family} {kind}")
}

/// State, own address, peer.
pub fn state(state: &SocketState) -> (&'static str, String, String) {
    let none = || address::NONE.to_owned();
    match state {
        SocketState::Fresh => ("fresh", none(), none()),
        SocketState::Bound { name, .. } => ("bound", address::text(name), none()),
        SocketState::Listening { name, .. } => ("listening", address::text(name), none()),
        SocketState::Paired { name, peer: 0, .. } => ("paired", address::text(name), "closed".to_owned()),
        SocketState::Paired { name, peer, .. } => ("paired", address::text(name), format!("socket {peer}")),
        SocketState::Waiting { name, listener, .. } => {
            ("not accepted", address::text(name), format!("listener {listener}"))
        }
        SocketState::Connected { name, peer } => ("connected", address::text(name), address::text(peer)),
        SocketState::Joined { name, peer, .. } => ("joined", address::text(name), format!("socket {peer}")),
        SocketState::Established { name, peer, .. } => ("established", address::text(name), address::text(peer)),
        SocketState::Carried { name, peer, .. } => ("carried", address::text(name), address::text(peer)),
        SocketState::Severed => ("severed", none(), none()),
    }
}
