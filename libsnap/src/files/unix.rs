//! unix(7) sockets: pairs, connections inside the app, listeners, datagrams.
//!
//! Peers are found with sock_diag(7). A connected pair is made again by
//! socketpair(2), or, where one side carries the listener's name, by a listener
//! that exists only for that connection.
//! Refused: peers outside the app, descriptors in flight, connections not yet
//! accepted, relative names.

use super::{Builder, Context, Description, Refused, refused, sockets};
use crate::error::{Error, OrFail, Result};
use crate::ids::FileId;
use crate::image::records::{FileKind, Manifest, SocketFile, SocketRecord, SocketState};
use crate::sys::{Sys, diag, fd as sysfd};
use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

const LISTEN: u8 = 10;
/// Length of a name that says only the family: an unnamed socket.
const UNNAMED: usize = 2;

pub fn capture(context: &Context<'_>, description: &Description, record: &mut SocketRecord) -> Result<(), Refused> {
    let Some(diag) = context.unix.get(&record.ino) else {
        return refused("it belongs to another network namespace", "snapshot the app from its own network namespace");
    };
    let name = diag::address(&description.dup, false).unwrap_or_default();
    let file = socket_file(context, description, &name)?;
    record.shutdown = diag.shutdown;
    let connected = diag::address(&description.dup, true).is_ok();
    record.state = if diag.state == LISTEN {
        if !diag.waiting.is_empty() {
            return refused(format!("{} connections to it are not accepted yet", diag.waiting.len()), "try again");
        }
        SocketState::Listening {
            name,
            file,
            backlog: diag.queue.1 as i32,
        }
    } else if connected {
        paired(context, diag.peer, name)?
    } else if name.len() > UNNAMED {
        SocketState::Bound { name, file }
    } else {
        SocketState::Fresh
    };
    if context.frozen && !matches!(record.state, SocketState::Listening { .. }) && sockets::waiting(&description.dup) > 0 {
        record.queue = sockets::peek_queue(description)?;
    }
    Ok(())
}

fn paired(context: &Context<'_>, peer: u64, name: Vec<u8>) -> Result<SocketState, Refused> {
    if peer != 0 && context.by_inode(peer).next().is_none() {
        return refused("its peer is a program outside the app", "close the connection before the snapshot");
    }
    Ok(SocketState::Paired { name, peer })
}

/// The path of a raw address: none for unnamed and abstract ones.
fn path_of(name: &[u8]) -> Option<String> {
    let path = name.get(UNNAMED..).filter(|p| p.first().is_some_and(|b| *b != 0))?;
    let end = path.iter().position(|b| *b == 0).unwrap_or(path.len());
    Some(String::from_utf8_lossy(&path[..end]).into_owned())
}

fn socket_file(context: &Context<'_>, description: &Description, name: &[u8]) -> Result<Option<SocketFile>, Refused> {
    let Some(path) = path_of(name) else { return Ok(None) };
    if !path.starts_with('/') {
        return refused(format!("it is bound to the relative name {path}"), "bind it to an absolute path");
    }
    let pid = context.member(&description.found).pid;
    // No file: somebody unlinked it, and restore will leave it unlinked.
    Ok(fs::symlink_metadata(format!("/proc/{pid}/root{path}")).ok().map(|meta| SocketFile {
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
    }))
}

/// Sockets being made again, by their inode in the appshot.
#[derive(Debug, Default)]
pub struct Sockets {
    /// The second half of a pair, until its own record comes.
    waiting: HashMap<u64, OwnedFd>,
    /// Peers that the app does not have (they were closed): they deliver what
    /// was queued, then close.
    orphans: HashMap<u64, OwnedFd>,
}

impl Sockets {
    pub fn open(&mut self, builder: &Builder<'_>, record: &SocketRecord) -> Result<OwnedFd> {
        let failed = || format!("cannot make unix socket {} again", record.ino);
        if let Some(half) = self.waiting.remove(&record.ino) {
            sockets::set_options(&half, record)?;
            return Ok(half);
        }
        let made = match &record.state {
            SocketState::Paired { name, peer } => {
                let (mine, other) = pair(record.kind, name).or_fail(failed)?;
                match peer {
                    0 => self.orphans.insert(record.ino, other),
                    _ => self.waiting.insert(*peer, other),
                };
                mine
            }
            _ => sysfd::socket(libc::AF_UNIX, record.kind | libc::SOCK_CLOEXEC, 0).or_fail(failed)?,
        };
        sockets::set_options(&made, record)?;
        match &record.state {
            SocketState::Bound { name, file } => bind(builder, &made, name, *file)?,
            SocketState::Listening { name, file, backlog } => {
                bind(builder, &made, name, *file)?;
                sysfd::listen(&made, *backlog).or_fail(failed)?;
            }
            _ => {}
        }
        Ok(made)
    }

    /// Once all sockets exist: what was queued, then what was shut down.
    pub fn finish(self, made: &HashMap<FileId, OwnedFd>, manifest: &Manifest) -> Result<()> {
        let records: Vec<(FileId, &SocketRecord)> = manifest.files.iter().filter_map(|file| match &file.kind {
            FileKind::Socket(record) if record.domain == libc::AF_UNIX => Some((file.id, &**record)),
            _ => None,
        }).collect();
        let by_ino: HashMap<u64, &OwnedFd> = records.iter().map(|(id, r)| (r.ino, &made[id])).collect();
        for (_, record) in &records {
            let failed = || format!("cannot put back what was queued in unix socket {}", record.ino);
            let sender = match &record.state {
                SocketState::Paired { peer: 0, .. } => self.orphans.get(&record.ino),
                SocketState::Paired { peer, .. } => by_ino.get(peer).copied(),
                _ => None,
            };
            for message in &record.queue {
                match (sender, &record.state) {
                    (Some(sender), _) => send(sender, &message.data).or_fail(failed)?,
                    (None, SocketState::Bound { name, .. }) => send_to(name, &message.data).or_fail(failed)?,
                    _ => return Err(Error::failed(failed()).because("it has no peer")),
                }
            }
        }
        for (id, record) in &records {
            if (1..=3).contains(&record.shutdown) {
                // 1 receive, 2 send, 3 both: shutdown(2) counts from 0. A closed
                // peer has shut both down already.
                sysfd::shutdown(&made[id], i32::from(record.shutdown) - 1).ok();
            }
        }
        Ok(())
    }
}

/// Two connected sockets; the first one carries `name`.
fn pair(kind: i32, name: &[u8]) -> Sys<(OwnedFd, OwnedFd)> {
    if name.len() <= UNNAMED || kind == libc::SOCK_DGRAM {
        return sysfd::socketpair(libc::AF_UNIX, kind);
    }
    let listener = sysfd::socket(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0)?;
    unlink_stale(name);
    diag::set_address(&listener, false, name)?;
    sysfd::listen(&listener, 1)?;
    let other = sysfd::socket(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0)?;
    diag::set_address(&other, true, name)?;
    let mine = sysfd::accept(listener.as_raw_fd())?;
    unlink_stale(name);
    Ok((mine, other))
}

fn unlink_stale(name: &[u8]) {
    if let Some(path) = path_of(name) {
        let socket = fs::symlink_metadata(&path).is_ok_and(|meta| meta.file_type().is_socket());
        if socket {
            fs::remove_file(path).ok();
        }
    }
}

fn bind(_builder: &Builder<'_>, made: &OwnedFd, name: &[u8], file: Option<SocketFile>) -> Result<()> {
    let shown = path_of(name).unwrap_or_else(|| "an abstract name".into());
    let failed = || format!("cannot bind the unix socket {shown}");
    unlink_stale(name);
    // The name is what getsockname tells the app: it must be given as it was.
    diag::set_address(made, false, name).map_err(|errno| {
        Error::new(crate::error::Kind::Conflict, failed()).because(errno).fix("end the program that uses this name")
    })?;
    let Some(path) = path_of(name) else { return Ok(()) };
    let Some(file) = file else {
        return fs::remove_file(path).or_fail(failed);
    };
    std::os::unix::fs::chown(&path, Some(file.uid), Some(file.gid)).or_fail(failed)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(file.mode);
    fs::set_permissions(&path, mode).or_fail(failed)
}

fn send(fd: &OwnedFd, data: &[u8]) -> Sys<()> {
    use nix::sys::socket::MsgFlags;
    let sent = nix::sys::socket::send(fd.as_raw_fd(), data, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?;
    if sent == data.len() { Ok(()) } else { Err(nix::Error::EAGAIN) }
}

fn send_to(name: &[u8], data: &[u8]) -> Sys<()> {
    let sender = sysfd::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)?;
    diag::set_address(&sender, true, name)?;
    send(&sender, data)
}
