//! unix(7) sockets: pairs, connections inside the app, listeners, datagrams.
//!
//! Peers are found with sock_diag(7). A connected pair is made again by
//! socketpair(2), or, where one side carries the listener's name, by a listener
//! that exists only for that connection, before any other socket takes the name.
//! A datagram socket may be connected one way only: it is connected again by
//! name, once what was queued is back (a connected one takes from its peer only).
//! Messages are sent again by the socket whose name they carry, with the
//! credentials they had.
//! A connection that waits to be accepted is made again in its turn; what its client has
//! written meanwhile cannot be read by anybody before.
//! Refused: peers and named senders outside the app, connections not yet accepted with
//! something in them or with a client outside, relative names.

use super::{Builder, Context, Description, Refused, refused, sockets};
use crate::error::{Error, Kind, OrFail, Result};
use crate::ids::{FileId, HostPid};
use crate::image::records::{FileKind, Manifest, Message, SocketFile, SocketRecord, SocketState};
use crate::proc::Fields;
use crate::sys::diag::UnixSocket;
use crate::sys::{Sys, diag, fd as sysfd};
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;
/// Shut down both ways, as the end of its peer leaves a socket. One that is neither that nor
/// has a peer with an inode has not been accepted yet.
const CLOSED: u8 = 3;
/// Length of a name that says only the family: an unnamed socket.
const UNNAMED: usize = 2;

pub fn capture(context: &Context<'_>, description: &Description, record: &mut SocketRecord) -> Result<(), Refused> {
    let Some(diag) = context.unix.get(&record.ino) else {
        return refused(
            "it belongs to another network namespace",
            "snapshot the app from its own network namespace",
        );
    };
    let name = diag::address(&description.dup, false).unwrap_or_default();
    let file = socket_file(context, description, diag, &name)?;
    record.shutdown = diag.shutdown;
    let connected = diag::address(&description.dup, true).is_ok();
    record.state = if diag.state == LISTEN {
        let unlinked = file.is_none() && path_of(&name).is_some();
        match context.held.is_held(&description.dup) {
            // Whoever waits goes on waiting, which clients that end with the app cannot.
            true if diag
                .waiting
                .iter()
                .any(|client| context.by_inode(*client).next().is_some()) =>
            {
                return refused(
                    "connections of the app's own wait at it, and it is held for others",
                    "try again",
                );
            }
            true => {}
            false => waiting(context, &diag.waiting, unlinked)?,
        }
        SocketState::Listening {
            name,
            file,
            backlog: diag.queue.1 as i32,
        }
    } else if let Some((listener, place)) = waits_for(context, record.ino) {
        if file.is_some() {
            return refused("it waits to be accepted, and has a path of its own", "try again");
        }
        SocketState::Waiting { name, listener, place }
    } else if connected && record.kind != libc::SOCK_DGRAM && diag.peer == 0 && diag.shutdown != CLOSED {
        return peer_outside();
    } else if connected {
        paired(context, record, diag.peer, name, file)?
    } else if name.len() > UNNAMED {
        SocketState::Bound { name, file }
    } else {
        SocketState::Fresh
    };
    if context.frozen.is_some() && diag.state != LISTEN && sockets::readable(&description.dup) {
        record.queue = sockets::peek_queue(context, description)?;
    }
    is_at_home(context, description, record)?;
    sendable(context, description, record)
}

/// By paths sockets of two networks can be connected.
fn is_at_home(context: &Context<'_>, description: &Description, record: &SocketRecord) -> Result<(), Refused> {
    let other = match record.state {
        SocketState::Paired { peer: other, .. } | SocketState::Waiting { listener: other, .. } => other,
        _ => return Ok(()),
    };
    match context
        .by_inode(other)
        .all(|other| sockets::share_network(&other.dup, &description.dup))
    {
        true => Ok(()),
        false => refused(
            "it is connected with a socket of another network namespace of the app",
            "close the connection before the snapshot",
        ),
    }
}

/// Whether what waits at a listener can be made again. `unlinked`: its path was removed.
fn waiting(context: &Context<'_>, clients: &[u64], unlinked: bool) -> Result<(), Refused> {
    let count = clients.len();
    if clients.is_empty() {
        return Ok(());
    }
    // What is in such a connection is what its client has written and nobody has got.
    let empty = |client: &u64| {
        let client = context.by_inode(*client).next();
        client.map(|client| sysfd::ioctl_i32(&client.dup, libc::TIOCOUTQ) == Ok(0))
    };
    // Who accepts them is told that root has connected.
    let by_root = |pid| Fields::status(pid).is_ok_and(|status| status.numbers::<u32>("Uid").get(1) == Some(&0));
    let others = !context.members.iter().all(|member| by_root(member.pid));
    let reason = match clients.iter().map(empty).collect::<Option<Vec<bool>>>() {
        None if context.may_be_in_flight() => return Ok(()),
        None => format!("{count} connections to it are not accepted yet, not all of the app's own"),
        Some(empty) if empty.contains(&false) => {
            format!("{count} connections to it are not accepted yet, and something was written to them")
        }
        Some(_) if others => format!("{count} connections to it are not accepted yet, not all of root's own"),
        Some(_) if unlinked => format!("{count} connections to it are not accepted yet, and its path was removed"),
        Some(_) => return Ok(()),
    };
    refused(reason, "let the app accept them, then try again")
}

/// The listener that has not accepted the connection of this client yet, and which of those
/// that wait there it is.
fn waits_for(context: &Context<'_>, client: u64) -> Option<(u64, u32)> {
    let mut listeners = context.descriptions.iter().map(|d| d.found.key.1);
    listeners.find_map(|ino| {
        let place = context
            .unix
            .get(&ino)?
            .waiting
            .iter()
            .position(|waits| *waits == client)?;
        Some((ino, place as u32))
    })
}

fn peer_outside<T>() -> Result<T, Refused> {
    refused(
        "its peer is a program outside the app",
        "close the connection before the snapshot",
    )
}

/// Whether each queued message can be sent again: by its sender, to a name.
fn sendable(context: &Context<'_>, description: &Description, record: &SocketRecord) -> Result<(), Refused> {
    if record.kind != libc::SOCK_DGRAM {
        return Ok(());
    }
    for from in record
        .queue
        .iter()
        .map(|message| &message.from)
        .filter(|from| from.len() > UNNAMED)
    {
        let inside = |d: &Description| {
            context.unix.contains_key(&d.found.key.1)
                && name_of(d) == *from
                && sockets::share_network(&d.dup, &description.dup)
        };
        if !context.descriptions.iter().any(inside) {
            return refused(
                "a message of a named socket outside the app is queued in it",
                "let the app receive it first",
            );
        }
    }
    match &record.state {
        SocketState::Bound { name, file: None } if path_of(name).is_some() && !record.queue.is_empty() => refused(
            "messages are queued in it, and its path was removed",
            "let the app receive them first",
        ),
        _ => Ok(()),
    }
}

fn name_of(description: &Description) -> Vec<u8> {
    diag::address(&description.dup, false).unwrap_or_default()
}

fn paired(
    context: &Context<'_>,
    record: &SocketRecord,
    peer: u64,
    name: Vec<u8>,
    file: Option<SocketFile>,
) -> Result<SocketState, Refused> {
    let paired = SocketState::Paired { name, peer, file };
    if peer == 0 {
        return Ok(paired);
    }
    let Some(other) = context.by_inode(peer).next() else {
        if context.may_be_in_flight() {
            return Ok(paired);
        }
        return peer_outside();
    };
    if record.kind != libc::SOCK_DGRAM {
        return Ok(paired);
    }
    let mutual = context.unix.get(&peer).is_some_and(|diag| diag.peer == record.ino);
    let name = name_of(other);
    let lost = match path_of(&name) {
        Some(path) => fs::symlink_metadata(seen_from(context.base, &path)).is_err(),
        None => name.len() <= UNNAMED,
    };
    if lost && !mutual {
        return refused(
            "it is connected to a socket that has no name (any more)",
            "close the connection before the snapshot",
        );
    }
    Ok(paired)
}

/// The path of a raw address: none for unnamed and abstract ones.
fn path_of(name: &[u8]) -> Option<PathBuf> {
    let path = name.get(UNNAMED..).filter(|p| p.first().is_some_and(|b| *b != 0))?;
    let end = path.iter().position(|b| *b == 0).unwrap_or(path.len());
    Some(OsStr::from_bytes(&path[..end]).into())
}

/// A path of the app as it is reached from here.
fn seen_from(pid: HostPid, path: &Path) -> PathBuf {
    Path::new(&format!("/proc/{pid}/root")).join(path.strip_prefix("/").unwrap_or(path))
}

fn socket_file(
    context: &Context<'_>,
    description: &Description,
    diag: &UnixSocket,
    name: &[u8],
) -> Result<Option<SocketFile>, Refused> {
    let Some(path) = path_of(name) else { return Ok(None) };
    if !path.is_absolute() {
        return refused(
            format!("it is bound to the relative name {}", path.display()),
            "bind it to an absolute path",
        );
    }
    // Names are as they were seen when the socket was bound, restored ones as from the root of
    // all.
    let own = fs::symlink_metadata(seen_from(context.member(&description.found).pid, &path));
    let found = fs::symlink_metadata(seen_from(context.base, &path));
    let key = |meta: &std::io::Result<fs::Metadata>| meta.as_ref().ok().map(|meta| (meta.dev(), meta.ino()));
    let is_bound = |meta: &fs::Metadata| diag.file.is_none_or(|ino| ino == meta.ino() as u32);
    if own.is_err() && found.as_ref().is_ok_and(|found| !is_bound(found)) {
        return refused(
            format!("it is bound to {}, where another file is by now", path.display()),
            "close it, or bind it before chroot(2)",
        );
    }
    if own.is_ok() && key(&own) != key(&found) {
        return refused(
            format!(
                "it is bound to {}, which leads elsewhere in its process's root directory",
                path.display()
            ),
            "bind it before chroot(2), or close it",
        );
    }
    // No file: somebody unlinked it, and restore will leave it unlinked; another one may have its name since.
    let is_others = |meta: &fs::Metadata| {
        let has = |socket: &UnixSocket| socket.file == Some(meta.ino() as u32);
        // What was accepted has the name of where that was, and no file.
        diag.state != ESTABLISHED && !is_bound(meta) && context.unix.values().any(has)
    };
    Ok(found.ok().filter(|meta| !is_others(meta)).map(|meta| SocketFile {
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
    }))
}

/// Sockets being made again, by their inode in the appshot.
#[derive(Debug)]
pub struct Sockets<'a> {
    records: HashMap<u64, &'a SocketRecord>,
    /// Halves of pairs, until their own records come.
    waiting: HashMap<u64, OwnedFd>,
    /// Peers that the app does not have (they were closed): they deliver what
    /// was queued, then close.
    orphans: HashMap<u64, OwnedFd>,
    network: Option<u32>,
}

/// Those of one network.
fn unix_records(manifest: &Manifest, network: Option<u32>) -> impl Iterator<Item = (FileId, &SocketRecord)> {
    manifest.files.iter().filter_map(move |file| match &file.kind {
        FileKind::Socket(record) if record.domain == libc::AF_UNIX && record.network == network => {
            Some((file.id, &**record))
        }
        _ => None,
    })
}

/// The name of a socket; empty when it has none.
fn name(record: &SocketRecord) -> &[u8] {
    match &record.state {
        SocketState::Bound { name, .. }
        | SocketState::Listening { name, .. }
        | SocketState::Paired { name, .. }
        | SocketState::Waiting { name, .. }
            if name.len() > UNNAMED =>
        {
            name
        }
        _ => &[],
    }
}

fn peer(record: &SocketRecord) -> Option<u64> {
    match record.state {
        SocketState::Paired { peer, .. } => Some(peer),
        _ => None,
    }
}

impl<'a> Sockets<'a> {
    /// Makes the connections that carry a listener's name: the name must not be
    /// taken yet.
    pub fn new(builder: &Builder<'_>, manifest: &'a Manifest, network: Option<u32>) -> Result<Self> {
        let mut sockets = Sockets {
            records: unix_records(manifest, network)
                .map(|(_, record)| (record.ino, record))
                .collect(),
            waiting: HashMap::new(),
            orphans: HashMap::new(),
            network,
        };
        let listening: Vec<&[u8]> = unix_records(manifest, network)
            .filter(|(_, r)| matches!(r.state, SocketState::Listening { .. }))
            .map(|(_, r)| name(r))
            .collect();
        let mut named: Vec<&SocketRecord> = unix_records(manifest, network)
            .map(|(_, r)| r)
            .filter(|r| r.kind != libc::SOCK_DGRAM && peer(r).is_some() && !name(r).is_empty())
            .collect();
        // Before any of them is ours; what somebody holds for the app is no one else's.
        let held = |record: &SocketRecord| matches!(builder.held.get(record), Ok(Some(_)));
        let held: BTreeSet<&[u8]> = unix_records(manifest, network)
            .filter(|(_, r)| held(r))
            .map(|(_, r)| name(r))
            .collect();
        let mut paths: BTreeSet<&[u8]> = unix_records(manifest, network).map(|(_, r)| name(r)).collect();
        paths.retain(|path| !held.contains(path));
        paths.into_iter().try_for_each(|path| is_nobodys(builder, path))?;
        // Where both sides have names, the accepted one has its listener's.
        named.sort_by_key(|record| !listening.contains(&name(record)));
        for record in named {
            if !sockets.waiting.contains_key(&record.ino) {
                sockets.accepted(record)?;
            }
        }
        Ok(sockets)
    }

    fn accepted(&mut self, record: &SocketRecord) -> Result<()> {
        let failed = || format!("cannot make unix socket {} again", record.ino);
        let client = peer(record).and_then(|peer| self.records.get(&peer));
        let (mine, other) = accepted_pair(record, client.copied()).or_fail(failed)?;
        self.waiting.insert(record.ino, mine);
        self.keep(record, other);
        Ok(())
    }

    /// The other half of a pair, for its own record where it has one.
    fn keep(&mut self, record: &SocketRecord, other: OwnedFd) {
        match peer(record) {
            None | Some(0) => self.orphans.insert(record.ino, other),
            Some(peer) => self.waiting.insert(peer, other),
        };
    }

    /// A datagram socket that is connected by the name of its peer.
    fn by_name(&self, record: &SocketRecord) -> Option<&'a SocketRecord> {
        let other = self.records.get(&peer(record)?).copied()?;
        let mutual = peer(other) == Some(record.ino);
        let unnamed = name(record).is_empty() || name(other).is_empty();
        (record.kind == libc::SOCK_DGRAM && !(mutual && unnamed)).then_some(other)
    }

    pub fn open(&mut self, record: &SocketRecord) -> Result<OwnedFd> {
        let failed = || format!("cannot make unix socket {} again", record.ino);
        let made = match (self.waiting.remove(&record.ino), &record.state) {
            (Some(half), _) => half,
            (None, SocketState::Paired { .. }) if self.by_name(record).is_none() => {
                let (mine, other) = sysfd::socketpair(libc::AF_UNIX, record.kind).or_fail(failed)?;
                self.keep(record, other);
                mine
            }
            _ => sysfd::socket(libc::AF_UNIX, record.kind | libc::SOCK_CLOEXEC, 0).or_fail(failed)?,
        };
        sockets::set_options(&made, record)?;
        match &record.state {
            SocketState::Bound { name, file } => bind(&made, name, *file)?,
            SocketState::Waiting { name, .. } if name.len() > UNNAMED => bind(&made, name, None)?,
            SocketState::Paired { name, file, .. } if record.kind == libc::SOCK_DGRAM && name.len() > UNNAMED => {
                bind(&made, name, *file)?;
            }
            SocketState::Listening { name, file, backlog } => {
                bind(&made, name, *file)?;
                sysfd::listen(&made, *backlog).or_fail(failed)?;
            }
            _ => {}
        }
        Ok(made)
    }

    /// Once all sockets exist: what was queued, then who is connected one way,
    /// then what was shut down.
    pub fn finish(self, builder: &Builder<'_>, made: &HashMap<FileId, OwnedFd>, manifest: &Manifest) -> Result<()> {
        let records = || unix_records(manifest, self.network);
        let by_ino: HashMap<u64, &OwnedFd> = records().map(|(id, r)| (r.ino, &made[&id])).collect();
        for record in self.records.values() {
            for message in &record.queue {
                self.deliver(builder, record, message, (&by_ino, made))
                    .or_fail(|| format!("cannot put back what was queued in unix socket {}", record.ino))?;
            }
        }
        self.connect(&by_ino)?;
        self.wait(&by_ino)?;
        for (id, record) in records() {
            sockets::set_late_options(&made[&id], record)?;
            sockets::shut_down_again(&made[&id], record);
        }
        Ok(())
    }

    fn deliver(
        &self,
        builder: &Builder<'_>,
        record: &SocketRecord,
        message: &Message,
        (made, files): (&HashMap<u64, &OwnedFd>, &HashMap<FileId, OwnedFd>),
    ) -> Sys<()> {
        let rights = message.rights.iter().map(|file| files.get(file).map(OwnedFd::as_fd));
        let rights: Vec<BorrowedFd<'_>> = rights.collect::<Option<_>>().ok_or(nix::Error::EBADF)?;
        let send = |fd: &OwnedFd, to: Option<&[u8]>| send(builder, fd, message, to, &rights);
        let connected = peer(record).filter(|_| self.by_name(record).is_none());
        if let Some(peer) = connected {
            let sender = if peer == 0 {
                self.orphans.get(&record.ino)
            } else {
                made.get(&peer).copied()
            };
            return send(sender.ok_or(nix::Error::ENOTCONN)?, None);
        }
        if message.from.len() > UNNAMED {
            // Each kind has abstract names of its own.
            let mut alike = self.records.values().filter(|r| r.kind == record.kind);
            let sender = alike.find(|r| name(r) == message.from).ok_or(nix::Error::ENOTCONN)?;
            return send(made[&sender.ino], Some(name(record)));
        }
        let nobody = sysfd::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)?;
        send(&nobody, Some(name(record)))
    }

    /// Connects those that wait to be accepted, in their turn.
    fn wait(&self, made: &HashMap<u64, &OwnedFd>) -> Result<()> {
        let places = self.records.values().filter_map(|record| match record.state {
            SocketState::Waiting { listener, place, .. } => Some((listener, place, record.ino)),
            _ => None,
        });
        let mut places: Vec<(u64, u32, u64)> = places.collect();
        places.sort_unstable();
        for (listener, _, client) in places {
            let failed = || format!("cannot connect unix socket {client} again");
            let Some(SocketState::Listening { name, backlog, .. }) = self.records.get(&listener).map(|r| &r.state)
            else {
                return Err(Error::failed(failed()).because("what it waits at does not listen"));
            };
            let at = made[&listener];
            // It may have been made to take fewer since.
            sysfd::listen(at, i32::MAX).or_fail(failed)?;
            let connecting = made[&client];
            let flags = sysfd::fcntl(connecting.as_raw_fd(), libc::F_GETFL, 0).or_fail(failed)?;
            let set = |flags: i32| sysfd::fcntl(connecting.as_raw_fd(), libc::F_SETFL, i64::from(flags));
            // More than this host lets wait are refused, and not waited for.
            set(flags | libc::O_NONBLOCK).or_fail(failed)?;
            diag::set_address(connecting, true, name).or_fail(failed)?;
            set(flags).or_fail(failed)?;
            sysfd::listen(at, *backlog).or_fail(failed)?;
        }
        Ok(())
    }

    /// Connects datagram sockets by name. A connected one can be connected to by
    /// its own peer only: each comes after all that are connected to it.
    fn connect(&self, made: &HashMap<u64, &OwnedFd>) -> Result<()> {
        let mut rest: Vec<(&SocketRecord, &SocketRecord)> = self
            .records
            .values()
            .filter_map(|r| Some((*r, self.by_name(r)?)))
            .collect();
        while !rest.is_empty() {
            let awaited: Vec<u64> = rest
                .iter()
                .filter(|(r, other)| peer(other) != Some(r.ino))
                .map(|(_, other)| other.ino)
                .collect();
            let (now, later): (Vec<_>, Vec<_>) = rest.iter().partition(|(record, _)| !awaited.contains(&record.ino));
            if now.is_empty() {
                return Err(Error::failed("the connections of datagram sockets form a ring"));
            }
            for (record, other) in now {
                let failed = || format!("cannot connect unix socket {} again", record.ino);
                diag::set_address(made[&record.ino], true, name(other)).or_fail(failed)?;
            }
            rest = later;
        }
        Ok(())
    }
}

/// A connection whose accepted side carries its listener's name.
fn accepted_pair(record: &SocketRecord, client: Option<&SocketRecord>) -> Result<(OwnedFd, OwnedFd)> {
    let failed = || "cannot connect two unix sockets";
    let new = || sysfd::socket(libc::AF_UNIX, record.kind | libc::SOCK_CLOEXEC, 0).or_fail(failed);
    let (listener, other) = (new()?, new()?);
    unlink_stale(name(record));
    diag::set_address(&listener, false, name(record)).or_fail(failed)?;
    sysfd::listen(&listener, 1).or_fail(failed)?;
    if let Some(SocketState::Paired { name, file, .. }) = client.map(|r| &r.state)
        && name.len() > UNNAMED
    {
        bind(&other, name, *file)?;
    }
    diag::set_address(&other, true, name(record)).or_fail(failed)?;
    let mine = sysfd::accept(listener.as_raw_fd()).or_fail(failed)?;
    unlink_stale(name(record));
    Ok((mine, other))
}

/// Removes the path of a socket that is none any more, or is one of ours.
fn unlink_stale(name: &[u8]) {
    if let Some(path) = path_of(name) {
        let socket = fs::symlink_metadata(&path).is_ok_and(|meta| meta.file_type().is_socket());
        if socket {
            fs::remove_file(path).ok();
        }
    }
}

/// A path that is somebody's stays that one's, unless the app has a network of its own: of its clones the last
/// has the paths.
fn is_nobodys(builder: &Builder<'_>, name: &[u8]) -> Result<()> {
    let Some(path) = path_of(name) else { return Ok(()) };
    let is_socket = fs::symlink_metadata(&path).is_ok_and(|meta| meta.file_type().is_socket());
    let begin = Instant::now();
    while is_socket && !builder.apart && is_somebodys(name) {
        if begin.elapsed() > LAST_HOLD {
            return Err(Error::new(
                Kind::Conflict,
                format!("cannot bind the unix socket {}", path.display()),
            )
            .because("another process has it open")
            .fix("end that one, or restore the app in a network of its own (--network own), where it takes the path over"));
        }
        std::thread::sleep(HELD_YET);
    }
    Ok(())
}

/// A process that was forked off one which had it has all that one's descriptors for a moment, in which
/// that may end.
const LAST_HOLD: Duration = Duration::from_millis(100);
const HELD_YET: Duration = Duration::from_millis(2);

/// Whether a socket is bound there: who has it hears nothing of a datagram socket that connects.
fn is_somebodys(name: &[u8]) -> bool {
    let asked = sysfd::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)
        .and_then(|socket| diag::set_address(&socket, true, name));
    !matches!(asked, Err(nix::Error::ECONNREFUSED | nix::Error::ENOENT))
}

fn bind(made: &OwnedFd, name: &[u8], file: Option<SocketFile>) -> Result<()> {
    let shown = path_of(name).map_or_else(|| "an abstract name".into(), |path| path.display().to_string());
    let failed = || format!("cannot bind the unix socket {shown}");
    // One that has lost its path leaves that to who had it next.
    let next = match (file, path_of(name)) {
        (None, Some(path)) => Aside::put(path).or_fail(failed)?,
        _ => None,
    };
    unlink_stale(name);
    // The name is what getsockname tells the app: it must be given as it was.
    let bound = diag::set_address(made, false, name);
    if let (Err(_), Some(next)) = (bound, &next) {
        next.back().or_fail(failed)?;
    }
    bound.map_err(|errno| match errno {
        nix::Error::EADDRINUSE => Error::new(Kind::Conflict, failed())
            .because(errno)
            .fix("end the program that uses this name"),
        errno => Error::failed(failed()).because(errno),
    })?;
    let Some(path) = path_of(name) else { return Ok(()) };
    let Some(file) = file else {
        fs::remove_file(path).or_fail(failed)?;
        return next.map_or(Ok(()), |next| next.back()).or_fail(failed);
    };
    own(&path, file).or_fail(failed)
}

/// A socket that has another name for a moment.
struct Aside([PathBuf; 2]);

impl Aside {
    fn put(path: PathBuf) -> std::io::Result<Option<Aside>> {
        let mut name = path.clone().into_os_string();
        name.push(format!(".{}", std::process::id()));
        let paths = [path, name.into()];
        match fs::rename(&paths[0], &paths[1]) {
            Ok(()) => Ok(Some(Aside(paths))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn back(&self) -> std::io::Result<()> {
        fs::rename(&self.0[1], &self.0[0])
    }
}

/// Gives the socket at this path its owner and mode; nothing else that has taken its name,
/// and nothing that a link there leads to.
fn own(path: &Path, file: SocketFile) -> std::io::Result<()> {
    let node = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)?;
    if !node.metadata()?.file_type().is_socket() {
        return Err(std::io::Error::other("something else has taken its name"));
    }
    // What a descriptor is of cannot be renamed. fchmod(2) takes no such descriptor.
    let node = format!("/proc/self/fd/{}", node.as_raw_fd());
    std::os::unix::fs::chown(&node, Some(file.uid), Some(file.gid))?;
    fs::set_permissions(&node, std::os::unix::fs::PermissionsExt::from_mode(file.mode))
}

/// Sends a message again, with the credentials and descriptors it had.
fn send(
    builder: &Builder<'_>,
    fd: &OwnedFd,
    message: &Message,
    to: Option<&[u8]>,
    rights: &[BorrowedFd<'_>],
) -> Sys<()> {
    let sender = match message.sender {
        Some(sender) => {
            let pid = builder.processes.get(&sender.pid).ok_or(nix::Error::ESRCH)?;
            Some((pid.0, sender.uid, sender.gid))
        }
        None => None,
    };
    let sent = diag::send_message(fd, &message.data, to, sender, rights)?;
    if sent == message.data.len() {
        Ok(())
    } else {
        Err(nix::Error::EAGAIN)
    }
}
