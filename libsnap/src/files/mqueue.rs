//! POSIX message queues (mq_overview(7)) of the app's own IPC namespace: those that are open, and those
//! that are there by their names alone.
//!
//! No call tells what waits in a queue without taking it, nor who is told of a message (mq_notify(3))
//! with what: both are read from the kernel's memory ([`KernelMemory`], `struct mqueue_inode_info` of
//! `ipc/mqueue.c`), and so is the user to whom it is charged (RLIMIT_MSGQUEUE). Names, in the order in
//! which they were made, are those of the namespace's own directory, which is nowhere mounted.
//!
//! Queues are made again by mq_open(3) by the same real user, with all their descriptions, before
//! processes are given any; messages are sent before anybody asks to be told of one. A queue without a
//! name has the one it had until its descriptions are open.
//!
//! Times of the last change (`st_ctime`) start anew. Refused: queues of other namespaces, those opened by
//! way of a mount (mq_overview(7)), notices to who has not the queue open or runs another program by now.

use super::{Context, Description, Member, Refused, inet, paths, refused};
use crate::error::{Error, OrFail, Result};
use crate::ids::{FdNum, FileId, HostPid};
use crate::image::compare::O_LARGEFILE;
use crate::image::limits;
use crate::image::records::{
    FdEntry, FileKind, Manifest, NoticeKind, OpenFile, PosixMessage, PosixQueue, QueueNotice, SocketFile,
};
use crate::kernel_memory::{KernelMemory, Unread};
use crate::survey;
use crate::sys::fd as sysfd;
use crate::sys::{mqueue, sysv, task};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fchmod, fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, Whence, fchown, getuid, lseek};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// MQUEUE_MAGIC of the kernel.
const MQUEUE: i64 = 0x1980_0202;
/// What d_path shows behind the name of a file that has lost it.
const DELETED: &str = " (deleted)";
const REMOVE: &str = "let the app close and remove it (mq_unlink)";
const SECOND_NS: i64 = 1_000_000_000;

/// The queues of an app.
#[derive(Debug, Default)]
pub struct Queues {
    pub records: Vec<PosixQueue>,
    /// Those that descriptors lead to, by inode.
    looked: HashMap<u64, Result<(), Refused>>,
    /// How much waits in all of them.
    bytes: u64,
}

/// Whether this is one, by whatever name.
pub fn is_queue(description: &Description) -> bool {
    nix::sys::statfs::fstatfs(&description.dup).is_ok_and(|fs| fs.filesystem_type().0 == MQUEUE)
}

/// Whether it may have been opened by mq_open(3): no mount has a part in its name.
pub fn is_of_no_mount(link: &str) -> bool {
    link.strip_prefix('/').is_some_and(|name| !name.contains('/'))
}

pub fn capture(context: &Context<'_>, description: &Description, queues: &mut Queues) -> Result<FileKind, Refused> {
    let (device, ino) = description.found.key;
    if context.queues_device != Some(device) {
        return refused(
            "a POSIX message queue of an IPC namespace that is not the app's own",
            "start the app with `appshot run`, or let it close the queue",
        );
    }
    if !is_of_no_mount(&description.found.link) {
        return refused(
            "a POSIX message queue that was opened by way of a mount, which is not carried",
            "let the app open it by mq_open(3)",
        );
    }
    let looked = match queues.looked.get(&ino) {
        Some(looked) => looked.clone(),
        None => {
            let looked = look(context, description, queues);
            queues.looked.insert(ino, looked.clone());
            looked
        }
    };
    looked.map(|()| FileKind::Mqueue {
        ino,
        offset: description.found.pos,
        cloexec: keeps_cloexec(description),
    })
}

/// mq_open(3) leaves O_CLOEXEC among the flags of the description, where fdinfo shows it for whatever
/// descriptor.
fn keeps_cloexec(description: &Description) -> bool {
    let flags = sysfd::fcntl(description.dup.as_raw_fd(), libc::F_GETFL, 0);
    flags.is_ok_and(|flags| flags & libc::O_CLOEXEC != 0)
}

/// Finds out which descriptors of such descriptions are closed by execve(2). Where that cannot be read,
/// queues are refused.
pub fn find_cloexec(members: &[Member], descriptions: &[Description], fds: &mut [Vec<FdEntry>]) {
    let hidden = descriptions.iter().filter(|d| is_of_no_mount(&d.found.link));
    let hidden: HashSet<FileId> = hidden
        .filter(|d| keeps_cloexec(d) && is_queue(d))
        .map(|d| d.id)
        .collect();
    for (member, entries) in members.iter().zip(fds) {
        for entry in entries.iter_mut().filter(|entry| hidden.contains(&entry.file)) {
            entry.cloexec = closes(&member.pidfd, entry.fd).unwrap_or(true);
        }
    }
}

fn closes(pidfd: &OwnedFd, fd: FdNum) -> Read<bool> {
    let kernel = KernelMemory::open()?;
    let tasks = kernel.threads(pidfd)?;
    let task = tasks.first().ok_or(Unread::Denied(nix::Error::ESRCH))?;
    let table = kernel.u64(kernel.u64(*task, "task_struct.files")?, "files_struct.fdt")?;
    let bits = kernel.u64(table, "fdtable.close_on_exec")?;
    let word = kernel.words(bits.wrapping_add(8 * (fd.0 as u64 / 64)), 1)?[0];
    Ok(word >> (fd.0 % 64) & 1 != 0)
}

fn look(context: &Context<'_>, description: &Description, queues: &mut Queues) -> Result<(), Refused> {
    let link = &description.found.link[1..];
    let is_unlinked = fstat(&description.dup).is_ok_and(|meta| meta.st_nlink == 0);
    let name = match is_unlinked {
        true => link.strip_suffix(DELETED).unwrap_or(link),
        false => link,
    };
    let queue = Queue::of(&description.dup).map_err(unread)?;
    let mut record = queue.enter(&description.dup, name, context.frozen.is_some(), queues)?;
    record.unlinked = is_unlinked;
    record.notice = match queue.asked().map_err(unread)? {
        Some(asked) => Some(notice(context, &queue, &asked, description.found.key)?),
        None => None,
    };
    queues.records.push(record);
    Ok(())
}

impl Queues {
    /// Adds those in this directory that no descriptor leads to, and brings all with a name into the order
    /// in which they were made. Answers why some are refused. `still`: the app stands still.
    pub fn complete(&mut self, directory: &File, still: bool) -> io::Result<Vec<(String, Refused)>> {
        let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        let (mut named, unlinked): (Vec<_>, Vec<_>) = std::mem::take(&mut self.records)
            .into_iter()
            .partition(|record| !record.unlinked);
        self.records = unlinked;
        let mut refusals = Vec::new();
        // The youngest comes first (dcache_readdir).
        for entry in entries.iter().rev() {
            let queue = open(
                &entry.path(),
                OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
                Mode::empty(),
            );
            let (queue, name) = match queue {
                Err(nix::Error::ENOENT) if !still => continue, // removed meanwhile
                queue => (queue?, entry.file_name()),
            };
            let ino = fstat(&queue)?.st_ino;
            if let Some(at) = named.iter().position(|record| record.ino == ino) {
                self.records.push(named.swap_remove(at));
            } else if !self.looked.contains_key(&ino) {
                let text = name
                    .to_str()
                    .ok_or((survey::NOT_TEXT.0.into(), survey::NOT_TEXT.1.into()));
                let record = text.and_then(|name| self.closed(&queue, name, still));
                match record {
                    Ok(record) => self.records.push(record),
                    Err(refused) => refusals.push((name.to_string_lossy().into_owned(), refused)),
                }
            }
        }
        // Made or removed while the app runs.
        self.records.append(&mut named);
        Ok(refusals)
    }

    fn closed(&mut self, fd: &OwnedFd, name: &str, still: bool) -> Result<PosixQueue, Refused> {
        let queue = Queue::of(fd).map_err(unread)?;
        let record = queue.enter(fd, name, still, self)?;
        match queue.asked().map_err(unread)? {
            Some(_) => not_open(),
            None => Ok(record),
        }
    }
}

fn unread(unread: Unread) -> Refused {
    match unread {
        Unread::Unknown(member) => (
            format!("this kernel does not tell what it keeps for a POSIX message queue ({member})"),
            "run one that tells its types (CONFIG_DEBUG_INFO_BTF), or let the app remove the queue (mq_unlink)"
                .to_owned(),
        ),
        Unread::Denied(errno) => super::denied(errno),
    }
}

fn not_open<T>() -> Result<T, Refused> {
    refused(
        "who is to be told of a message in it (mq_notify) has it not open",
        REMOVE,
    )
}

/// One as the kernel has it: `struct mqueue_inode_info`.
struct Queue {
    kernel: KernelMemory,
    at: u64,
}

/// Who has asked to be told.
struct Asked {
    pid: HostPid,
    /// SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD.
    kind: i32,
    signal: i32,
    value: u64,
}

type Read<T> = Result<T, Unread>;

impl Queue {
    fn of(fd: &impl AsRawFd) -> Read<Queue> {
        let kernel = KernelMemory::open()?;
        let inode = kernel.u64(kernel.file(fd)?, "file.f_inode")?;
        let at = inode.wrapping_sub(kernel.offset("mqueue_inode_info.vfs_inode")?);
        Ok(Queue { kernel, at })
    }

    fn attribute(&self, member: &'static str) -> Read<u64> {
        let attributes = self.kernel.part(self.at, "mqueue_inode_info.attr")?;
        self.kernel.u64(attributes, member)
    }

    /// All but its notice; what waits in it is read where the app stands `still`, and counted in any case.
    fn enter(&self, fd: &OwnedFd, name: &str, still: bool, queues: &mut Queues) -> Result<PosixQueue, Refused> {
        let meta = fstat(fd).map_err(|errno| unread(errno.into()))?;
        let size = |member| Ok(u32::try_from(self.attribute(member)?).unwrap_or(u32::MAX));
        let charged = || {
            self.kernel
                .u32(self.kernel.u64(self.at, "mqueue_inode_info.ucounts")?, "ucounts.uid")
        };
        let bytes = self.kernel.u64(self.at, "mqueue_inode_info.qsize").map_err(unread)?;
        queues.bytes = queues.bytes.saturating_add(bytes);
        if queues.bytes > limits::POSIX_QUEUED_BYTES {
            return refused(
                "more than 64 MB wait in POSIX message queues",
                "let the app receive what was sent",
            );
        }
        let messages = match still {
            true => self.messages().map_err(unread)?,
            false => Vec::new(),
        };
        let waiting = self.attribute("mq_attr.mq_curmsgs").map_err(unread)?;
        let read: usize = messages.iter().map(|message| message.data.len()).sum();
        if still && (messages.len() as u64, read as u64) != (waiting, bytes) {
            return refused("what waits in it has changed while it was looked at", "try again");
        }
        Ok(PosixQueue {
            ino: meta.st_ino,
            name: name.to_owned(),
            unlinked: false,
            file: SocketFile {
                mode: meta.st_mode & 0o7777,
                uid: meta.st_uid,
                gid: meta.st_gid,
            },
            charged: charged().map_err(unread)?,
            messages_max: size("mq_attr.mq_maxmsg").map_err(unread)?,
            bytes_max: size("mq_attr.mq_msgsize").map_err(unread)?,
            messages,
            atime_ns: meta.st_atime * SECOND_NS + meta.st_atime_nsec,
            mtime_ns: meta.st_mtime * SECOND_NS + meta.st_mtime_nsec,
            notice: None,
        })
    }

    /// The most urgent first; what is equally urgent has its own list, the oldest first (`msg_insert`).
    fn messages(&self) -> Read<Vec<PosixMessage>> {
        let mut messages = Vec::new();
        for node in self.priorities()? {
            let list = self.kernel.part(node, "posix_msg_tree_node.msg_list")?;
            let mut next = self.kernel.words(list, 1)?[0];
            while next != list && messages.len() < limits::POSIX_MESSAGES as usize {
                let message = next.wrapping_sub(self.kernel.offset("msg_msg.m_list")?);
                messages.push(self.message(message)?);
                next = self.kernel.words(next, 1)?[0];
            }
        }
        Ok(messages)
    }

    /// The nodes of its tree, from right to left.
    fn priorities(&self) -> Read<Vec<u64>> {
        /// Twice the logarithm of how many there may be.
        const DEPTH_MAX: usize = 32;
        let root = self.kernel.part(self.at, "mqueue_inode_info.msg_tree")?;
        let mut at = self.kernel.u64(root, "rb_root.rb_node")?;
        let (mut above, mut all) = (Vec::new(), Vec::new());
        while all.len() < limits::POSIX_PRIORITIES as usize {
            while at != 0 && above.len() < DEPTH_MAX {
                above.push(at);
                at = self.kernel.u64(at, "rb_node.rb_right")?;
            }
            let Some(node) = above.pop() else { break };
            all.push(node.wrapping_sub(self.kernel.offset("posix_msg_tree_node.rb_node")?));
            at = self.kernel.u64(node, "rb_node.rb_left")?;
        }
        Ok(all)
    }

    /// `struct msg_msg`, which its bytes follow; those that its page has no room for come in others, each
    /// begun by a `struct msg_msgseg` (`ipc/msgutil.c`).
    fn message(&self, at: u64) -> Read<PosixMessage> {
        const PAGE: u64 = 4096;
        let whole = self
            .kernel
            .u64(at, "msg_msg.m_ts")?
            .min(limits::POSIX_MESSAGE_BYTES.into()) as usize;
        let priority = self.kernel.u64(at, "msg_msg.m_type")? as u32;
        let mut next = self.kernel.u64(at, "msg_msg.next")?;
        let (mut part, mut head) = (at, self.kernel.offset("msg_msg.")?);
        let mut data = Vec::with_capacity(whole);
        loop {
            let len = (whole - data.len()).min((PAGE - head) as usize);
            data.extend(self.kernel.bytes(part.wrapping_add(head), len)?);
            if data.len() == whole {
                return Ok(PosixMessage { priority, data });
            }
            (part, head) = (next, self.kernel.offset("msg_msgseg.")?);
            next = self.kernel.words(part, 1)?[0];
        }
    }

    fn asked(&self) -> Read<Option<Asked>> {
        let owner = match self.kernel.u64(self.at, "mqueue_inode_info.notify_owner")? {
            0 => return Ok(None),
            owner => owner,
        };
        // As the first namespace numbers it: `struct upid` begins with the number.
        let pid = HostPid(self.kernel.u32(owner, "pid.numbers")? as i32);
        // `struct sigevent`: value, signal, kind.
        let event = self.kernel.part(self.at, "mqueue_inode_info.notify")?;
        let event = self.kernel.words(event, 2)?;
        Ok(Some(Asked {
            pid,
            kind: (event[1] >> 32) as i32,
            signal: event[1] as i32,
            value: event[0],
        }))
    }

    /// Whether a process still runs the program that has asked: another one is sent no signal.
    fn is_of_this_program(&self, pidfd: &OwnedFd) -> Read<bool> {
        let asked = self.kernel.u32(self.at, "mqueue_inode_info.notify_self_exec_id")?;
        let tasks = self.kernel.threads(pidfd)?;
        let task = tasks.first().ok_or(Unread::Denied(nix::Error::ESRCH))?;
        Ok(self.kernel.u32(*task, "task_struct.self_exec_id")? == asked)
    }

    fn cookie(&self) -> Read<Vec<u8>> {
        let buffer = self.kernel.u64(self.at, "mqueue_inode_info.notify_cookie")?;
        self.kernel
            .bytes(self.kernel.u64(buffer, "sk_buff.data")?, limits::NOTICE_BYTES)
    }
}

fn notice(context: &Context<'_>, queue: &Queue, asked: &Asked, key: (u64, u64)) -> Result<QueueNotice, Refused> {
    let at = context.members.iter().position(|member| member.pid == asked.pid);
    let Some((member, fds)) = at.map(|at| (&context.members[at], &context.fds[at])) else {
        return refused("it tells a process outside the app of a message (mq_notify)", REMOVE);
    };
    let open: HashSet<FileId> = fds.iter().map(|entry| entry.file).collect();
    let mut described = context.descriptions.iter().filter(|d| open.contains(&d.id));
    let leads = |d: &Description| d.found.key == key && d.found.flags & libc::O_PATH == 0;
    if !described.clone().any(leads) {
        return not_open();
    }
    let how = match asked.kind {
        libc::SIGEV_NONE => NoticeKind::Nothing,
        libc::SIGEV_SIGNAL if !queue.is_of_this_program(&member.pidfd).map_err(unread)? => {
            return refused(
                "who has asked to be told of a message in it (mq_notify) runs another program by now, which is not told",
                REMOVE,
            );
        }
        libc::SIGEV_SIGNAL => NoticeKind::Signal {
            signal: asked.signal,
            value: asked.value,
        },
        libc::SIGEV_THREAD => {
            let through = queue.kernel.u64(queue.at, "mqueue_inode_info.notify_sock");
            let through = through.map_err(unread)?;
            let is_it = |d: &&Description| {
                d.found.link.starts_with("socket:") && inet::in_kernel(&d.dup).is_ok_and(|(_, sock)| sock == through)
            };
            let Some(socket) = described.find(is_it) else {
                return refused(
                    "the socket by which it tells of a message (mq_notify, SIGEV_THREAD) is open nowhere in who has asked",
                    REMOVE,
                );
            };
            NoticeKind::Thread {
                file: socket.id,
                cookie: queue.cookie().map_err(unread)?,
            }
        }
        other => {
            return refused(
                format!("it tells of a message in a way that is not known ({other})"),
                REMOVE,
            );
        }
    };
    Ok(QueueNotice { pid: member.vpid, how })
}

/// The descriptions of each queue, by its inode.
pub type Opened<'a> = BTreeMap<u64, Vec<&'a OpenFile>>;

pub fn opened(manifest: &Manifest) -> Opened<'_> {
    let mut opened = Opened::new();
    for file in &manifest.files {
        if let FileKind::Mqueue { ino, .. } = file.kind {
            opened.entry(ino).or_default().push(file);
        }
    }
    opened
}

/// Those by which a queue can be used.
pub fn users<'a>(opened: &Opened<'a>, ino: u64) -> impl Iterator<Item = &'a OpenFile> {
    let all = opened.get(&ino).cloned().unwrap_or_default();
    all.into_iter().filter(|file| file.flags & libc::O_PATH == 0)
}

/// Which of these descriptors leads to the queue of this inode, to be used.
pub fn number(opened: &Opened<'_>, ino: u64, fds: &[FdEntry]) -> Option<FdNum> {
    let files: HashSet<FileId> = users(opened, ino).map(|file| file.id).collect();
    let entry = fds.iter().find(|entry| files.contains(&entry.file))?;
    Some(entry.fd)
}

/// Bytes that the kernel charges for it at least (`mqueue_get_inode`).
pub fn charge(queue: &PosixQueue) -> u64 {
    /// `struct msg_msg`.
    const HEAD_BYTES: u64 = 48;
    u64::from(queue.messages_max).saturating_mul(u64::from(queue.bytes_max).saturating_add(HEAD_BYTES))
}

/// Makes all queues again in the IPC namespace that this thread is in. Answers their descriptions.
pub fn make_all(manifest: &Manifest) -> Result<HashMap<FileId, OwnedFd>> {
    let mut made = HashMap::new();
    let opened = opened(manifest);
    for queue in &manifest.posix_queues {
        let files = opened.get(&queue.ino).map_or(&[][..], Vec::as_slice);
        let failed = || format!("cannot make POSIX message queue /{} again", queue.name);
        make(queue, files, &mut made).map_err(|error| match error.raw_os_error() {
            Some(libc::EMFILE) => Error::failed(failed())
                .because(format!(
                    "user {} has as much in them as RLIMIT_MSGQUEUE allows",
                    queue.charged
                ))
                .fix("raise that limit of the restorer (setrlimit(2)), or give it CAP_SYS_RESOURCE"),
            _ => Error::failed(failed()).because(error),
        })?;
    }
    Ok(made)
}

/// Makes a queue, charged to its user. What a user's queues may hold counts all that it has anywhere: that was
/// judged for the app, and is not judged again by how much it may be for who restores it (RLIMIT_MSGQUEUE,
/// setrlimit(2)).
///
/// It is charged to the real user of who makes it, who may be signalled by that user; and limits are those of
/// a whole process. So a copy of this one makes it.
fn create(queue: &PosixQueue, name: &CStr) -> nix::Result<()> {
    const OWN: HostPid = HostPid(0);
    let sizes = (i64::from(queue.messages_max), i64::from(queue.bytes_max));
    let create = || mqueue::create(name, libc::O_RDONLY, sizes).map(drop);
    let is_own = queue.charged == getuid().as_raw();
    match is_own.then(create) {
        None | Some(Err(nix::Error::EMFILE)) => {}
        Some(done) => return done,
    }
    task::in_copy(|| {
        let (_, hard) = task::prlimit_get(OWN, libc::RLIMIT_MSGQUEUE)?;
        let none = (libc::RLIM_INFINITY, libc::RLIM_INFINITY);
        task::prlimit_set(OWN, libc::RLIMIT_MSGQUEUE, none)
            .or_else(|_| task::prlimit_set(OWN, libc::RLIMIT_MSGQUEUE, (hard, hard)))?;
        if !is_own {
            sysv::become_real(queue.charged)?;
        }
        create()
    })
}

fn make(queue: &PosixQueue, files: &[&OpenFile], made: &mut HashMap<FileId, OwnedFd>) -> io::Result<()> {
    let name = CString::new(queue.name.as_str())?;
    create(queue, &name)?;
    let held = mqueue::open(&name, libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC)?;
    for file in files {
        if let FileKind::Mqueue { cloexec, .. } = file.kind {
            let shown = if cloexec { libc::O_CLOEXEC } else { 0 };
            made.insert(file.id, again(&name, &held, file.flags | shown)?);
        }
    }
    for message in &queue.messages {
        mqueue::send(&held, &message.data, message.priority)?;
    }
    let SocketFile { mode, uid, gid } = queue.file;
    fchown(&held, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    fchmod(&held, Mode::from_bits_truncate(mode))?;
    set_times(queue, &held)?;
    if queue.unlinked {
        mqueue::unlink(&name)?;
    }
    Ok(())
}

/// Another description of it, by the call that makes one with these flags.
fn again(name: &CString, held: &OwnedFd, flags: i32) -> nix::Result<OwnedFd> {
    match flags & (O_LARGEFILE | libc::O_PATH) {
        0 => mqueue::open(name, flags & !paths::ONCE),
        _ => paths::open_again(&format!("/proc/self/fd/{}", held.as_raw_fd()), flags),
    }
}

fn set_times(queue: &PosixQueue, fd: &OwnedFd) -> nix::Result<()> {
    let time = |ns: i64| TimeSpec::new(ns.div_euclid(SECOND_NS), ns.rem_euclid(SECOND_NS));
    futimens(fd, &time(queue.atime_ns), &time(queue.mtime_ns))
}

/// To ask to be told of a message counts as use of a queue.
pub fn after_notices(manifest: &Manifest, made: &HashMap<FileId, OwnedFd>) -> Result<()> {
    let opened = opened(manifest);
    for queue in manifest.posix_queues.iter().filter(|queue| queue.notice.is_some()) {
        if let Some(fd) = users(&opened, queue.ino).find_map(|file| made.get(&file.id)) {
            set_times(queue, fd).or_fail(|| format!("cannot set the times of POSIX message queue /{}", queue.name))?;
        }
    }
    Ok(())
}

/// One that was opened when its queue was made.
pub fn restore(opened: Option<OwnedFd>, offset: u64, flags: i32) -> Result<OwnedFd> {
    let failed = || "cannot open a POSIX message queue again";
    let opened = opened.ok_or_else(|| Error::failed(failed()).because("it was not made"))?;
    if offset > 0 && flags & libc::O_PATH == 0 {
        lseek(&opened, i64::try_from(offset).or_fail(failed)?, Whence::SeekSet).or_fail(failed)?;
    }
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_in_a_queue_is_read_and_stays() {
        let name = CString::new(format!("appshot-test-{}", std::process::id())).unwrap();
        let Ok(queue) = mqueue::create(&name, libc::O_RDWR | libc::O_NONBLOCK, (5, 8192)) else {
            return; // without such queues
        };
        mqueue::unlink(&name).unwrap();
        let long: Vec<u8> = (0..8192u32).map(|at| (at * 7 % 251) as u8).collect();
        for (priority, len) in [(3, 4048), (7, 0), (0, 8192), (7, 4049), (32767, 1)] {
            mqueue::send(&queue, &long[..len], priority).unwrap();
        }
        let Ok(read) = Queue::of(&queue) else {
            return; // without the right to it
        };
        let wanted = [(32767, 1), (7, 0), (7, 4049), (3, 4048), (0, 8192)];
        for _ in 0..2 {
            let messages = read.messages().unwrap();
            let lengths: Vec<_> = messages
                .iter()
                .map(|message| (message.priority, message.data.len()))
                .collect();
            assert_eq!(lengths, wanted);
            assert!(messages.iter().all(|message| long.starts_with(&message.data)));
        }
        assert!(read.asked().unwrap().is_none());
    }
}
