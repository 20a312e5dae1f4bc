//! What must hold for the app as a whole.
//!
//! An appshot comes from anywhere; its digests only say that it is as it was
//! sealed. These checks let the restorer rely on every reference and number.

use super::fault::{corrupt, ensure};
use super::leaves::DIGESTS;
use super::process::Core;
use super::records::{
    FileKind, Life, Manifest, NoticeKind, Part, ProcessRecord, SeccompFilter, SnapEntry, SocketRecord, Vma, VmaKind,
};
use super::{FORMAT, MANIFEST, leaves, limits, validate_files, validate_namespaces};
use crate::error::Result;
use crate::files::{mqueue, uring};
use crate::ids::{FileId, VirtualPid};
use std::collections::{BTreeMap, BTreeSet};

/// Letters, digits, `.`, `_`, `-`; not hidden. Such a name is a file of the
/// directory and nothing else.
pub fn is_part_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=limits::NAME_BYTES).contains(&name.len())
        && name.bytes().all(plain)
        && !name.starts_with('.')
        && name != MANIFEST
}

/// The manifest by itself.
pub fn manifest(manifest: &Manifest) -> Result<()> {
    let part = MANIFEST;
    ensure(manifest.format == FORMAT, part, || "format")?;
    ensure(is_app_id(&manifest.app), part, || {
        format!("app id {:?} is not allowed", shown(&manifest.app))
    })?;
    text(part, "product", &manifest.product, limits::TEXT_BYTES)?;
    text(part, "hostname", &manifest.hostname, limits::HOST_NAME_BYTES)?;
    text(part, "domainname", &manifest.domainname, limits::HOST_NAME_BYTES)?;
    text(part, "kernel_release", &manifest.needs.kernel_release, 256)?;
    ensure(
        is_digest(&manifest.needs.vdso_blake3) || manifest.needs.vdso_blake3.is_empty(),
        part,
        || "vdso_blake3 is not a digest",
    )?;
    let xsave = usize::try_from(manifest.needs.xsave_bytes).unwrap_or(usize::MAX);
    ensure(limits::XSAVE_BYTES.contains(&xsave), part, || {
        format!("an xsave area of {xsave} bytes")
    })?;
    parts(&manifest.parts)?;
    lenders(manifest)?;
    processes(&manifest.processes)?;
    seccomp(&manifest.seccomp)?;
    participants(&manifest.participants)?;
    validate_namespaces::manifest(manifest)?;
    validate_files::all(manifest)?;
    part_references(manifest)
}

/// An app id names directories and cgroups at the destination.
fn is_app_id(app: &str) -> bool {
    (1..=limits::NAME_BYTES).contains(&app.len())
        && !app.starts_with('.')
        && !app.contains('/')
        && !app.chars().any(char::is_control)
}

pub fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn parts(parts: &[Part]) -> Result<()> {
    count(MANIFEST, "parts", parts.len(), limits::PARTS)?;
    let mut names = BTreeSet::new();
    for part in parts {
        let shown = shown(&part.name);
        ensure(is_part_name(&part.name), MANIFEST, || {
            format!("part name {shown:?} is not allowed")
        })?;
        ensure(names.insert(&part.name), MANIFEST, || {
            format!("part {shown} is listed twice")
        })?;
        ensure(part.bytes <= limits::PART_BYTES, MANIFEST, || {
            format!("part {shown} is too large")
        })?;
        ensure(is_digest(&part.blake3), MANIFEST, || {
            format!("part {shown} has no digest")
        })?;
    }
    Ok(())
}

/// Each lender and each parent once; a parent is there for a lender.
fn lenders(manifest: &Manifest) -> Result<()> {
    let Manifest { lenders, parents, .. } = manifest;
    count(MANIFEST, "lenders", lenders.len(), limits::LENDERS)?;
    count(MANIFEST, "parents", parents.len(), limits::PARENTS)?;
    let mut identities = BTreeSet::new();
    for parent in parents {
        let name = shown(&parent.name);
        ensure(is_digest(&parent.identity), MANIFEST, || {
            format!("parent {name:?} has no identity")
        })?;
        ensure(identities.insert(&parent.identity), MANIFEST, || {
            format!("parent {name:?} is listed twice")
        })?;
        let plain = (1..=limits::NAME_BYTES).contains(&parent.name.len())
            && !parent.name.contains(['/', '\0'])
            && ![".", ".."].contains(&parent.name.as_str());
        ensure(plain, MANIFEST, || {
            format!("parent {name:?} is not named as a directory beside it")
        })?;
    }
    let (mut known, mut lending) = (BTreeSet::new(), BTreeSet::new());
    for lender in lenders {
        let name = shown(&lender.part);
        ensure(is_part_name(&lender.part), MANIFEST, || {
            format!("lender {name:?} is not allowed")
        })?;
        ensure(known.insert(lender), MANIFEST, || {
            format!("lender {name:?} is listed twice")
        })?;
        ensure(
            lender.parent.is_none_or(|at| (at as usize) < parents.len()),
            MANIFEST,
            || format!("lender {name:?} is a part of an unknown parent"),
        )?;
        lending.extend(lender.parent);
    }
    ensure(
        lending.len() == parents.len(),
        MANIFEST,
        || "a parent from which nothing is borrowed",
    )
}

fn seccomp(filters: &[SeccompFilter]) -> Result<()> {
    count(MANIFEST, "seccomp filters", filters.len(), limits::SECCOMP_FILTERS)?;
    for filter in filters {
        let length = filter.code.len();
        ensure((1..=limits::SECCOMP_CODE).contains(&length), MANIFEST, || {
            format!("a seccomp filter of {length} instructions")
        })?;
    }
    Ok(())
}

/// They become names of files.
fn participants(names: &[String]) -> Result<()> {
    count(MANIFEST, "participants", names.len(), limits::PARTICIPANTS)?;
    let mut seen = BTreeSet::new();
    names.iter().try_for_each(|name| {
        ensure(crate::identity::is_name(name) && seen.insert(name), MANIFEST, || {
            format!("participant {:?} is not allowed", shown(name))
        })
    })
}

/// Parents stand before their children; 0 and 1 are outside the app.
fn processes(entries: &[SnapEntry]) -> Result<()> {
    count(MANIFEST, "processes", entries.len(), limits::PROCESSES)?;
    ensure(!entries.is_empty(), MANIFEST, || "it has no process")?;
    let mut seen = BTreeSet::new();
    let mut alive = BTreeSet::new();
    for entry in entries {
        let pid = entry.pid;
        process_id(MANIFEST, "pid", pid)?;
        let lives = matches!(entry.life, Life::Alive { .. });
        let shares = entry.shares_files || entry.shares_state;
        ensure(!shares || lives && alive.contains(&entry.ppid), MANIFEST, || {
            format!("process {pid} shares with no process that lives")
        })?;
        alive.extend(lives.then_some(pid));
        // 1 is the init of the instance, which is no part of an app.
        ensure(pid.0 != 1, MANIFEST, || "process 1 is the init of an app, not of it")?;
        let outside = matches!(entry.ppid.0, 0 | 1);
        ensure(outside || seen.contains(&entry.ppid), MANIFEST, || {
            format!("process {pid}: its parent {} does not stand before it", entry.ppid)
        })?;
        ensure(seen.insert(pid), MANIFEST, || format!("process {pid} is listed twice"))?;
        for (what, id) in [("group", entry.pgid), ("session", entry.sid)] {
            ensure((0..=limits::PID_MAX).contains(&id.0), MANIFEST, || {
                format!("process {pid}: {what} {id}")
            })?;
        }
        ensure((1..=64).contains(&entry.stopped.unwrap_or(1)), MANIFEST, || {
            format!("process {pid}: stopped by signal {:?}", entry.stopped)
        })?;
        ensure((0..=64).contains(&entry.exit_signal), MANIFEST, || {
            format!("process {pid}: exit signal {}", entry.exit_signal)
        })?;
        text(MANIFEST, "comm", &entry.comm, limits::COMM_BYTES)?;
        if let Life::Zombie { wait_status, .. } = entry.life {
            ensure((0..=0xffff).contains(&wait_status), MANIFEST, || {
                format!("process {pid}: wait status {wait_status:#x}")
            })?;
        }
    }
    Ok(())
}

/// Each part is named by exactly one record, and each record's part is there.
fn part_references(manifest: &Manifest) -> Result<()> {
    let mut unused: BTreeMap<&str, u64> = manifest
        .parts
        .iter()
        .map(|part| (part.name.as_str(), part.bytes))
        .collect();
    let mut take = |name: &str, bytes: Option<u64>| {
        let found = unused.remove(name).ok_or_else(|| {
            corrupt(
                MANIFEST,
                format_args!("part {:?} is not listed, or named by two records", shown(name)),
            )
        })?;
        ensure(bytes.is_none_or(|bytes| bytes == found), MANIFEST, || {
            format!("part {name} has {found} bytes, its record says otherwise")
        })
    };
    for entry in &manifest.processes {
        if let Life::Alive { part } = &entry.life {
            take(part, None)?;
        }
    }
    for shm in &manifest.shmem {
        let stored: u64 = shm.runs.iter().map(|(_, bytes)| bytes).sum();
        match &shm.part {
            Some(part) => take(part, Some(stored))?,
            None => ensure(stored == 0, MANIFEST, || {
                format!("shared memory {} has no part", shm.id)
            })?,
        }
    }
    let last = manifest.parts.split_last();
    let (last, others) = last.ok_or_else(|| corrupt(MANIFEST, "it has no parts"))?;
    ensure(last.name == DIGESTS, MANIFEST, || "the digests are not the last part")?;
    take(DIGESTS, Some(leaves::bytes_for(others.iter())))?;
    ensure(unused.is_empty(), MANIFEST, || {
        format!("part {} belongs to no record", unused.keys().next().unwrap_or(&""))
    })
}

/// References between the cores and the manifest. Each has passed its own checks.
pub fn app(manifest: &Manifest, cores: &[Core]) -> Result<()> {
    let files: BTreeMap<_, _> = manifest.files.iter().map(|file| (file.id, &file.kind)).collect();
    let shmem: BTreeSet<_> = manifest.shmem.iter().map(|shm| shm.id).collect();
    let live = manifest.processes.iter().filter_map(|entry| match &entry.life {
        Life::Alive { part } => Some((entry, part.as_str())),
        Life::Zombie { .. } => None,
    });
    for ((entry, part), core) in live.zip(cores) {
        let image = &core.image;
        let ids = (image.process.pid, image.ppid, image.pgid, image.sid);
        ensure(ids == (entry.pid, entry.ppid, entry.pgid, entry.sid), part, || {
            format!("its ids are not those of process {} in the manifest", entry.pid)
        })?;
        ensure(
            image.comm == entry.comm,
            part,
            || "its name is not that in the manifest",
        )?;
        for entry in &image.process.fds {
            ensure(files.contains_key(&entry.file), part, || {
                format!("descriptor {}: there is no file {}", entry.fd, entry.file)
            })?;
        }
        if let Some(ctty) = image.process.ctty {
            let controls =
                |file: &FileKind| matches!(file, FileKind::Pty(pty) if pty.index == ctty && pty.sid == entry.sid);
            ensure(manifest.files.iter().any(|file| controls(&file.kind)), part, || {
                format!("controlling terminal {ctty} is not that of session {}", entry.sid)
            })?;
        }
        for thread in &image.threads {
            let filters = thread.record.seccomp.filters();
            let known = filters.iter().all(|at| (*at as usize) < manifest.seccomp.len());
            ensure(known, part, || {
                format!("thread {}: there is no such seccomp filter", thread.record.tid)
            })?;
        }
        for vma in &image.vmas {
            if let VmaKind::Shm { shm, .. } = vma.kind {
                ensure(shmem.contains(&shm), part, || {
                    format!("mapping {:#x}: there is no shared memory {shm}", vma.start)
                })?;
            }
            if let VmaKind::Uring { memory, .. } = vma.kind {
                let has = |kind: &FileKind| matches!(kind, FileKind::Uring(ring) if ring.memories().contains(&memory));
                ensure(manifest.files.iter().any(|file| has(&file.kind)), part, || {
                    format!("mapping {:#x}: there is no io_uring with this memory", vma.start)
                })?;
            }
        }
    }
    shared(manifest, cores)?;
    filters_used(manifest, cores)?;
    validate_namespaces::app(manifest, cores)?;
    requests(manifest, cores)?;
    notices(manifest, cores)?;
    thread_ids(manifest, cores)
}

/// What two processes have together is the same in both.
fn shared(manifest: &Manifest, cores: &[Core]) -> Result<()> {
    let images = || cores.iter().map(|core| (core.image.process.pid, &core.image.process));
    let known: BTreeMap<_, _> = images().collect();
    for entry in manifest
        .processes
        .iter()
        .filter(|entry| entry.shares_files || entry.shares_state)
    {
        let (Some(own), Some(parent)) = (known.get(&entry.pid), known.get(&entry.ppid)) else {
            return Err(corrupt(MANIFEST, format_args!("process {} is missing", entry.pid)));
        };
        let state = |process: &ProcessRecord| (process.cwd.clone(), process.root.clone(), process.umask);
        let same =
            (!entry.shares_files || own.fds == parent.fds) && (!entry.shares_state || state(own) == state(parent));
        ensure(same, MANIFEST, || {
            format!("process {} has not what it shares with its parent", entry.pid)
        })?;
    }
    Ok(())
}

/// What is asked of an io_uring again is of a process that has it and its file, and is told in
/// that one's memory, where nobody else writes.
fn requests(manifest: &Manifest, cores: &[Core]) -> Result<()> {
    for (id, ring) in uring::all(manifest) {
        for request in &ring.waiting {
            let image = cores.iter().map(|core| &core.image);
            let own = image.clone().find(|image| image.process.pid == request.by);
            let is_sound = own.is_some_and(|image| {
                let has = |file| image.process.fds.iter().any(|entry| entry.file == file);
                let kept = |vma: &&Vma| !matches!(vma.kind, VmaKind::Uring { .. } | VmaKind::Vvar | VmaKind::Vdso);
                let mapped = image.vmas.iter().filter(kept).map(|vma| (vma.start, vma.end));
                has(id) && has(request.file) && request.has_room(mapped)
            });
            ensure(is_sound, MANIFEST, || {
                format!("file {id}: a request that waits is of nobody who could make it")
            })?;
        }
    }
    Ok(())
}

/// Pages that cores borrow: of another core of the app, exactly what that stores; of a
/// parent, what its part has room for. `lenders` are numbers of parts, `sizes` the bytes
/// of all parts.
pub fn borrowed(manifest: &Manifest, cores: &[Core], lenders: &[usize], sizes: &[u64]) -> Result<()> {
    let name = |part: usize| manifest.parts.get(part).map_or("a parent's", |part| part.name.as_str());
    let mut stored: BTreeMap<usize, Vec<(u64, u64)>> = BTreeMap::new();
    for core in cores {
        let own = core.segments.iter().filter(|segment| segment.part == core.part);
        let mut own: Vec<(u64, u64)> = own.map(|s| (s.offset, s.offset + s.bytes)).collect();
        own.sort_unstable();
        // Runs that meet are one.
        own.dedup_by(|next, last| {
            last.1 == next.0 && {
                last.1 = next.1;
                true
            }
        });
        stored.insert(core.part, own);
    }
    let mut used = BTreeSet::new();
    for core in cores {
        for segment in core.segments.iter().filter(|segment| segment.part != core.part) {
            used.insert(segment.part);
            let end = segment.offset + segment.bytes;
            let there = match stored.get(&segment.part) {
                Some(runs) => {
                    let before = runs.partition_point(|(start, _)| *start <= segment.offset);
                    before > 0 && end <= runs[before - 1].1
                }
                None => segment.part >= manifest.parts.len() && end <= sizes[segment.part],
            };
            ensure(there, name(core.part), || {
                format!(
                    "the pages at {:#x} are borrowed from bytes {} to {end} of {}, where it stores none",
                    segment.vaddr,
                    segment.offset,
                    name(segment.part),
                )
            })?;
        }
    }
    ensure(
        lenders.iter().all(|lender| used.contains(lender)),
        MANIFEST,
        || "a lender from which nothing is borrowed, or its own",
    )
}

/// Who is told of a message has the queue open, and what it is told by: a netlink socket with room for that.
fn notices(manifest: &Manifest, cores: &[Core]) -> Result<()> {
    /// What a socket has room for usually, and what one notice takes of it.
    const ROOM: usize = 128;
    let told = manifest
        .posix_queues
        .iter()
        .filter_map(|queue| Some((queue, queue.notice.as_ref()?)));
    let asked: BTreeSet<VirtualPid> = told.clone().map(|(_, notice)| notice.pid).collect();
    let processes = cores.iter().map(|core| &core.image.process);
    let asked = processes.filter(|process| asked.contains(&process.pid));
    // What each of them has open.
    let has: BTreeMap<VirtualPid, BTreeSet<FileId>> = asked
        .map(|process| (process.pid, process.fds.iter().map(|entry| entry.file).collect()))
        .collect();
    let (opened, sockets) = (mqueue::opened(manifest), notice_sockets(manifest));
    let mut through: BTreeMap<FileId, usize> = BTreeMap::new();
    for (queue, notice) in told {
        let is_sound = has.get(&notice.pid).is_some_and(|has| {
            let by = match &notice.how {
                NoticeKind::Thread { file, .. } => {
                    *through.entry(*file).or_default() += 1;
                    through[file] <= ROOM && has.contains(file) && sockets.contains(file)
                }
                NoticeKind::Nothing | NoticeKind::Signal { .. } => true,
            };
            by && mqueue::users(&opened, queue.ino).any(|file| has.contains(&file.id))
        });
        ensure(is_sound, MANIFEST, || {
            format!("POSIX message queue {}: who is told of a message cannot be", queue.ino)
        })?;
    }
    Ok(())
}

/// Netlink sockets whose buffer was not made smaller: whoever asks for a notice waits for room.
fn notice_sockets(manifest: &Manifest) -> BTreeSet<FileId> {
    const AF_NETLINK: i32 = 16;
    const RECEIVE_BUFFER: (i32, i32) = (1, 8);
    const BYTES: i32 = 128 << 10;
    let takes_notices = |socket: &SocketRecord| {
        let mut options = socket.options.iter();
        let buffer = options.find(|option| (option.level, option.name) == RECEIVE_BUFFER);
        let bytes = buffer.map(|option| option.value.first_chunk().map_or(0, |word| i32::from_le_bytes(*word)));
        socket.domain == AF_NETLINK && bytes.is_none_or(|bytes| bytes >= BYTES)
    };
    let sockets = manifest.files.iter().filter_map(|file| match &file.kind {
        FileKind::Socket(socket) if takes_notices(socket) => Some(file.id),
        _ => None,
    });
    sockets.collect()
}

/// A filter that no thread has was taken away from one.
fn filters_used(manifest: &Manifest, cores: &[Core]) -> Result<()> {
    let threads = cores.iter().flat_map(|core| &core.image.threads);
    let used: BTreeSet<u32> = threads
        .flat_map(|thread| thread.record.seccomp.filters())
        .copied()
        .collect();
    let all = manifest.seccomp.len();
    ensure(used.len() == all, MANIFEST, || {
        format!("{} seccomp filters belong to no thread", all - used.len())
    })
}

/// Threads and processes share one space of numbers.
fn thread_ids(manifest: &Manifest, cores: &[Core]) -> Result<()> {
    let mut tasks: BTreeSet<VirtualPid> = manifest.processes.iter().map(|entry| entry.pid).collect();
    for core in cores {
        for thread in core.image.threads.iter().skip(1) {
            let tid = thread.record.tid;
            ensure(tasks.insert(tid), MANIFEST, || format!("thread {tid} exists twice"))?;
        }
    }
    for core in cores {
        let process = &core.image.process;
        let mut children: Vec<_> = process.untold_stops.iter().chain(&process.untold_continues).collect();
        let count = children.len();
        children.sort_unstable();
        children.dedup();
        let is_child = |pid: &VirtualPid| {
            let mut all = manifest.processes.iter();
            all.any(|entry| entry.pid == *pid && entry.ppid == process.pid)
        };
        let are_children = children.iter().all(|pid| is_child(pid));
        ensure(children.len() == count && are_children, MANIFEST, || {
            format!("process {}: it has not heard of what is no child of it", process.pid)
        })?;
    }
    for file in &manifest.files {
        let owner = file.owner.map(|owner| owner.id);
        ensure(
            owner.is_none_or(|id| id == VirtualPid(0) || tasks.contains(&id)),
            MANIFEST,
            || format!("file {}: its signals go to no process of the app", file.id),
        )?;
        if let FileKind::Pidfd { pid } = file.kind {
            ensure(tasks.contains(&pid), MANIFEST, || {
                format!("file {}: there is no process {pid}", file.id)
            })?;
        }
    }
    Ok(())
}

pub fn process_id(part: &str, what: &str, id: VirtualPid) -> Result<()> {
    ensure((1..=limits::PID_MAX).contains(&id.0), part, || {
        format!("{what} {id} is out of range")
    })
}

pub fn count(part: &str, what: &str, count: usize, limit: usize) -> Result<()> {
    ensure(count <= limit, part, || format!("{count} {what} are more than {limit}"))
}

pub fn text(part: &str, what: &str, text: &str, limit: usize) -> Result<()> {
    ensure(text.len() <= limit && !text.contains('\0'), part, || {
        format!("{what} {:?} is too long or holds a NUL", shown(text))
    })
}

/// An absolute path that the kernel would take.
pub fn path(part: &str, what: &str, path: &str) -> Result<()> {
    text(part, what, path, limits::PATH_BYTES)?;
    ensure(path.starts_with('/'), part, || {
        format!("{what} {:?} is not absolute", shown(path))
    })?;
    // The kernel gives none that leads up: this one was not asked of it.
    ensure(!path.split('/').any(|name| name == ".."), part, || {
        format!("{what} {:?} leads up", shown(path))
    })
}

/// The start of an untrusted text, for an error.
pub fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}
