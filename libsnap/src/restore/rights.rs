//! What an appshot asks for, held against what its caller allows.
//!
//! The restorer acts with its own rights for an app that may have none: it opens
//! files, makes files and sockets, gives credentials and priorities. An appshot is
//! data that anybody may have written. So each demand is looked at here, before a
//! process exists, and must be one that a snapshot makes at all, and within
//! [`Allow`]:
//!
//! ```text
//!   user and group ids, also of files it makes     uids, gids
//!   capabilities; real-time priority; low ports    capabilities
//!   every path it names, links followed            paths
//!   no filter of system calls                      unconfined
//! ```

use super::plan::{Seen, refused};
use crate::error::{OrFail, Result};
use crate::files::{mqueue, netlink, paths, sockets};
use crate::ids::HostPid;
use crate::image::mounts::{Entry, Mounts, Place, Step};
use crate::image::records::{
    FileKind, IpcPerm, Life, LockKind, Manifest, Namespace, SettingKind, ShmKind, SockOpt, SocketFile, SocketRecord,
    SocketState, ThreadRecord, VmaKind,
};
use crate::image::{Appshot, Core};
use crate::ipc;
use crate::sys::task;
use crate::target::Allow;
use caps::{CapSet, Capability};
use nix::unistd::{Gid, Uid, User, getgrouplist, getresuid};
use std::collections::{BTreeMap, HashSet};
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// `capabilities(7)`: user 0 gains them at execve(2) unless this is set.
const SECBIT_NOROOT: u32 = 1;

/// Refuses what goes beyond.
pub fn check(shot: &Appshot, seen: &Seen, allow: &Allow) -> Result<()> {
    let judge = Judge::new(seen, allow)?;
    for core in &shot.cores {
        for thread in &core.image.threads {
            judge.thread(&thread.record)?;
        }
        judge.process(core, &shot.manifest)?;
    }
    judge.objects(&shot.manifest)
}

struct Judge<'a> {
    seen: &'a Seen,
    allow: &'a Allow,
    /// Of the caller, within what it allows.
    capabilities: u64,
    uids: Option<Vec<u32>>,
    gids: Option<Vec<u32>>,
    /// The directories, links followed.
    below: Option<Vec<PathBuf>>,
}

impl<'a> Judge<'a> {
    fn new(seen: &'a Seen, allow: &'a Allow) -> Result<Judge<'a>> {
        let own = own_capabilities();
        let holds = |capability: Capability| own & capability.bitmask() != 0;
        // Without the right to become another, the caller can give itself only.
        let uids = allow
            .uids
            .clone()
            .or_else(|| (!holds(Capability::CAP_SETUID)).then(own_uids));
        let gids = allow.gids.clone().or_else(|| allow.uids.as_deref().map(groups_of));
        let real = |dir: &PathBuf| fs::canonicalize(dir).or_fail(|| format!("cannot allow {}", dir.display()));
        let below = allow.paths.as_ref().map(|dirs| dirs.iter().map(real).collect());
        Ok(Judge {
            seen,
            allow,
            capabilities: allow.capabilities & own,
            uids,
            gids,
            below: below.transpose()?,
        })
    }

    fn uid(&self, who: impl std::fmt::Display, uid: u32) -> Result<()> {
        if self.uids.as_ref().is_none_or(|uids| uids.contains(&uid)) {
            return Ok(());
        }
        Err(refused(format!("{who} user {uid}, which is not allowed"))
            .fix(format!("allow it with --allow-uid {uid}, if the caller may become it")))
    }

    fn gid(&self, who: impl std::fmt::Display, gid: u32) -> Result<()> {
        if self.gids.as_ref().is_none_or(|gids| gids.contains(&gid)) {
            return Ok(());
        }
        Err(refused(format!("{who} group {gid}, which is not allowed")).fix(format!("allow it with --allow-gid {gid}")))
    }

    /// Something that takes a capability to get. What the caller cannot do itself
    /// the kernel refuses; this is about what it does not allow.
    fn takes(&self, capability: Capability, what: impl std::fmt::Display) -> Result<()> {
        if self.allow.capabilities & capability.bitmask() != 0 {
            return Ok(());
        }
        Err(refused(format!("{what}, which takes {capability}")).fix("allow that with --allow-capabilities"))
    }

    fn thread(&self, record: &ThreadRecord) -> Result<()> {
        let (creds, tid) = (&record.creds, record.tid);
        for uid in creds.uid {
            self.uid(format!("task {tid} wants to run as"), uid)?;
        }
        for gid in creds.gid.iter().chain(&creds.groups) {
            self.gid(format!("task {tid} wants to be in"), *gid)?;
        }
        let mut wanted = creds.cap_permitted | creds.cap_effective | creds.cap_inheritable | creds.cap_ambient;
        if creds.uid.contains(&0) && creds.securebits & SECBIT_NOROOT == 0 && self.allow.capabilities != u64::MAX {
            wanted |= creds.cap_bounding;
        }
        let beyond = wanted & !self.capabilities;
        if beyond != 0 {
            return Err(refused(format!(
                "task {tid} wants capabilities {beyond:#x} that are not allowed here"
            ))
            .fix("allow them, or restore with more rights"));
        }
        // SCHED_FIFO, SCHED_RR, SCHED_DEADLINE; IOPRIO_CLASS_RT.
        let pressing = [1, 2, 6].contains(&record.sched.policy) || record.ioprio >> 13 == 1;
        if pressing || record.sched.nice < 0 {
            self.takes(
                Capability::CAP_SYS_NICE,
                format!("task {tid} wants to come before others"),
            )?;
        }
        if record
            .settings
            .iter()
            .any(|setting| setting.kind == SettingKind::IoFlusher)
        {
            let what = format!("task {tid} wants memory before others (PR_SET_IO_FLUSHER)");
            self.takes(Capability::CAP_SYS_RESOURCE, what)?;
        }
        if record.seccomp.is_off() && !self.allow.unconfined {
            return Err(refused(format!("task {tid} has no filter of system calls (seccomp)"))
                .fix("take the snapshot of an app that has one, or leave --require-seccomp out"));
        }
        Ok(())
    }

    fn process(&self, core: &Core, manifest: &Manifest) -> Result<()> {
        let process = &core.image.process;
        let mounts = manifest.mounts_of(&process.namespaces);
        let who = |what: &str| format!("process {} {what}", process.pid);
        // Limits that stand for a capability: the hard ones, beyond what we have ourselves.
        for which in [libc::RLIMIT_NICE, libc::RLIMIT_RTPRIO] {
            let wanted = process.rlimits.get(which as usize).map_or(0, |limit| limit.1);
            if task::prlimit_get(HostPid(0), which).is_ok_and(|own| wanted > own.1) {
                self.takes(
                    Capability::CAP_SYS_NICE,
                    who("wants to come before others by its limits"),
                )?;
            }
        }
        if process.oom_score_adj < 0 {
            self.takes(
                Capability::CAP_SYS_RESOURCE,
                who("wants to be spared when memory runs out"),
            )?;
        }
        let locked = core
            .image
            .vmas
            .iter()
            .filter(|vma| vma.flags.iter().any(|flag| flag == "lo"));
        let locked: u64 = locked.map(|vma| vma.end - vma.start).sum();
        let limit = process
            .rlimits
            .get(libc::RLIMIT_MEMLOCK as usize)
            .map_or(0, |limit| limit.1);
        if locked > limit || beyond_own_limit(locked) {
            self.takes(
                Capability::CAP_IPC_LOCK,
                who(&format!(
                    "has {locked} bytes of memory locked, beyond its limit or ours"
                )),
            )?;
        }
        let mut mapped = false;
        let mut judged = HashSet::new();
        for vma in &core.image.vmas {
            let (path, shared) = match &vma.kind {
                VmaKind::PrivateFile { path, .. } => (path, false),
                VmaKind::SharedFile { path, .. } => (path, true),
                _ => continue,
            };
            mapped |= *path == process.exe;
            if !judged.insert((path, shared)) {
                continue;
            }
            let Some(path) = self.own(&who("maps"), manifest.place(mounts, path))? else {
                continue;
            };
            self.path(&who("maps"), &path)?;
            let fits = |meta: &fs::Metadata| meta.is_file() || (!shared && paths::is_memory_device(meta));
            self.is_of_kind(&who("maps"), &path, fits)?;
        }
        if let Some(exe) = self.own(&who("runs"), manifest.place(mounts, &process.exe))?
            && !mapped
            && self.seen.metadata(&exe).is_none()
        {
            return Err(refused(format!("its program {} is missing", process.exe)));
        }
        for path in [&process.exe, &process.cwd] {
            if let Some(path) = self.own(&who("names"), manifest.place(mounts, path))? {
                self.path(&who("names"), &path)?;
            }
        }
        if !process.namespaces.is_empty() {
            self.takes(Capability::CAP_SYS_ADMIN, who("wants namespaces of its own"))?;
        }
        if process.root != "/" {
            self.takes(Capability::CAP_SYS_CHROOT, who("wants a root directory of its own"))?;
            if let Some(root) = self.own(
                &who("has for its root directory"),
                manifest.place(mounts, &process.root),
            )? {
                self.path(&who("has for its root directory"), &root)?;
            }
        }
        Ok(())
    }

    fn objects(&self, manifest: &Manifest) -> Result<()> {
        for entry in &manifest.processes {
            if let Life::Zombie { uid, .. } = entry.life {
                self.uid(format!("process {}, which has ended, was of", entry.pid), uid)?;
            }
        }
        for file in &manifest.files {
            let who = format!("open file {}", file.id);
            match &file.kind {
                FileKind::Path { path, namespace, .. } => {
                    let Some(path) = self.own(&who, manifest.place(*namespace, path))? else {
                        continue;
                    };
                    // A device without state leads nowhere.
                    if self.seen.metadata(&path).is_some_and(|m| paths::is_memory_device(&m)) {
                        continue;
                    }
                    self.path(&who, &path)?;
                    self.is_of_kind(&who, &path, paths::is_carried)?;
                    let leased = file.locks.iter().any(|lock| lock.kind == LockKind::Lease);
                    if let Some(meta) = self.seen.metadata(&path).filter(|_| leased) {
                        self.uid(format!("{who} has a lease of a file of"), meta.uid())?;
                    }
                }
                FileKind::Inotify { watches } => watches.iter().try_for_each(|watch| self.path(&who, &watch.path))?,
                FileKind::Socket(socket) => self.socket(&who, socket)?,
                FileKind::Pty(pty) => self.made(&who, pty.file)?,
                _ => {}
            }
        }
        for fifo in manifest.pipes.iter().filter_map(|pipe| pipe.fifo.as_ref()) {
            self.path("a fifo", fifo)?;
            self.is_of_kind("a fifo", fifo, |meta| meta.file_type().is_fifo())?;
        }
        for external in &manifest.external {
            self.path("it", &external.path)?;
        }
        let locked = manifest.shmem.iter();
        let locked = locked.filter(|shm| matches!(shm.kind, ShmKind::Sysv { locked: true, .. }));
        if beyond_own_limit(locked.map(|shm| shm.bytes).fold(0, u64::saturating_add)) {
            self.takes(
                Capability::CAP_IPC_LOCK,
                "it has shared memory locked (SHM_LOCK) beyond our limit",
            )?;
        }
        for shm in &manifest.shmem {
            let who = format!("shared memory {}", shm.id);
            match &shm.kind {
                ShmKind::Unlinked {
                    path, mode, uid, gid, ..
                } => {
                    self.path(&who, path)?;
                    let (mode, uid, gid) = (*mode, *uid, *gid);
                    self.made(&who, SocketFile { mode, uid, gid })?;
                }
                ShmKind::Memfd { mode, .. } => self.set_id(&who, *mode)?,
                ShmKind::Sysv {
                    uid, gid, cuid, cgid, ..
                } => {
                    if shm.page_bytes != 0 {
                        self.takes(
                            Capability::CAP_IPC_LOCK,
                            format!("{who} is in huge pages (SHM_HUGETLB)"),
                        )?;
                    }
                    [uid, cuid]
                        .into_iter()
                        .try_for_each(|uid| self.uid(format!("{who} belongs to"), *uid))?;
                    [gid, cgid]
                        .into_iter()
                        .try_for_each(|gid| self.gid(format!("{who} belongs to"), *gid))?;
                }
                ShmKind::Anon => {}
            }
        }
        self.queues(manifest)?;
        manifest.all_mounts().try_for_each(|mounts| self.mounts(mounts))?;
        let beside = manifest.namespaces.iter().filter_map(|namespace| match namespace {
            Namespace::Ipc(objects) => Some((&objects.semaphores, &objects.queues)),
            _ => None,
        });
        for (semaphores, queues) in beside.chain([(&manifest.semaphores, &manifest.queues)]) {
            let perms = semaphores.iter().map(|set| set.perm);
            perms
                .chain(queues.iter().map(|queue| queue.perm))
                .try_for_each(|perm| self.ipc(perm))?;
        }
        Ok(())
    }

    /// The path of the app's own to which one leads; none where it leads to a file that the app brings along.
    fn own(&self, who: &str, place: Place) -> Result<Option<String>> {
        match place {
            Place::Own(path) => Ok(Some(path)),
            Place::Beside => Ok(None),
            Place::Covered if self.below.is_none() => Ok(None),
            Place::Covered => Err(refused(format!(
                "{who} a file on which something else is mounted here, of which it cannot be told whether it is allowed"
            ))),
        }
    }

    fn mounts(&self, mounts: &Mounts) -> Result<()> {
        for (nth, step) in mounts.steps.iter().enumerate() {
            let who = format!("mount {}", step.at());
            match step {
                Step::Bind { from, .. } => self.path(&format!("{who} shows"), from)?,
                Step::Unmount { at } => {
                    let who = format!("{who}: it shows what is below");
                    if let Some(own) = self.own(&who, mounts.place_before(nth, at))? {
                        self.path(&who, &own)?;
                    }
                }
                Step::Remount { .. } | Step::Mount { .. } => {}
            }
        }
        for entry in mounts.trees().flat_map(|tree| &tree.entries) {
            let who = format!("the mounted file {}", entry.name);
            let Entry { mode, uid, gid, .. } = *entry;
            self.made(&who, SocketFile { mode, uid, gid })?;
            for attribute in &entry.attributes {
                // Capabilities of a program (security.capability), and the like.
                if !attribute.name.starts_with("user.") {
                    self.takes(
                        Capability::CAP_SYS_ADMIN,
                        format!("{who} has the attribute {}", attribute.name),
                    )?;
                }
            }
        }
        Ok(())
    }

    fn queues(&self, manifest: &Manifest) -> Result<()> {
        let limit = |name: &str| ipc::setting(manifest, name).unwrap_or(0);
        let (messages, bytes) = (limit("fs.mqueue.msg_max"), limit("fs.mqueue.msgsize_max"));
        let mut charged: BTreeMap<u32, u64> = BTreeMap::new();
        for queue in &manifest.posix_queues {
            let who = format!("POSIX message queue /{}", queue.name);
            self.made(&who, queue.file)?;
            self.uid(format!("{who} is charged to"), queue.charged)?;
            if u64::from(queue.messages_max) > messages || u64::from(queue.bytes_max) > bytes {
                let what = format!("{who} is larger than its namespace lets everybody make them (fs.mqueue)");
                self.takes(Capability::CAP_SYS_RESOURCE, what)?;
            }
            let sum = charged.entry(queue.charged).or_default();
            *sum = sum.saturating_add(mqueue::charge(queue));
        }
        let limit = task::prlimit_get(HostPid(0), libc::RLIMIT_MSGQUEUE).map_or(0, |limit| limit.1);
        match charged.into_iter().find(|(_, sum)| *sum > limit) {
            Some((uid, sum)) => {
                let what = format!("the POSIX message queues of user {uid} hold {sum} bytes, more than one may here");
                self.takes(Capability::CAP_SYS_RESOURCE, what)
            }
            None => Ok(()),
        }
    }

    fn ipc(&self, perm: IpcPerm) -> Result<()> {
        let who = format!("System V object {} belongs to", perm.id);
        [perm.uid, perm.cuid]
            .into_iter()
            .try_for_each(|uid| self.uid(&who, uid))?;
        [perm.gid, perm.cgid]
            .into_iter()
            .try_for_each(|gid| self.gid(&who, gid))
    }

    /// A file that the restorer makes.
    fn made(&self, who: &str, file: SocketFile) -> Result<()> {
        self.uid(format!("{who} makes a file of"), file.uid)?;
        self.gid(format!("{who} makes a file of"), file.gid)?;
        self.set_id(who, file.mode)
    }

    fn set_id(&self, who: &str, mode: u32) -> Result<()> {
        if mode & 0o6000 == 0 || self.allow.uids.is_none() && self.allow.capabilities == u64::MAX {
            return Ok(());
        }
        Err(refused(format!(
            "{who} makes a file with a set-user-ID or set-group-ID bit (mode {mode:o})"
        )))
    }

    fn socket(&self, who: &str, record: &SocketRecord) -> Result<()> {
        if !sockets::is_carried(record) {
            return Err(refused(format!(
                "{who} is a socket of a kind or with an option that no snapshot carries (family {}, type {}, protocol {})",
                record.domain, record.kind, record.protocol
            )));
        }
        // In whatever state: one that is not bound hears everything.
        let sees_all = record.domain == libc::AF_PACKET
            || [libc::AF_INET, libc::AF_INET6].contains(&record.domain) && record.kind == libc::SOCK_RAW;
        if sees_all {
            self.takes(Capability::CAP_NET_RAW, format!("{who} wants packets as they are"))?;
        }
        for option in &record.options {
            let wants = || format!("{who} wants socket option {}:{}", option.level, option.name);
            match (option.level, option.name) {
                (libc::IPPROTO_IP, libc::IP_OPTIONS) => self.takes(Capability::CAP_NET_RAW, wants())?,
                header if sockets::HEADERS.contains(&header) => self.takes(Capability::CAP_NET_RAW, wants())?,
                _ if is_too_large(record, option) => self.takes(
                    Capability::CAP_NET_ADMIN,
                    format!("{who} wants a larger buffer than this host gives"),
                )?,
                _ if is_privileged(option) => self.takes(Capability::CAP_NET_ADMIN, wants())?,
                _ => {}
            }
        }
        if record.domain == libc::AF_NETLINK && hears_or_tells_others(record) {
            self.takes(
                Capability::CAP_NET_ADMIN,
                format!("{who} wants netlink messages that are not for everybody"),
            )?;
        }
        let (name, file) = match &record.state {
            SocketState::Bound { name, file } | SocketState::Listening { name, file, .. } => (name, *file),
            SocketState::Paired { name, file, .. } => (name, *file),
            SocketState::Connected { name, .. }
            | SocketState::Waiting { name, .. }
            | SocketState::Joined { name, .. } => (name, None),
            SocketState::Established { name, .. } => {
                self.takes(
                    Capability::CAP_NET_ADMIN,
                    format!("{who} wants to go on with a connection that was made elsewhere"),
                )?;
                (name, None)
            }
            SocketState::Fresh | SocketState::Severed | SocketState::Carried { .. } => return Ok(()),
        };
        if matches!(record.state, SocketState::Waiting { .. }) {
            // Who accepts it is told that we have made it.
            self.uid(format!("{who} is to be accepted from"), 0)?;
        }
        if sees_all || record.domain == libc::AF_NETLINK {
            return Ok(());
        }
        if record.domain != libc::AF_UNIX {
            let port = name.get(2..4).map_or(0, |port| u16::from_be_bytes([port[0], port[1]]));
            return match port {
                1..1024 => self.takes(Capability::CAP_NET_BIND_SERVICE, format!("{who} wants port {port}")),
                _ => Ok(()),
            };
        }
        let name = name.get(2..).unwrap_or_default();
        if name.first().is_some_and(|byte| *byte != 0) {
            let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            self.path(who, &String::from_utf8_lossy(&name[..end]))?;
        }
        file.map_or(Ok(()), |file| self.made(who, file))
    }

    /// Below one of the directories that are allowed, links followed. What does not
    /// exist yet is judged by its directory.
    fn path(&self, who: &str, path: &str) -> Result<()> {
        let Some(below) = &self.below else { return Ok(()) };
        let path = Path::new(path);
        let real = fs::canonicalize(path).or_else(|_| {
            let dir = path.parent().unwrap_or(path);
            fs::canonicalize(dir).map(|dir| dir.join(path.file_name().unwrap_or_default()))
        });
        if real.is_ok_and(|real| below.iter().any(|dir| real.starts_with(dir))) {
            return Ok(());
        }
        Err(refused(format!(
            "{who} {}, which is not below a directory that is allowed",
            path.display()
        ))
        .fix("allow its directory with --allow-path"))
    }

    /// A name that leads to something else than what a snapshot carries: a device with
    /// state, a fifo that nobody opens. What is missing shows when it is opened.
    fn is_of_kind(&self, who: &str, path: &str, fits: impl Fn(&fs::Metadata) -> bool) -> Result<()> {
        match self.seen.metadata(path) {
            Some(meta) if !fits(&meta) => Err(refused(format!(
                "{who} {path}: a device or special file that no snapshot carries"
            ))),
            _ => Ok(()),
        }
    }
}

fn own_capabilities() -> u64 {
    let own = caps::read(None, CapSet::Permitted).unwrap_or_default();
    own.iter().fold(0, |all, capability| all | capability.bitmask())
}

fn own_uids() -> Vec<u32> {
    getresuid().map_or_else(
        |_| Vec::new(),
        |ids| [ids.real, ids.effective, ids.saved].map(Uid::as_raw).to_vec(),
    )
}

/// The groups of these users, where they are known here.
fn groups_of(uids: &[u32]) -> Vec<u32> {
    let known = uids
        .iter()
        .filter_map(|uid| User::from_uid(Uid::from_raw(*uid)).ok().flatten());
    let groups = known.flat_map(|user| {
        let name = CString::new(user.name).unwrap_or_default();
        getgrouplist(&name, user.gid).unwrap_or_else(|_| vec![user.gid])
    });
    groups.map(Gid::as_raw).collect()
}

/// What only CAP_NET_ADMIN sets, or sets so high (socket(7), ip(7)).
/// What the limit of an app is, its appshot says.
fn beyond_own_limit(locked: u64) -> bool {
    task::prlimit_get(HostPid(0), libc::RLIMIT_MEMLOCK).is_ok_and(|own| locked > own.1)
}

/// A buffer beyond what anybody may set, of which the kernel makes twice as much; those of
/// connections grow by themselves.
fn is_too_large(record: &SocketRecord, option: &SockOpt) -> bool {
    let (of_all, of_tcp) = match (option.level, option.name) {
        (libc::SOL_SOCKET, libc::SO_SNDBUF) => ("core/wmem_max", "ipv4/tcp_wmem"),
        (libc::SOL_SOCKET, libc::SO_RCVBUF) => ("core/rmem_max", "ipv4/tcp_rmem"),
        _ => return false,
    };
    let last = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap_or_default();
        text.split_whitespace()
            .last()
            .and_then(|word| word.parse::<i64>().ok())
            .unwrap_or(0)
    };
    let grown = match record.kind {
        libc::SOCK_STREAM if record.domain != libc::AF_UNIX => last(of_tcp),
        _ => 0,
    };
    let wanted = option.value.first_chunk().map_or(0, |word| i32::from_le_bytes(*word));
    i64::from(wanted) > grown.max(2 * last(of_all))
}

fn is_privileged(option: &SockOpt) -> bool {
    const SO_PREFER_BUSY_POLL: i32 = 69;
    const SO_RCVMARK: i32 = 75;
    /// TC_PRIO_INTERACTIVE
    const PRIORITY_MAX: i32 = 6;
    let number = || {
        option
            .value
            .as_chunks::<4>()
            .0
            .first()
            .map_or(0, |word| i32::from_le_bytes(*word))
    };
    match (option.level, option.name) {
        (libc::SOL_SOCKET, libc::SO_PRIORITY) => !(0..=PRIORITY_MAX).contains(&number()),
        (libc::SOL_SOCKET, name) => [
            libc::SO_MARK,
            libc::SO_BINDTODEVICE,
            libc::SO_BUSY_POLL,
            SO_PREFER_BUSY_POLL,
            SO_RCVMARK,
        ]
        .contains(&name),
        (libc::IPPROTO_TCP, libc::TCP_CONGESTION) => !is_for_everybody(&option.value),
        (libc::IPPROTO_IP, libc::IP_TRANSPARENT) | (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT) => true,
        (libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID) => true,
        _ => false,
    }
}

/// Whether everybody may choose this congestion control (tcp(7)).
fn is_for_everybody(congestion: &[u8]) -> bool {
    let name = congestion.split(|byte| *byte == 0).next().unwrap_or_default();
    let allowed = fs::read("/proc/sys/net/ipv4/tcp_allowed_congestion_control").unwrap_or_default();
    allowed.split(u8::is_ascii_whitespace).any(|allowed| allowed == name)
}

/// Groups and peers of a netlink socket that the kernel does not leave to everybody.
fn hears_or_tells_others(record: &SocketRecord) -> bool {
    // Their kinds of socket say so (NL_CFG_F_NONROOT_RECV, NL_CFG_F_NONROOT_SEND).
    let to_all = [
        libc::NETLINK_ROUTE,
        libc::NETLINK_SOCK_DIAG,
        libc::NETLINK_KOBJECT_UEVENT,
    ];
    let from_all = [libc::NETLINK_USERSOCK];
    let groups = |name: &[u8]| name.get(8..12).is_some_and(|groups| groups != [0; 4]);
    let in_groups = record
        .options
        .iter()
        .any(|option| (option.level, option.name) == (libc::SOL_NETLINK, libc::NETLINK_LIST_MEMBERSHIPS));
    let (name, peer) = match &record.state {
        SocketState::Bound { name, .. } => (&name[..], &[][..]),
        SocketState::Connected { name, peer } => (&name[..], &peer[..]),
        _ => (&[][..], &[][..]),
    };
    let hears = (in_groups || groups(name)) && !to_all.contains(&record.protocol);
    let tells = (netlink::port(peer) != 0 || groups(peer)) && !from_all.contains(&record.protocol);
    hears || tells
}
