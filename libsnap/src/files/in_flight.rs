//! Descriptors in flight: sent by a unix(7) socket and not received yet (SCM_RIGHTS).
//!
//! A look at a queue (MSG_PEEK) gives us duplicates of them. Each is a descriptor of one of
//! the app's open file descriptions, found by kcmp(2), or of one that nobody else has: that
//! one is entered like the others, known by our number for it. A socket in flight may itself
//! have some in its queue. How many a queue has is told by fdinfo (Linux 5.7), also while the
//! app runs; which ones, only once it stands still.
//! Refused in flight, where no process has them: what is made again inside a process that has
//! it (epoll, terminals), and the ends of TCP connections.

use super::{Description, Found, Member, Refused, find_one, refused, same, sockets};
use crate::ids::{FileId, HostPid};
use crate::image::records::{FileKind, Message};
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};

/// What is queued in each socket that has descriptors in its queue.
pub type Queues = HashMap<FileId, Result<Vec<Message>, Refused>>;

/// Whether there are any in the queue of this socket.
pub fn has(description: &Description) -> bool {
    description.found.info.number("scm_fds").unwrap_or(0) > 0
}

/// Looks into all such queues; what only they hold is added to the descriptions.
pub fn find(members: &[Member], descriptions: &mut Vec<Description>) -> Queues {
    let mut queues = Queues::new();
    let mut at = 0;
    while let Some(socket) = descriptions.get(at) {
        if has(socket) && !sockets::listens(&socket.dup) {
            let (id, member) = (socket.id, socket.found.member);
            let queue = sockets::look_into(members, socket).and_then(|queue| {
                let entered = queue.into_iter().map(|(message, rights)| {
                    let rights = rights.into_iter().map(|fd| enter(member, descriptions, fd));
                    Ok(Message {
                        rights: rights.collect::<Result<_, _>>()?,
                        ..message
                    })
                });
                entered.collect()
            });
            queues.insert(id, queue);
        }
        at += 1;
    }
    queues
}

/// The description that this descriptor of ours leads to. `member`: in whose queue it is.
fn enter(member: usize, descriptions: &mut Vec<Description>, fd: OwnedFd) -> Result<FileId, Refused> {
    let own = HostPid(std::process::id() as i32);
    let Ok(found) = find_one(own, member, fd.as_raw_fd()) else {
        return refused("a descriptor in its queue cannot be looked at", "try again");
    };
    let alike = |d: &&Description| (d.found.key, d.found.flags) == (found.key, found.flags);
    if let Some(known) = descriptions.iter().filter(alike).find(|d| same(&d.found, &found)) {
        return Ok(known.id);
    }
    let id = FileId(descriptions.len() as u32);
    descriptions.push(Description::new(id, found, fd));
    Ok(id)
}

/// Whether no process of the app has it.
fn is_alone(members: &[Member], found: &Found) -> bool {
    members[found.member].pid != found.pid
}

/// Refuses what is made again inside a process that has it.
pub fn carried(members: &[Member], found: &Found, kind: &FileKind) -> Result<(), Refused> {
    let inside = matches!(
        kind,
        FileKind::Epoll { .. } | FileKind::Pty(_) | FileKind::PtySlave { .. } | FileKind::Outside { .. }
    );
    match inside {
        true => in_a_process(members, found),
        false => Ok(()),
    }
}

/// Refuses what no process has.
pub fn in_a_process(members: &[Member], found: &Found) -> Result<(), Refused> {
    match is_alone(members, found) {
        true => refused(
            "it is in flight in a unix socket, and no process has it",
            "let the app receive it first",
        ),
        false => Ok(()),
    }
}
