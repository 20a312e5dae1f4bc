//! Whether two appshots hold the same state of the same app.
//!
//! Records are held against each other field by field, memory page by page. Numbers that
//! are only names within an appshot (of open files, shared objects, inodes of pipes and
//! sockets) count by the order in which the app's processes come to them. What may differ
//! in an app that was restored and frozen again, without having run, is a short list
//! ([`MAY_DIFFER`]) and what the passing of time does.

mod timers;

use super::records::{
    Blocked, Clocks, FileKind, LockKind, Manifest, Message, Namespace, NoticeKind, PosixQueue, SocketRecord,
    SocketState, Vma, VmaKind,
};
use super::{Appshot, Core, PAGE, ProcessImage, Segment, ThreadImage};
use crate::error::{OrFail, Result};
use crate::ids::{FileId, ShmId, VirtualPid};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::Hash;

/// Fields that may differ, and why. A part `*` of a name stands for any, `**` for any rest.
pub const MAY_DIFFER: [(&str, &str); 19] = [
    ("manifest/app", "an instance has a name of its own"),
    ("manifest/product", "who wrote it"),
    ("manifest/created_unix_ms", "when it was written"),
    ("manifest/clocks/**", "time passes; the app's own clocks go on"),
    ("manifest/parts/**", "how it is stored, not what"),
    ("manifest/lenders/**", "the same"),
    ("manifest/parents/**", "the same"),
    ("manifest/external/*/dev", "told, not required"),
    (
        "manifest/network_settings/**",
        "where it has not its own network they are the owner's",
    ),
    (
        "manifest/files/*/kind/timerfd/settime_flags",
        "a timer of a clock that nobody sets is armed for an instant",
    ),
    (
        "manifest/files/*/kind/socket/state/joined/connection/window",
        "what one end of a TCP connection offers comes with each segment that the kernel sends by itself",
    ),
    (
        "manifest/files/*/kind/socket/state/joined/connection/peer_window_max",
        "the same",
    ),
    ("manifest/files/*/kind/socket/state/joined/connection/clamp", "the same"),
    (
        "manifest/files/*/kind/socket/state/established/connection/clamp",
        "the same",
    ),
    (
        "manifest/files/*/kind/socket/state/established/numbers/in_flight",
        "what was to be sent is sent by the kernel",
    ),
    (
        "manifest/files/*/kind/socket/state/established/numbers/timestamp",
        "its clock goes on",
    ),
    ("manifest/barrier", "each has a name of its own"),
    (
        "manifest/namespaces/*/mnt/steps/*/mount/kind/tmpfs/entries/*/atime_ns",
        "that a file is mapped counts as a look at it",
    ),
    (
        "process/*/vmas/*/huge_bytes",
        "the kernel may not find a huge page at once",
    ),
];

/// What a timer may be off by, beside the time that has passed. In nanoseconds.
const SLACK_NS: u64 = 5_000_000;

/// As `open(2)` sets it on a 64-bit machine: libc says 0 there.
pub const O_LARGEFILE: i32 = 0o100_000;

/// The kernel writes the number of the processor there each time a thread returns from it
/// (rseq(2)): `cpu_id_start`, `cpu_id`, `node_id`, `mm_cid` of `struct rseq`.
const RSEQ_NUMBERS: [(u64, u64); 2] = [(0, 8), (20, 8)];

/// Something that is not the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// Such as `process/7/threads/0/record/sigmask`.
    pub what: String,
    /// `None`: there is no such thing in it.
    pub one: Option<String>,
    pub other: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = |side: &Option<String>| side.clone().unwrap_or_else(|| "nothing".to_owned());
        write!(f, "{}: {}, then {}", self.what, told(&self.one), told(&self.other))
    }
}

/// Everything in which `other`, taken later, is not as `one`.
pub fn differences(one: &Appshot, other: &Appshot) -> Result<Vec<Difference>> {
    let passed = passed_ns(&one.manifest.clocks, &other.manifest.clocks);
    let (was, mut is) = (Named::of(one), Named::of(other));
    timers::take_back(&was, &mut is, passed);
    let (mut all, mut rest) = (was.fields()?, is.fields()?);
    let outside = was.outside();
    let mut found = Vec::new();
    let names: Vec<String> = all.keys().chain(rest.keys()).cloned().collect();
    for what in names {
        let (was, is) = (all.remove(&what), rest.remove(&what));
        let is_fine = || {
            may_differ(&what)
                || outside.iter().any(|file| what.starts_with(file))
                || has_run(&what, &was, &is, passed)
                || waits_have_gone_on([one, other], &what, passed)
        };
        if was != is && !is_fine() {
            let (one, other) = (was, is);
            found.push(Difference { what, one, other });
        }
    }
    let places = [Places::of(one), Places::of(other)];
    for core in &one.cores {
        let pid = core.image.process.pid;
        if let Some(counterpart) = other.cores.iter().find(|core| core.image.process.pid == pid) {
            found.extend(memory((one, core), (other, counterpart), &places)?);
        }
    }
    Ok(found)
}

fn may_differ(what: &str) -> bool {
    MAY_DIFFER.iter().any(|(pattern, _)| {
        let (mut parts, mut wanted) = (what.split('/'), pattern.split('/'));
        loop {
            match (parts.next(), wanted.next()) {
                (None, None) | (Some(_), Some("**")) => return true,
                (Some(part), Some(wanted)) if wanted == "*" || wanted == part => {}
                _ => return false,
            }
        }
    })
}

/// Whether both are times to go, of which no more has passed than could.
fn has_run(what: &str, one: &Option<String>, other: &Option<String>, passed_ns: u64) -> bool {
    let is_time = ["value_ns", "left_ns"].iter().any(|name| what.ends_with(name));
    let number = |side: &Option<String>| side.as_ref()?.parse::<u64>().ok();
    let (Some(one), Some(other)) = (number(one), number(other)) else {
        return false;
    };
    is_time && one > 0 && other > 0 && other <= one + SLACK_NS && one <= other + passed_ns + SLACK_NS
}

/// `struct user_regs_struct`: r10, r8, rax, rdx, rsi, the number of the call.
const R10: usize = 7;
const R8: usize = 9;
const RAX: usize = 10;
const RDX: usize = 12;
const RSI: usize = 13;
const CALL: usize = 15;

/// Whether this is of a thread that waited with a time-out, of which some has passed: what is
/// left of it stands in the call's arguments, and one that has run out has ended the call.
fn waits_have_gone_on(shots: [&Appshot; 2], what: &str, passed_ns: u64) -> bool {
    let mut parts = what.split('/');
    let ["process", pid, "threads", at, part] = std::array::from_fn(|_| parts.next().unwrap_or_default()) else {
        return false;
    };
    let blocked = shots.map(|shot| {
        let core = shot
            .cores
            .iter()
            .find(|core| core.image.process.pid.to_string() == pid)?;
        let thread = core.image.threads.get(at.parse::<usize>().ok()?)?;
        Some(thread.record.blocked_in)
    });
    let is_over = match blocked {
        // It had just begun, or was about to end; or it was yet to begin again.
        [Some(Blocked::Restart), _] | [Some(Blocked::Timed { .. }), Some(Blocked::Restart)] => true,
        [Some(Blocked::Timed { left_ns }), _] => left_ns <= passed_ns + SLACK_NS,
        _ => return false,
    };
    let rest: Vec<&str> = parts.collect();
    let register = (part == "regs").then(|| rest.first()?.parse::<usize>().ok()).flatten();
    match register {
        Some(register) => [R10, RDX].contains(&register) || is_over && [RAX, CALL].contains(&register),
        None => is_over && part == "record" && rest.first() == Some(&"blocked_in"),
    }
}

/// How much time has passed by the clock that has gone furthest.
fn passed_ns(one: &Clocks, other: &Clocks) -> u64 {
    let clocks = [
        (one.monotonic_ns, other.monotonic_ns),
        (one.boottime_ns, other.boottime_ns),
        (one.realtime_ns, other.realtime_ns),
    ];
    let passed = clocks.map(|(then, now)| u64::try_from(now - then).unwrap_or_default());
    // Timers are read while the app stands.
    let stood = one.stood_ns.saturating_add(other.stood_ns);
    passed.into_iter().max().unwrap_or_default().saturating_add(stood)
}

/// What an appshot says, with names that do not depend on the order in which it was found.
struct Named {
    manifest: Manifest,
    images: Vec<ProcessImage>,
}

impl Named {
    fn of(shot: &Appshot) -> Named {
        let mut manifest = shot.manifest.clone();
        let mut images: Vec<ProcessImage> = shot.cores.iter().map(|core| core.image.clone()).collect();
        deliver(&mut manifest);
        name_by_order(&mut manifest, &mut images);
        for image in &mut images {
            image.vmas = joined(std::mem::take(&mut image.vmas));
        }
        for shared in &mut manifest.shmem {
            // What is in it, not where.
            let parts = &shot.manifest.parts;
            let part = parts.iter().find(|part| shared.part.as_ref() == Some(&part.name));
            shared.part = part.map(|part| part.blake3.clone());
        }
        manifest.external.sort_by(|one, other| one.path.cmp(&other.path));
        Named { manifest, images }
    }

    /// Fields of open files that are no part of the app: who restores it gives what stands there.
    fn outside(&self) -> Vec<String> {
        let files = self.manifest.files.iter().enumerate();
        let outside = files.filter(|(_, file)| matches!(file.kind, FileKind::Outside { .. }));
        outside.map(|(at, _)| format!("manifest/files/{at}/")).collect()
    }

    /// Every field by its name.
    fn fields(&self) -> Result<BTreeMap<String, String>> {
        let failed = || "cannot tell what an appshot holds";
        let mut fields = BTreeMap::new();
        let manifest = serde_json::to_value(&self.manifest).or_fail(failed)?;
        add("manifest", &manifest, &mut fields);
        for image in &self.images {
            let own = format!("process/{}", image.process.pid);
            let mut part = |name: &str, value: serde_json::Result<Value>| -> Result<()> {
                add(&format!("{own}/{name}"), &value.or_fail(failed)?, &mut fields);
                Ok(())
            };
            part("record", serde_json::to_value(&image.process))?;
            part("comm", serde_json::to_value(&image.comm))?;
            part("group", serde_json::to_value([image.pgid, image.sid, image.ppid]))?;
            part("vmas", serde_json::to_value(&image.vmas))?;
            for (at, thread) in image.threads.iter().enumerate() {
                part(&format!("threads/{at}/record"), serde_json::to_value(&thread.record))?;
                part(&format!("threads/{at}/regs"), serde_json::to_value(thread.regs))?;
                let words = thread.xsave.as_chunks::<8>().0;
                let mut words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
                // Which sets of registers are as at the begin the processor tells or not
                // (XINUSE); their content stands behind in any case.
                if let Some(in_use) = words.get_mut(XSTATE_BV) {
                    *in_use = 0;
                }
                part(&format!("threads/{at}/xsave"), serde_json::to_value(words))?;
            }
        }
        Ok(fields)
    }
}

/// The word of an xsave area that has a bit for each set of registers.
const XSTATE_BV: usize = 64;

/// What lies side by side and is alike is one mapping: where the kernel keeps it apart it is for
/// what was there before, as pages that a fork shared.
fn joined(vmas: Vec<Vma>) -> Vec<Vma> {
    let mut joined: Vec<Vma> = Vec::with_capacity(vmas.len());
    for vma in vmas {
        match joined.last_mut().filter(|last| goes_on(last, &vma)) {
            Some(last) => {
                last.end = vma.end;
                last.huge_bytes += vma.huge_bytes;
                for (start, end) in vma.guards {
                    match last.guards.last_mut().filter(|(_, before)| *before == start) {
                        Some((_, before)) => *before = end,
                        None => last.guards.push((start, end)),
                    }
                }
            }
            None => joined.push(vma),
        }
    }
    joined
}

/// Whether `next` has what would come behind `vma`.
fn goes_on(vma: &Vma, next: &Vma) -> bool {
    let mut kind = vma.kind.clone();
    match &mut kind {
        VmaKind::Anon => {}
        VmaKind::PrivateFile { offset, .. } | VmaKind::SharedFile { offset, .. } | VmaKind::Shm { offset, .. } => {
            *offset += vma.end - vma.start;
        }
        VmaKind::Huge { .. } | VmaKind::Uring { .. } | VmaKind::Vvar | VmaKind::Vdso => return false,
    }
    (vma.end, vma.prot, vma.key, &vma.flags, &vma.policy, &kind)
        == (next.start, next.prot, next.key, &next.flags, &next.policy, &next.kind)
}

/// Adds what is in a value, by names that tell the way to it.
fn add(name: &str, value: &Value, fields: &mut BTreeMap<String, String>) {
    match value {
        Value::Array(values) => {
            fields.insert(format!("{name}/count"), values.len().to_string());
            for (at, value) in values.iter().enumerate() {
                add(&format!("{name}/{at}"), value, fields);
            }
        }
        Value::Object(members) => {
            for (key, value) in members {
                add(&format!("{name}/{key}"), value, fields);
            }
        }
        Value::String(text) => drop(fields.insert(name.to_owned(), text.clone())),
        plain => drop(fields.insert(name.to_owned(), plain.to_string())),
    }
}

/// New names for old ones, as they are met.
#[derive(Debug)]
struct Names<N>(HashMap<N, u64>);

impl<N: Hash + Eq + Copy> Names<N> {
    fn new() -> Names<N> {
        Names(HashMap::new())
    }

    fn of(&mut self, old: N) -> u64 {
        let next = self.0.len() as u64 + 1;
        *self.0.entry(old).or_insert(next)
    }
}

/// The kernel goes on to deliver what one end of a TCP connection has sent, and fits buffers
/// to that unless they were set: what is unsent counts as received, an end too.
fn deliver(manifest: &mut Manifest) {
    /// SO_SNDBUF and SO_RCVBUF, with their bits of SO_BUF_LOCK.
    const BUFFERS: [(i32, u8); 2] = [(7, 1), (8, 2)];
    const SO_BUF_LOCK: i32 = 72;
    const SOL_SOCKET: i32 = 1;
    const SEND: u8 = 2;
    const RECEIVE: u8 = 1;
    let mut unsent: HashMap<u64, (Vec<u8>, bool)> = HashMap::new();
    for socket in sockets(manifest) {
        match &mut socket.state {
            SocketState::Joined { peer, connection, .. } => {
                let ended = socket.shutdown & SEND != 0;
                unsent.insert(*peer, (std::mem::take(&mut connection.unsent), ended));
            }
            SocketState::Established { .. } => {}
            _ => continue,
        }
        let lock = socket.options.iter().find(|option| option.name == SO_BUF_LOCK);
        let set = lock.and_then(|option| option.value.first()).map_or(3, |bits| *bits);
        let grows = |name: i32| BUFFERS.iter().any(|(buffer, bit)| *buffer == name && set & bit == 0);
        socket
            .options
            .retain(|option| option.level != SOL_SOCKET || !grows(option.name));
    }
    for socket in sockets(manifest) {
        let Some((more, ended)) = unsent.remove(&socket.ino) else {
            continue;
        };
        if ended {
            socket.shutdown |= RECEIVE;
        }
        match socket.queue.first_mut() {
            _ if more.is_empty() => {}
            Some(queued) => queued.data.extend(more),
            None => socket.queue.push(Message {
                data: more,
                from: Vec::new(),
                sender: None,
                rights: Vec::new(),
            }),
        }
    }
}

fn sockets(manifest: &mut Manifest) -> impl Iterator<Item = &mut SocketRecord> {
    manifest.files.iter_mut().filter_map(|file| match &mut file.kind {
        FileKind::Socket(socket) => Some(&mut **socket),
        _ => None,
    })
}

fn name_by_order(manifest: &mut Manifest, images: &mut [ProcessImage]) {
    let mut files: Names<u32> = Names::new();
    let mut objects: Names<u32> = Names::new();
    let mut rings: Names<u64> = Names::new();
    let mut inodes: Names<u64> = Names::new();
    let mut file = |id: &mut FileId| id.0 = files.of(id.0) as u32;
    let mut object = |id: &mut ShmId| id.0 = objects.of(id.0) as u32;
    // What nobody refers to comes in an order of its own.
    manifest
        .shmem
        .sort_by_key(|shared| (shared.namespace, format!("{:?}", shared.kind)));
    for image in images {
        image.process.posix_timers.sort_by_key(|timer| timer.id);
        image.process.fds.sort_by_key(|entry| entry.fd);
        image.process.fds.iter_mut().for_each(|entry| file(&mut entry.file));
        for vma in &mut image.vmas {
            match &mut vma.kind {
                VmaKind::Shm { shm, .. } => object(shm),
                VmaKind::Uring { memory, .. } => *memory = rings.of(*memory),
                _ => {}
            }
        }
    }
    manifest.files.iter_mut().for_each(|open| file(&mut open.id));
    manifest.files.sort_by_key(|open| open.id);
    for open in &mut manifest.files {
        // Whoever took the others: they belong to the file.
        let others = open
            .locks
            .iter_mut()
            .filter(|lock| ![LockKind::Process, LockKind::Lease].contains(&lock.kind));
        others.for_each(|lock| lock.pid = VirtualPid::default());
        match &mut open.kind {
            FileKind::Unlinked { shm, .. } | FileKind::Memfd { shm, .. } => object(shm),
            FileKind::Epoll { watches } => {
                watches.iter_mut().for_each(|watch| file(&mut watch.file));
                watches.sort_by_key(|watch| (watch.fd, watch.file));
            }
            // Open by another way than its name (TIOCGPTPEER) it lacks what open(2) sets.
            FileKind::Pty(_) | FileKind::PtySlave { .. } => open.flags &= !O_LARGEFILE,
            FileKind::Pipe { ino } | FileKind::Mqueue { ino, .. } => *ino = inodes.of(*ino),
            FileKind::Uring(record) => {
                record.rings = rings.of(record.rings);
                record.entries = rings.of(record.entries);
                record.events.iter_mut().for_each(|events| file(&mut events.file));
                let registered = record.files.iter_mut().filter_map(|slot| slot.file.as_mut());
                registered.for_each(&mut file);
                record.waiting.iter_mut().for_each(|request| file(&mut request.file));
                record.waiting.sort_unstable();
            }
            FileKind::Socket(socket) => {
                socket.ino = inodes.of(socket.ino);
                let rights = socket.queue.iter_mut().flat_map(|message| &mut message.rights);
                rights.for_each(&mut file);
                match &mut socket.state {
                    SocketState::Paired { peer, .. } | SocketState::Joined { peer, .. } if *peer != 0 => {
                        *peer = inodes.of(*peer);
                    }
                    SocketState::Waiting { listener, .. } => *listener = inodes.of(*listener),
                    _ => {}
                }
            }
            _ => {}
        }
    }
    manifest
        .pipes
        .iter_mut()
        .for_each(|pipe| pipe.ino = inodes.of(pipe.ino));
    manifest.pipes.sort_by_key(|pipe| pipe.ino);
    for queue in &mut manifest.posix_queues {
        queue.ino = inodes.of(queue.ino);
        if let Some(NoticeKind::Thread { file: through, .. }) = queue.notice.as_mut().map(|notice| &mut notice.how) {
            file(through);
        }
    }
    for namespace in &mut manifest.namespaces {
        if let Namespace::Mnt(mounts) = namespace {
            // Where a directory of the app's own stands for another they come in another order.
            mounts.steps.sort_by(|one, other| one.at().cmp(other.at()));
            mounts.contents_mut().for_each(&mut object);
        }
    }
    // Those with a name stand in the order in which they were made.
    let order = |queue: &PosixQueue| (!queue.unlinked, queue.ino * u64::from(queue.unlinked));
    manifest.posix_queues.sort_by_key(order);
    for shared in &mut manifest.shmem {
        object(&mut shared.id);
    }
    manifest.shmem.sort_by_key(|shared| shared.id);
}

/// Where the private memory of two processes differs, one difference a mapping.
fn memory(
    (one, own): (&Appshot, &Core),
    (other, counterpart): (&Appshot, &Core),
    places: &[Places; 2],
) -> Result<Vec<Difference>> {
    let failed = || "cannot read the memory of an appshot";
    let forgotten: Vec<(u64, u64)> = own.image.threads.iter().flat_map(kernels).collect();
    let mut found = Vec::new();
    for vma in own.image.vmas.iter().filter(|vma| is_private(vma)) {
        let mut stored: Vec<u64> = [own, counterpart]
            .into_iter()
            .flat_map(|core| stored(core, vma))
            .collect();
        stored.sort_unstable();
        stored.dedup();
        let mut first = None;
        let mut count = 0;
        for page in stored {
            let stands = [places[0].stands(own, page), places[1].stands(counterpart, page)];
            if stands[0].is_some() && stands[0] == stands[1] {
                continue;
            }
            let mut pages = [[0u8; PAGE as usize]; 2];
            let there = [
                one.read_memory(own, page, &mut pages[0]).or_fail(failed)?,
                other.read_memory(counterpart, page, &mut pages[1]).or_fail(failed)?,
            ];
            pages.iter_mut().for_each(|content| forget(&forgotten, page, content));
            // What is not stored of memory of its own is zero; of a file, the file's.
            let is_zero = matches!(vma.kind, VmaKind::Anon | VmaKind::Huge { .. });
            if pages[0] == pages[1] && (is_zero || there[0] == there[1]) {
                continue;
            }
            count += 1;
            first.get_or_insert_with(|| {
                let at = pages[0].iter().zip(&pages[1]).position(|(one, other)| one != other);
                let at = at.unwrap_or_default() / 8 * 8;
                let told = |side: usize| there[side].then(|| format!("{:02x?}", &pages[side][at..at + 8]));
                (page + at as u64, told(0), told(1))
            });
        }
        if let Some((address, one, other)) = first {
            let (pid, start, end) = (own.image.process.pid, vma.start, vma.end);
            let what = format!("process/{pid}/memory/{start:x}-{end:x}: {count} pages, first at {address:#x}");
            found.push(Difference { what, one, other });
        }
    }
    Ok(found)
}

/// Where an appshot has its pages: identity of the appshot and name of the part, for each number
/// of a part.
struct Places(Vec<(String, String)>);

impl Places {
    fn of(shot: &Appshot) -> Places {
        let manifest = &shot.manifest;
        let lent = manifest.lenders.iter().filter(|lender| lender.parent.is_some());
        let named = |number: usize| {
            let lender = shot.lender(number);
            let parent = lender.parent.and_then(|at| manifest.parents.get(at as usize));
            let identity = parent.map_or_else(|| shot.identity.to_hex().to_string(), |parent| parent.identity.clone());
            (identity, lender.part)
        };
        Places((0..manifest.parts.len() + lent.count()).map(named).collect())
    }

    /// What holds this page, and at which offset.
    fn stands(&self, core: &Core, page: u64) -> Option<(&(String, String), u64)> {
        let segment = Segment::at(&core.segments, page)?;
        let place = segment.place().ahead(page - segment.vaddr);
        Some((self.0.get(place.part)?, place.offset))
    }
}

fn is_private(vma: &Vma) -> bool {
    matches!(
        vma.kind,
        VmaKind::Anon | VmaKind::Huge { .. } | VmaKind::PrivateFile { .. } | VmaKind::Shm { private: true, .. }
    )
}

/// The pages of a mapping that are stored.
fn stored<'a>(core: &'a Core, vma: &Vma) -> impl Iterator<Item = u64> + use<'a> {
    let own = Segment::among(&core.segments, vma.start..vma.end);
    own.iter()
        .flat_map(|segment| (segment.vaddr..segment.end()).step_by(PAGE as usize))
}

/// What the kernel writes into a thread's memory by itself: addresses and lengths.
fn kernels(thread: &ThreadImage) -> Vec<(u64, u64)> {
    let rseq = thread.record.rseq.iter();
    let numbers = rseq.flat_map(|rseq| RSEQ_NUMBERS.map(|(offset, bytes)| (rseq.pointer + offset, bytes)));
    let mut areas: Vec<(u64, u64)> = numbers.collect();
    if matches!(thread.record.blocked_in, Blocked::Timed { .. }) {
        // What is left of a time-out, where the call tells that: nanosleep, clock_nanosleep,
        // ppoll, select.
        areas.extend([R10, R8, RDX, RSI].map(|register| (thread.regs[register], 16)));
    }
    areas
}

fn forget(areas: &[(u64, u64)], page: u64, content: &mut [u8]) {
    for (start, bytes) in areas {
        for at in (*start..start.saturating_add(*bytes)).filter(|at| (page..page + PAGE).contains(at)) {
            content[(at - page) as usize] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn written(change: impl FnOnce(&mut Manifest, &mut Vec<ProcessImage>)) -> (tempfile::TempDir, Appshot) {
        let dir = tempfile::tempdir().unwrap();
        let mut manifest = sample::manifest();
        let mut images = vec![sample::process(2, 1), sample::process(7, 2)];
        change(&mut manifest, &mut images);
        let dest = dir.path().join("shot");
        sample::try_write(&dest, manifest, &images).unwrap();
        (dir, Appshot::open(&dest).unwrap())
    }

    #[test]
    fn what_differs_is_named() {
        let (_a, one) = written(|_, _| {});
        let (_b, same) = written(|manifest, _| {
            manifest.created_unix_ms += 1;
            manifest.clocks.monotonic_ns += 7;
            manifest.app = "another".into();
        });
        assert_eq!(differences(&one, &same).unwrap(), []);
        let (_c, other) = written(|manifest, images| {
            manifest.hostname = "elsewhere".into();
            images[1].threads[0].record.sigmask ^= 1;
            images[0].threads[0].regs[RSI] ^= 1;
        });
        let found = differences(&one, &other).unwrap();
        let names: Vec<&str> = found.iter().map(|difference| &difference.what[..]).collect();
        let expected = [
            "manifest/hostname",
            "process/2/threads/0/regs/13",
            "process/7/threads/0/record/sigmask",
        ];
        assert_eq!(names, expected);
        assert!(found[0].to_string().ends_with(", then elsewhere"), "{}", found[0]);
    }

    #[test]
    fn mappings_that_are_alike_are_one() {
        let vma = |start: u64, end: u64, offset: u64| Vma {
            start,
            end,
            prot: 3,
            kind: VmaKind::PrivateFile {
                path: "/bin/sh".into(),
                offset,
            },
            flags: Vec::new(),
            huge_bytes: 0,
            guards: Vec::new(),
            policy: None,
            key: 0,
        };
        assert_eq!(joined(vec![vma(0, 2, 5), vma(2, 7, 7)]), [vma(0, 7, 5)]);
        for apart in [[vma(0, 2, 5), vma(3, 7, 7)], [vma(0, 2, 5), vma(2, 7, 8)]] {
            assert_eq!(joined(apart.to_vec()), apart);
        }
        let mut read_only = vma(2, 7, 7);
        read_only.prot = 1;
        assert_eq!(joined(vec![vma(0, 2, 5), read_only]).len(), 2);
    }

    #[test]
    fn times_run_down_as_far_as_time_has_passed() {
        let told = |ns: u64| Some(ns.to_string());
        let ran = |one, other| has_run("a/value_ns", &told(one), &told(other), 1000);
        assert!(ran(SLACK_NS * 9, SLACK_NS * 8) && ran(SLACK_NS * 8, SLACK_NS * 9));
        assert!(!ran(SLACK_NS * 9, SLACK_NS * 7) && !ran(SLACK_NS * 9, 0));
        assert!(!has_run("a/sigmask", &told(9), &told(8), 1000));
    }
}
