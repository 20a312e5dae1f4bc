//! pipe(2) and fifo(7): both ends, what is inside, its size.
//!
//! The content is copied with tee(2), which leaves it in place and keeps the
//! borders of packets (O_DIRECT). At restore each further description of an end
//! is opened through /proc/self/fd.
//! Refused: an end whose other end is outside the app (unless it is to be
//! replaced).

use super::{Builder, Context, Description, Refused, refused};
use crate::error::{Error, OrFail, Result};
use crate::image::records::{FileKind, PipeRecord};
use crate::sys::fd as sysfd;
use crate::target::OutsidePolicy;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

fn access(flags: i32) -> i32 {
    flags & libc::O_ACCMODE
}

pub fn capture(
    context: &Context<'_>,
    description: &Description,
    pipes: &mut Vec<PipeRecord>,
) -> Result<FileKind, Refused> {
    let found = &description.found;
    let ino = found.key.1;
    let fifo = found.link.starts_with('/');
    if !fifo && leads_outside(context, description) {
        return match context.options.outside {
            OutsidePolicy::Replace => Ok(FileKind::Outside {
                what: found.link.clone(),
            }),
            OutsidePolicy::Refuse => refused(
                "a pipe whose other end is outside the app",
                "pass --outside=replace to give the restored app its restorer's stdio instead",
            ),
        };
    }
    if !pipes.iter().any(|pipe| pipe.ino == ino) {
        pipes.push(record(context, description)?);
    }
    Ok(FileKind::Pipe { ino })
}

/// Only one kind of end is in the app, and somebody still holds the other.
fn leads_outside(context: &Context<'_>, description: &Description) -> bool {
    let ino = description.found.key.1;
    let ends = |mode: i32| context.by_inode(ino).any(|d| access(d.found.flags) == mode);
    if context.may_be_in_flight() || ends(libc::O_RDWR) || (ends(libc::O_RDONLY) && ends(libc::O_WRONLY)) {
        return false;
    }
    let mut polled = [PollFd::new(description.dup.as_fd(), PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO).ok();
    let alone = polled[0]
        .revents()
        .is_some_and(|events| events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR));
    !alone
}

fn record(context: &Context<'_>, description: &Description) -> Result<PipeRecord, Refused> {
    let found = &description.found;
    let capacity = sysfd::fcntl(description.dup.as_raw_fd(), libc::F_GETPIPE_SZ, 0).unwrap_or(65536);
    let readable = context
        .by_inode(found.key.1)
        .find(|d| access(d.found.flags) != libc::O_WRONLY);
    let waits = readable.is_none() && sysfd::ioctl_i32(&description.dup, libc::FIONREAD).unwrap_or(0) > 0;
    let tells = |d: &Description| d.found.flags & libc::O_ASYNC != 0;
    if waits && context.by_inode(found.key.1).any(tells) {
        return refused(
            "something waits in a pipe that nobody reads, and a look at it would be told by a signal (O_ASYNC)",
            "let the app close it, or clear O_ASYNC",
        );
    }
    let content = || match readable {
        Some(end) => content(&end.dup, capacity),
        // Nobody can read it any more, but through /proc.
        None if waits => content(&reopen(&description.dup, libc::O_RDONLY)?, capacity),
        None => Ok(Default::default()),
    };
    let (data, reads) = match context.frozen {
        Some(_) => content().or_else(|e| refused(format!("its content cannot be read: {e}"), "try again"))?,
        None => Default::default(),
    };
    // Plain bytes come in one read, whatever the mode is now.
    let direct = context
        .by_inode(found.key.1)
        .any(|d| d.found.flags & libc::O_DIRECT != 0);
    let packets = if direct || reads.len() > 1 { reads } else { Vec::new() };
    Ok(PipeRecord {
        ino: found.key.1,
        fifo: found.link.starts_with('/').then(|| found.link.clone()),
        capacity: capacity as u32,
        data,
        packets,
    })
}

/// What is inside, and the length of each read that it took.
fn content(end: &OwnedFd, capacity: i32) -> std::io::Result<(Vec<u8>, Vec<u32>)> {
    let (from, to) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_CLOEXEC)?;
    sysfd::fcntl(to.as_raw_fd(), libc::F_SETPIPE_SZ, i64::from(capacity))?;
    let len = match sysfd::tee(end, &to, capacity as usize) {
        Ok(len) => len,
        Err(nix::Error::EAGAIN) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let (mut data, mut reads) = (vec![0; len], Vec::new());
    let (mut from, mut have) = (File::from(from), 0);
    while have < len {
        let got = from.read(&mut data[have..]).map_err(|_| nix::Error::EIO)?;
        reads.push(got as u32);
        have += got;
    }
    Ok((data, reads))
}

/// Pipes being made again; an end that the app does not have is closed when
/// this is dropped.
#[derive(Debug)]
pub struct Pipes<'a> {
    records: HashMap<u64, &'a PipeRecord>,
    view: String,
    open: HashMap<u64, Ends>,
}

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
    given: Vec<i32>,
}

impl<'a> Pipes<'a> {
    pub fn new(builder: &Builder<'_>, records: &'a [PipeRecord]) -> Self {
        Pipes {
            records: records.iter().map(|r| (r.ino, r)).collect(),
            view: builder.view.clone(),
            open: HashMap::new(),
        }
    }

    /// A description of the pipe `ino` with the access mode of `flags`.
    pub fn open(&mut self, ino: u64, flags: i32) -> Result<OwnedFd> {
        let failed = || format!("cannot make pipe {ino} again");
        if !self.open.contains_key(&ino) {
            let record = self.records.get(&ino).copied().ok_or_else(|| Error::failed(failed()))?;
            let made = make(&self.view, record).or_fail(|| match &record.fifo {
                Some(path) => format!("cannot open the fifo {path} again"),
                None => failed(),
            });
            self.open.insert(ino, made?);
        }
        let ends = self.open.get_mut(&ino).ok_or_else(|| Error::failed(failed()))?;
        let mode = access(flags);
        let end = if mode == libc::O_RDONLY {
            &ends.read
        } else {
            &ends.write
        };
        // The first description of an end is the end itself; others are opened anew.
        let fresh = mode == libc::O_RDWR || ends.given.contains(&mode);
        ends.given.push(mode);
        if fresh { reopen(end, mode) } else { end.try_clone() }.or_fail(failed)
    }
}

fn make(view: &str, record: &PipeRecord) -> std::io::Result<Ends> {
    let (read, write) = match &record.fifo {
        Some(path) => {
            let both = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
                .open(format!("{view}{path}"))?;
            let both = OwnedFd::from(both);
            (reopen(&both, libc::O_RDONLY)?, reopen(&both, libc::O_WRONLY)?)
        }
        None => nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?,
    };
    if sysfd::fcntl(write.as_raw_fd(), libc::F_GETPIPE_SZ, 0)? != record.capacity as i32 {
        sysfd::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, i64::from(record.capacity))?;
    }
    put_inside(&write, record)?;
    Ok(Ends {
        read,
        write,
        given: Vec::new(),
    })
}

/// Each packet by a write of its own; the mode itself is set later, for each
/// description.
fn put_inside(write: &OwnedFd, record: &PipeRecord) -> std::io::Result<()> {
    let mut into = File::from(write.try_clone()?);
    if record.packets.is_empty() {
        return into.write_all(&record.data);
    }
    let flags = i64::from(sysfd::fcntl(write.as_raw_fd(), libc::F_GETFL, 0)?);
    sysfd::fcntl(write.as_raw_fd(), libc::F_SETFL, flags | i64::from(libc::O_DIRECT))?;
    let mut rest = record.data.as_slice();
    for bytes in &record.packets {
        let (packet, after) = rest.split_at(*bytes as usize);
        into.write_all(packet)?;
        rest = after;
    }
    sysfd::fcntl(write.as_raw_fd(), libc::F_SETFL, flags)?;
    Ok(())
}

fn reopen(end: &OwnedFd, mode: i32) -> std::io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", end.as_raw_fd());
    let (read, write) = (mode != libc::O_WRONLY, mode != libc::O_RDONLY);
    let file = OpenOptions::new()
        .read(read)
        .write(write)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    Ok(file.into())
}
