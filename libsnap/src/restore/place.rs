//! Memory and descriptors of each process, put in place by its own husk.

use super::skeleton::Skeleton;
use super::vdso::Vdso;
use crate::error::{Error, OrFail, Result};
use crate::executor::{Batch, CallId};
use crate::files::paths;
use crate::ids::{FileId, HostPid, ShmId};
use crate::image::records::{
    EpollWatch, FdEntry, FileKind, LockKind, Manifest, ProcessRecord, ShmKind, ShmRecord, Vma, VmaKind,
};
use crate::image::{Appshot, Core, Segment};
use crate::ipc;
use crate::nsthread;
use crate::sys::{fd as sysfd, shm as sysshm};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// SCM_MAX_FD
const FDS_A_MESSAGE: usize = 253;
/// iovecs of one preadv: their arrays share a batch's payload with others.
const IOVECS_MAX: usize = 512;
/// Bytes of one preadv (the kernel stops at 2 GiB - 4096).
const READ_MAX: u64 = 1 << 30;

/// Objects that several processes of the app share.
#[derive(Debug)]
pub struct Shared {
    pub shm: HashMap<ShmId, OwnedFd>,
    /// New ids of System V segments are the old ones: their numbers were chosen.
    sysv: HashMap<ShmId, i32>,
}

impl Shared {
    pub fn make(shot: &Appshot, skeleton: &Skeleton) -> Result<Shared> {
        let mut shared = Shared {
            shm: HashMap::new(),
            sysv: HashMap::new(),
        };
        for record in &shot.manifest.shmem {
            match &record.kind {
                ShmKind::Sysv { id, .. } => {
                    make_sysv(shot, record, skeleton.any())?;
                    shared.sysv.insert(record.id, *id);
                }
                _ => {
                    shared.shm.insert(record.id, make_shm(shot, record, &skeleton.view())?);
                }
            }
        }
        Ok(shared)
    }
}

fn make_shm(shot: &Appshot, record: &ShmRecord, view: &str) -> Result<OwnedFd> {
    let failed = || format!("cannot make shared memory object {} again", record.id);
    const MFD_EXEC: u32 = 0x10;
    let fd = match &record.kind {
        ShmKind::Memfd { name, .. } => sysfd::memfd(name, libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | MFD_EXEC)
            .or_else(|_| sysfd::memfd(name, libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING))
            .or_fail(failed)?,
        ShmKind::Unlinked {
            path, mode, uid, gid, ..
        } => paths::make_unlinked(view, path, *mode, (*uid, *gid))?.into(),
        _ => sysshm::anonymous(record.bytes).or_fail(failed)?,
    };
    let file = File::from(fd);
    if matches!(record.kind, ShmKind::Memfd { .. } | ShmKind::Unlinked { .. }) {
        file.set_len(record.bytes).or_fail(failed)?;
    }
    fill(shot, record, |bytes, at| file.write_all_at(bytes, at)).or_fail(failed)?;
    if let ShmKind::Unlinked { mtime_ns, .. } = record.kind
        && let Ok(ns) = u64::try_from(mtime_ns)
    {
        let then = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(ns);
        file.set_times(std::fs::FileTimes::new().set_modified(then))
            .or_fail(failed)?;
    }
    if let ShmKind::Memfd { seals, mode, .. } = record.kind {
        const F_ADD_SEALS: i32 = 1033;
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(PermissionsExt::from_mode(mode)).or_fail(failed)?;
        if seals != 0 {
            sysfd::fcntl(file.as_raw_fd(), F_ADD_SEALS, i64::from(seals)).or_fail(failed)?;
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
fn make_sysv(shot: &Appshot, record: &ShmRecord, pid: HostPid) -> Result<()> {
    let failed = || format!("cannot make System V shared memory {} again", record.id);
    let ShmKind::Sysv {
        id,
        key,
        mode,
        uid,
        gid,
        cuid,
        cgid,
    } = record.kind
    else {
        return Ok(());
    };
    let made = nsthread::inside(pid, &["ipc"], || {
        let segment = ipc::create("shm", id, (cuid, cgid), || {
            sysshm::Segment::create(id, key, record.bytes, mode)
        })?;
        segment.set_owner(uid, gid, mode)?;
        let memory = segment.attach()?;
        fill(shot, record, |bytes, at| memory.write(bytes, at as usize))
    });
    made.or_fail(failed)?.or_fail(failed)
}

/// Builds the address space of process `at`.
pub fn memory(skeleton: &Skeleton, at: usize, core: &Core, shared: &Shared, view: &str, vdso: &Vdso) -> Result<()> {
    let image = &core.image;
    clear(skeleton, at)?;
    vdso.place(skeleton, at, &image.vmas)?;
    let sources = Sources::open(core, shared, view)?;
    let numbers = sources.pass(skeleton, at)?;
    let mut mapper = Mapper {
        skeleton,
        at,
        batch: skeleton.batch(),
        results: Vec::new(),
        bridged: vdso.is_bridge(),
    };
    for vma in &image.vmas {
        mapper.map(vma, core, &sources, &numbers, shared)?;
    }
    // The kernel's own vdso holds its pages already.
    let kept = image
        .vmas
        .iter()
        .find(|vma| vma.kind == VmaKind::Vdso && !vdso.is_bridge());
    let in_kept = |s: &&Segment| !kept.is_some_and(|vma| vma.start <= s.vaddr && s.vaddr < vma.end);
    let segments: Vec<Segment> = core.segments.iter().filter(in_kept).copied().collect();
    mapper.fill(&segments, numbers[0])?;
    for vma in image.vmas.iter().filter(|vma| kept != Some(*vma)) {
        mapper.finish(vma, has_pages(core, vma))?;
    }
    mapper.marks(&image.process, numbers[1])?;
    mapper.flush()?;
    vdso.patch(skeleton, at)?;
    close_all(skeleton, at)
}

/// Unmaps everything of the husk but the executor and what the kernel provides.
fn clear(skeleton: &Skeleton, at: usize) -> Result<()> {
    let own = skeleton.executor.span();
    let mut batch = skeleton.batch();
    for mapping in &skeleton.layout {
        let executor = mapping.start >= own.start && mapping.end <= own.end;
        if !executor && !["[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]"].contains(&mapping.name.as_str()) {
            batch.must(
                "munmap",
                libc::SYS_munmap,
                &[mapping.start, mapping.end - mapping.start],
            );
        }
    }
    skeleton.run(at, &mut batch).map(drop)
}

/// Files that mappings come from: the core file first, then the program, then
/// one for each distinct mapped file or object.
struct Sources {
    files: Vec<OwnedFd>,
    paths: HashMap<(String, bool), usize>,
    objects: HashMap<ShmId, usize>,
}

impl Sources {
    fn open(core: &Core, shared: &Shared, view: &str) -> Result<Sources> {
        let image = &core.image;
        let own = core.file.try_clone().or_fail(|| "cannot duplicate a descriptor")?;
        let exe = paths::open_mapped(view, &image.process.exe, false)?;
        let mut sources = Sources {
            files: vec![own.into(), exe.into()],
            paths: HashMap::new(),
            objects: HashMap::new(),
        };
        for vma in &image.vmas {
            match &vma.kind {
                VmaKind::PrivateFile { path, .. } => sources.add(view, path, false)?,
                VmaKind::SharedFile { path, writable, .. } => sources.add(view, path, *writable)?,
                VmaKind::Shm { shm, .. } => sources.add_object(*shm, shared)?,
                _ => {}
            }
        }
        Ok(sources)
    }

    fn add(&mut self, view: &str, path: &str, write: bool) -> Result<()> {
        let key = (path.to_owned(), write);
        if !self.paths.contains_key(&key) {
            self.paths.insert(key, self.files.len());
            self.files.push(paths::open_mapped(view, path, write)?.into());
        }
        Ok(())
    }

    fn add_object(&mut self, shm: ShmId, shared: &Shared) -> Result<()> {
        let Some(object) = shared.shm.get(&shm) else {
            return Ok(());
        };
        if !self.objects.contains_key(&shm) {
            self.objects.insert(shm, self.files.len());
            // Opened anew, as for one mapping alone: read-only if it is sealed.
            self.files
                .push(sysshm::reopen(object).or_fail(|| "cannot open shared memory again")?);
        }
        Ok(())
    }

    /// Passes them on; answers their numbers in the husk.
    fn pass(&self, skeleton: &Skeleton, at: usize) -> Result<Vec<i32>> {
        let borrowed: Vec<BorrowedFd<'_>> = self.files.iter().map(AsFd::as_fd).collect();
        let mut numbers = Vec::new();
        for group in borrowed.chunks(FDS_A_MESSAGE) {
            numbers.extend(pass(skeleton, at, group)?);
        }
        Ok(numbers)
    }
}

/// Sends descriptors to a husk, which receives them under its lowest free numbers.
fn pass(skeleton: &Skeleton, at: usize, fds: &[BorrowedFd<'_>]) -> Result<Vec<i32>> {
    let failed = || "cannot pass descriptors to a new process";
    sysfd::send_fds(&skeleton.socket, fds).or_fail(failed)?;
    let mut batch = skeleton.batch();
    let byte = batch.space(8);
    let iov = batch.words(&[byte.address, 1]);
    let control = batch.space(16 + 4 * fds.len().next_multiple_of(2));
    let control_len = 16 + 4 * fds.len() as u64;
    let header = batch.words(&[0, 0, iov.address, 1, control.address, control_len, 0]);
    let number = skeleton.socket_number as u64;
    batch.must("recvmsg", libc::SYS_recvmsg, &[number, header.address, 0]);
    skeleton.run(at, &mut batch)?;
    let bytes = &batch.read(control)[16..];
    let numbers = bytes.as_chunks::<4>().0.iter().map(|c| i32::from_le_bytes(*c));
    Ok(numbers.take(fds.len()).collect())
}

/// Closes every descriptor of a husk but its socket.
fn close_all(skeleton: &Skeleton, at: usize) -> Result<()> {
    let socket = skeleton.socket_number as u64;
    let mut batch = skeleton.batch();
    if socket > 0 {
        batch.must("close_range", libc::SYS_close_range, &[0, socket - 1, 0]);
    }
    batch.must(
        "close_range",
        libc::SYS_close_range,
        &[socket + 1, u64::from(u32::MAX), 0],
    );
    skeleton.run(at, &mut batch).map(drop)
}

fn has_pages(core: &Core, vma: &Vma) -> bool {
    let first = core.segments.partition_point(|s| s.vaddr + s.bytes <= vma.start);
    core.segments.get(first).is_some_and(|s| s.vaddr < vma.end)
}

/// Mapping calls of one process, flushed when a batch is full.
struct Mapper<'a> {
    skeleton: &'a Skeleton,
    at: usize,
    batch: Batch,
    /// Reads whose length must be checked.
    results: Vec<(CallId, u64)>,
    /// The app's vdso is memory like any other.
    bridged: bool,
}

impl Mapper<'_> {
    fn room(&mut self, payload: usize) -> Result<()> {
        if self.batch.has_room(8, payload) {
            Ok(())
        } else {
            self.flush()
        }
    }

    fn flush(&mut self) -> Result<()> {
        let mut batch = std::mem::replace(&mut self.batch, self.skeleton.batch());
        if batch.is_empty() {
            return Ok(());
        }
        self.skeleton.run(self.at, &mut batch)?;
        for (call, wanted) in self.results.drain(..) {
            let got = batch.result(call).or_fail(|| "cannot read memory back")?;
            if got != wanted {
                return Err(Error::failed(format!(
                    "only {got} of {wanted} bytes of memory could be read back"
                )));
            }
        }
        Ok(())
    }

    fn map(&mut self, vma: &Vma, core: &Core, sources: &Sources, numbers: &[i32], shared: &Shared) -> Result<()> {
        self.room(0)?;
        let len = vma.end - vma.start;
        let fixed = libc::MAP_FIXED_NOREPLACE;
        let (flags, fd, offset) = match &vma.kind {
            VmaKind::Vvar => return Ok(()),
            VmaKind::Vdso if !self.bridged => return Ok(()),
            VmaKind::Anon | VmaKind::Vdso => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
            VmaKind::PrivateFile { path, offset } => (
                libc::MAP_PRIVATE,
                numbers[sources.paths[&(path.clone(), false)]],
                *offset,
            ),
            VmaKind::SharedFile { path, offset, writable } => (
                libc::MAP_SHARED,
                numbers[sources.paths[&(path.clone(), *writable)]],
                *offset,
            ),
            VmaKind::Shm { shm, .. } if shared.sysv.contains_key(shm) => return self.attach(vma, shared.sysv[shm]),
            VmaKind::Shm { shm, offset, private } => {
                let kind = if *private { libc::MAP_PRIVATE } else { libc::MAP_SHARED };
                (kind, numbers[sources.objects[shm]], *offset)
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
        // Pages are read in by the process itself: it must be able to write them.
        let prot = vma.prot
            | if has_pages(core, vma) {
                libc::PROT_WRITE as u32
            } else {
                0
            };
        let args = [vma.start, len, u64::from(prot), flags as u64, fd as i64 as u64, offset];
        self.batch.must("mmap", libc::SYS_mmap, &args);
        Ok(())
    }

    /// shmat at the same address; one segment is attached whole.
    fn attach(&mut self, vma: &Vma, id: i32) -> Result<()> {
        const SHM_RDONLY: u64 = 0o10000;
        let flags = if vma.prot & libc::PROT_WRITE as u32 == 0 {
            SHM_RDONLY
        } else {
            0
        };
        self.batch
            .must("shmat", libc::SYS_shmat, &[id as u64, vma.start, flags]);
        Ok(())
    }

    /// Reads the stored pages in, many runs a call: they lie back to back.
    fn fill(&mut self, segments: &[Segment], core: i32) -> Result<()> {
        let pieces: Vec<Segment> = segments.iter().flat_map(split).collect();
        let mut rest = pieces.as_slice();
        while let Some(first) = rest.first() {
            let mut total = 0;
            let adjoining = rest.iter().take(IOVECS_MAX).take_while(|s| {
                let fits = s.offset == first.offset + total && total + s.bytes <= READ_MAX;
                total += if fits { s.bytes } else { 0 };
                fits
            });
            let count = adjoining.count();
            self.read(&rest[..count], core, first.offset, total)?;
            rest = &rest[count..];
        }
        Ok(())
    }

    fn read(&mut self, runs: &[Segment], core: i32, offset: u64, total: u64) -> Result<()> {
        self.room(16 * runs.len())?;
        let words: Vec<u64> = runs.iter().flat_map(|run| [run.vaddr, run.bytes]).collect();
        let iov = self.batch.words(&words);
        let args = [core as u64, iov.address, runs.len() as u64, offset, 0];
        let call = self.batch.must("preadv", libc::SYS_preadv, &args);
        self.results.push((call, total));
        Ok(())
    }

    /// Protection and advice, once the pages are in.
    fn finish(&mut self, vma: &Vma, filled: bool) -> Result<()> {
        self.room(0)?;
        let len = vma.end - vma.start;
        if filled && vma.prot & libc::PROT_WRITE as u32 == 0 {
            self.batch
                .must("mprotect", libc::SYS_mprotect, &[vma.start, len, u64::from(vma.prot)]);
        }
        for flag in &vma.flags {
            match advice(flag) {
                Some(Advice::Madvise(advice)) => {
                    self.batch
                        .must("madvise", libc::SYS_madvise, &[vma.start, len, advice as u64]);
                }
                Some(Advice::Lock) => {
                    let on_fault = u64::from(vma.flags.iter().any(|f| f == "lf"));
                    self.batch.must("mlock2", libc::SYS_mlock2, &[vma.start, len, on_fault]);
                }
                None => {}
            }
        }
        Ok(())
    }

    /// The marks that /proc and brk go by, and the program the process runs.
    fn marks(&mut self, process: &ProcessRecord, exe: i32) -> Result<()> {
        const PR_SET_MM_MAP: u64 = 14;
        let mm = &process.mm;
        self.room(8 * mm.auxv.len() + 128)?;
        let auxv = self.batch.words(&mm.auxv);
        let sizes = (mm.auxv.len() as u64 * 8) | (exe as u64) << 32;
        let map = self.batch.words(&[
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
        self.batch.must(
            "prctl(PR_SET_MM_MAP)",
            libc::SYS_prctl,
            &[libc::PR_SET_MM as u64, PR_SET_MM_MAP, map.address, 104, 0],
        );
        Ok(())
    }
}

/// Pieces small enough for one call.
fn split(segment: &Segment) -> impl Iterator<Item = Segment> + use<> {
    let (vaddr, offset, bytes) = (segment.vaddr, segment.offset, segment.bytes);
    (0..bytes).step_by(READ_MAX as usize).map(move |at| Segment {
        vaddr: vaddr + at,
        offset: offset + at,
        bytes: (bytes - at).min(READ_MAX),
    })
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

/// Gives process `at` its descriptors, then what depends on their numbers.
pub fn descriptors(
    skeleton: &Skeleton,
    at: usize,
    process: &ProcessRecord,
    made: &HashMap<FileId, OwnedFd>,
    manifest: &Manifest,
) -> Result<()> {
    let mut entries = process.fds.clone();
    // Received numbers are the lowest free ones: in ascending order none is
    // higher than where it belongs, so moving from the last to the first never
    // meets one that is still to be moved.
    entries.sort_by_key(|entry| entry.fd);
    for group in entries.chunks(FDS_A_MESSAGE) {
        let fds: Vec<BorrowedFd<'_>> = group.iter().map(|entry| made[&entry.file].as_fd()).collect();
        let numbers = pass(skeleton, at, &fds)?;
        let mut batch = skeleton.batch();
        for (entry, number) in group.iter().zip(&numbers).rev() {
            put(&mut batch, entry, *number);
        }
        skeleton.run(at, &mut batch)?;
    }
    watches(skeleton, at, &entries, manifest)?;
    watches_away(skeleton, at, &entries, made, manifest)?;
    process_locks(skeleton, at, process, manifest)
}

fn put(batch: &mut Batch, entry: &FdEntry, number: i32) {
    let (from, to) = (number as u64, entry.fd.0 as u64);
    if from == to {
        let flag = u64::from(entry.cloexec);
        batch.must("fcntl(F_SETFD)", libc::SYS_fcntl, &[from, libc::F_SETFD as u64, flag]);
        return;
    }
    let flags = if entry.cloexec { libc::O_CLOEXEC as u64 } else { 0 };
    batch.must("dup3", libc::SYS_dup3, &[from, to, flags]);
    batch.must("close", libc::SYS_close, &[from]);
}

/// Adds what this process's epoll instances watch. An instance that several
/// processes hold is filled by the first that has all the files under the numbers.
fn watches(skeleton: &Skeleton, at: usize, entries: &[FdEntry], manifest: &Manifest) -> Result<()> {
    for entry in entries {
        let FileKind::Epoll { watches } = &manifest.files[entry.file.0 as usize].kind else {
            continue;
        };
        let mut batch = skeleton.batch();
        let mut added = Vec::new();
        for watch in watches {
            if watch.away || !entries.iter().any(|e| e.fd == watch.fd && e.file == watch.file) {
                continue;
            }
            added.push(add_watch(&mut batch, entry, watch));
            if !batch.has_room(8, 64) {
                add_watches(skeleton, at, &mut batch, &mut added)?;
            }
        }
        add_watches(skeleton, at, &mut batch, &mut added)?;
    }
    Ok(())
}

/// Adds what is watched through a number that names another file now, or none:
/// the watched file has the number while it is added.
fn watches_away(
    skeleton: &Skeleton,
    at: usize,
    entries: &[FdEntry],
    made: &HashMap<FileId, OwnedFd>,
    manifest: &Manifest,
) -> Result<()> {
    for entry in entries {
        let FileKind::Epoll { watches } = &manifest.files[entry.file.0 as usize].kind else {
            continue;
        };
        for watch in watches.iter().filter(|w| w.away) {
            let [number] = pass(skeleton, at, &[made[&watch.file].as_fd()])?[..] else {
                return Err(Error::failed("a descriptor did not arrive in a new process"));
            };
            let (given, wanted) = (number as u64, watch.fd.0 as u64);
            let user = entries.iter().find(|e| e.fd == watch.fd);
            let aside = skeleton.socket_number as u64 + 2;
            let mut batch = skeleton.batch();
            if user.is_some() {
                batch.must("dup3", libc::SYS_dup3, &[wanted, aside, 0]);
            }
            if given != wanted {
                batch.must("dup3", libc::SYS_dup3, &[given, wanted, 0]);
                batch.must("close", libc::SYS_close, &[given]);
            }
            let mut added = vec![add_watch(&mut batch, entry, watch)];
            match user {
                Some(user) => put(&mut batch, user, aside as i32),
                None => {
                    batch.must("close", libc::SYS_close, &[wanted]);
                }
            }
            add_watches(skeleton, at, &mut batch, &mut added)?;
        }
    }
    Ok(())
}

fn add_watch(batch: &mut Batch, entry: &FdEntry, watch: &EpollWatch) -> CallId {
    // struct epoll_event is packed: events, then data.
    let mut event = watch.events.to_le_bytes().to_vec();
    event.extend_from_slice(&watch.data.to_le_bytes());
    let event = batch.bytes(&event);
    let add = [
        entry.fd.0 as u64,
        libc::EPOLL_CTL_ADD as u64,
        watch.fd.0 as u64,
        event.address,
    ];
    batch.call("epoll_ctl", libc::SYS_epoll_ctl, &add)
}

fn add_watches(skeleton: &Skeleton, at: usize, batch: &mut Batch, added: &mut Vec<CallId>) -> Result<()> {
    skeleton.run(at, batch)?;
    for call in added.drain(..) {
        match batch.result(call) {
            // Another holder of the instance has added it.
            Ok(_) | Err(nix::Error::EEXIST) => {}
            Err(errno) => return Err(Error::failed("cannot watch a descriptor with epoll again").because(errno)),
        }
    }
    *batch = skeleton.batch();
    Ok(())
}

/// Locks that belong to a process are taken by it.
fn process_locks(skeleton: &Skeleton, at: usize, process: &ProcessRecord, manifest: &Manifest) -> Result<()> {
    let mut batch = skeleton.batch();
    for entry in &process.fds {
        let locks = &manifest.files[entry.file.0 as usize].locks;
        for lock in locks
            .iter()
            .filter(|l| l.kind == LockKind::Process && l.pid == process.pid)
        {
            let wanted = paths::as_flock(lock);
            let kinds = u64::from(wanted.l_type as u16) | (wanted.l_whence as u64) << 16;
            let flock = batch.words(&[kinds, wanted.l_start as u64, wanted.l_len as u64, 0]);
            batch.must(
                "fcntl(F_SETLK)",
                libc::SYS_fcntl,
                &[entry.fd.0 as u64, libc::F_SETLK as u64, flock.address],
            );
        }
    }
    skeleton.run(at, &mut batch).map(drop)
}
