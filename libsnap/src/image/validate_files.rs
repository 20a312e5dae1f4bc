//! What must hold for open files, pipes, sockets and shared memory.

use super::fault::ensure;
use super::records::{
    FileKind, Manifest, OpenFile, PipeRecord, PtyRecord, ShmKind, ShmRecord, SocketRecord, SocketState, UringRecord,
    UringRequest,
};
use super::validate::{count, path, text};
use super::{MANIFEST, limits, validate_ipc};
use crate::error::Result;
use crate::files::{barrier, uring as rings};
use crate::ids::{FdNum, FileId, ShmId};
use crate::namespaces;
use std::collections::{BTreeMap, BTreeSet};

const PART: &str = MANIFEST;
/// Descriptors go through sockets of this family only.
const AF_UNIX: i32 = 1;

/// What a TCP socket is made of (socket(2)).
const INET: i32 = 2;
const INET6: i32 = 10;
const STREAM: i32 = 1;
const TCP: i32 = 6;

/// The names that records use for each other.
#[derive(Default)]
struct Names {
    files: BTreeSet<FileId>,
    shmem: BTreeSet<ShmId>,
    pipes: BTreeSet<u64>,
    sockets: BTreeSet<u64>,
    /// Ends of TCP connections, and which is the other.
    joined: BTreeMap<u64, u64>,
    ptys: BTreeSet<u32>,
    rings: BTreeSet<u64>,
    queues: BTreeSet<u64>,
}

pub fn all(manifest: &Manifest) -> Result<()> {
    count(PART, "open files", manifest.files.len(), limits::FILES)?;
    count(PART, "pipes", manifest.pipes.len(), limits::PIPES)?;
    count(PART, "shared memory objects", manifest.shmem.len(), limits::SHMEM)?;
    count(PART, "external files", manifest.external.len(), limits::EXTERNAL)?;
    validate_ipc::all(manifest)?;
    ensure(
        manifest.barrier.as_deref().is_none_or(barrier::is_name),
        PART,
        || "the name of its packet filters is malformed",
    )?;
    let names = collect_names(manifest)?;
    for external in &manifest.external {
        path(PART, "external file", &external.path)?;
        let build_id = external.build_id.as_deref().unwrap_or_default();
        let hex = build_id.len() <= 128 && build_id.bytes().all(|byte| byte.is_ascii_hexdigit());
        ensure(hex, PART, || "external file: its build-id is not hex")?;
    }
    manifest.pipes.iter().try_for_each(pipe)?;
    manifest.shmem.iter().try_for_each(shm)?;
    manifest.files.iter().try_for_each(|file| open_file(file, &names))
}

fn collect_names(manifest: &Manifest) -> Result<Names> {
    let mut names = Names::default();
    for pipe in &manifest.pipes {
        ensure(names.pipes.insert(pipe.ino), PART, || {
            format!("pipe {} is listed twice", pipe.ino)
        })?;
    }
    names.queues = manifest.posix_queues.iter().map(|queue| queue.ino).collect();
    for shm in &manifest.shmem {
        ensure(names.shmem.insert(shm.id), PART, || {
            format!("shared memory {} is listed twice", shm.id)
        })?;
    }
    for file in &manifest.files {
        ensure(names.files.insert(file.id), PART, || {
            format!("file {} is listed twice", file.id)
        })?;
        if let FileKind::Pty(pty) = &file.kind {
            ensure(names.ptys.insert(pty.index), PART, || {
                format!("pseudo-terminal {} is listed twice", pty.index)
            })?;
        }
        if let FileKind::Uring(ring) = &file.kind {
            let new = names.rings.insert(ring.rings) && names.rings.insert(ring.entries);
            ensure(new, PART, || format!("file {}: its memory is another ring's", file.id))?;
        }
        if let FileKind::Socket(socket) = &file.kind {
            let new = socket.ino != 0 && names.sockets.insert(socket.ino);
            ensure(new, PART, || format!("socket {} is listed twice", socket.ino))?;
            match socket.state {
                SocketState::Joined { peer, .. } => drop(names.joined.insert(socket.ino, peer)),
                SocketState::Established { .. } => {
                    ensure(manifest.barrier.is_some(), PART, || {
                        format!("file {}: nothing keeps the peer of its connection away", file.id)
                    })?;
                }
                _ => {}
            }
        }
    }
    Ok(names)
}

fn pipe(pipe: &PipeRecord) -> Result<()> {
    if let Some(fifo) = &pipe.fifo {
        path(PART, "fifo", fifo)?;
    }
    let fits = pipe.capacity <= limits::PIPE_CAPACITY && pipe.data.len() as u64 <= u64::from(pipe.capacity);
    ensure(fits, PART, || {
        format!(
            "pipe {}: {} bytes in a capacity of {}",
            pipe.ino,
            pipe.data.len(),
            pipe.capacity
        )
    })?;
    let packets: u64 = pipe.packets.iter().map(|bytes| u64::from(*bytes)).sum();
    let whole = pipe.packets.is_empty() || (packets == pipe.data.len() as u64 && !pipe.packets.contains(&0));
    ensure(whole, PART, || {
        format!("pipe {}: its packets are not its data", pipe.ino)
    })
}

/// Runs ascend without overlap within the object.
fn shm(shm: &ShmRecord) -> Result<()> {
    count(PART, "runs of shared memory", shm.runs.len(), limits::RUNS_PER_SHM)?;
    ensure(shm.bytes <= limits::PART_BYTES, PART, || {
        format!("shared memory {} is too large", shm.id)
    })?;
    if shm.page_bytes != 0 {
        let all = shm
            .runs
            .iter()
            .flat_map(|&(offset, bytes)| [offset, bytes])
            .chain([shm.bytes]);
        let whole = limits::is_huge_page(shm.page_bytes)
            && !matches!(shm.kind, ShmKind::Unlinked { .. })
            && all.into_iter().all(|bytes| bytes.is_multiple_of(shm.page_bytes));
        ensure(whole, PART, || {
            format!("shared memory {}: huge pages of {} bytes", shm.id, shm.page_bytes)
        })?;
    }
    match &shm.kind {
        ShmKind::Memfd { name, .. } => text(PART, "memfd", name, limits::PATH_BYTES)?,
        ShmKind::Unlinked { path: name, .. } => path(PART, "unlinked file", name)?,
        ShmKind::Sysv { mode, asked_bytes, .. } => {
            ensure(*mode <= 0o777, PART, || {
                format!("shared memory {}: mode {mode:o}", shm.id)
            })?;
            let is_rounded = |asked: u64| shm.page_bytes != 0 && asked.next_multiple_of(shm.page_bytes) == shm.bytes;
            let fits = |asked: u64| (1..shm.bytes).contains(&asked) && is_rounded(asked);
            ensure(asked_bytes.is_none_or(fits), PART, || {
                format!("shared memory {}: {asked_bytes:?} bytes were asked for", shm.id)
            })?;
        }
        ShmKind::Anon => {}
    }
    let mut at = 0;
    for &(offset, bytes) in &shm.runs {
        let end = offset.saturating_add(bytes);
        ensure(offset >= at && bytes > 0 && end <= shm.bytes, PART, || {
            format!("shared memory {}: run {offset:#x}+{bytes:#x} is out of place", shm.id)
        })?;
        at = end;
    }
    Ok(())
}

fn open_file(file: &OpenFile, names: &Names) -> Result<()> {
    let id = file.id;
    let has = |found: bool, what: &str| ensure(found, PART, || format!("file {id}: its {what} is not listed"));
    if let Some(owner) = &file.owner {
        let known = (0..=2).contains(&owner.kind) && (0..=64).contains(&owner.signal);
        ensure(known, PART, || format!("file {id}: its owner is malformed"))?;
    }
    match &file.kind {
        FileKind::Path { path: name, offset, .. } => {
            path(PART, "open file", name)?;
            position(id, *offset)
        }
        FileKind::Pipe { ino } => has(names.pipes.contains(ino), "pipe"),
        FileKind::Memfd { shm, offset } | FileKind::Unlinked { shm, offset } => {
            position(id, *offset)?;
            has(names.shmem.contains(shm), "shared memory")
        }
        FileKind::Mqueue { ino, offset, .. } => {
            position(id, *offset)?;
            has(names.queues.contains(ino), "POSIX message queue")
        }
        FileKind::Epoll { watches } => {
            count(PART, "epoll watches", watches.len(), limits::WATCHES_PER_FILE)?;
            watches.iter().try_for_each(|watch| {
                fd_number(PART, watch.fd)?;
                has(names.files.contains(&watch.file) && watch.file != id, "watched file")
            })
        }
        FileKind::Inotify { watches } => {
            count(PART, "inotify watches", watches.len(), limits::WATCHES_PER_FILE)?;
            watches
                .iter()
                .try_for_each(|watch| path(PART, "inotify watch", &watch.path))
        }
        FileKind::Socket(socket) => {
            self::socket(id, socket)?;
            for message in &socket.queue {
                count(
                    PART,
                    "descriptors in flight",
                    message.rights.len(),
                    limits::RIGHTS_PER_MESSAGE,
                )?;
                let listed = message.rights.iter().all(|file| names.files.contains(file));
                has(
                    listed && (message.rights.is_empty() || socket.domain == AF_UNIX),
                    "file in flight",
                )?;
            }
            match socket.state {
                SocketState::Paired { peer, .. } => has(peer == 0 || names.sockets.contains(&peer), "peer"),
                SocketState::Joined { peer, .. } => has(names.joined.get(&peer) == Some(&socket.ino), "peer"),
                SocketState::Waiting { listener, .. } => has(names.sockets.contains(&listener), "listener"),
                _ => Ok(()),
            }
        }
        FileKind::Uring(ring) => {
            self::uring(id, ring)?;
            let registered = ring.files.iter().filter_map(|slot| slot.file);
            let waiting = ring.waiting.iter().map(|request| request.file);
            let mut named = registered.chain(ring.events.map(|events| events.file)).chain(waiting);
            has(
                named.all(|file| file != id && names.files.contains(&file)),
                "registered file",
            )
        }
        FileKind::Pty(pty) => self::pty(id, pty),
        FileKind::PtySlave { index, .. } => has(names.ptys.contains(index), "pseudo-terminal"),
        FileKind::Namespace { name, .. } => has(namespaces::OPENED.contains(&name.as_str()), "kind of namespace"),
        FileKind::Outside { what } => text(PART, "outside file", what, limits::TEXT_BYTES),
        // Plain numbers that the kernel checks; that a pidfd's process exists
        // is checked with the threads.
        FileKind::Eventfd { .. } | FileKind::Timerfd { .. } | FileKind::Signalfd { .. } | FileKind::Pidfd { .. } => {
            Ok(())
        }
    }
}

/// The kernel's offsets are signed.
fn position(id: FileId, offset: u64) -> Result<()> {
    ensure(i64::try_from(offset).is_ok(), PART, || {
        format!("file {id}: offset {offset}")
    })
}

pub fn fd_number(part: &str, fd: FdNum) -> Result<()> {
    ensure((0..=limits::FD_MAX).contains(&fd.0), part, || {
        format!("descriptor {fd} is out of range")
    })
}

fn socket(id: FileId, socket: &SocketRecord) -> Result<()> {
    count(PART, "socket options", socket.options.len(), limits::SOCKET_OPTIONS)?;
    count(PART, "queued messages", socket.queue.len(), limits::MESSAGES_PER_SOCKET)?;
    let option_bytes = socket
        .options
        .iter()
        .map(|option| option.value.len())
        .max()
        .unwrap_or(0);
    count(
        PART,
        "bytes of a socket option",
        option_bytes,
        limits::SOCKET_OPTION_BYTES,
    )?;
    ensure(socket.shutdown <= 3, PART, || {
        format!("file {id}: shutdown {}", socket.shutdown)
    })?;
    let addresses: [&[u8]; 2] = match &socket.state {
        SocketState::Bound { name, .. }
        | SocketState::Listening { name, .. }
        | SocketState::Paired { name, .. }
        | SocketState::Waiting { name, .. } => [name, &[]],
        SocketState::Connected { name, peer }
        | SocketState::Carried { name, peer, .. }
        | SocketState::Established { name, peer, .. } => [name, peer],
        SocketState::Joined { name, .. } => [name, &[]],
        SocketState::Fresh | SocketState::Severed => [&[], &[]],
    };
    let is_tcp = [INET, INET6].contains(&socket.domain) && (socket.kind, socket.protocol) == (STREAM, TCP);
    if matches!(socket.state, SocketState::Severed | SocketState::Carried { .. }) {
        ensure(is_tcp, PART, || {
            format!("file {id}: no TCP connection, and severed or carried")
        })?;
    }
    let end = match &socket.state {
        SocketState::Joined { peer, connection, .. } => Some((*peer != socket.ino, connection)),
        SocketState::Established {
            connection, numbers, ..
        } => Some((
            numbers.in_flight as usize <= connection.unsent.len() && socket.network.is_none(),
            connection,
        )),
        _ => None,
    };
    if let Some((fits, connection)) = end {
        let sound = is_tcp
            && fits
            && socket.queue.len() <= 1
            && limits::TCP_MSS.contains(&connection.mss)
            && connection.window.max(connection.peer_window_max) <= limits::TCP_WINDOW
            && connection.clamp <= i32::MAX as u32
            && connection
                .scales
                .is_none_or(|(peer, own)| peer.max(own) <= limits::TCP_WINDOW_SCALE);
        ensure(sound, PART, || format!("file {id}: its TCP connection is malformed"))?;
    }
    let senders = socket.queue.iter().map(|message| message.from.as_slice());
    let longest = addresses.into_iter().chain(senders).map(<[u8]>::len).max().unwrap_or(0);
    count(PART, "bytes of a socket address", longest, limits::SOCKADDR_BYTES)
}

fn uring(id: FileId, ring: &UringRecord) -> Result<()> {
    let power = |entries: u32, most: u32| entries.is_power_of_two() && entries <= most;
    let sized = power(ring.sq_entries, limits::URING_ENTRIES)
        && power(ring.cq_entries, 2 * limits::URING_ENTRIES)
        && ring.cq_entries >= ring.sq_entries;
    let filled = [&ring.rings_content, &ring.entries_content]
        .iter()
        .all(|bytes| bytes.len() <= limits::URING_BYTES && !bytes.is_empty());
    let made = rings::is_replayable(ring);
    // A thread of the kernel that submits would do so as whoever restores.
    let one = rings::is_of_one_thread(ring.flags) == ring.submitter.is_some();
    let carried = ring.flags & !rings::CARRIED == 0 && one;
    ensure(sized && filled && made && carried, PART, || {
        format!("file {id}: its rings are malformed")
    })?;
    count(PART, "registered files", ring.files.len(), limits::URING_FILES)?;
    count(PART, "registered buffers", ring.buffers.len(), limits::URING_BUFFERS)?;
    count(PART, "requests that wait", ring.waiting.len(), limits::URING_WAITING)?;
    let carried = ring.waiting.iter().all(UringRequest::is_carried);
    ensure(carried, PART, || {
        format!("file {id}: a request that waits is malformed")
    })?;
    let sound = ring.slots.0 <= ring.slots.1 && ring.slots.1 as usize <= ring.files.len();
    let numbered = ring.registered.iter().all(|(_, slot)| *slot < 16);
    ensure(sound && numbered, PART, || {
        format!("file {id}: what is registered with it is malformed")
    })
}

fn pty(id: FileId, pty: &PtyRecord) -> Result<()> {
    let sound = pty.termios.len() == limits::TERMIOS_BYTES && pty.index < limits::PTYS;
    ensure(sound, PART, || {
        format!("file {id}: its terminal modes or index are malformed")
    })?;
    let queued = pty.input.len().max(pty.output.len());
    count(PART, "bytes queued in a terminal", queued, limits::PTY_QUEUE)?;
    let numbers = [pty.foreground, pty.sid];
    let valid = numbers.iter().all(|number| (0..=limits::PID_MAX).contains(&number.0));
    ensure(valid, PART, || {
        format!("file {id}: its session or foreground group is out of range")
    })
}
