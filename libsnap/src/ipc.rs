//! System V IPC of the app's own namespace (sysvipc(7)).
//!
//! Semaphores, message queues and shared memory keep their ids (`*_next_id` in
//! /proc/sys/kernel, CONFIG_CHECKPOINT_RESTORE), keys, owners, creators, modes and
//! content. Messages are read with MSG_COPY, which takes none away. A segment
//! that nobody has attached is attached here for a moment.
//!
//! A segment that was removed while attached (SHM_DEST) can be attached by its id until its last attachment
//! goes: it is removed again right after it was made, with the key that its mappings are named by, and
//! attached here until the app has it.
//!
//! What a process's end does to semaphores (SEM_UNDO) stands in no file of /proc.
//! But the kernel refuses an operation that would take the adjustment out of its
//! range with ERANGE, before it looks further, and undoes a list of operations of
//! which one would block: so the process is made to try lists that always fail,
//! and *how* they fail tells the adjustment, with nothing changed.
//!
//! Settings of the namespace (`/proc/sys/kernel/sem` and the like) are kept where they are
//! others than those of a new one.
//!
//! POSIX message queues of the namespace are listed and made again with it ([`mqueue`]).
//!
//! Times and the pids of the last sender and receiver cannot be set: they start
//! anew, except that `sem_otime` is not 0 where it was not 0.
//!
//! Refused: threads that do not share their adjustments, a set that its process
//! may not touch any more, segments that would vanish when looked at
//! (`shm_rmid_forced`). With the host's namespace only what the app has attached
//! is its own; the rest stays on the host.

use crate::error::{Error, OrFail, Refusal, Result};
use crate::executor::{Batch, CallId, Executor};
use crate::files::mqueue::{self, Queues};
use crate::freeze::FrozenProcess;
use crate::ids::{FileId, HostPid, VirtualPid};
use crate::image::Appshot;
pub use crate::image::records::IpcObjects as Objects;
use crate::image::records::{
    IpcPerm, Manifest, Namespace, ProcessRecord, QueueRecord, QueuedMessage, SemRecord, SemUndo, ShmKind,
};
use crate::memory::ShmTable;
use crate::nsthread::{self, Door};
use crate::proc;
use crate::refusals::Refusals;
use crate::restore::script::Script;
use crate::restore::skeleton::Skeleton;
use crate::sys::fd as sysfd;
use crate::sys::ptrace::Regs;
use crate::sys::sysv::{self, Owner, SemOp};
use crate::sys::task::{self, Compare};
use crate::target::Target;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};

/// Rows of one `/proc/sysvipc` table, each as its numbers.
type Rows = Vec<Vec<i64>>;

const UNDO: i16 = 0x1000;
const NOWAIT: i16 = 0o4000;
/// What a setting is written as, at most: four numbers.
pub const SETTING_BYTES_MAX: usize = 128;
/// SEMVMX and SEMAEM.
const MOST: i16 = 32767;

/// Settings of an IPC namespace, as sysctl(8) calls them, and what a new one has, whatever those of the
/// host are (`shm_init_ns`, `msg_init_ns`, `sem_init_ns`, `mq_init_ns`; the same since Linux 4.2).
pub const SETTINGS: [(&str, &str); 13] = [
    ("kernel.shmmax", "18446744073692774399"),
    ("kernel.shmall", "18446744073692774399"),
    ("kernel.shmmni", "4096"),
    ("kernel.shm_rmid_forced", "0"),
    ("kernel.msgmax", "8192"),
    ("kernel.msgmnb", "16384"),
    ("kernel.msgmni", "32000"),
    ("kernel.sem", "32000 1024000000 500 32000"),
    ("fs.mqueue.queues_max", "256"),
    ("fs.mqueue.msg_max", "10"),
    ("fs.mqueue.msgsize_max", "8192"),
    ("fs.mqueue.msg_default", "10"),
    ("fs.mqueue.msgsize_default", "8192"),
];

fn path_of(setting: &str) -> String {
    format!("/proc/sys/{}", setting.replace('.', "/"))
}

/// What is to be in a namespace again.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    semaphores: &'a [SemRecord],
    queues: &'a [QueueRecord],
    settings: &'a BTreeMap<String, String>,
    /// Of whose own it is: it names POSIX message queues.
    own: Option<&'a Manifest>,
}

impl<'a> Content<'a> {
    /// That of the app's own.
    pub fn of(manifest: &'a Manifest) -> Content<'a> {
        Content {
            semaphores: &manifest.semaphores,
            queues: &manifest.queues,
            settings: &manifest.ipc_settings,
            own: Some(manifest),
        }
    }

    pub fn beside(objects: &'a Objects) -> Content<'a> {
        Content {
            semaphores: &objects.semaphores,
            queues: &objects.queues,
            settings: &objects.settings,
            own: None,
        }
    }

    /// That of the namespace that a process is in.
    fn around(manifest: &'a Manifest, process: &ProcessRecord) -> Content<'a> {
        let mut beside = process
            .namespaces
            .iter()
            .map(|number| &manifest.namespaces[*number as usize]);
        let objects = beside.find_map(|namespace| match namespace {
            Namespace::Ipc(objects) => Some(objects),
            _ => None,
        });
        objects.map_or_else(|| Content::of(manifest), Content::beside)
    }

    /// Whether there is anything that [`restore`] makes.
    pub fn any(self) -> bool {
        let posix = self.own.is_some_and(|own| !own.posix_queues.is_empty());
        posix || !self.semaphores.is_empty() || !self.queues.is_empty() || !self.settings.is_empty()
    }
}

/// Whether there are semaphores, for which processes have something to do ([`adjust`]).
pub fn has_semaphores(manifest: &Manifest) -> bool {
    let beside = |namespace: &Namespace| matches!(namespace, Namespace::Ipc(objects) if !objects.semaphores.is_empty());
    !manifest.semaphores.is_empty() || manifest.namespaces.iter().any(beside)
}

/// A namespace, opened before the app stands still.
#[derive(Debug)]
pub struct Space {
    door: Door,
    /// `/proc/sysvipc/`: each shows the namespace in which it was opened.
    tables: Vec<File>,
    /// Its POSIX message queues, as a directory that is nowhere mounted; where it is the app's own.
    queues: Option<File>,
    /// Those of [`SETTINGS`] that this kernel has, where the namespace is the app's own.
    settings: Vec<(usize, File)>,
}

impl Space {
    /// That of `pid`, a process of this target.
    pub fn open(pid: HostPid, target: &Target) -> io::Result<Space> {
        Space::of(pid, is_own(target))
    }

    /// That of `pid`. `own`: it is the app's and nobody else's.
    pub fn of(pid: HostPid, own: bool) -> io::Result<Space> {
        let door = Door::open(pid, &["ipc"])?;
        let tables = ["shm", "sem", "msg"].iter();
        let tables = tables.map(|table| File::open(format!("/proc/sysvipc/{table}")));
        let tables = door.inside(|| tables.collect::<io::Result<Vec<_>>>())??;
        let queues = match own {
            true => match door.inside(sysfd::message_queues)? {
                // This kernel has none, or does not tell of them.
                Err(nix::Error::ENODEV | nix::Error::ENOSYS) => None,
                queues => Some(File::from(queues?)),
            },
            false => None,
        };
        let settings = match own {
            true => door.inside(|| {
                let files = SETTINGS.iter().map(|(name, _)| File::open(path_of(name)));
                let there =
                    |file: &io::Result<File>| !file.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
                let files = files.enumerate().filter(|(_, file)| there(file));
                files.map(|(at, file)| Ok((at, file?))).collect::<io::Result<_>>()
            })??,
            false => Vec::new(),
        };
        Ok(Space {
            door,
            tables,
            queues,
            settings,
        })
    }

    /// Those that are others than a new namespace has.
    pub fn settings(&self) -> BTreeMap<String, String> {
        let changed = self.settings.iter().filter_map(|(at, file)| {
            let mut text = [0; SETTING_BYTES_MAX];
            let got = file.read_at(&mut text, 0).ok()?;
            let text = String::from_utf8_lossy(&text[..got]);
            let value = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let (name, usual) = SETTINGS[*at];
            (value != usual).then(|| (name.to_owned(), value))
        });
        changed.collect()
    }

    /// Each queue makes the directory longer (`ipc/mqueue.c`).
    pub fn has_posix_queues(&self) -> bool {
        const EMPTY_BYTES: u64 = 40;
        let meta = self.queues.as_ref().and_then(|queues| queues.metadata().ok());
        meta.is_some_and(|meta| meta.len() > EMPTY_BYTES)
    }

    /// How often each segment of it is attached, where it is at all, by its id.
    pub fn attachments(&self) -> io::Result<BTreeMap<i32, i64>> {
        let mut text = String::new();
        let mut table = &self.tables[0];
        table.seek(SeekFrom::Start(0))?;
        table.read_to_string(&mut text)?;
        let row = |row: Vec<i64>| Some((*row.get(1)? as i32, *row.get(6)?));
        let rows = parse_rows(&text).into_iter().filter_map(row);
        Ok(rows.filter(|(_, attached)| *attached > 0).collect())
    }

    /// What tells a segment of it from those of other namespaces with the same id ([`sysfd::handle`]).
    pub fn segment_handle(&self, id: i32) -> io::Result<Vec<u8>> {
        let look = || {
            let (_seen, file) = open_segment(id)?;
            Ok(sysfd::handle(&file)?)
        };
        self.door.inside(look)?
    }

    /// Where they are.
    pub fn queues_device(&self) -> Option<u64> {
        Some(self.queues.as_ref()?.metadata().ok()?.dev())
    }

    /// Neither System V objects nor POSIX message queues with a name are in it.
    pub fn is_bare(&self) -> bool {
        self.is_empty() && !self.has_posix_queues()
    }

    /// No System V object is in it now: there is nothing but the heads of the tables.
    fn is_empty(&self) -> bool {
        let has_head_only = |table: &File| {
            let mut text = [0; 512];
            let got = table.read_at(&mut text, 0);
            got.is_ok_and(|got| got < text.len() && text[..got].iter().filter(|byte| **byte == b'\n').count() == 1)
        };
        self.tables.iter().all(has_head_only)
    }
}

/// Reads all System V objects of the app's namespace, which is `space`, and completes the
/// segments of `shm`, and the POSIX message `queues`. With `take`, segments that nobody has attached are
/// opened. `number`: it is not the app's own, but this one beside, of which no such queues are taken.
pub fn look(
    numbers: &[(HostPid, VirtualPid)],
    target: &Target,
    (number, space): (Option<u32>, &Space),
    (shm, queues): (&mut ShmTable, Option<&mut Queues>),
    take: bool,
    refusals: &mut Refusals,
) -> Objects {
    let Some((pid, _)) = numbers.first().copied() else {
        return Objects::default();
    };
    // In the host's namespace the rest belongs to others.
    let own = number.is_some() || is_own(target);
    let settings = space.settings();
    let directory = space.queues.as_ref().filter(|_| space.has_posix_queues());
    if let Some((directory, queues)) = directory.zip(queues) {
        match queues.complete(directory, take) {
            Ok(refused) => {
                for (name, (reason, fix)) in refused {
                    refusals.add(pid, format!("POSIX message queue /{name}"), reason, fix);
                }
            }
            Err(error) => refusals.add(
                pid,
                "POSIX message queues",
                format!("they cannot be listed: {error}"),
                "try again",
            ),
        }
    }
    let has_attached = shm
        .records_mut()
        .any(|record| record.namespace == number && matches!(record.kind, ShmKind::Sysv { .. }));
    if !has_attached && (!own || space.is_empty()) {
        return Objects {
            settings,
            ..Objects::default()
        };
    }
    let seen = space.door.inside(|| {
        let mut alone = describe(shm, number);
        alone.retain(|_| own);
        let forced = !alone.is_empty()
            && fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").is_ok_and(|text| text.trim() != "0");
        let failed: Vec<io::Error> = if take && !forced {
            alone
                .into_iter()
                .filter_map(|segment| hold(shm, number, segment).err())
                .collect()
        } else {
            Vec::new()
        };
        let objects = if own { objects(numbers) } else { Ok(Objects::default()) };
        (objects, failed, forced && !shm_is_attached(own))
    });
    match seen {
        Ok((Ok(objects), failed, forced)) => {
            for error in failed {
                refusals.add(
                    pid,
                    "System V shared memory",
                    format!("it cannot be read: {error}"),
                    "remove it before the snapshot (ipcrm -m)",
                );
            }
            if forced {
                refusals.add(
                    pid,
                    "System V shared memory",
                    "no process has it attached, and it would vanish when looked at (shm_rmid_forced)",
                    "remove it before the snapshot (ipcrm -m)",
                );
            }
            if !objects.semaphores.is_empty() {
                adjustments_shared(numbers, refusals);
            }
            Objects { settings, ..objects }
        }
        Ok((Err(error), ..)) => {
            refusals.add(
                pid,
                "System V semaphores or message queues",
                format!("they cannot be read: {error}"),
                "remove them before the snapshot (ipcrm)",
            );
            Objects::default()
        }
        Err(_) => {
            refusals.add(pid, "IPC namespace", "it cannot be entered", "run as root");
            Objects::default()
        }
    }
}

/// Whether the namespace is the app's and nobody else's.
pub fn is_own(target: &Target) -> bool {
    matches!(target, Target::App { init: Some(_), .. })
}

/// Whether all segments of the namespace, where it is the app's, are attached.
fn shm_is_attached(own: bool) -> bool {
    !own || rows("shm")
        .iter()
        .all(|row| row.get(6).is_none_or(|attached| *attached != 0))
}

fn rows(table: &str) -> Rows {
    let text = proc::read(format!("/proc/sysvipc/{table}")).unwrap_or_default();
    parse_rows(&String::from_utf8_lossy(&text))
}

fn parse_rows(text: &str) -> Rows {
    let lines = text.lines().skip(1);
    lines
        .map(|line| line.split_whitespace().filter_map(|word| word.parse().ok()).collect())
        .collect()
}

/// Printed in octal, but read as decimal digits.
fn mode(row: &[i64]) -> Option<u32> {
    u32::from_str_radix(&row.get(2)?.to_string(), 8).ok()
}

/// Permissions of a row whose owner stands at `ids`: uid, gid, cuid, cgid.
fn perm(row: &[i64], ids: usize) -> Option<IpcPerm> {
    let id = |at: usize| row.get(ids + at).map(|id| *id as u32);
    Some(IpcPerm {
        key: *row.first()? as i32,
        id: *row.get(1)? as i32,
        mode: mode(row)? & 0o777,
        uid: id(0)?,
        gid: id(1)?,
        cuid: id(2)?,
        cgid: id(3)?,
    })
}

/// A segment, and the size that was asked for.
fn segment(row: &[i64]) -> Option<(ShmKind, u64)> {
    const DEST: u32 = 0o1000;
    const LOCKED: u32 = 0o2000;
    let flags = mode(row)?;
    let perm = perm(row, 7)?;
    let kind = ShmKind::Sysv {
        id: perm.id,
        key: perm.key,
        mode: perm.mode,
        uid: perm.uid,
        gid: perm.gid,
        cuid: perm.cuid,
        cgid: perm.cgid,
        removed: flags & DEST != 0,
        locked: flags & LOCKED != 0,
        asked_bytes: None,
    };
    Some((kind, *row.get(3)? as u64))
}

/// Completes the known segments; answers the others.
fn describe(shm: &mut ShmTable, number: Option<u32>) -> Vec<(ShmKind, u64)> {
    let found = rows("shm").into_iter().filter_map(|row| segment(&row));
    let mut by_id: HashMap<i32, (ShmKind, u64)> = found
        .filter_map(|segment| Some((segment.0.sysv_id()?, segment)))
        .collect();
    for record in shm.records_mut().filter(|record| record.namespace == number) {
        if let ShmKind::Sysv { id, key: named, .. } = record.kind
            && let Some((kind, size)) = by_id.remove(&id)
        {
            record.kind = completed(kind, named, asked(size, record.bytes));
        }
    }
    by_id.into_values().collect()
}

/// What is removed has no key in the table, but its mapping is `named` by that.
fn completed(mut kind: ShmKind, named: i32, asked: Option<u64>) -> ShmKind {
    if let ShmKind::Sysv {
        key,
        removed,
        asked_bytes,
        ..
    } = &mut kind
    {
        *key = if *removed { named } else { *key };
        *asked_bytes = asked;
    }
    kind
}

/// The size of a segment, where its object is larger.
fn asked(size: u64, bytes: u64) -> Option<u64> {
    (size < bytes).then_some(size)
}

/// Attaches a segment for as long as it is looked at.
fn open_segment(id: i32) -> io::Result<(sysv::Seen, File)> {
    let seen = sysv::attach_to_read(id)?;
    let prefix = format!("{:x}-", seen.address());
    let link = fs::read_dir("/proc/self/map_files")?
        .filter_map(|entry| entry.ok())
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .ok_or(io::ErrorKind::NotFound)?;
    Ok((seen, File::open(link.path())?))
}

/// Opens a segment that nobody has attached.
fn hold(shm: &mut ShmTable, number: Option<u32>, (kind, size): (ShmKind, u64)) -> io::Result<()> {
    let Some(id) = kind.sysv_id() else { return Ok(()) };
    let (_seen, file) = open_segment(id)?;
    let asked = asked(size, file.metadata()?.len());
    shm.enter_held(number, file, completed(kind, libc::IPC_PRIVATE, asked))
        .map(drop)
}

fn objects(numbers: &[(HostPid, VirtualPid)]) -> io::Result<Objects> {
    let numbers: HashMap<i32, VirtualPid> = numbers.iter().map(|(host, own)| (host.0, *own)).collect();
    let sets = rows("sem").into_iter().filter_map(|row| perm(&row, 4));
    let queues = rows("msg").into_iter().filter_map(|row| perm(&row, 7));
    Ok(Objects {
        semaphores: sets.map(|perm| semaphores(perm, &numbers)).collect::<io::Result<_>>()?,
        queues: queues.map(queue).collect::<io::Result<_>>()?,
        ..Objects::default()
    })
}

fn semaphores(perm: IpcPerm, numbers: &HashMap<i32, VirtualPid>) -> io::Result<SemRecord> {
    let (count, operated) = sysv::semaphores(perm.id)?;
    let pid = |at| sysv::semaphore_pid(perm.id, at).map(|pid| numbers.get(&pid).copied().unwrap_or(VirtualPid(0)));
    Ok(SemRecord {
        perm,
        operated,
        values: sysv::semaphore_values(perm.id, count)?,
        pids: (0..count).map(pid).collect::<Result<_, _>>()?,
        undo: Vec::new(),
    })
}

fn queue(perm: IpcPerm) -> io::Result<QueueRecord> {
    let (queued, bytes_max) = sysv::queue_bytes(perm.id)?;
    let mut messages = Vec::new();
    while let Some((kind, data)) = sysv::peek_message(perm.id, messages.len(), queued as usize)? {
        messages.push(QueuedMessage { kind, data });
    }
    Ok(QueueRecord {
        perm,
        bytes_max,
        messages,
    })
}

/// Threads restored share the adjustments of their process, as pthread_create
/// makes them; processes do not.
fn adjustments_shared(numbers: &[(HostPid, VirtualPid)], refusals: &mut Refusals) {
    for (pid, _) in numbers {
        let others = proc::threads(*pid).unwrap_or_default();
        let alike = others
            .iter()
            .all(|tid| task::kcmp(*pid, *tid, Compare::SemUndo, 0, 0).is_ok_and(|order| order == Ordering::Equal));
        if !alike {
            refusals.add(
                *pid,
                "semaphore adjustments",
                "its threads do not share them (unshare(CLONE_SYSVSEM))",
                "run the app without that call",
            );
        }
    }
}

impl Objects {
    /// Asks a process what its end would do to each semaphore.
    pub fn ask(&mut self, process: &FrozenProcess, executor: &Executor) -> Result<()> {
        for set in self.semaphores.iter_mut().filter(|set| set.operated) {
            let prober = Prober {
                process,
                executor,
                set: set.perm.id,
            };
            let found = prober.adjustments(&set.values)?;
            set.undo.extend(found.into_iter().map(|(number, adjust)| SemUndo {
                pid: process.vpid,
                number,
                adjust,
            }));
        }
        Ok(())
    }
}

/// Finds out the adjustments of one process for one set.
struct Prober<'a> {
    process: &'a FrozenProcess,
    executor: &'a Executor,
    set: i32,
}

/// A list that always fails: with ERANGE if the adjustment is above `MOST - x`
/// (or below `x - MOST` for `down`), otherwise because its end would block.
fn probe(number: u16, value: u16, x: i16, down: bool) -> Vec<SemOp> {
    let value = value as i16;
    let changes = if down {
        // 1 and x together reach the end of the range, which is one longer.
        vec![(-value, 0), (1, UNDO), (-1, 0), (x, UNDO), (-MOST, 0), (-1, 0)]
    } else {
        vec![(MOST - value, 0), (-x, UNDO), (-MOST, 0), (-1, 0)]
    };
    // A change of 0 would wait for 0.
    changes
        .into_iter()
        .filter(|(change, _)| *change != 0)
        .map(|(change, flags)| (number, change, flags | NOWAIT))
        .collect()
}

fn add(batch: &mut Batch, set: i32, operations: &[SemOp]) -> (u64, u64, u64) {
    // struct sembuf: three half-words.
    let bytes: Vec<u8> = operations
        .iter()
        .flat_map(|(number, change, flags)| [*number, *change as u16, *flags as u16])
        .flat_map(u16::to_le_bytes)
        .collect();
    (set as u64, batch.bytes(&bytes).address, operations.len() as u64)
}

impl Prober<'_> {
    fn adjustments(&self, values: &[u16]) -> Result<Vec<(u16, i32)>> {
        let mut found = Vec::new();
        // The tightest question of both directions first: none is the rule.
        let all: Vec<(u16, bool)> = (0..values.len() as u16)
            .flat_map(|number| [(number, false), (number, true)])
            .collect();
        for group in all.chunks(400) {
            let lists: Vec<_> = group
                .iter()
                .map(|(number, down)| probe(*number, values[usize::from(*number)], MOST, *down))
                .collect();
            let out = self.outside(&lists)?;
            for ((number, down), _) in group.iter().zip(out).filter(|(_, out)| *out) {
                let size = self.size(*number, values[usize::from(*number)], *down)?;
                found.push((*number, if *down { -size } else { size }));
            }
        }
        Ok(found)
    }

    /// The size of an adjustment that is not 0: MOST less the largest x that is
    /// not out of range.
    fn size(&self, number: u16, value: u16, down: bool) -> Result<i32> {
        let fits = |x: i16| Ok::<bool, Error>(!self.outside(&[probe(number, value, x, down)])?[0]);
        let (mut low, mut high) = (-1i32, i32::from(MOST));
        while high - low > 1 {
            let middle = (low + high) / 2;
            if fits(middle as i16)? {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(i32::from(MOST) - low)
    }

    fn outside(&self, lists: &[Vec<SemOp>]) -> Result<Vec<bool>> {
        let mut batch = self.executor.batch();
        let calls: Vec<CallId> = lists
            .iter()
            .map(|list| {
                let (set, at, len) = add(&mut batch, self.set, list);
                batch.call("semop", libc::SYS_semop, &[set, at, len])
            })
            .collect();
        let main = self.process.main();
        main.prepare()?;
        let regs: &Regs = &main.regs;
        self.executor.run(main.tid, regs, &mut batch)?;
        calls.into_iter().map(|call| self.judge(batch.result(call))).collect()
    }

    fn judge(&self, result: Result<u64, nix::Error>) -> Result<bool> {
        match result {
            Err(nix::Error::ERANGE) => Ok(true),
            Err(nix::Error::EAGAIN) => Ok(false),
            other => Err(self.refuse(&format!("{other:?}"))),
        }
    }

    fn refuse(&self, answer: &str) -> Error {
        let pid = self.process.pid;
        let mut error = Error::refused("part of its state cannot be carried").fix("see each line");
        error.refusals.push(Refusal {
            pid: pid.0,
            comm: proc::comm(pid),
            object: format!("System V semaphore set {}", self.set),
            reason: format!("whether the process has adjustments to it (SEM_UNDO) cannot be told: {answer}"),
            fix: "let the process have the right to change the set, or remove the set (ipcrm -s)".into(),
        });
        error
    }
}

/// Makes the next object in this namespace under this id, by its creator.
pub fn create<T, E: Into<io::Error>>(
    kind: &str,
    id: i32,
    creator: (u32, u32),
    make: impl FnOnce() -> Result<T, E>,
) -> io::Result<T> {
    fs::write(format!("/proc/sys/kernel/{kind}_next_id"), id.to_string())?;
    let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    if creator == own {
        return make().map_err(Into::into);
    }
    sysv::become_effective(creator.0, creator.1)?;
    let made = make();
    sysv::become_effective(own.0, own.1)?;
    made.map_err(Into::into)
}

/// A number that its namespace has for a setting of one, or will have.
pub fn setting(manifest: &Manifest, name: &str) -> Option<u64> {
    let usual = || Some(SETTINGS.iter().find(|(known, _)| *known == name)?.1);
    let value = manifest.ipc_settings.get(name).map(String::as_str).or_else(usual)?;
    value.parse().ok()
}

/// Sets what has to be there before there are objects which a new namespace would not allow.
pub fn widen(pid: HostPid, content: Content<'_>) -> Result<()> {
    let wider = |(name, value): (&String, &String)| {
        let (_, usual) = SETTINGS.iter().find(|(known, _)| known == name)?;
        let wide = widest(value, usual);
        (wide != *usual).then(|| (name.clone(), wide))
    };
    let wide: BTreeMap<String, String> = content.settings.iter().filter_map(wider).collect();
    set(pid, wide.iter())
}

/// Of each number of a setting (`kernel.sem` has four) the larger one.
fn widest(wanted: &str, usual: &str) -> String {
    let number = |word: &str| word.parse::<u64>().unwrap_or(0);
    let words = wanted.split(' ').zip(usual.split(' '));
    let words = words.map(|(wanted, usual)| if number(wanted) > number(usual) { wanted } else { usual });
    words.collect::<Vec<_>>().join(" ")
}

/// Settings of the namespace of `pid`, which is none of the host's.
fn set<'a>(pid: HostPid, settings: impl Iterator<Item = (&'a String, &'a String)>) -> Result<()> {
    let mut settings = settings.peekable();
    let is_hosts = || {
        let of = |owner: &str| fs::read_link(format!("/proc/{owner}/ns/ipc")).ok();
        of("self") == of(&pid.to_string())
    };
    if settings.peek().is_none() || is_hosts() {
        return Ok(());
    }
    let set = nsthread::inside(pid, &["ipc"], || {
        settings.try_for_each(|(name, value)| {
            let set = fs::write(path_of(name), value);
            set.or_fail(|| format!("cannot set {name} to {value} in the app's IPC namespace"))
        })
    });
    set.or_fail(|| "cannot enter the app's IPC namespace")?
}

/// Makes semaphores and queues again in the IPC namespace of `pid`, and gives it its settings:
/// they may allow less than what there was before. Answers the descriptions of POSIX message queues.
pub fn restore(pid: HostPid, content: Content<'_>) -> Result<HashMap<FileId, OwnedFd>> {
    if !content.any() {
        return Ok(HashMap::new());
    }
    let made = nsthread::inside(pid, &["ipc"], || {
        for set in content.semaphores {
            make_semaphores(set).or_fail(|| format!("cannot make System V semaphore set {} again", set.perm.id))?;
        }
        for queue in content.queues {
            make_queue(queue).or_fail(|| format!("cannot make System V message queue {} again", queue.perm.id))?;
        }
        content.own.map_or_else(|| Ok(HashMap::new()), mqueue::make_all)
    });
    let opened = made.or_fail(|| "cannot enter the app's IPC namespace")??;
    set(pid, content.settings.iter())?;
    Ok(opened)
}

fn owner(perm: &IpcPerm) -> Owner {
    Owner {
        uid: perm.uid,
        gid: perm.gid,
        mode: perm.mode,
    }
}

fn under_id(id: i32, wanted: i32) -> io::Result<()> {
    if id == wanted {
        Ok(())
    } else {
        Err(nix::Error::EEXIST.into())
    }
}

fn make_semaphores(set: &SemRecord) -> io::Result<()> {
    let perm = &set.perm;
    let count = set.values.len() as i32;
    let id = create("sem", perm.id, (perm.cuid, perm.cgid), || {
        sysv::new_semaphores(perm.key, count, perm.mode)
    })?;
    under_id(id, perm.id)?;
    sysv::own_semaphores(id, owner(perm))?;
    sysv::set_semaphore_values(id, &set.values)?;
    if set.operated {
        sysv::operate(id, &touch(0, set.values[0]))?;
    }
    Ok(())
}

/// Changes nothing, but is an operation: sets `sem_otime` and the last process.
fn touch(number: u16, value: u16) -> [SemOp; 2] {
    let up = if value == MOST as u16 { -1 } else { 1 };
    [(number, up, NOWAIT), (number, -up, NOWAIT)]
}

fn make_queue(queue: &QueueRecord) -> io::Result<()> {
    let perm = &queue.perm;
    let id = create("msg", perm.id, (perm.cuid, perm.cgid), || {
        sysv::new_queue(perm.key, perm.mode)
    })?;
    under_id(id, perm.id)?;
    // The limit may have been lowered below what was queued already.
    let queued = queue
        .messages
        .iter()
        .map(|message| message.data.len() as u64)
        .sum::<u64>();
    let room = queue.bytes_max.max(queued).max(queue.messages.len() as u64);
    sysv::own_queue(id, owner(perm), room)?;
    for message in &queue.messages {
        sysv::send_message(id, message.kind, &message.data)?;
    }
    sysv::own_queue(id, owner(perm), queue.bytes_max)?;
    Ok(())
}

/// What processes themselves have to do to semaphores: their adjustments first,
/// then being the last one that changed a value.
pub fn adjust(skeleton: &Skeleton, shot: &Appshot) -> Result<()> {
    if !has_semaphores(&shot.manifest) {
        return Ok(());
    }
    for (at, core) in shot.cores.iter().enumerate() {
        let pid = core.image.process.pid;
        let sets = Content::around(&shot.manifest, &core.image.process).semaphores;
        let mut script = skeleton.script(at);
        for (set, undo) in sets
            .iter()
            .flat_map(|set| set.undo.iter().map(move |undo| (set, undo)))
            .filter(|(_, undo)| undo.pid == pid)
        {
            let value = set.values[usize::from(undo.number)];
            operate(&mut script, set.perm.id, &owed(undo.number, value, undo.adjust))?;
        }
        script.flush()?;
    }
    for (at, core) in shot.cores.iter().enumerate() {
        let sets = Content::around(&shot.manifest, &core.image.process).semaphores;
        let mut script = skeleton.script(at);
        for set in sets {
            let last = set
                .pids
                .iter()
                .enumerate()
                .filter(|(_, pid)| **pid == core.image.process.pid);
            for (number, _) in last {
                let (number, value) = (number as u16, set.values[number]);
                if set.operated {
                    operate(&mut script, set.perm.id, &touch(number, value))?;
                } else {
                    const SETVAL: u64 = 16;
                    let args = [set.perm.id as u64, u64::from(number), SETVAL, u64::from(value)];
                    script.must("semctl(SETVAL)", libc::SYS_semctl, &args)?;
                }
            }
        }
        script.flush()?;
    }
    Ok(())
}

fn operate(script: &mut Script<'_>, set: i32, operations: &[SemOp]) -> Result<()> {
    let batch = script.room(1, 64)?;
    let (set, list, len) = add(batch, set, operations);
    batch.must("semop", libc::SYS_semop, &[set, list, len]);
    Ok(())
}

/// Operations that leave the value and make the process owe this adjustment.
fn owed(number: u16, value: u16, adjust: i32) -> Vec<SemOp> {
    let value = i32::from(value);
    let most = i32::from(MOST);
    let changes = if adjust > 0 {
        vec![(most - value, 0), (-adjust, UNDO), (value - most + adjust, 0)]
    } else {
        let rest = -adjust - 1;
        vec![(-value, 0), (1, UNDO), (-1, 0), (rest, UNDO), (value - rest, 0)]
    };
    changes
        .into_iter()
        .filter(|(change, _)| *change != 0)
        .map(|(change, flags)| (number, change as i16, flags | NOWAIT))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_that_owe_an_adjustment_keep_the_value() {
        for value in [0u16, 1, 20000, 32767] {
            for adjust in [1, 30000, 32767, -1, -2, -32767, -32768] {
                let mut now = i32::from(value);
                let mut owes = 0;
                for (_, change, flags) in owed(0, value, adjust) {
                    now += i32::from(change);
                    owes -= if flags & UNDO != 0 { i32::from(change) } else { 0 };
                    assert!((0..=32767).contains(&now), "{value} {adjust}");
                }
                assert_eq!((now, owes), (i32::from(value), adjust));
            }
        }
    }

    #[test]
    fn of_each_number_the_larger_one_is_set_first() {
        assert_eq!(
            widest("250 2000000000 100 40000", "32000 1024000000 500 32000"),
            "32000 2000000000 500 40000"
        );
        assert_eq!(widest("8191", "8192"), "8192");
        assert_eq!(widest("-1", "0"), "0");
    }

    #[test]
    fn a_probe_never_succeeds() {
        for (value, x, down) in [
            (0, MOST, false),
            (32767, 1, false),
            (32767, 0, false),
            (5, 0, true),
            (0, MOST, true),
            (32767, MOST, true),
        ] {
            let mut now = i32::from(value);
            let blocks = probe(0, value, x, down).iter().any(|(_, change, _)| {
                now += i32::from(*change);
                assert!(now <= 32767);
                now < 0
            });
            assert!(blocks, "{value} {x} {down}");
        }
    }
}
