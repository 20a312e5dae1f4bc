//! Pseudo-terminals (pty(7)) and controlling terminals.
//!
//! The state of a pair is asked of its master, with ioctls: terminal modes,
//! window size, session, foreground group; what is queued is taken out and put
//! back (`pty_queue`). A slave is told by its index and by the instance of
//! devpts that it and the master's `/dev/pts` belong to.
//!
//! At restore masters are opened until the right index comes up, before any
//! process of the app is forked: a process gets its controlling terminal from
//! its parent, so each session leader must have its own by then.
//! A terminal that the app was started on leads outside: it is refused or
//! replaced by the restorer's stdio.
//! Refused: a slave that never was open or is open outside only, hung-up
//! terminals, exclusive mode, EXTPROC, other line disciplines, output that is
//! full or stopped, long input, a foreground group that has ended.
//! Not seen from outside, and so not carried: the column that echo stands at,
//! and a ^V typed without its character.

use super::pty_queue::{self, Modes, Queue};
use super::{Builder, Context, Description, Found, Refused, paths, refused};
use crate::error::{Error, Kind, OrFail, Result};
use crate::ids::{FileId, HostPid, VirtualPid};
use crate::image::records::{FileKind, Manifest, OpenFile, PtyRecord, SocketFile};
use crate::proc::{self, Fields};
use crate::sys::{Sys, fd as sysfd};
use crate::target::OutsidePolicy;
use nix::poll::PollFlags;
use nix::sys::stat::{major, minor};
use std::collections::HashMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

const TIOCGPTN: u64 = 0x8004_5430;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGDEV: u64 = 0x8004_5432;
const TIOCGPKT: u64 = 0x8004_5438;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGEXCL: u64 = 0x8004_5440;
const TIOCGPTPEER: u64 = 0x5441;

const DEVPTS_MAGIC: i64 = 0x1cd1;
const MASTER: (u64, u64) = (5, 2);
const TTY: (u64, u64) = (5, 0);
/// UNIX98_PTY_SLAVE_MAJOR; the minor number is the index.
const SLAVE: u64 = 136;

/// Character devices that are terminals: virtual consoles and serial lines,
/// /dev/tty and friends, pty slaves.
pub fn is_terminal(found: &Found) -> bool {
    found.mode & libc::S_IFMT == libc::S_IFCHR && matches!(major(found.rdev), 4 | 5 | 136..=143)
}

/// `/dev/pts/3`, for messages: a terminal by the number in `stat`.
pub fn name(tty: i32) -> String {
    let device = u64::from(tty as u32);
    match major(device) {
        SLAVE => format!("/dev/pts/{}", minor(device)),
        major => format!("device {major}:{}", minor(device)),
    }
}

/// The app's own terminal that controls a process of session `sid`, which has
/// `tty` in its `stat`.
pub fn controlling(files: &[OpenFile], sid: VirtualPid, tty: i32) -> Option<u32> {
    let device = u64::from(tty as u32);
    let controls = |pty: &PtyRecord| pty.sid == sid && (major(device), minor(device)) == (SLAVE, u64::from(pty.index));
    let mut ptys = files.iter().filter_map(|file| {
        if let FileKind::Pty(pty) = &file.kind {
            Some(pty)
        } else {
            None
        }
    });
    ptys.find(|pty| controls(pty)).map(|pty| pty.index)
}

pub fn capture(context: &Context<'_>, description: &Description) -> Result<FileKind, Refused> {
    let found = &description.found;
    match (major(found.rdev), minor(found.rdev)) {
        MASTER => master(context, description).map(|record| FileKind::Pty(Box::new(record))),
        TTY | (SLAVE, _) => match pair(context, description) {
            Some(index) => slave_kind(description, index),
            None => outside(context, found),
        },
        _ => outside(context, found),
    }
}

fn outside(context: &Context<'_>, found: &Found) -> Result<FileKind, Refused> {
    match context.options.outside {
        OutsidePolicy::Replace => Ok(FileKind::Outside {
            what: found.link.clone(),
        }),
        OutsidePolicy::Refuse if found.link.ends_with(" (deleted)") => refused(
            "a pseudo-terminal whose master has been closed is not carried yet",
            "let the app close it first",
        ),
        OutsidePolicy::Refuse => refused(
            "the terminal the app was started on is outside the app",
            "pass --outside=replace to give the restored app its restorer's stdio instead",
        ),
    }
}

fn slave_kind(description: &Description, index: u32) -> Result<FileKind, Refused> {
    if Modes::get(&description.dup).is_err() {
        return refused(
            "a terminal that has been hung up is not carried yet",
            "let the app close it first",
        );
    }
    let through_tty = description.found.link == "/dev/tty";
    if !through_tty && description.found.link != format!("/dev/pts/{index}") {
        return refused(
            "a pseudo-terminal opened under another name than /dev/pts is not carried",
            "let the app close it first",
        );
    }
    Ok(FileKind::PtySlave { index, through_tty })
}

/// The index of a slave whose master is in the app.
fn pair(context: &Context<'_>, slave: &Description) -> Option<u32> {
    let device = sysfd::ioctl_i32(&slave.dup, TIOCGDEV).map_or(slave.found.rdev, |device| u64::from(device as u32));
    let index = minor(device) as u32;
    let mut masters = context.descriptions.iter().filter(|d| is_master(d));
    let own = |master: &Description| {
        sysfd::ioctl_i32(&master.dup, TIOCGPTN) == Ok(index as i32)
            && match slave.found.link.as_str() {
                "/dev/tty" => controlled_holder(context, slave, master, device),
                _ => instance(context) == Some(slave.found.key.0),
            }
    };
    (major(device) == SLAVE && masters.any(own)).then_some(index)
}

fn is_master(description: &Description) -> bool {
    let found = &description.found;
    is_terminal(found) && (major(found.rdev), minor(found.rdev)) == MASTER
}

/// /dev/tty does not tell its instance of devpts: one who has it open must be
/// controlled by this terminal.
fn controlled_holder(context: &Context<'_>, slave: &Description, master: &Description, device: u64) -> bool {
    let session = session(&master.dup);
    let holders = context
        .members
        .iter()
        .zip(context.fds)
        .filter(|(_, fds)| fds.iter().any(|fd| fd.file == slave.id));
    let mut stats = holders.filter_map(|(member, _)| proc::stat(member.pid).ok());
    stats.any(|stat| session == stat.session && u64::from(stat.tty as u32) == device)
}

/// The devpts at /dev/pts.
fn instance(context: &Context<'_>) -> Option<u64> {
    let pid = context.base;
    fs::metadata(format!("/proc/{pid}/root/dev/pts"))
        .ok()
        .map(|meta| meta.dev())
}

/// Host number of the session that the terminal controls, 0 for none.
fn session(master: &OwnedFd) -> i32 {
    sysfd::ioctl_i32(master, libc::TIOCGSID).unwrap_or(0)
}

fn master(context: &Context<'_>, description: &Description) -> Result<PtyRecord, Refused> {
    let (found, tty) = (&description.found, &description.dup);
    let unknown = |what: &'static str| {
        move |errno: nix::Error| (format!("its {what} cannot be read: {errno}"), "try again".to_owned())
    };
    let index = sysfd::ioctl_i32(tty, TIOCGPTN).map_err(unknown("index"))? as u32;
    let file = node(context, description, index)?;
    let modes = Modes::get(tty).map_err(unknown("modes"))?;
    let mut winsize = [0; 8];
    sysfd::ioctl_bytes(tty, libc::TIOCGWINSZ, &mut winsize).map_err(unknown("window size"))?;
    let mut record = PtyRecord {
        index,
        termios: modes.0.to_vec(),
        winsize: std::array::from_fn(|at| u16::from_ne_bytes([winsize[2 * at], winsize[2 * at + 1]])),
        packet_mode: sysfd::ioctl_i32(tty, TIOCGPKT).map_err(unknown("packet mode"))? != 0,
        locked: sysfd::ioctl_i32(tty, TIOCGPTLCK).map_err(unknown("lock"))? != 0,
        file,
        foreground: VirtualPid(0),
        sid: VirtualPid(0),
        input: Vec::new(),
        output: Vec::new(),
    };
    (record.sid, record.foreground) = session_and_foreground(context, tty)?;
    plain(context, description, &modes, &record)?;
    if context.frozen.is_some() {
        let slave = peer(tty, record.locked).map_err(unknown("other side"))?;
        let queue = pty_queue::look(tty, &slave, &modes, record.packet_mode)?;
        (record.input, record.output) = (queue.input, queue.output);
    } else if let Some(slave) = slave_of(context, index) {
        pty_queue::can_be_looked_at(tty, &slave.dup)?;
    }
    debug_assert!(is_terminal(found), "only terminals come here");
    Ok(record)
}

/// The other side, where the app has it open.
fn slave_of<'a>(context: &Context<'a>, index: u32) -> Option<&'a Description> {
    let mut slaves = context
        .descriptions
        .iter()
        .filter(|d| !is_master(d) && is_terminal(&d.found));
    slaves.find(|slave| pair(context, slave) == Some(index))
}

/// Owner and mode of the slave, which must be of the devpts at /dev/pts.
fn node(context: &Context<'_>, master: &Description, index: u32) -> Result<SocketFile, Refused> {
    let pid = context.base;
    let instance = instance(context);
    let on_devpts = nix::sys::statfs::fstatfs(&master.dup).is_ok_and(|fs| fs.filesystem_type().0 == DEVPTS_MAGIC);
    let known = ["/dev/ptmx", "/dev/pts/ptmx"].contains(&master.found.link.as_str())
        && (!on_devpts || instance == Some(master.found.key.0));
    match fs::metadata(format!("/proc/{pid}/root/dev/pts/{index}")) {
        Ok(meta) if known && Some(meta.dev()) == instance => Ok(SocketFile {
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
        }),
        _ => refused(
            "a pseudo-terminal that is not of the app's /dev/pts is not carried",
            "let the app open /dev/ptmx",
        ),
    }
}

/// Refuses what no record holds.
fn plain(context: &Context<'_>, master: &Description, modes: &Modes, record: &PtyRecord) -> Result<(), Refused> {
    let tty = &master.dup;
    if master.found.flags & libc::O_ACCMODE != libc::O_RDWR {
        return refused(
            "a pseudo-terminal master that is not open for reading and writing",
            "let the app open it with O_RDWR",
        );
    }
    if modes.line_discipline() != 0 || modes.local() & libc::EXTPROC != 0 {
        return refused(
            "a terminal with a line discipline of its own or with EXTPROC is not carried yet",
            "end what set it",
        );
    }
    if sysfd::ioctl_i32(tty, TIOCGEXCL).unwrap_or(0) != 0 {
        return refused(
            "a terminal in exclusive mode (TIOCEXCL) is not carried yet",
            "let the app leave it (TIOCNXCL)",
        );
    }
    let events = pty_queue::events(tty);
    if record.packet_mode && events.contains(PollFlags::POLLPRI) {
        return refused(
            "a packet-mode status waits to be read",
            "let the app read its terminal, and try again",
        );
    }
    if slave_of(context, record.index).is_none() && !events.contains(PollFlags::POLLHUP) {
        return refused(
            "its other side was never opened, or is open outside the app only",
            "try again when the app has opened it",
        );
    }
    Ok(())
}

/// Session and foreground group as the app numbers them.
fn session_and_foreground(context: &Context<'_>, master: &OwnedFd) -> Result<(VirtualPid, VirtualPid), Refused> {
    let session = session(master);
    if session == 0 {
        return Ok((VirtualPid(0), VirtualPid(0)));
    }
    let Some(sid) = context.virtual_pid(session) else {
        return refused(
            format!("it is the controlling terminal of session {session}, whose leader is outside the app"),
            "snapshot the whole app",
        );
    };
    let group = sysfd::ioctl_i32(master, libc::TIOCGPGRP).unwrap_or(0);
    match foreground(context, session, group) {
        Some(pgid) => Ok((sid, pgid)),
        None => refused(
            format!("its foreground group {group} has ended or is outside the app"),
            "try again",
        ),
    }
}

/// Any process of the group tells its number in the app, also one that has
/// ended and waits to be reaped.
fn foreground(context: &Context<'_>, session: i32, group: i32) -> Option<VirtualPid> {
    if group == 0 {
        return Some(VirtualPid(0));
    }
    let in_group = |pid: &HostPid| proc::stat(*pid).is_ok_and(|stat| (stat.session, stat.pgrp) == (session, group));
    let members = context.members.iter().map(|member| member.pid);
    let zombies = Some(HostPid(group)).filter(|pid| proc::stat(*pid).is_ok_and(|stat| stat.state == b'Z'));
    let pid = members.chain(zombies).find(in_group)?;
    Fields::status(pid)
        .ok()
        .map(|status| VirtualPid(status.innermost("NSpgid")))
        .filter(|pgid| pgid.0 != 0)
}

/// The slave, opened through its master (Linux 4.13).
fn peer(master: &OwnedFd, locked: bool) -> Sys<OwnedFd> {
    const FLAGS: i32 = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK;
    if locked {
        set_lock(master, false)?;
    }
    let opened = sysfd::ioctl_value(master, TIOCGPTPEER, FLAGS).and_then(sysfd::owned);
    if locked {
        set_lock(master, true)?;
    }
    opened
}

fn set_lock(master: &OwnedFd, locked: bool) -> Sys<()> {
    sysfd::ioctl_bytes(master, TIOCSPTLCK, &mut i32::from(locked).to_ne_bytes()).map(drop)
}

/// Pseudo-terminals being made again. The slaves stay open here meanwhile:
/// once the last one is closed, the master reads a hang-up.
#[derive(Debug, Default)]
pub struct Ptys {
    masters: HashMap<u32, OwnedFd>,
    _slaves: Vec<OwnedFd>,
}

impl Ptys {
    /// Makes those of the appshot in the devpts of the new app.
    pub fn make(view: &str, manifest: &Manifest) -> Result<Ptys> {
        let mut records: Vec<&PtyRecord> = manifest
            .files
            .iter()
            .filter_map(|file| {
                if let FileKind::Pty(pty) = &file.kind {
                    Some(&**pty)
                } else {
                    None
                }
            })
            .collect();
        records.sort_by_key(|record| record.index);
        let mut ptys = Ptys::default();
        let mut surplus = Vec::new();
        for record in records {
            let master = open_master(view, record.index, &mut surplus)?;
            let slave =
                set_up(&master, view, record).or_fail(|| format!("cannot set up pseudo-terminal {}", record.index))?;
            ptys.masters.insert(record.index, master);
            ptys._slaves.push(slave);
        }
        Ok(ptys)
    }

    /// Gives the master away.
    pub fn master(&mut self, index: u32) -> Result<OwnedFd> {
        self.masters
            .remove(&index)
            .ok_or_else(|| Error::failed(format!("pseudo-terminal {index} was not made")))
    }
}

/// The kernel gives the lowest free index: those below the wanted one are taken
/// up, and given back when all are made.
fn open_master(view: &str, index: u32, surplus: &mut Vec<OwnedFd>) -> Result<OwnedFd> {
    let failed = || format!("cannot make pseudo-terminal {index}");
    loop {
        let opened = paths::open_again(&format!("{view}/dev/ptmx"), libc::O_RDWR).or_fail(failed)?;
        let got = sysfd::ioctl_i32(&opened, TIOCGPTN).or_fail(failed)? as u32;
        match got.cmp(&index) {
            std::cmp::Ordering::Equal => return Ok(opened),
            std::cmp::Ordering::Less => surplus.push(opened),
            std::cmp::Ordering::Greater => {
                return Err(Error::new(Kind::Conflict, failed())
                    .because(format!("/dev/pts/{index} is in use on this host"))
                    .fix("restore with --pids=new, which gives the app a /dev/pts of its own"));
            }
        }
    }
}

fn set_up(master: &OwnedFd, view: &str, record: &PtyRecord) -> std::io::Result<OwnedFd> {
    set_lock(master, false)?;
    let slave = peer(master, false)?;
    let modes = Modes(record.termios.as_slice().try_into().map_err(std::io::Error::other)?);
    let queue = Queue {
        input: record.input.clone(),
        output: record.output.clone(),
    };
    pty_queue::feed(&slave, &modes, &queue)?;
    let mut winsize: Vec<u8> = record.winsize.iter().flat_map(|word| word.to_ne_bytes()).collect();
    sysfd::ioctl_bytes(master, libc::TIOCSWINSZ, &mut winsize)?;
    let node = format!("{view}/dev/pts/{}", record.index);
    chown(&node, Some(record.file.uid), Some(record.file.gid))?;
    fs::set_permissions(&node, PermissionsExt::from_mode(record.file.mode & 0o7777))?;
    pty_queue::set_packets(master, record.packet_mode)?;
    Ok(slave)
}

/// One more description of a slave.
pub fn slave(builder: &Builder<'_>, id: FileId, index: u32, through_tty: bool, flags: i32) -> Result<OwnedFd> {
    let failed = || format!("cannot open the terminal of open file {id} again");
    if through_tty {
        let tty = builder
            .ttys
            .get(&id)
            .ok_or_else(|| Error::failed(failed()).because("no process has it as its controlling terminal"))?;
        return tty.try_clone().or_fail(failed);
    }
    paths::open_again(&format!("{}/dev/pts/{index}", builder.view), flags).or_fail(failed)
}

/// Locks the slaves that were locked, now that nothing opens them any more.
pub fn lock(made: &HashMap<FileId, OwnedFd>, manifest: &Manifest) -> Result<()> {
    for file in &manifest.files {
        if matches!(&file.kind, FileKind::Pty(pty) if pty.locked) {
            set_lock(&made[&file.id], true).or_fail(|| "cannot lock a pseudo-terminal again")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_by_its_number_in_stat() {
        assert_eq!(name(0x8803), "/dev/pts/3");
        assert_eq!(name(0x0010_8801), "/dev/pts/257");
        assert_eq!(name(0x0401), "device 4:1");
    }
}
