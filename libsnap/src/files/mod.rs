//! Open file descriptions and the descriptors that lead to them.
//!
//! Each kind of file has its module, all of one shape: `capture` reads a live
//! object through a duplicate of the app's descriptor (pidfd_getfd(2)) and
//! answers its record or the reason of a refusal; `restore` makes an equal one
//! in our own process, to be passed on. Descriptors that share one description
//! (dup, fork, SCM_RIGHTS) are found with kcmp(2) and share it again.

pub mod barrier;
pub mod epoll;
pub mod events;
pub mod held;
mod holders;
pub mod in_flight;
pub mod inet;
pub mod inotify;
pub mod looked;
pub mod mqueue;
pub mod multicast;
pub mod netlink;
pub mod packet;
pub mod paths;
pub mod pipes;
pub mod pty;
pub mod pty_queue;
pub mod repair;
pub mod segment;
pub mod sockets;
pub mod tcp;
pub mod unix;
pub mod uring;

use crate::clocks::{Reading, Timeline};
use crate::error::{OrFail, Result};
use crate::ids::{FdNum, FileId, HostPid, VirtualPid};
use crate::image::records::{FdEntry, FileKind, FileOwner, OpenFile, PipeRecord};
use crate::journal::Journal;
use crate::memory::{FileKey, Tables};
use crate::namespaces::Kind as SpaceKind;
use crate::nsthread::{self, Door};
use crate::proc::{self, Fields};
use crate::refusals::Refusals;
use crate::survey;
use crate::sys::diag::UnixSocket;
use crate::sys::fd as sysfd;
use crate::sys::task::{self, Compare};
use crate::target::{SnapshotOptions, TcpPolicy};
use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// Why something cannot be carried, and the way out.
pub type Refused = (String, String);

pub(crate) fn refused<T>(reason: impl Into<String>, fix: impl Into<String>) -> Result<T, Refused> {
    Err((reason.into(), fix.into()))
}

/// Why what the kernel keeps for something, and tells nobody, cannot be read from its memory.
fn denied(errno: nix::Error) -> Refused {
    (
        format!("what the kernel keeps for it cannot be read: {errno}"),
        "take the snapshot as root (CAP_BPF, CAP_PERFMON), and let the kernel be read (lockdown)".to_owned(),
    )
}

/// A process whose descriptors are captured.
#[derive(Debug)]
pub struct Member {
    pub pid: HostPid,
    pub vpid: VirtualPid,
    pub pidfd: OwnedFd,
}

impl Member {
    pub fn open(pid: HostPid, vpid: VirtualPid) -> Result<Member> {
        let pidfd = task::pidfd_open(pid).or_fail(|| format!("cannot open pid {pid}"))?;
        Ok(Member { pid, vpid, pidfd })
    }
}

/// One descriptor as found.
#[derive(Debug)]
pub struct Found {
    /// Of whom it is: who has it, or in whose queue it is in flight.
    pub member: usize,
    /// Where it has this number: ours for one that is in flight only.
    pub pid: HostPid,
    pub fd: i32,
    pub link: String,
    pub key: FileKey,
    pub mode: u32,
    /// Number of a device.
    pub rdev: u64,
    pub flags: i32,
    pub pos: u64,
    pub info: Fields,
}

impl Found {
    /// `fd 17 (socket:[4711])`
    pub fn object(&self) -> String {
        format!("fd {} ({})", self.fd, self.link)
    }
}

/// An open file description: one of its descriptors, and a duplicate.
#[derive(Debug)]
pub struct Description {
    pub id: FileId,
    pub found: Found,
    pub dup: OwnedFd,
    /// What fdinfo tells of locks: those of a process (POSIX) are told to it alone, so who tells, too.
    pub locks: Vec<(HostPid, String)>,
}

impl Description {
    fn new(id: FileId, found: Found, dup: OwnedFd) -> Description {
        let locks = locks_of(&found).collect();
        Description { id, found, dup, locks }
    }
}

/// All descriptors of the app.
#[derive(Debug, Default)]
pub struct FileTable {
    pub files: Vec<OpenFile>,
    pub pipes: Vec<PipeRecord>,
    pub queues: mqueue::Queues,
    /// Per member, in its order.
    pub fds: Vec<Vec<FdEntry>>,
    /// For when the app is ended.
    pub ending: tcp::Ending,
    /// Rings that somebody may still do something for.
    pub rings: Vec<uring::Seen>,
}

/// What the capture of one kind may look at.
#[derive(Debug)]
pub struct Context<'a> {
    pub members: &'a [Member],
    pub options: &'a SnapshotOptions,
    pub descriptions: &'a [Description],
    pub fds: &'a [Vec<FdEntry>],
    pub unix: HashMap<u64, UnixSocket>,
    /// The app's own first.
    pub networks: Vec<Network>,
    /// What the options name.
    pub held: held::Known,
    /// TCP connections inside the app.
    pub tcp: tcp::Ends,
    /// Options of fresh sockets, by family, type and protocol.
    pub usual: RefCell<HashMap<(i32, i32, i32), sockets::Usual>>,
    /// The app stands still since then: queues may be looked into.
    pub frozen: Option<Reading>,
    /// Those with descriptors in them.
    pub queues: in_flight::Queues,
    /// Whose root directory names count from ([`Tables::view`]).
    pub base: HostPid,
    /// Where the POSIX message queues of the app's own IPC namespace are.
    pub queues_device: Option<u64>,
}

/// A network namespace of the app.
#[derive(Debug)]
pub struct Network {
    /// None: it is the app's own.
    pub number: Option<u32>,
    /// SO_NETNS_COOKIE, where the kernel tells it (Linux 5.14).
    pub cookie: Option<Vec<u8>>,
    /// A process that is in it.
    pub pid: HostPid,
}

impl Context<'_> {
    /// In which network of the app a socket was made, where it was made in one.
    pub fn network_of(&self, socket: &OwnedFd) -> Option<&Network> {
        let cookie = sockets::network_cookie(socket).ok();
        match (&self.networks[..], cookie) {
            // Where the kernel tells nothing it is of the only one.
            ([own], cookie) if cookie.is_none() || own.cookie.is_none() => Some(own),
            (networks, cookie @ Some(_)) => networks.iter().find(|network| network.cookie == cookie),
            _ => None,
        }
    }

    /// A process that is in the network of this socket.
    pub fn beside(&self, socket: &OwnedFd) -> HostPid {
        let found = self.network_of(socket).or(self.networks.first());
        found.map_or(self.base, |network| network.pid)
    }

    pub fn member(&self, found: &Found) -> &Member {
        &self.members[found.member]
    }

    /// The app's number of a process given by its host PID.
    pub fn virtual_pid(&self, pid: i32) -> Option<VirtualPid> {
        virtual_pid(self.members, pid)
    }

    /// The app runs, so that it cannot be told what is in flight, and something is. Who
    /// misses a file may find it once the app stands still.
    pub fn may_be_in_flight(&self) -> bool {
        self.frozen.is_none() && self.descriptions.iter().any(in_flight::has)
    }

    pub fn by_inode(&self, ino: u64) -> impl Iterator<Item = &Description> {
        self.descriptions.iter().filter(move |d| d.found.key.1 == ino)
    }
}

/// An app that stands still: since when, and where is noted what is done to it.
#[derive(Debug)]
pub struct Still<'a> {
    pub since: Reading,
    pub journal: &'a mut Journal,
}

fn virtual_pid(members: &[Member], pid: i32) -> Option<VirtualPid> {
    members.iter().find(|m| m.pid.0 == pid).map(|m| m.vpid)
}

/// Captures the descriptors of all members.
pub fn capture(
    members: &[Member],
    options: &SnapshotOptions,
    still: Option<Still<'_>>,
    queues_device: Option<u64>,
    tables: &mut Tables,
    refusals: &mut Refusals,
) -> Result<FileTable> {
    let mut table = FileTable::default();
    let mut descriptions = describe(members, &mut table.fds, still.is_some())?;
    mqueue::find_cloexec(members, &descriptions, &mut table.fds);
    let frozen = still.as_ref().map(|still| still.since);
    let queues = match frozen {
        Some(_) => in_flight::find(members, &mut descriptions),
        None => in_flight::Queues::new(),
    };
    let (unix, networks) = networks_of(members, tables, &descriptions)?;
    let held = held::Known::of(&options.held);
    let wanted = tcp::Wanted {
        members,
        networks: &networks,
        descriptions: &descriptions,
        fds: &table.fds,
        held: &held,
        established: options.tcp == TcpPolicy::Established,
    };
    let tcp = tcp::look(wanted, still.map(|still| still.journal))?;
    let context = Context {
        members,
        options,
        descriptions: &descriptions,
        fds: &table.fds,
        unix,
        networks,
        held,
        tcp,
        usual: RefCell::default(),
        frozen,
        queues,
        base: tables.base,
        queues_device,
    };
    for description in &descriptions {
        if let Err((reason, fix)) = is_text(&description.found) {
            let found = &description.found;
            refusals.add(context.member(found).pid, found.object(), reason, fix);
            continue;
        }
        let captured = capture_one(&context, description, tables, (&mut table.pipes, &mut table.queues))
            .and_then(|file| Ok((uring::Seen::of(description, &file.kind)?, file)));
        match captured {
            Ok((seen, file)) => {
                table.rings.extend(seen);
                table.files.push(file);
            }
            Err((reason, fix)) => {
                let found = &description.found;
                refusals.add(context.member(found).pid, found.object(), reason, fix);
            }
        }
    }
    let ends = context.tcp;
    table.ending = tcp::Ending::of(ends, descriptions);
    Ok(table)
}

/// Records hold text.
fn is_text(found: &Found) -> Result<(), Refused> {
    let replaced = found.link.contains(char::REPLACEMENT_CHARACTER);
    let link = || proc::link_bytes(found.pid, &format!("fd/{}", found.fd));
    if replaced && link().is_ok_and(|link| std::str::from_utf8(&link).is_err()) {
        return refused(survey::NOT_TEXT.0, survey::NOT_TEXT.1);
    }
    Ok(())
}

/// The unix sockets of the app's networks, and those.
type Networks = (HashMap<u64, UnixSocket>, Vec<Network>);

fn networks_of(members: &[Member], tables: &Tables, descriptions: &[Description]) -> Result<Networks> {
    let failed = || "cannot list unix sockets (sock_diag)";
    if members.is_empty() || !descriptions.iter().any(|d| d.found.link.starts_with("socket:")) {
        return Ok(Networks::default());
    }
    let is_own = |member: &&Member| tables.beside.which(member.pid, SpaceKind::Net).is_none();
    let own = members.iter().find(is_own).map_or(tables.base, |member| member.pid);
    let beside = tables.beside.all(SpaceKind::Net);
    let look = || {
        let one = crate::sys::fd::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)?;
        Ok((crate::sys::diag::unix_sockets()?, sockets::network_cookie(&one).ok()))
    };
    let mut found = Networks::default();
    for (number, pid) in [(None, own)]
        .into_iter()
        .chain(beside.map(|(number, pid)| (Some(number), pid)))
    {
        let looked: crate::sys::Sys<_> = nsthread::inside(pid, &["net"], look).or_fail(failed)?;
        let (unix, cookie) = looked.or_fail(failed)?;
        found.0.extend(unix);
        found.1.push(Network { number, cookie, pid });
    }
    Ok(found)
}

/// Finds which descriptors share a description, and numbers the descriptions.
fn describe(members: &[Member], fds: &mut Vec<Vec<FdEntry>>, still: bool) -> Result<Vec<Description>> {
    sysfd::raise_limit();
    let mut descriptions: Vec<Description> = Vec::new();
    let mut by_key: HashMap<(FileKey, i32), Vec<usize>> = HashMap::new();
    for at in 0..members.len() {
        let mut entries = Vec::new();
        for found in find(members, at, still)? {
            let cloexec = found.info.octal("flags") & libc::O_CLOEXEC as u32 != 0;
            let fd = FdNum(found.fd);
            let alike = by_key.entry((found.key, found.flags)).or_default();
            let file = match alike.iter().find(|i| same(&descriptions[**i].found, &found)) {
                Some(i) => {
                    let known = &mut descriptions[*i];
                    let others = |(pid, _): &(HostPid, String)| *pid != found.pid;
                    if known.found.pid != found.pid && known.locks.iter().all(others) {
                        known
                            .locks
                            .extend(locks_of(&found).filter(|(_, line)| line.contains("POSIX")));
                    }
                    known.id
                }
                None => {
                    let dup = match task::pidfd_getfd(members[at].pidfd.as_fd(), found.fd) {
                        // Closed meanwhile.
                        Err(_) if !still => continue,
                        dup => dup.or_fail(|| format!("cannot look at {} of pid {}", found.object(), found.pid))?,
                    };
                    let id = FileId(descriptions.len() as u32);
                    alike.push(descriptions.len());
                    descriptions.push(Description::new(id, found, dup));
                    id
                }
            };
            entries.push(FdEntry { fd, file, cloexec });
        }
        fds.push(entries);
    }
    Ok(descriptions)
}

fn locks_of(found: &Found) -> impl Iterator<Item = (HostPid, String)> + '_ {
    found.info.all("lock").map(|line| (found.pid, line.to_owned()))
}

fn same(a: &Found, b: &Found) -> bool {
    task::kcmp(a.pid, b.pid, Compare::File, a.fd, b.fd) == Ok(Ordering::Equal)
}

/// Of an app that runs what is closed meanwhile is left out.
fn find(members: &[Member], at: usize, still: bool) -> Result<Vec<Found>> {
    let pid = members[at].pid;
    let numbers =
        proc::numbered(&format!("/proc/{pid}/fd")).or_fail(|| format!("cannot list the descriptors of pid {pid}"))?;
    let found = numbers.into_iter().map(|fd| match find_one(pid, at, fd) {
        Err(_) if !still => Ok(None),
        found => found
            .map(Some)
            .or_fail(|| format!("cannot look at descriptor {fd} of pid {pid}")),
    });
    found.filter_map(Result::transpose).collect()
}

fn find_one(pid: HostPid, member: usize, fd: i32) -> io::Result<Found> {
    let info = Fields::new(proc::text(pid, &format!("fdinfo/{fd}"))?);
    let meta = fs::metadata(format!("/proc/{pid}/fd/{fd}"))?;
    Ok(Found {
        member,
        pid,
        fd,
        link: proc::link(pid, &format!("fd/{fd}"))?,
        key: (meta.dev(), meta.ino()),
        mode: meta.mode(),
        rdev: meta.rdev(),
        flags: info.octal("flags") as i32 & !libc::O_CLOEXEC,
        pos: info.number("pos").unwrap_or(0) as u64,
        info,
    })
}

fn capture_one(
    context: &Context<'_>,
    description: &Description,
    tables: &mut Tables,
    (pipes, queues): (&mut Vec<PipeRecord>, &mut mqueue::Queues),
) -> Result<OpenFile, Refused> {
    let found = &description.found;
    let kind = match found.link.as_str() {
        link if link.starts_with("pipe:") => pipes::capture(context, description, pipes)?,
        link if link.starts_with("socket:") => sockets::capture(context, description)?,
        link if link.starts_with("anon_inode:") || link.starts_with("pidfd:") => anonymous(context, description)?,
        // A queue may have the name of anything.
        link if mqueue::is_of_no_mount(link) && mqueue::is_queue(description) => {
            mqueue::capture(context, description, queues)?
        }
        link if link.starts_with("/memfd:") => paths::capture_memfd(description, tables)?,
        _ if found.mode & libc::S_IFMT == libc::S_IFIFO => pipes::capture(context, description, pipes)?,
        _ if pty::is_terminal(found) => pty::capture(context, description)?,
        _ if mqueue::is_queue(description) => mqueue::capture(context, description, queues)?,
        _ => paths::capture(context, description, tables)?,
    };
    in_flight::carried(context.members, found, &kind)?;
    within_mounts(found, &kind, tables)?;
    Ok(OpenFile {
        id: description.id,
        flags: found.flags,
        owner: owner(context, description)?,
        locks: paths::locks(context, description)?,
        kind,
    })
}

/// What was opened in a mount namespace beside the app's own is opened there again: so far files alone.
fn within_mounts(found: &Found, kind: &FileKind, tables: &Tables) -> Result<(), Refused> {
    match kind {
        _ if tables.mounts.of(&found.info).is_none() => Ok(()),
        FileKind::Path { .. } | FileKind::Outside { .. } => Ok(()),
        _ => refused(
            "it was opened in a mount namespace that a process has made for itself, where it is not carried yet",
            "close it before the snapshot",
        ),
    }
}

fn anonymous(context: &Context<'_>, description: &Description) -> Result<FileKind, Refused> {
    let found = &description.found;
    let name = found.link.strip_prefix("anon_inode:").unwrap_or("[pidfd]");
    match name.trim_matches(['[', ']']) {
        "eventfd" => events::capture_eventfd(context, description),
        "timerfd" => events::capture_timerfd(context, description),
        "signalfd" => Ok(events::capture_signalfd(found)),
        "pidfd" => events::capture_pidfd(context, found),
        "eventpoll" => epoll::capture(context, description),
        "inotify" => inotify::capture(context, description),
        "io_uring" => uring::capture(context, description),
        "bpf-map" | "bpf-prog" | "bpf-link" | "btf" => refused(
            "programs of the kernel and what belongs to them (bpf(2)) are not carried",
            "let a program outside the app load them, or close them before the snapshot",
        ),
        "fanotify" => refused("fanotify groups are not carried yet", "close it before the snapshot"),
        "userfaultfd" => refused("userfaultfd is not carried yet", "close it before the snapshot"),
        other => refused(
            format!("descriptors of kind {other} are not carried"),
            "close it before the snapshot",
        ),
    }
}

/// Who gets SIGIO for this description (fcntl(2) F_SETOWN).
fn owner(context: &Context<'_>, description: &Description) -> Result<Option<FileOwner>, Refused> {
    let Ok((kind, id)) = sysfd::owner(&description.dup) else {
        return Ok(None);
    };
    const F_GETSIG: i32 = 11;
    let signal = sysfd::fcntl(description.dup.as_raw_fd(), F_GETSIG, 0).unwrap_or(0);
    let id = match id {
        0 if (kind, signal) == (0, 0) => return Ok(None),
        // Whoever it was has ended.
        0 => Some(VirtualPid(0)),
        id => context.virtual_pid(id),
    };
    let Some(id) = id else {
        return refused(
            "its signals go to a process outside the app (F_SETOWN)",
            "clear F_SETOWN before the snapshot",
        );
    };
    Ok(Some(FileOwner { kind, id, signal }))
}

/// Makes descriptions again. `processes` gives the host PID of each of the
/// app's; `view` is the root directory of the restored app as seen from here.
#[derive(Debug)]
pub struct Builder<'a> {
    pub view: String,
    pub processes: &'a HashMap<VirtualPid, HostPid>,
    /// One whose namespaces are the app's own.
    pub base: HostPid,
    /// Those beside.
    pub namespaces: &'a [OwnedFd],
    /// A process that is in each of these.
    pub members: Vec<HostPid>,
    /// Where the app's own network is opened.
    pub network: String,
    pub shm: &'a HashMap<crate::ids::ShmId, String>,
    pub stdio: &'a crate::target::Stdio,
    /// Descriptions of /dev/tty, which only the processes it controls can open.
    pub ttys: HashMap<FileId, OwnedFd>,
    pub timeline: Timeline,
    pub held: held::Held,
    /// The app is in a network that was named, where it may have another address than before.
    pub joined: bool,
    /// It is in a network of its own.
    pub apart: bool,
    /// Connections that would go on with peers outside come back as closed by these.
    pub closes: bool,
}

/// Descriptions that are made again, and what holds until the app runs.
#[derive(Debug)]
pub struct Made {
    pub files: HashMap<FileId, OwnedFd>,
    pub resumed: Option<tcp::Resumed>,
}

impl Builder<'_> {
    /// Runs `job` in the network with this number; none: where this thread is already.
    fn in_network<T>(&self, number: Option<u32>, job: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(number) = number else { return job() };
        let door = Door::to("net", &self.namespaces[number as usize]);
        door.and_then(|door| door.inside(job))
            .or_fail(|| "cannot enter a network of the app")?
    }
}

/// Opens what the restorer gives for files outside the app, and namespaces, with its own rights.
pub fn outside(builder: &Builder<'_>, manifest: &crate::image::records::Manifest) -> Result<HashMap<FileId, OwnedFd>> {
    let outside = manifest.files.iter().filter_map(|file| match &file.kind {
        FileKind::Outside { what } => Some((file, what)),
        _ => None,
    });
    let outside = outside.map(|(file, what)| Ok((file.id, paths::restore_outside(builder, what, file.flags)?)));
    let namespaces = manifest.files.iter().filter_map(|file| match &file.kind {
        FileKind::Namespace { name, number } => Some((file, name, *number)),
        _ => None,
    });
    let namespaces = namespaces.map(|(file, name, number)| {
        let opened = paths::restore_namespace(builder, name, number, file.flags)?;
        Ok((file.id, opened))
    });
    outside.chain(namespaces).collect()
}

/// Makes every description of the appshot, as descriptors of ours, beside those that are
/// there: [`outside`], or opened when an unlinked file or a message queue was made.
pub fn restore_all(
    builder: &Builder<'_>,
    manifest: &crate::image::records::Manifest,
    there: HashMap<FileId, OwnedFd>,
    mut ptys: pty::Ptys,
) -> Result<Made> {
    sysfd::raise_limit();
    let mut made = there;
    let mut pipes = pipes::Pipes::new(builder, &manifest.pipes);
    let beside = (0..).zip(&manifest.namespaces);
    let networks = beside.filter_map(|(number, namespace)| (namespace.kind() == SpaceKind::Net).then_some(number));
    let mut unix = BTreeMap::new();
    for number in [None].into_iter().chain(networks.map(Some)) {
        let sockets = builder.in_network(number, || unix::Sockets::new(builder, manifest, number))?;
        unix.insert(number, sockets);
    }
    for file in &manifest.files {
        let fd = match &file.kind {
            FileKind::Path {
                path,
                offset,
                namespace,
            } => paths::restore(builder, *namespace, path, *offset, file.flags)?,
            FileKind::Unlinked { shm, offset } => {
                paths::restore_unlinked(builder, *shm, *offset, file.flags, made.remove(&file.id))?
            }
            FileKind::Pipe { ino } => pipes.open(*ino, file.flags)?,
            FileKind::Memfd { shm, offset } => paths::restore_memfd(builder, *shm, *offset, file.flags)?,
            FileKind::Eventfd { count, semaphore } => events::restore_eventfd(*count, *semaphore)?,
            FileKind::Timerfd {
                clock,
                ticks,
                settime_flags,
                time,
            } => events::restore_timerfd(&builder.timeline, *clock, *ticks, *settime_flags, *time)?,
            FileKind::Signalfd { mask } => events::restore_signalfd(*mask)?,
            FileKind::Epoll { .. } => epoll::restore()?,
            FileKind::Inotify { watches } => inotify::restore(builder, watches)?,
            FileKind::Pidfd { pid } => events::restore_pidfd(builder, *pid, file.flags)?,
            FileKind::Uring(record) => uring::restore(record)?,
            FileKind::Mqueue { offset, .. } => mqueue::restore(made.remove(&file.id), *offset, file.flags)?,
            FileKind::Socket(record) => {
                // Validated: there is such a network.
                let sockets = unix.get_mut(&record.network).expect("a network of the app");
                builder.in_network(record.network, || sockets::restore(builder, record, sockets))?
            }
            FileKind::Pty(record) => ptys.master(record.index)?,
            FileKind::PtySlave { index, through_tty } => {
                pty::slave(builder, file.id, *index, *through_tty, file.flags)?
            }
            FileKind::Outside { .. } | FileKind::Namespace { .. } => continue,
        };
        made.insert(file.id, fd);
    }
    for (number, sockets) in unix {
        builder.in_network(number, || {
            sockets.finish(builder, &made, manifest)?;
            inet::finish(&made, manifest, number)
        })?;
    }
    tcp::finish(&made, manifest)?;
    let resumed = match builder.closes {
        true => None,
        false => tcp::resume(&made, manifest)?,
    };
    uring::finish(&made, manifest)?;
    pty::lock(&made, manifest)?;
    // Who is told of a file by signals is not to be told of what is closed here.
    drop((ptys, pipes));
    for file in &manifest.files {
        finish(builder, file, &made[&file.id])?;
    }
    Ok(Made { files: made, resumed })
}

/// Flags, owner and locks: the same for all kinds.
fn finish(builder: &Builder<'_>, file: &OpenFile, fd: &OwnedFd) -> Result<()> {
    const SETTABLE: i32 = libc::O_NONBLOCK | libc::O_APPEND | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME;
    let failed = || format!("cannot set the state of open file {}", file.id);
    if let Some(owner) = file.owner {
        const F_SETSIG: i32 = 10;
        let host = builder.processes.get(&owner.id).map_or(0, |pid| pid.0);
        sysfd::set_owner(fd, owner.kind, host).or_fail(failed)?;
        sysfd::fcntl(fd.as_raw_fd(), F_SETSIG, i64::from(owner.signal)).or_fail(failed)?;
    }
    if file.flags & libc::O_PATH == 0 {
        let wanted = i64::from(file.flags & SETTABLE);
        sysfd::fcntl(fd.as_raw_fd(), libc::F_SETFL, wanted).or_fail(failed)?;
    }
    paths::restore_locks(file, fd)
}
