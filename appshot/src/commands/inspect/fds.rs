//! Descriptors and what they refer to.

use super::{Inspection, Process, address, sockets};
use libsnap::image::records::{FdEntry, FileKind, Manifest, OpenFile};
use nodekit::out;

pub fn text(inspection: &Inspection) -> String {
    let rows: Vec<Vec<String>> = inspection
        .processes
        .iter()
        .flat_map(|process| {
            let fds = process.process.fds.iter();
            fds.map(move |fd| row(inspection, process, fd))
        })
        .collect();
    out::table(&["PID", "FD", "FILE", "CLOEXEC", "KIND", "DETAIL"], &rows)
}

fn row(inspection: &Inspection, process: &Process, fd: &FdEntry) -> Vec<String> {
    let file = inspection.manifest.files.iter().find(|f| f.id == fd.file);
    let (kind, detail) = file
        .map(|file| describe(&inspection.manifest, file))
        .unwrap_or_default();
    vec![
        process.process.pid.to_string(),
        fd.fd.to_string(),
        fd.file.to_string(),
        if fd.cloexec { "yes" } else { "" }.to_owned(),
        kind.to_owned(),
        detail,
    ]
}

fn describe(manifest: &Manifest, file: &OpenFile) -> (&'static str, String) {
    match &file.kind {
        FileKind::Path { path, offset, .. } => ("file", format!("{path} at {offset}")),
        FileKind::Unlinked { shm, offset } => ("unlinked", format!("memory {shm} at {offset}")),
        FileKind::Pipe { ino } => ("pipe", format!("{ino}, {}", end(file.flags))),
        FileKind::Memfd { shm, offset } => ("memfd", format!("memory {shm} at {offset}")),
        FileKind::Eventfd { count, .. } => ("eventfd", format!("count {count}")),
        FileKind::Timerfd { time, .. } => ("timerfd", format!("{} ns left", time.value_ns)),
        FileKind::Namespace { name, number: None } => ("namespace", format!("{name}, the app's own")),
        FileKind::Namespace {
            name,
            number: Some(number),
        } => ("namespace", format!("{name}, number {number}")),
        FileKind::Signalfd { mask } => ("signalfd", format!("mask {mask:#x}")),
        FileKind::Epoll { watches } => ("epoll", format!("{} watches", watches.len())),
        FileKind::Inotify { watches } => ("inotify", format!("{} watches", watches.len())),
        FileKind::Uring(ring) => ("io_uring", format!("{} entries", ring.sq_entries)),
        FileKind::Mqueue { ino, .. } => ("mqueue", queue_line(manifest, *ino, file.flags)),
        FileKind::Pidfd { pid } => ("pidfd", pid.to_string()),
        FileKind::Socket(socket) => ("socket", socket_line(socket)),
        FileKind::Pty(pty) => ("pty", format!("master of {}", pty.index)),
        FileKind::PtySlave { index, .. } => ("pty", format!("slave of {index}")),
        FileKind::Outside { what } => ("outside", what.clone()),
    }
}

fn socket_line(socket: &libsnap::image::records::SocketRecord) -> String {
    let kind = sockets::kind(socket);
    let (state, local, peer) = sockets::state(&socket.state);
    [kind, state.to_owned(), local, peer]
        .into_iter()
        .filter(|word| !word.is_empty() && word != address::NONE)
        .collect::<Vec<_>>()
        .join(" ")
}

/// `/jobs, 3 of 10 messages, read end`
fn queue_line(manifest: &Manifest, ino: u64, flags: i32) -> String {
    let queue = manifest.posix_queues.iter().find(|queue| queue.ino == ino);
    let told = queue.map(|queue| {
        let removed = if queue.unlinked { " (removed)" } else { "" };
        format!(
            "/{}{removed}, {} of {} messages, ",
            queue.name,
            queue.messages.len(),
            queue.messages_max
        )
    });
    told.unwrap_or_default() + end(flags)
}

/// O_ACCMODE of the flags.
fn end(flags: i32) -> &'static str {
    match flags & 3 {
        0 => "read end",
        1 => "write end",
        _ => "both ends",
    }
}
