//! Memory and descriptors of each process, put in place by its own husk, which
//! takes the descriptors it needs from this process.

use super::fill;
use super::itself::Itself;
use super::kept::{self, Kept, Row};
use super::script::Script;
use super::skeleton::Skeleton;
use super::vdso::{self, Vdso};
use crate::error::{Error, OrFail, Result};
use crate::executor::CallId;
use crate::files::uring::{self, Winder};
use crate::files::{mqueue, paths};
use crate::hugetlb;
use crate::ids::{FileId, HostPid, ShmId, VirtualPid};
use crate::image::records::{
    EpollWatch, FdEntry, FileKind, LockKind, Manifest, NoticeKind, OpenFile, ProcessRecord, ShmKind, ShmRecord,
    UringRecord, Vma, VmaKind,
};
use crate::image::{Appshot, Core, PAGE, Segment, limits};
use crate::ipc;
use crate::keys;
use crate::nsthread;
use crate::pages;
use crate::proc;
use crate::settings;
use crate::sys::Sys;
use crate::sys::memory::{MADV_COLLAPSE, Span};
use crate::sys::shm::Attached;
use crate::sys::{fd as sysfd, shm as sysshm, uring as sys_uring};
use caps::{CapSet, Capability};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

/// Objects that several processes of the app share.
#[derive(Debug, Default)]
pub struct Shared {
    pub shm: HashMap<ShmId, OwnedFd>,
    /// Descriptions of unlinked files, and of POSIX message queues, that had to be opened when these were made.
    pub opened: HashMap<FileId, OwnedFd>,
    /// New ids of System V segments are the old ones: their numbers were chosen. With sizes.
    sysv: HashMap<ShmId, (i32, u64)>,
}

impl Shared {
    /// What has or had a name is made with the app's rights, where it has any.
    /// Answers System V segments attached besides: what is removed ends with its last attachment, and so may
    /// others (`shm_rmid_forced`). They are kept until the app has its own.
    pub fn make(shot: &Appshot, skeleton: &Skeleton, itself: Option<&Itself>) -> Result<(Shared, Vec<Attached>)> {
        let mut shared = Shared::default();
        // The key of what is removed may be another's by now.
        let is_removed = |record: &&ShmRecord| matches!(record.kind, ShmKind::Sysv { removed: true, .. });
        let (removed, others): (Vec<_>, Vec<_>) = shot.manifest.shmem.iter().partition(is_removed);
        let mut attached = Vec::new();
        for record in removed.into_iter().chain(others) {
            match &record.kind {
                ShmKind::Sysv { id, .. } => {
                    attached.push(make_sysv(shot, record, skeleton.member(shot, record.namespace))?);
                    shared.sysv.insert(record.id, (*id, record.bytes));
                }
                _ => {
                    let mut make = || shared.make_object(record, &shot.manifest, &skeleton.view());
                    let object = match itself {
                        Some(itself) => itself.within(make)?,
                        None => make()?,
                    };
                    shared.shm.insert(record.id, fill_shm(shot, record, object)?);
                }
            }
        }
        Ok((shared, attached))
    }

    fn make_object(&mut self, record: &ShmRecord, manifest: &Manifest, view: &str) -> Result<OwnedFd> {
        if !matches!(record.kind, ShmKind::Unlinked { .. }) {
            return make_object(record);
        }
        let of_it = |file: &&OpenFile| matches!(file.kind, FileKind::Unlinked { shm, .. } if shm == record.id);
        let descriptions = manifest.files.iter().filter(of_it);
        let descriptions: Vec<_> = descriptions.map(|file| (file.id, file.flags)).collect();
        let made = paths::make_unlinked(view, &record.kind, &descriptions)?;
        self.opened.extend(made.opened);
        Ok(made.file.into())
    }
}

fn make_object(record: &ShmRecord) -> Result<OwnedFd> {
    let failed = || format!("cannot make shared memory object {} again", record.id);
    const MFD_EXEC: u32 = 0x10;
    let huge = sysshm::huge(libc::MFD_HUGETLB.cast_signed(), record.page_bytes).cast_unsigned();
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | huge;
    Ok(match &record.kind {
        ShmKind::Memfd { name, .. } => sysfd::memfd(name, flags | MFD_EXEC)
            .or_else(|_| sysfd::memfd(name, flags))
            .or_fail(failed)?,
        _ => sysshm::anonymous(record.bytes, record.page_bytes).or_fail(failed)?,
    })
}

/// What was mapped to fill it is mapped still in a fork of ours that is about to run its own program.
fn add_seals(file: &File, seals: i32) -> Sys<()> {
    const F_ADD_SEALS: i32 = 1033;
    const TRIES: u32 = 2000;
    let add = || sysfd::fcntl(file.as_raw_fd(), F_ADD_SEALS, i64::from(seals)).map(drop);
    for _ in 0..TRIES {
        match add() {
            Err(nix::Error::EBUSY) => std::thread::sleep(std::time::Duration::from_millis(1)),
            done => return done,
        }
    }
    add()
}

fn fill_shm(shot: &Appshot, record: &ShmRecord, fd: OwnedFd) -> Result<OwnedFd> {
    let failed = || format!("cannot fill shared memory object {} again", record.id);
    let file = File::from(fd);
    if matches!(record.kind, ShmKind::Memfd { .. } | ShmKind::Unlinked { .. }) {
        file.set_len(record.bytes).or_fail(failed)?;
    }
    match record.page_bytes {
        0 => fill(shot, record, |bytes, at| file.write_all_at(bytes, at)).or_fail(failed)?,
        _ if record.runs.is_empty() => {}
        _ => {
            let memory = hugetlb::make_pages(&file, record).or_fail(failed)?;
            fill(shot, record, |bytes, at| memory.write(bytes, at as usize)).or_fail(failed)?;
        }
    }
    if let ShmKind::Unlinked { mtime_ns, .. } = record.kind
        && let Ok(ns) = u64::try_from(mtime_ns)
    {
        let then = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(ns);
        file.set_times(std::fs::FileTimes::new().set_modified(then))
            .or_fail(failed)?;
    }
    if let ShmKind::Memfd { seals, mode, .. } = record.kind {
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(PermissionsExt::from_mode(mode)).or_fail(failed)?;
        if seals != 0 {
            add_seals(&file, seals).or_fail(failed)?;
        }
    }
    Ok(file.into())
}

fn fill(
    shot: &Appshot,
    record: &ShmRecord,
    mut write: impl FnMut(&[u8], u64) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let Some(part) = &record.part else { return Ok(()) };
    let part = shot.part(part).map_err(std::io::Error::other)?;
    let mut buffer = vec![0; 1 << 20];
    let mut from = 0;
    for (offset, length) in &record.runs {
        let mut done = 0;
        while done < *length {
            let len = (length - done).min(buffer.len() as u64) as usize;
            part.read_exact_at(&mut buffer[..len], from)?;
            write(&buffer[..len], offset + done)?;
            done += len as u64;
            from += len as u64;
        }
    }
    Ok(())
}

/// A System V segment under its old id, in the app's IPC namespace.
fn make_sysv(shot: &Appshot, record: &ShmRecord, pid: HostPid) -> Result<Attached> {
    let failed = || format!("cannot make System V shared memory {} again", record.id);
    let ShmKind::Sysv {
        id,
        key,
        mode,
        uid,
        gid,
        cuid,
        cgid,
        removed,
        locked,
        asked_bytes,
    } = record.kind
    else {
        return Err(Error::failed(failed()).because("it is none"));
    };
    let make = || {
        let asked = asked_bytes.unwrap_or(record.bytes);
        let segment = ipc::create("shm", id, (cuid, cgid), || {
            if record.page_bytes != 0 {
                // Where we have it; it goes with the creator's ids.
                caps::raise(None, CapSet::Effective, Capability::CAP_IPC_LOCK).ok();
            }
            sysshm::Segment::create(id, key, asked, mode, record.page_bytes)
        })?;
        segment.set_owner(uid, gid, mode)?;
        let memory = segment.attach()?;
        fill(shot, record, |bytes, at| memory.write(bytes, at as usize))?;
        if locked {
            segment.lock()?;
        }
        if removed {
            segment.remove()?;
        }
        Ok::<_, std::io::Error>(memory)
    };
    nsthread::inside(pid, &["ipc"], make).or_fail(failed)?.or_fail(failed)
}

/// Objects that mappings come from, opened once for the whole app.
#[derive(Debug)]
pub struct Mapped<'a> {
    shared: &'a Shared,
    /// Each as it can be, or for reading alone.
    objects: HashMap<(ShmId, bool), OwnedFd>,
    /// With whose rights mapped files are opened, where not with the husk's.
    itself: Option<&'a Itself>,
}

impl<'a> Mapped<'a> {
    pub fn new(shared: &'a Shared, itself: Option<&'a Itself>) -> Mapped<'a> {
        Mapped {
            shared,
            objects: HashMap::new(),
            itself,
        }
    }

    /// How the mapping went.
    pub fn told<T>(&self, result: Result<T>, shot: &Appshot, view: &str) -> Result<T> {
        match self.itself {
            Some(itself) => itself.told(result.map_err(|error| itself.named(error, shot, view))),
            None => result,
        }
    }

    fn object(&mut self, shm: ShmId, read_only: bool) -> Result<RawFd> {
        let key = (shm, read_only);
        if !self.objects.contains_key(&key) {
            // Opened anew, as for one mapping alone: read-only if it is sealed.
            let reopen = match read_only {
                true => sysshm::reopen_read_only,
                false => sysshm::reopen,
            };
            let opened = reopen(&self.shared.shm[&shm]).or_fail(|| "cannot open shared memory again")?;
            self.objects.insert(key, opened);
        }
        Ok(self.objects[&key].as_raw_fd())
    }
}

/// Maps the address space of a process, all of it writable where content is to
/// come. Answers the number of the userfaultfd that it then holds, where it can
/// have one.
pub fn mappings(
    skeleton: &Skeleton,
    script: &mut Script<'_>,
    core: &Core,
    mapped: &mut Mapped<'_>,
    vdso: &Vdso,
) -> Result<i32> {
    map_all(skeleton, script, core, mapped, vdso)?.userfaultfd()
}

/// The same of one that works in the descriptor table of another: it leaves nothing there, and its
/// pages are written.
pub fn mappings_as_guest(
    skeleton: &Skeleton,
    script: &mut Script<'_>,
    core: &Core,
    mapped: &mut Mapped<'_>,
    vdso: &Vdso,
) -> Result<i32> {
    const NONE: i32 = -1;
    map_all(skeleton, script, core, mapped, vdso)?;
    close_all(script, skeleton.restorer).map(|()| NONE)
}

/// The same, and the process reads its content from the appshot's files by itself.
pub fn mappings_with(
    skeleton: &Skeleton,
    script: &mut Script<'_>,
    kept: &Kept,
    at: usize,
    mapped: &mut Mapped<'_>,
    (vdso, renewed): (&Vdso, bool),
) -> Result<()> {
    let (core, rows) = (&kept.shot.cores[at], &kept.rows[at]);
    let mut mapper = map_all(skeleton, script, core, mapped, vdso)?;
    match &fill::untouched(core, vdso, renewed)[..] {
        [] => mapper.contents(&kept.shot, rows),
        full => mapper.contents(&kept.shot, &kept::without(rows, full)),
    }
}

fn map_all<'m, 's>(
    skeleton: &Skeleton,
    script: &'m mut Script<'s>,
    core: &Core,
    mapped: &mut Mapped<'_>,
    vdso: &Vdso,
) -> Result<Mapper<'m, 's>> {
    clear(skeleton, script)?;
    vdso.place(skeleton, script, &core.image.vmas)?;
    if let Some(itself) = mapped.itself {
        itself.begin(script)?;
    }
    let mut mapper = Mapper {
        script,
        taken: HashMap::new(),
        opened: HashMap::new(),
        restorer: skeleton.restorer,
        bridged: vdso.is_bridge(),
        apart: core
            .image
            .process
            .namespaces
            .iter()
            .any(|number| skeleton.mounted.contains(number)),
    };
    // First: what an app has unmapped of a segment may hold other mappings.
    mapper.attach_all(&core.image.vmas, &mapped.shared.sysv)?;
    for vma in &core.image.vmas {
        mapper.map(vma, core, mapped)?;
    }
    mapper.marks(&core.image.process)?;
    if mapped.itself.is_some() {
        Itself::end(mapper.script)?;
    }
    Ok(mapper)
}

/// What of a mapping's protection and advice is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protect {
    All,
    /// What a forked process has from its parent.
    Forked,
    /// The rest.
    NotForked,
}

/// Protection and advice, once the pages are in.
pub fn protection(script: &mut Script<'_>, core: &Core, vdso: &Vdso, what: Protect) -> Result<()> {
    let kept = vdso.kept(&core.image.vmas);
    let there = |vma: &&Vma| kept != Some(*vma) && !matches!(vma.kind, VmaKind::Uring { .. });
    if what != Protect::NotForked {
        keys::allocate(script, &core.image)?;
    }
    for vma in core.image.vmas.iter().filter(there) {
        if what != Protect::NotForked {
            protect(script, vma, core)?;
        }
        advise(script, vma, what)?;
    }
    match what {
        Protect::NotForked => Ok(()),
        Protect::All | Protect::Forked => {
            keys::free(script, &core.image)?;
            vdso.patch(script)?;
            seal(script, &core.image.vmas)
        }
    }
}

/// mseal(2) (Linux 6.10), once nothing has to be changed any more.
fn seal(script: &mut Script<'_>, vmas: &[Vma]) -> Result<()> {
    const SYS_MSEAL: i64 = 462;
    for vma in vmas.iter().filter(|vma| vma.flags.iter().any(|flag| flag == "sl")) {
        script.must("mseal", SYS_MSEAL, &[vma.start, vma.end - vma.start, 0])?;
    }
    Ok(())
}

/// Has the kernel map now what the files hold that a process runs and reads: later it
/// would be asked for piece by piece (MADV_POPULATE_READ, Linux 5.14). It is no more than
/// speed, and told by nothing but the resident size.
pub(super) fn populate(script: &mut Script<'_>, core: &Core) -> Result<()> {
    const MADV_POPULATE_READ: u64 = 22;
    const BYTES_MAX: u64 = 64 << 20;
    let mut left = BYTES_MAX;
    for vma in &core.image.vmas {
        let read = vma.prot & (libc::PROT_READ | libc::PROT_WRITE) as u32 == libc::PROT_READ as u32;
        let bytes = vma.end - vma.start;
        if read && matches!(vma.kind, VmaKind::PrivateFile { .. }) && bytes <= left {
            left -= bytes;
            let batch = script.room(1, 0)?;
            batch.call("madvise", libc::SYS_madvise, &[vma.start, bytes, MADV_POPULATE_READ]);
        }
    }
    Ok(())
}

const MADV_POPULATE_WRITE: u64 = 23;

/// Has a process have these pages for itself, as if it had written to them
/// (MADV_POPULATE_WRITE, Linux 5.14): a fault for each would come later. What cannot be
/// written to stays as it is.
pub(super) fn have(script: &mut Script<'_>, pages: &[Span]) -> Result<()> {
    for span in pages {
        let args = [span.start, span.len(), MADV_POPULATE_WRITE];
        script.room(1, 0)?.call("madvise", libc::SYS_madvise, &args);
    }
    Ok(())
}

/// Has the kernel make huge pages of these, where it can.
pub(super) fn collapse(script: &mut Script<'_>, spans: &[Span]) -> Result<()> {
    for span in spans {
        let args = [span.start, span.len(), MADV_COLLAPSE as u64];
        script.room(1, 0)?.call("madvise", libc::SYS_madvise, &args);
    }
    Ok(())
}

/// Unmaps everything of the husk but the executor and what the kernel provides.
pub(super) fn clear(skeleton: &Skeleton, script: &mut Script<'_>) -> Result<()> {
    if skeleton.is_empty {
        return Ok(());
    }
    let own = skeleton.executor.span();
    for mapping in &skeleton.layout {
        let executor = mapping.start >= own.start && mapping.end <= own.end;
        if !executor && !["[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]"].contains(&mapping.name.as_str()) {
            vdso::unmap(script, mapping)?;
        }
    }
    Ok(())
}

/// Has a husk take one of our descriptors (pidfd_getfd(2), Linux 5.6), which it
/// gets under its lowest free number, closed by exec.
pub(super) fn take(script: &mut Script<'_>, restorer: i32, ours: RawFd, number: i32) -> Result<()> {
    let args = [restorer as u64, ours as u64, 0];
    let call = script.must("pidfd_getfd", libc::SYS_pidfd_getfd, &args)?;
    script.expect(call, "taking a descriptor", number as u64);
    Ok(())
}

/// Closes every descriptor of a husk but the one it takes others through.
pub(super) fn close_all(script: &mut Script<'_>, restorer: i32) -> Result<()> {
    let kept = restorer as u64;
    if kept > 0 {
        script.must("close_range", libc::SYS_close_range, &[0, kept - 1, 0])?;
    }
    let above = [kept + 1, u64::from(u32::MAX), 0];
    script.must("close_range", libc::SYS_close_range, &above).map(drop)
}

fn has_pages(core: &Core, vma: &Vma) -> bool {
    let has_huge = matches!(&vma.kind, VmaKind::Huge { had, .. } if !had.is_empty());
    has_huge || !Segment::among(&core.segments, vma.start..vma.end).is_empty()
}

/// The mapping calls of one process.
struct Mapper<'a, 's> {
    script: &'a mut Script<'s>,
    /// Numbers in the husk of descriptors that it has taken from us.
    taken: HashMap<RawFd, i32>,
    /// Numbers of files that it has opened, by name and whether to write to them.
    opened: HashMap<(String, bool), i32>,
    restorer: i32,
    /// The app's vdso is memory like any other.
    bridged: bool,
    /// It has mounts of its own.
    apart: bool,
}

impl Mapper<'_, '_> {
    /// The number of one of our descriptors in the husk.
    fn number(&mut self, ours: RawFd) -> Result<i32> {
        if let Some(number) = self.taken.get(&ours) {
            return Ok(*number);
        }
        let number = self.next_number();
        take(self.script, self.restorer, ours, number)?;
        self.taken.insert(ours, number);
        Ok(number)
    }

    /// The number of a file, which the husk opens with the access that its mapping
    /// needs.
    fn file(&mut self, path: &str, write: bool) -> Result<i32> {
        let key = (path.to_owned(), write);
        if let Some(number) = self.opened.get(&key) {
            return Ok(*number);
        }
        let number = self.next_number();
        let flags = libc::O_CLOEXEC | if write { libc::O_RDWR } else { libc::O_RDONLY };
        let batch = self.script.room(1, path.len() + 32)?;
        let name = batch.c_string(path).address;
        let opened = match self.apart {
            // Links there are the app's own work, and no path that the kernel gives goes by one. Nobody answers
            // at a FIFO.
            true => {
                let flags = flags | libc::O_NONBLOCK;
                let how = batch.words(&[flags as u64, 0, libc::RESOLVE_NO_SYMLINKS]).address;
                batch.must("openat2", libc::SYS_openat2, &[libc::AT_FDCWD as u64, name, how, 24])
            }
            false => batch.must("open", libc::SYS_open, &[name, flags as u64, 0]),
        };
        self.script
            .expect(opened, "opening a file that the app has mapped", number as u64);
        self.opened.insert(key, number);
        Ok(number)
    }

    /// What the husk's next descriptor gets.
    fn next_number(&self) -> i32 {
        let count = (self.taken.len() + self.opened.len()) as i32;
        if count < self.restorer { count } else { count + 1 }
    }

    /// Through which [`super::fill`] puts pages in place. Not every process may
    /// have one.
    fn userfaultfd(&mut self) -> Result<i32> {
        let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
        let batch = self.script.room(1, 0)?;
        batch.call("userfaultfd", crate::sys::uffd::number(), &[flags]);
        Ok(self.next_number())
    }

    /// preadv(2) of each row: one call for up to a thousand pieces.
    fn contents(&mut self, shot: &Appshot, rows: &[Row]) -> Result<()> {
        for row in rows {
            let number = self.number(shot.file(row.place.part).as_raw_fd())? as u64;
            let batch = self.script.room(1, 16 * row.pieces.len())?;
            let pieces: Vec<u64> = row.pieces.iter().flat_map(|(at, bytes)| [*at, *bytes]).collect();
            let pieces = batch.words(&pieces).address;
            let args = [number, pieces, row.pieces.len() as u64, row.place.offset, 0];
            let read = batch.must("preadv", libc::SYS_preadv, &args);
            self.script.expect(read, "reading the memory of the app", row.bytes());
        }
        Ok(())
    }

    fn map(&mut self, vma: &Vma, core: &Core, mapped: &mut Mapped<'_>) -> Result<()> {
        let len = vma.end - vma.start;
        let fixed = libc::MAP_FIXED_NOREPLACE;
        let (flags, fd, offset) = match &vma.kind {
            VmaKind::Vvar | VmaKind::Uring { .. } => return Ok(()),
            VmaKind::Vdso if !self.bridged => return Ok(()),
            VmaKind::Anon | VmaKind::Vdso => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
            VmaKind::Huge { page_bytes, .. } => {
                let huge = sysshm::huge(libc::MAP_HUGETLB, *page_bytes);
                (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | huge, -1, 0)
            }
            VmaKind::PrivateFile { path, offset } => (libc::MAP_PRIVATE, self.file(path, false)?, *offset),
            VmaKind::SharedFile { path, offset, writable } => (libc::MAP_SHARED, self.file(path, *writable)?, *offset),
            VmaKind::Shm {
                shm,
                offset,
                private,
                read_only,
            } => {
                if mapped.shared.sysv.contains_key(shm) {
                    return Ok(());
                }
                let kind = if *private { libc::MAP_PRIVATE } else { libc::MAP_SHARED };
                (kind, self.number(mapped.object(*shm, *read_only)?)?, *offset)
            }
        };
        let has = |flag: &str| vma.flags.iter().any(|f| f == flag);
        const MAP_DROPPABLE: i32 = 8;
        let flags = if has("dp") {
            MAP_DROPPABLE | libc::MAP_ANONYMOUS
        } else {
            flags
        };
        let flags = flags
            | fixed
            | if has("gd") { libc::MAP_GROWSDOWN } else { 0 }
            | if has("nr") { libc::MAP_NORESERVE } else { 0 };
        let prot = first_prot(vma, has_pages(core, vma));
        let args = [
            vma.start,
            len,
            u64::from(prot),
            flags as u32 as u64,
            fd as i64 as u64,
            offset,
        ];
        self.script.must("mmap", libc::SYS_mmap, &args)?;
        match &vma.kind {
            VmaKind::Huge { had, .. } => self.huge_pages(had),
            _ => Ok(()),
        }
    }

    /// Has them be there: whoever touches one later would be killed were there none.
    fn huge_pages(&mut self, had: &[(u64, u64)]) -> Result<()> {
        for (start, end) in had {
            let args = [*start, end - start, MADV_POPULATE_WRITE];
            self.script
                .must("madvise(MADV_POPULATE_WRITE)", libc::SYS_madvise, &args)?;
        }
        Ok(())
    }

    /// Segments are attached whole, at the address where each begins or began: a part of one
    /// may be a mapping of its own, by what mprotect(2) or madvise(2) did to it, or be gone.
    fn attach_all(&mut self, vmas: &[Vma], sysv: &HashMap<ShmId, (i32, u64)>) -> Result<()> {
        let mut attached: BTreeMap<(u64, ShmId), Vec<&Vma>> = BTreeMap::new();
        for vma in vmas {
            if let VmaKind::Shm { shm, offset, .. } = vma.kind
                && sysv.contains_key(&shm)
            {
                let begin = vma.start.wrapping_sub(offset);
                attached.entry((begin, shm)).or_default().push(vma);
            }
        }
        for ((begin, shm), parts) in attached {
            let (id, bytes) = sysv[&shm];
            let bytes = bytes.next_multiple_of(PAGE);
            self.attach(begin, &parts, (id, bytes))?;
            self.detach_between(begin, bytes, &parts)?;
        }
        Ok(())
    }

    fn attach(&mut self, begin: u64, parts: &[&Vma], (id, bytes): (i32, u64)) -> Result<()> {
        const SHM_RDONLY: u64 = 0o10000;
        const READ_WRITE: u32 = (libc::PROT_READ | libc::PROT_WRITE) as u32;
        let read_only = |part: &&Vma| matches!(part.kind, VmaKind::Shm { read_only: true, .. });
        let (flags, prot) = match parts.iter().all(read_only) {
            true => (SHM_RDONLY, libc::PROT_READ as u32),
            false => (0, READ_WRITE),
        };
        self.script.must("shmat", libc::SYS_shmat, &[id as u64, begin, flags])?;
        // One that mremap(2) has made longer than its segment.
        let end = parts.iter().map(|part| part.end).max().unwrap_or(begin);
        if end - begin > bytes {
            self.script
                .must("mremap", libc::SYS_mremap, &[begin, bytes, end - begin, 0])?;
        }
        let wanted = parts.iter().map(|part| (part, first_prot(part, false)));
        for (part, wanted) in wanted.filter(|(_, wanted)| *wanted != prot) {
            let args = [part.start, part.end - part.start, u64::from(wanted)];
            self.script.must("mprotect", libc::SYS_mprotect, &args)?;
        }
        Ok(())
    }

    /// Unmaps what lies between the parts of a segment and behind them.
    fn detach_between(&mut self, begin: u64, bytes: u64, parts: &[&Vma]) -> Result<()> {
        let mut at = begin;
        let ends = parts.iter().map(|part| (part.start, part.end));
        let whole_end = begin.wrapping_add(bytes);
        for (start, end) in ends.chain([(whole_end, whole_end)]) {
            if start > at {
                self.script.must("munmap", libc::SYS_munmap, &[at, start - at])?;
            }
            at = end;
        }
        Ok(())
    }

    /// The marks that /proc and brk go by, and the program the process runs.
    fn marks(&mut self, process: &ProcessRecord) -> Result<()> {
        const PR_SET_MM_MAP: u64 = 14;
        let mm = &process.mm;
        let exe = self.file(&process.exe, false)?;
        let batch = self.script.room(1, 8 * mm.auxv.len() + 128)?;
        let auxv = batch.words(&mm.auxv);
        let sizes = (mm.auxv.len() as u64 * 8) | (exe as u64) << 32;
        let map = batch.words(&[
            mm.start_code,
            mm.end_code,
            mm.start_data,
            mm.end_data,
            mm.start_brk,
            mm.brk,
            mm.start_stack,
            mm.arg_start,
            mm.arg_end,
            mm.env_start,
            mm.env_end,
            auxv.address,
            sizes,
        ]);
        batch.must(
            "prctl(PR_SET_MM_MAP)",
            libc::SYS_prctl,
            &[libc::PR_SET_MM as u64, PR_SET_MM_MAP, map.address, 104, 0],
        );
        Ok(())
    }
}

/// With which protection it is mapped: pages may be written as the process itself would.
fn first_prot(vma: &Vma, filled: bool) -> u32 {
    let written = if filled { libc::PROT_WRITE } else { 0 };
    let read = if keys::is_execute_only(vma.prot) {
        libc::PROT_READ
    } else {
        0
    };
    vma.prot | (written | read) as u32
}

/// What a mapping becomes once it has its content.
fn protect(script: &mut Script<'_>, vma: &Vma, core: &Core) -> Result<()> {
    match first_prot(vma, has_pages(core, vma)) == vma.prot && vma.key == 0 {
        true => Ok(()),
        false => keys::protect(script, vma, core.image.process.keys),
    }
}

/// Linux 6.13.
const MADV_GUARD_INSTALL: u64 = 102;

fn advise(script: &mut Script<'_>, vma: &Vma, what: Protect) -> Result<()> {
    let len = vma.end - vma.start;
    if what != Protect::NotForked {
        settings::bind(script, vma)?;
    }
    // Not in memory that is locked.
    for (start, end) in vma.guards.iter().filter(|_| what != Protect::NotForked) {
        let args = [*start, end - start, MADV_GUARD_INSTALL];
        script.must("madvise(MADV_GUARD_INSTALL)", libc::SYS_madvise, &args)?;
    }
    // A mapping that is not to be forked is not there after a fork.
    let forked = |flag: &str| !["dc", "lo"].contains(&flag);
    let wanted = |flag: &&String| match what {
        Protect::All => true,
        Protect::Forked => forked(flag),
        Protect::NotForked => !forked(flag),
    };
    for flag in vma.flags.iter().filter(wanted) {
        match advice(flag) {
            Some(Advice::Madvise(advice)) => {
                let args = [vma.start, len, advice as u64];
                script.must("madvise", libc::SYS_madvise, &args)?;
            }
            Some(Advice::Lock) => {
                let on_fault = u64::from(vma.flags.iter().any(|f| f == "lf"));
                let args = [vma.start, len, on_fault];
                let call = script.room(1, 0)?.call("mlock2", libc::SYS_mlock2, &args);
                if has_nothing_behind(vma) {
                    script.tolerate(call, "locking memory", nix::Error::ENOMEM);
                } else {
                    script.expect(call, "locking memory", 0);
                }
            }
            None => {}
        }
    }
    Ok(())
}

/// It is locked all the same where parts of it cannot be touched: mlock2(2) says so afterwards.
fn has_nothing_behind(vma: &Vma) -> bool {
    vma.prot == 0 || vma.kind != VmaKind::Anon || !vma.guards.is_empty()
}

enum Advice {
    Madvise(i32),
    Lock,
}

/// What brings a flag of smaps about.
fn advice(flag: &str) -> Option<Advice> {
    Some(match flag {
        "dc" => Advice::Madvise(libc::MADV_DONTFORK),
        "dd" => Advice::Madvise(libc::MADV_DONTDUMP),
        "wf" => Advice::Madvise(libc::MADV_WIPEONFORK),
        "hg" => Advice::Madvise(libc::MADV_HUGEPAGE),
        "nh" => Advice::Madvise(libc::MADV_NOHUGEPAGE),
        "mg" => Advice::Madvise(libc::MADV_MERGEABLE),
        "sr" => Advice::Madvise(libc::MADV_SEQUENTIAL),
        "rr" => Advice::Madvise(libc::MADV_RANDOM),
        "lo" => Advice::Lock,
        _ => return None,
    })
}

/// Gives a process its descriptors, then what depends on their numbers. `shared`: they stand in its
/// table already, with what others watch.
pub fn descriptors(
    script: &mut Script<'_>,
    restorer: i32,
    process: &ProcessRecord,
    made: &HashMap<FileId, OwnedFd>,
    manifest: &Manifest,
    shared: bool,
) -> Result<()> {
    let entries = sorted(&process.fds);
    if !shared {
        close_all(script, restorer)?;
        // In ascending order the lowest free number is never above where the next
        // one belongs.
        for (at, entry) in entries.iter().enumerate() {
            let number = free_number(&entries[..at], restorer);
            take(script, restorer, made[&entry.file].as_raw_fd(), number)?;
            put(script, entry, number)?;
        }
    }
    let user = Process {
        pid: process.pid,
        restorer,
        entries: &entries,
        made,
        manifest,
    };
    if !shared {
        user.watches(script)?;
        user.watches_away(script)?;
    }
    user.signals(script)?;
    user.notices(script)?;
    process_locks(script, process, manifest)
}

/// The lowest number that neither these entries, in ascending order, nor the
/// husk itself uses.
fn free_number(entries: &[FdEntry], restorer: i32) -> i32 {
    let packed = entries.iter().zip(0..).take_while(|(entry, n)| entry.fd.0 == *n);
    let free = packed.count() as i32;
    if free == restorer { free + 1 } else { free }
}

/// Moves a descriptor that was just taken to where it belongs.
fn put(script: &mut Script<'_>, entry: &FdEntry, number: i32) -> Result<()> {
    let (from, to) = (number as u64, entry.fd.0 as u64);
    if from == to {
        let flag = u64::from(entry.cloexec);
        script.must("fcntl(F_SETFD)", libc::SYS_fcntl, &[from, libc::F_SETFD as u64, flag])?;
        return Ok(());
    }
    let flags = if entry.cloexec { libc::O_CLOEXEC as u64 } else { 0 };
    script.must("dup3", libc::SYS_dup3, &[from, to, flags])?;
    script.must("close", libc::SYS_close, &[from]).map(drop)
}

/// A process that has its descriptors.
struct Process<'a> {
    pid: VirtualPid,
    restorer: i32,
    /// By number.
    entries: &'a [FdEntry],
    made: &'a HashMap<FileId, OwnedFd>,
    manifest: &'a Manifest,
}

impl<'a> Process<'a> {
    fn epolls(&self) -> impl Iterator<Item = (&'a FdEntry, &'a [EpollWatch])> + use<'a> {
        let (entries, manifest) = (self.entries, self.manifest);
        entries
            .iter()
            .filter_map(|entry| match &manifest.files[entry.file.0 as usize].kind {
                FileKind::Epoll { watches } => Some((entry, &watches[..])),
                _ => None,
            })
    }

    /// Adds what its epoll instances watch. An instance that several processes
    /// hold is filled by the first that has all the files under the numbers.
    fn watches(&self, script: &mut Script<'_>) -> Result<()> {
        // As long as no other watches, it is known whose event comes.
        let has = |watch: &EpollWatch| self.entries.iter().any(|e| e.fd == watch.fd && e.file == watch.file);
        let all = self
            .epolls()
            .flat_map(|(entry, watches)| watches.iter().map(move |watch| (entry, watch)));
        let own = all.filter(|(_, watch)| !watch.away && has(watch));
        let (disarmed, armed): (Vec<_>, Vec<_>) = own.partition(|(_, watch)| watch.is_disarmed());
        for (entry, watch) in disarmed {
            add_disarmed(script, entry, watch)?;
        }
        for (entry, watch) in armed {
            add_watch(script, entry, watch)?;
        }
        Ok(())
    }

    /// A signal that tells of a file names the descriptor through which it was asked for
    /// (O_ASYNC, F_SETSIG): it is asked for again by who gets it.
    fn signals(&self, script: &mut Script<'_>) -> Result<()> {
        let mut asked = Vec::new();
        for entry in self.entries {
            let file = &self.manifest.files[entry.file.0 as usize];
            let is_own = file.owner.is_some_and(|owner| owner.id == self.pid);
            if file.flags & libc::O_ASYNC == 0 || !is_own || asked.contains(&entry.file) {
                continue;
            }
            asked.push(entry.file);
            for flags in [file.flags & !libc::O_ASYNC, file.flags] {
                let args = [entry.fd.0 as u64, libc::F_SETFL as u64, flags as u64];
                script.must("fcntl(F_SETFL)", libc::SYS_fcntl, &args)?;
            }
        }
        Ok(())
    }

    /// Asks anew to be told of the next message in an empty queue (mq_notify(3)).
    fn notices(&self, script: &mut Script<'_>) -> Result<()> {
        let all = self.manifest.posix_queues.iter();
        let own = all.filter_map(|queue| Some((queue, queue.notice.as_ref().filter(|notice| notice.pid == self.pid)?)));
        let mut own = own.peekable();
        if own.peek().is_none() {
            return Ok(());
        }
        let opened = mqueue::opened(self.manifest);
        for (queue, notice) in own {
            let failed = || {
                Error::failed(format!(
                    "POSIX message queue /{} is not open in process {}",
                    queue.name, self.pid
                ))
            };
            let number = mqueue::number(&opened, queue.ino, self.entries).ok_or_else(failed)?;
            let batch = script.room(1, limits::NOTICE_BYTES + 64)?;
            let (kind, signal, value) = match &notice.how {
                NoticeKind::Nothing => (libc::SIGEV_NONE, 0, 0),
                NoticeKind::Signal { signal, value } => (libc::SIGEV_SIGNAL, *signal, *value),
                NoticeKind::Thread { file, cookie } => {
                    let through = self
                        .entries
                        .iter()
                        .find(|entry| entry.file == *file)
                        .ok_or_else(failed)?;
                    (libc::SIGEV_THREAD, through.fd.0, batch.bytes(cookie).address)
                }
            };
            // `struct sigevent`.
            let event = [value, u64::from(signal as u32) | (kind as u64) << 32, 0, 0, 0, 0, 0, 0];
            let event = batch.words(&event).address;
            batch.must("mq_notify", libc::SYS_mq_notify, &[number.0 as u64, event]);
        }
        Ok(())
    }

    /// Adds what is watched through a number that names another file now, or none:
    /// the watched file has the number while it is added.
    fn watches_away(&self, script: &mut Script<'_>) -> Result<()> {
        let given = free_number(self.entries, self.restorer);
        for (entry, watches) in self.epolls() {
            for watch in watches.iter().filter(|watch| watch.away) {
                take(script, self.restorer, self.made[&watch.file].as_raw_fd(), given)?;
                let wanted = watch.fd.0 as u64;
                let user = self.entries.iter().find(|e| e.fd == watch.fd);
                let aside = self.restorer + 2;
                if user.is_some() {
                    script.must("dup3", libc::SYS_dup3, &[wanted, aside as u64, 0])?;
                }
                if given as u64 != wanted {
                    script.must("dup3", libc::SYS_dup3, &[given as u64, wanted, 0])?;
                    script.must("close", libc::SYS_close, &[given as u64])?;
                }
                // One that is disarmed tells errors again: the event of another would be taken.
                add_watch(script, entry, watch)?;
                match user {
                    Some(user) => put(script, user, aside)?,
                    None => drop(script.must("close", libc::SYS_close, &[wanted])?),
                }
            }
        }
        Ok(())
    }
}

/// One that has told its only event. The kernel adds none so: it is added for whatever its
/// file is ready for, and told once more. A file that is ready for nothing (a pipe without
/// data) keeps one that tells when the other end is closed.
fn add_disarmed(script: &mut Script<'_>, entry: &FdEntry, watch: &EpollWatch) -> Result<()> {
    const ANYTHING: u32 = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLPRI | libc::EPOLLRDHUP) as u32;
    let armed = EpollWatch {
        events: watch.events | ANYTHING,
        ..*watch
    };
    script.flush()?;
    let added = add_watch(script, entry, &armed)?;
    if script.run()?.result(added).is_err() {
        return Ok(());
    }
    let batch = script.room(1, 16)?;
    let told = batch.space(16).address;
    let wait = batch.call("epoll_wait", libc::SYS_epoll_wait, &[entry.fd.0 as u64, told, 1, 0]);
    if script.run()?.result(wait) != Ok(1) {
        let (instance, number) = (entry.fd.0 as u64, watch.fd.0 as u64);
        let remove = [instance, libc::EPOLL_CTL_DEL as u64, number, 0];
        script.must("epoll_ctl", libc::SYS_epoll_ctl, &remove)?;
        add_watch(script, entry, watch)?;
    }
    Ok(())
}

fn add_watch(script: &mut Script<'_>, entry: &FdEntry, watch: &EpollWatch) -> Result<CallId> {
    // struct epoll_event is packed: events, then data.
    let mut event = watch.events.to_le_bytes().to_vec();
    event.extend_from_slice(&watch.data.to_le_bytes());
    let batch = script.room(1, event.len())?;
    let event = batch.bytes(&event);
    let add = [
        entry.fd.0 as u64,
        libc::EPOLL_CTL_ADD as u64,
        watch.fd.0 as u64,
        event.address,
    ];
    let call = batch.call("epoll_ctl", libc::SYS_epoll_ctl, &add);
    // Another holder of the instance may have added it.
    script.tolerate(call, "watching a descriptor with epoll again", nix::Error::EEXIST);
    Ok(call)
}

/// Gives a process the memory of the rings (io_uring(7)) that it has mapped, and has it do
/// what nobody can do for it.
pub fn rings(
    script: &mut Script<'_>,
    restorer: i32,
    core: &Core,
    made: &HashMap<FileId, OwnedFd>,
    manifest: &Manifest,
) -> Result<()> {
    if uring::all(manifest).next().is_none() {
        return Ok(());
    }
    let process = &core.image.process;
    let numbers = free_numbers(&process.fds, restorer);
    let given = numbers[0];
    let room = Room::make(script, core)?;
    for (id, record) in uring::all(manifest) {
        let mapped = core.image.vmas.iter().filter_map(|vma| match vma.kind {
            VmaKind::Uring { memory, offset } if record.memories().contains(&memory) => Some((vma, offset)),
            _ => None,
        });
        let mapped: Vec<(&Vma, u64)> = mapped.collect();
        let own = Some(process.pid);
        let registered = record.registered.iter().filter(|(pid, _)| *pid == process.pid);
        let buffers = record.user == own && !record.buffers.is_empty();
        if mapped.is_empty() && record.submitter != own && !buffers && registered.clone().next().is_none() {
            continue;
        }
        take(script, restorer, made[&id].as_raw_fd(), given)?;
        for (vma, offset) in mapped {
            let (len, flags) = (vma.end - vma.start, (libc::MAP_SHARED | libc::MAP_POPULATE) as u64);
            script.must("munmap", libc::SYS_munmap, &[vma.start, len])?;
            let args = [0, len, u64::from(vma.prot), flags, given as u64, offset];
            let call = script.must("mmap", libc::SYS_mmap, &args)?;
            script.expect(call, "mapping an io_uring where it was", vma.start);
            advise(script, vma, Protect::All)?;
        }
        if record.submitter == own {
            issue(script, (restorer, numbers), record, id, made)?;
        }
        if buffers {
            register_buffers(script, given, record)?;
        }
        for (_, slot) in registered {
            let batch = script.room(1, 16)?;
            let argument = batch.words(&uring::ring_argument(*slot, given)).address;
            let args = [given as u64, u64::from(sys_uring::REGISTER_RING_FDS), argument, 1];
            batch.must("io_uring_register", libc::SYS_io_uring_register, &args);
        }
        script.must("close", libc::SYS_close, &[given as u64])?;
    }
    room.leave(script)
}

/// How many requests of each ring were made again.
pub type Again = HashMap<FileId, u32>;

/// Has a process submit what waited for a file, by its own rights and limits. From then on
/// descriptors may appear: nobody counts on a number being free any more.
pub fn wait_again(
    script: &mut Script<'_>,
    process: &ProcessRecord,
    made: &HashMap<FileId, OwnedFd>,
    manifest: &Manifest,
    again: &mut Again,
) -> Result<()> {
    let failed = || "cannot make a request of an io_uring again";
    let number = |file: FileId| {
        let entry = process.fds.iter().find(|entry| entry.file == file);
        entry.map(|entry| entry.fd.0).ok_or_else(|| Error::failed(failed()))
    };
    for (id, record) in uring::all(manifest) {
        let mut own = record
            .waiting
            .iter()
            .filter(|request| request.by == process.pid)
            .peekable();
        if own.peek().is_none() {
            continue;
        }
        let mut winder = Winder::wound(&made[&id], record).or_fail(failed)?;
        let nth = again.entry(id).or_default();
        script.flush()?;
        for request in own {
            winder.ready(*nth, request, number(request.file)?).or_fail(failed)?;
            let args = [number(id)? as u64, 1, 0, 0, 0, 0];
            let call = script.must("io_uring_enter", libc::SYS_io_uring_enter, &args)?;
            script.expect(call, "making a request of an io_uring again", 1);
            script.flush()?;
            winder.waits(request).or_fail(failed)?;
            *nth += 1;
        }
    }
    Ok(())
}

/// The kernel alone says where a ring is mapped, and takes no address: there is room nowhere
/// but where it is to be.
struct Room {
    filled: Vec<Span>,
}

impl Room {
    /// Fills all of an address space that is free, with what cannot be touched.
    fn make(script: &mut Script<'_>, core: &Core) -> Result<Room> {
        let is_ring = |vma: &&Vma| matches!(vma.kind, VmaKind::Uring { .. });
        let rings: Vec<Span> = core.image.vmas.iter().filter(is_ring).map(Span::from).collect();
        let mut free = Vec::new();
        if !rings.is_empty() {
            script.flush()?;
            free = holes(script.tid()).or_fail(|| format!("cannot read the mappings of pid {}", script.tid()))?;
        }
        for hole in &free {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
            let args = [hole.start, hole.len(), 0, flags as u64, u64::MAX, 0];
            script.must("mmap", libc::SYS_mmap, &args)?;
        }
        let filled = pages::without(&free, &rings);
        Ok(Room { filled })
    }

    fn leave(self, script: &mut Script<'_>) -> Result<()> {
        for span in &self.filled {
            script.must("munmap", libc::SYS_munmap, &[span.start, span.len()])?;
        }
        Ok(())
    }
}

/// What of an address space is free.
fn holes(pid: HostPid) -> std::io::Result<Vec<Span>> {
    let maps = proc::maps(pid)?;
    let used = maps.iter().map(|mapping| (mapping.start, mapping.end));
    let mut start = limits::ADDRESS_MIN;
    let mut holes = Vec::new();
    for (from, to) in used.chain([(limits::ADDRESS_END, limits::ADDRESS_END)]) {
        let end = from.min(limits::ADDRESS_END);
        if start < end {
            holes.push(Span { start, end });
        }
        start = start.max(to);
    }
    Ok(holes)
}

/// A ring of which this is the only thread: it enables it, and brings it to where it was.
fn issue(
    script: &mut Script<'_>,
    (restorer, [number, next]): (i32, [i32; 2]),
    record: &UringRecord,
    id: FileId,
    made: &HashMap<FileId, OwnedFd>,
) -> Result<()> {
    let failed = || "cannot make an io_uring again";
    let register = [number as u64, u64::from(sys_uring::REGISTER_ENABLE_RINGS), 0, 0];
    script.must("io_uring_register", libc::SYS_io_uring_register, &register)?;
    let mut winder = Winder::new(&made[&id], record).or_fail(failed)?;
    while let Some(count) = winder.step().or_fail(failed)? {
        let args = [number as u64, u64::from(count), 0, 0, 0, 0];
        let call = script.must("io_uring_enter", libc::SYS_io_uring_enter, &args)?;
        script.expect(call, "bringing an io_uring to where it was", u64::from(count));
        script.flush()?;
    }
    winder.put_back().or_fail(failed)?;
    if let Some(events) = &record.events {
        take(script, restorer, made[&events.file].as_raw_fd(), next)?;
        let (operation, words) = uring::events_argument(events, next);
        let batch = script.room(1, 8)?;
        let argument = batch.words(&words).address;
        let args = [number as u64, u64::from(operation), argument, 1];
        batch.must("io_uring_register", libc::SYS_io_uring_register, &args);
        script.must("close", libc::SYS_close, &[next as u64])?;
    }
    Ok(())
}

fn register_buffers(script: &mut Script<'_>, number: i32, record: &UringRecord) -> Result<()> {
    let buffers = &record.buffers;
    let batch = script.room(1, 24 * buffers.len() + 32)?;
    let pieces: Vec<u64> = buffers.iter().flat_map(|b| [b.address, b.bytes]).collect();
    let tags: Vec<u64> = buffers.iter().map(|buffer| buffer.tag).collect();
    let (pieces, tags) = (batch.words(&pieces).address, batch.words(&tags).address);
    let (words, size) = uring::resources(buffers.len(), pieces, tags);
    let argument = batch.words(&words).address;
    let args = [
        number as u64,
        u64::from(sys_uring::REGISTER_BUFFERS2),
        argument,
        u64::from(size),
    ];
    batch.must("io_uring_register", libc::SYS_io_uring_register, &args);
    Ok(())
}

/// The two lowest numbers that are free.
fn free_numbers(entries: &[FdEntry], restorer: i32) -> [i32; 2] {
    let is_free = |number: &i32| *number != restorer && !entries.iter().any(|entry| entry.fd.0 == *number);
    let mut free = (0..).filter(is_free);
    [(); 2].map(|()| free.next().unwrap_or(i32::MAX))
}

fn sorted(entries: &[FdEntry]) -> Vec<FdEntry> {
    let mut entries = entries.to_vec();
    entries.sort_by_key(|entry| entry.fd);
    entries
}

/// Locks that belong to a process are taken by it.
fn process_locks(script: &mut Script<'_>, process: &ProcessRecord, manifest: &Manifest) -> Result<()> {
    for entry in &process.fds {
        let locks = &manifest.files[entry.file.0 as usize].locks;
        let own = locks.iter().filter(|lock| lock.pid == process.pid);
        // The signal that tells of its break names the descriptor.
        let first = process
            .fds
            .iter()
            .filter(|other| other.file == entry.file)
            .map(|other| other.fd)
            .min();
        let leases = own.clone().filter(|lock| lock.kind == LockKind::Lease);
        for lease in leases.filter(|_| first == Some(entry.fd)) {
            const F_SETLEASE: u64 = 1024;
            let kind = if lease.write { libc::F_WRLCK } else { libc::F_RDLCK };
            let args = [entry.fd.0 as u64, F_SETLEASE, kind as u64];
            script.must("fcntl(F_SETLEASE)", libc::SYS_fcntl, &args)?;
        }
        for lock in own.filter(|lock| lock.kind == LockKind::Process) {
            let wanted = paths::as_flock(lock);
            let kinds = u64::from(wanted.l_type as u16) | (wanted.l_whence as u64) << 16;
            let batch = script.room(1, 32)?;
            let flock = batch.words(&[kinds, wanted.l_start as u64, wanted.l_len as u64, 0]);
            let args = [entry.fd.0 as u64, libc::F_SETLK as u64, flock.address];
            batch.must("fcntl(F_SETLK)", libc::SYS_fcntl, &args);
        }
    }
    Ok(())
}
