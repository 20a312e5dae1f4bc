//! Address spaces: which mapping is what, and the pages that must be kept.
//!
//! Read from `/proc/PID/smaps`, `/proc/PID/pagemap` and process_vm_readv(2).
//! A mapped file that has no name any more is kept whole, as shared memory is.
//! Guards (MADV_GUARD_INSTALL) are told by PAGEMAP_SCAN.
//! Refused: device memory, userfaultfd ranges, a program that has no name any
//! more.

use crate::error::{Error, OrFail, Result};
use crate::files;
use crate::frames::{Common, Frames};
use crate::hugetlb;
use crate::ids::{HostPid, ShmId};
use crate::image::mounts::Place;
use crate::image::records::{ExternalFile, Needs, ShmKind, ShmRecord, VMA_FLAGS, Vma, VmaKind};
use crate::image::{CoreWriter, Layout, Memory, Writer};
use crate::kernel;
use crate::mounts::Views;
use crate::namespaces::{Found, Kind as SpaceKind};
use crate::pages::{self, Closed, Copies, Held, Pages, Stock};
use crate::precopy::{Precopy, Watched};
use crate::proc::Mapping;
use crate::refusals::Refusals;
use crate::sys::memory::{self as sys, PAGE, Span};
use crate::sys::uring;
use nix::errno::Errno;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

/// Device and inode: the identity of a file.
pub type FileKey = (u64, u64);

/// Memory objects shared by mappings and descriptors of the app.
#[derive(Debug, Default)]
pub struct ShmTable {
    /// Segments of System V of two namespaces may have the same key.
    ids: HashMap<(FileKey, Option<u32>), ShmId>,
    entries: Vec<Object>,
    /// Objects that only we hold, open until they are stored.
    held: Vec<File>,
}

#[derive(Debug)]
struct Object {
    record: ShmRecord,
    /// A path in our /proc through which the content can be read.
    source: String,
    content: Content,
}

/// What an object holds, by the runs of its record.
#[derive(Debug)]
enum Content {
    Unread,
    File(File),
    Held(Vec<u8>),
}

impl ShmTable {
    /// The object of this identity, entered when new.
    pub fn enter(&mut self, key: FileKey, source: &str, kind: impl FnOnce() -> ShmKind) -> ShmId {
        self.enter_in(None, key, source, kind)
    }

    /// The same of one in an IPC namespace with this number.
    pub fn enter_in(
        &mut self,
        namespace: Option<u32>,
        key: FileKey,
        source: &str,
        kind: impl FnOnce() -> ShmKind,
    ) -> ShmId {
        if let Some(id) = self.ids.get(&(key, namespace)) {
            return *id;
        }
        let id = ShmId(self.entries.len() as u32);
        let record = ShmRecord {
            id,
            kind: kind(),
            namespace,
            bytes: fs::metadata(source).map_or(0, |meta| meta.len()),
            runs: Vec::new(),
            part: None,
            page_bytes: hugetlb::page_bytes(source),
        };
        self.ids.insert((key, namespace), id);
        self.entries.push(Object {
            record,
            source: source.to_owned(),
            content: Content::Unread,
        });
        id
    }

    /// Enters an object that neither a mapping nor a descriptor of the app holds.
    pub fn enter_held(&mut self, namespace: Option<u32>, file: File, kind: ShmKind) -> io::Result<ShmId> {
        let meta = file.metadata()?;
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        let id = self.enter_in(namespace, (meta.dev(), meta.ino()), &source, || kind);
        self.held.push(file);
        Ok(id)
    }

    pub fn records_mut(&mut self) -> impl Iterator<Item = &mut ShmRecord> {
        self.entries.iter_mut().map(|object| &mut object.record)
    }

    pub fn into_records(self) -> Vec<ShmRecord> {
        self.entries.into_iter().map(|object| object.record).collect()
    }

    /// Finds what every object holds; answers how much that is.
    pub fn look(&mut self) -> Result<u64> {
        for object in &mut self.entries {
            let failed = || format!("cannot read shared memory object {}", object.record.id);
            let file = File::open(&object.source).or_fail(failed)?;
            object.record.bytes = file.metadata().or_fail(failed)?.len();
            object.record.runs = match object.record.page_bytes {
                0 => file_runs(&file, object.record.bytes),
                huge => hugetlb::runs(&file, object.record.bytes, huge).or_fail(failed)?,
            };
            object.content = Content::File(file);
        }
        let runs = self.entries.iter().flat_map(|object| &object.record.runs);
        Ok(runs.map(|(_, length)| length).sum())
    }

    /// Copies the content of every object, which need not stand still afterwards.
    pub fn hold(&mut self) -> Result<()> {
        for object in &mut self.entries {
            let bytes: u64 = object.record.runs.iter().map(|(_, length)| length).sum();
            let mut held = Vec::with_capacity(bytes as usize);
            object.read(|bytes| {
                held.extend_from_slice(bytes);
                Ok(())
            })?;
            object.content = Content::Held(held);
        }
        Ok(())
    }

    /// Puts the content of every object into parts of the appshot.
    pub fn store(&mut self, writer: &Writer) -> Result<u64> {
        let mut stored = 0;
        for object in self.entries.iter_mut().filter(|object| !object.record.runs.is_empty()) {
            let name = format!("shm-{}.data", object.record.id);
            let mut part = writer.blob(&name)?;
            object.read(|bytes| {
                stored += bytes.len() as u64;
                part.write_all(bytes).or_fail(|| format!("cannot write {name}"))
            })?;
            part.finish()?;
            object.record.part = Some(name);
        }
        Ok(stored)
    }
}

impl Object {
    fn read(&self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let failed = || format!("cannot read shared memory object {}", self.record.id);
        let file = match &self.content {
            Content::Held(bytes) => return take(bytes),
            Content::File(file) => file,
            Content::Unread => return Err(Error::failed(failed())),
        };
        let mut buffer = vec![0; 1 << 20];
        for (offset, length) in &self.record.runs {
            for at in (*offset..offset + length).step_by(buffer.len()) {
                let len = (offset + length - at).min(buffer.len() as u64) as usize;
                file.read_exact_at(&mut buffer[..len], at).or_fail(failed)?;
                take(&buffer[..len])?;
            }
        }
        Ok(())
    }
}

/// Runs of data of a sparse file (lseek(2) SEEK_DATA).
fn file_runs(file: &File, size: u64) -> Vec<(u64, u64)> {
    use nix::unistd::{Whence, lseek};
    let mut runs = Vec::new();
    let mut at = 0;
    while at < size {
        let Ok(data) = lseek(file, at as i64, Whence::SeekData) else {
            break;
        };
        let hole = lseek(file, data, Whence::SeekHole).map_or(size, |h| h as u64);
        let start = data as u64;
        let end = hole.min(size);
        if end > start {
            runs.push((start, end - start));
        }
        at = hole;
    }
    runs
}

/// Files outside the appshot, by path.
#[derive(Debug, Default)]
pub struct Externals(BTreeMap<String, ExternalFile>);

impl Externals {
    /// Enters the file at `path`; `view` reaches it from here.
    pub fn enter(&mut self, path: &str, view: &str, must_equal: bool) {
        if let Some(known) = self.0.get_mut(path) {
            known.must_equal |= must_equal;
            return;
        }
        let Ok(meta) = fs::metadata(view) else { return };
        let file = ExternalFile {
            path: path.to_owned(),
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.len(),
            mtime_ns: meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
            build_id: if must_equal { build_id(view) } else { None },
            must_equal,
        };
        self.0.insert(path.to_owned(), file);
    }

    pub fn into_vec(self) -> Vec<ExternalFile> {
        self.0.into_values().collect()
    }

    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// The GNU build-id of an ELF file. Looks only at its first page, where linkers
/// put the note: the file may be huge.
pub fn build_id(path: &str) -> Option<String> {
    let mut head = Vec::new();
    File::open(path).ok()?.take(4096).read_to_end(&mut head).ok()?;
    parse_build_id(&head)
}

/// The build-id in the first page of a file, which may be anybody's.
pub fn parse_build_id(head: &[u8]) -> Option<String> {
    let header = goblin::elf::Elf::parse_header(head).ok()?;
    let ctx = goblin::container::Ctx::new(goblin::container::Container::Big, goblin::container::Endian::Little);
    let headers =
        goblin::elf::ProgramHeader::parse(head, header.e_phoff as usize, usize::from(header.e_phnum), ctx).ok()?;
    let mut elf = goblin::elf::Elf::lazy_parse(header).ok()?;
    elf.program_headers = headers;
    let mut notes = elf.iter_note_headers(head)?;
    notes.find_map(|note| {
        let note = note.ok().filter(|n| n.n_type == goblin::elf::note::NT_GNU_BUILD_ID)?;
        Some(note.desc.iter().map(|b| format!("{b:02x}")).collect())
    })
}

/// Everything that mappings are entered into.
#[derive(Debug)]
pub struct Tables {
    pub shm: ShmTable,
    pub external: Externals,
    /// Namespaces beside the app's own, once they are known.
    pub beside: Found,
    /// What is mounted in those of mounts.
    pub mounts: Views,
    /// Whose root directory names count from, as /proc tells them: the app's init, or ours.
    pub base: HostPid,
}

impl Tables {
    pub fn new(base: HostPid) -> Tables {
        // Found out before the app stands still.
        kernel::tells_guards();
        Tables {
            shm: ShmTable::default(),
            external: Externals::default(),
            beside: Found::default(),
            mounts: Views::default(),
            base,
        }
    }

    /// The namespaces beside the app's own have been found.
    pub fn open_beside(&mut self, beside: Found) -> Result<()> {
        self.mounts = Views::open(&beside, self.base)?;
        self.beside = beside;
        Ok(())
    }

    /// The mount namespace of a process, where that is not the app's own.
    pub fn mounts_of(&self, pid: HostPid) -> Option<u32> {
        self.beside.which(pid, SpaceKind::Mnt)
    }

    /// The same of a path in a mount namespace beside the app's own.
    pub fn view_in(&self, namespace: Option<u32>, path: &str) -> String {
        let beside = namespace.and_then(|number| self.mounts.view(number, path));
        beside.unwrap_or_else(|| self.view(path))
    }

    /// Enters a file with this path as one that must be there, by its path in the app's own mounts. Answers
    /// no where that leads to another file.
    pub fn enter_external(&mut self, namespace: Option<u32>, path: &str, must_equal: bool) -> bool {
        let view = self.view_in(namespace, path);
        let place = match namespace {
            Some(number) => self.mounts.place(number, path),
            None => Place::Own(path.to_owned()),
        };
        let Place::Own(own) = place else {
            return place == Place::Beside;
        };
        let key = |view: &str| fs::metadata(view).ok().map(|meta| (meta.dev(), meta.ino()));
        if namespace.is_some() && key(&view) != key(&self.view(&own)) {
            return false;
        }
        self.external.enter(&own, &view, must_equal);
        true
    }

    /// A path of the app, as /proc tells it, as it is reached from here: from the root of its
    /// mount namespace, whatever root a process has for itself.
    pub fn view(&self, path: &str) -> String {
        format!("/proc/{}/root{path}", self.base)
    }
}

/// Tells what each mapping is; what cannot be carried goes to `refusals`. `precopy`:
/// what is watched by us may be watched.
pub fn classify(
    pid: HostPid,
    mappings: &[Mapping],
    precopy: Option<&Precopy>,
    tables: &mut Tables,
    refusals: &mut Refusals,
) -> Vec<Vma> {
    let mut vmas = Vec::with_capacity(mappings.len());
    for mapping in mappings.iter().filter(|m| m.name != "[vsyscall]") {
        let ours = precopy.is_some_and(|precopy| precopy.watches(pid, mapping));
        match kind_of(pid, mapping, ours, tables) {
            Ok(kind) => vmas.push(Vma {
                start: mapping.start,
                end: mapping.end,
                prot: mapping.prot(),
                flags: kept_flags(mapping, &kind),
                huge_bytes: if kind == VmaKind::Anon { mapping.huge_bytes } else { 0 },
                guards: may_be_guarded(mapping).into_iter().collect(),
                policy: None,
                key: mapping.key,
                kind,
            }),
            Err((reason, fix)) => {
                let object = format!("mapping {:x}-{:x} ({})", mapping.start, mapping.end, mapping.name);
                refusals.add(pid, object, reason, fix);
            }
        }
    }
    vmas
}

/// The flag of smaps that parts of a mapping may be guarded.
pub const GUARDED: &str = "gu";

/// All of it, until it is looked at ([`find_guards`]): where the kernel does not tell, in any.
fn may_be_guarded(mapping: &Mapping) -> Option<(u64, u64)> {
    let may = mapping.has(GUARDED) || !kernel::tells_guards();
    may.then_some((mapping.start, mapping.end))
}

fn kept_flags(mapping: &Mapping, kind: &VmaKind) -> Vec<String> {
    if matches!(kind, VmaKind::Vvar | VmaKind::Vdso) {
        return Vec::new();
    }
    let kept = VMA_FLAGS.iter().filter(|flag| mapping.has(flag));
    kept.map(|flag| (*flag).to_owned()).collect()
}

type Refused = (&'static str, &'static str);

fn kind_of(pid: HostPid, mapping: &Mapping, ours: bool, tables: &mut Tables) -> Result<VmaKind, Refused> {
    let is_kernels = mapping.name.starts_with("[v") || mapping.name == files::uring::LINK;
    if mapping.key != 0 && is_kernels {
        return Err((
            "memory of the kernel with a protection key (pkeys)",
            "let the app give it no key",
        ));
    }
    match mapping.name.as_str() {
        "[vdso]" => return Ok(VmaKind::Vdso),
        "[vvar]" | "[vvar_vclock]" => return Ok(VmaKind::Vvar),
        _ => refuse_flags(mapping, ours)?,
    }
    if mapping.name.starts_with("/secretmem") {
        return Err((
            "memory that nobody but the app may read (memfd_secret)",
            "close and unmap it before the snapshot",
        ));
    }
    if mapping.name == files::uring::LINK {
        return ring_kind(pid, mapping);
    }
    if mapping.has(hugetlb::FLAG) && !hugetlb::are_told() {
        return Err((
            "this kernel does not tell which huge pages it has (userfaultfd, MADV_POPULATE_READ)",
            "run Linux 5.14 or later, or the app without hugetlb pages",
        ));
    }
    if mapping.name == hugetlb::ANONYMOUS && !mapping.shared {
        return Ok(VmaKind::Huge {
            page_bytes: mapping.page_bytes,
            had: Vec::new(),
        });
    }
    if mapping.ino == 0 && !mapping.name.starts_with('/') {
        return if mapping.shared {
            Err(("shared memory of an unknown kind", "end the user of this mapping first"))
        } else {
            Ok(VmaKind::Anon)
        };
    }
    let view = format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end);
    if let Some(kind) = shm_kind(mapping, &view) {
        let key = (
            nix::sys::stat::makedev(u64::from(mapping.dev.0), u64::from(mapping.dev.1)),
            mapping.ino,
        );
        let is_sysv = matches!(kind, ShmKind::Sysv { .. });
        let namespace = tables.beside.which(pid, SpaceKind::Ipc).filter(|_| is_sysv);
        let shm = tables.shm.enter_in(namespace, key, &view, || kind);
        return Ok(VmaKind::Shm {
            shm,
            offset: mapping.offset,
            private: !mapping.shared,
            read_only: mapping.shared && !mapping.has("mw"),
        });
    }
    file_kind(pid, mapping, tables)
}

fn refuse_flags(mapping: &Mapping, ours: bool) -> Result<(), Refused> {
    let refused = [
        (
            "ss",
            "shadow stacks are not carried yet",
            "run the app without shadow stacks (GLIBC_TUNABLES)",
        ),
        (
            "um",
            "a userfaultfd watches this range",
            "end its user before the snapshot",
        ),
        (
            "uw",
            "a userfaultfd write-protects this range",
            "end its user before the snapshot",
        ),
        (
            "ui",
            "a userfaultfd watches this range",
            "end its user before the snapshot",
        ),
        ("pf", "memory of a device", "close the device before the snapshot"),
        ("io", "memory of a device", "close the device before the snapshot"),
    ];
    match refused
        .iter()
        .find(|(flag, ..)| mapping.has(flag) && !(ours && *flag == "uw"))
    {
        Some((_, reason, fix)) => Err((reason, fix)),
        None => Ok(()),
    }
}

/// Which ring it is of is told by its first page.
fn ring_kind(pid: HostPid, mapping: &Mapping) -> Result<VmaKind, Refused> {
    const WHOLE: [u64; 3] = [uring::OFF_SQ_RING, uring::OFF_CQ_RING, uring::OFF_SQES];
    match files::uring::frame(pid, mapping.start).filter(|_| WHOLE.contains(&mapping.offset)) {
        Some(memory) => Ok(VmaKind::Uring {
            memory,
            offset: mapping.offset,
        }),
        None => Err((
            "a part of the memory of an io_uring",
            "let the app unmap it, or map all of it",
        )),
    }
}

fn shm_kind(mapping: &Mapping, view: &str) -> Option<ShmKind> {
    let name = mapping.name.strip_suffix(" (deleted)")?;
    if (name == "/dev/zero" || mapping.name == hugetlb::ANONYMOUS) && mapping.shared {
        return Some(ShmKind::Anon);
    }
    if let Some(name) = name.strip_prefix("/memfd:") {
        return Some(memfd_kind(name, view));
    }
    let key = name.strip_prefix("/SYSV")?;
    Some(ShmKind::Sysv {
        id: mapping.ino as i32,
        key: u32::from_str_radix(key, 16).ok()? as i32,
        mode: 0,
        uid: 0,
        gid: 0,
        cuid: 0,
        cgid: 0,
        removed: false,
        locked: false,
        asked_bytes: None,
    })
}

/// A memfd with its seals and mode, read through `view`.
pub fn memfd_kind(name: &str, view: &str) -> ShmKind {
    const F_GET_SEALS: i32 = 1034;
    let file = File::open(view).ok();
    let seals = file
        .as_ref()
        .map_or(0, |f| crate::sys::fd::fcntl(f.as_raw_fd(), F_GET_SEALS, 0).unwrap_or(0));
    ShmKind::Memfd {
        name: name.to_owned(),
        seals,
        mode: file
            .and_then(|f| f.metadata().ok())
            .map_or(0o777, |m| m.mode() & 0o7777),
    }
}

fn file_kind(pid: HostPid, mapping: &Mapping, tables: &mut Tables) -> Result<VmaKind, Refused> {
    let is_deleted = mapping.name.ends_with(" (deleted)");
    if mapping.has(hugetlb::FLAG) && (is_deleted || !mapping.shared) {
        return Err((
            "a private mapping of a file of huge pages (hugetlbfs), or of one that has no name any more",
            "let the app map it shared, and keep its name",
        ));
    }
    if is_deleted {
        return unlinked_kind(pid, mapping, tables);
    }
    if !mapping.name.starts_with('/') {
        return Err((
            "a mapping of a kernel object that is not carried",
            "close the object first",
        ));
    }
    let namespace = tables.mounts_of(pid);
    let view = tables.view_in(namespace, &mapping.name);
    let meta = fs::metadata(&view).map_err(|_| {
        (
            "the mapped file cannot be reached by its name",
            "restore the file's name",
        )
    })?;
    // The kernel makes anonymous memory of it, but keeps the name.
    if meta.rdev() == DEV_ZERO && meta.mode() & libc::S_IFMT == libc::S_IFCHR && !mapping.shared {
        let (path, offset) = (mapping.name.clone(), mapping.offset);
        return Ok(VmaKind::PrivateFile { path, offset });
    }
    if !meta.is_file() {
        return Err(("a mapping of a device", "close the device first"));
    }
    // Of namespaces of which one is another's copy both have the same.
    let is_of = |meta: &fs::Metadata| {
        let opened = fs::metadata(format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end));
        opened.is_ok_and(|opened| (opened.dev(), opened.ino()) == (meta.dev(), meta.ino()))
    };
    if meta.ino() != mapping.ino || namespace.is_some() && !is_of(&meta) {
        return Err((
            "the mapped file was replaced by another one",
            "restart the app after an upgrade of this file",
        ));
    }
    let path = mapping.name.clone();
    let offset = mapping.offset;
    if !tables.enter_external(namespace, &path, !mapping.shared) {
        return Err(COVERED);
    }
    Ok(if mapping.shared {
        VmaKind::SharedFile {
            path,
            offset,
            writable: mapping.has("mw"),
        }
    } else {
        VmaKind::PrivateFile { path, offset }
    })
}

const COVERED: Refused = (
    "a file that is covered in the app's own mounts",
    "let the app open it where nothing is mounted on it",
);

const DEV_ZERO: u64 = nix::sys::stat::makedev(1, 5);

fn unlinked_kind(pid: HostPid, mapping: &Mapping, tables: &mut Tables) -> Result<VmaKind, Refused> {
    let view = format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end);
    let unread = |_| {
        (
            "the mapped file has no name any more and cannot be read",
            "restart the app after an upgrade of this file",
        )
    };
    let meta = fs::metadata(&view).map_err(unread)?;
    let key = (meta.dev(), meta.ino());
    if fs::metadata(format!("/proc/{pid}/exe")).is_ok_and(|exe| (exe.dev(), exe.ino()) == key) {
        return Err((
            "the program has no name any more",
            "restart the app after an upgrade of its program",
        ));
    }
    let kind = unlinked(&mapping.name, &meta).ok_or((
        "the mapped file lost this name but has others",
        "give the file its name back",
    ))?;
    let shm = tables.shm.enter(key, &view, || kind);
    Ok(VmaKind::Shm {
        shm,
        offset: mapping.offset,
        private: !mapping.shared,
        read_only: mapping.shared && !mapping.has("mw"),
    })
}

/// A regular file of which no name is left; `link` is how /proc shows it.
pub fn unlinked(link: &str, meta: &fs::Metadata) -> Option<ShmKind> {
    let path = link
        .strip_suffix(" (deleted)")
        .filter(|_| meta.is_file() && meta.nlink() == 0)?;
    // The kernel calls one that never had a name by its number, which it will not have again.
    let (directory, name) = path.rsplit_once('/')?;
    let digits = name.strip_prefix('#').unwrap_or_default();
    let unnamed = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    Some(ShmKind::Unlinked {
        path: if unnamed {
            format!("{directory}/#")
        } else {
            path.to_owned()
        },
        unnamed,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime_ns: meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
    })
}

impl From<&Vma> for Span {
    fn from(vma: &Vma) -> Span {
        Span {
            start: vma.start,
            end: vma.end,
        }
    }
}

/// Executable mappings, the vdso first: it always holds a `syscall` instruction.
pub fn code(vmas: &[Vma]) -> Vec<Span> {
    let mut code: Vec<&Vma> = vmas.iter().filter(|v| v.prot & libc::PROT_EXEC as u32 != 0).collect();
    code.sort_by_key(|v| v.kind != VmaKind::Vdso);
    code.into_iter().map(Span::from).collect()
}

/// Whether the appshot holds pages of this mapping.
pub fn holds_pages(kind: &VmaKind) -> bool {
    matches!(
        kind,
        VmaKind::Anon | VmaKind::Huge { .. } | VmaKind::PrivateFile { .. } | VmaKind::Shm { private: true, .. }
    )
}

/// Finds the parts that nobody may touch of mappings that may have some, and which huge pages
/// there are, of a process that stands still.
pub fn find_parts(pid: HostPid, vmas: &mut [Vma]) -> Result<()> {
    let failed = || format!("cannot read the memory of pid {pid}");
    let pagemap = pages::pagemap(pid)?;
    for vma in vmas.iter_mut() {
        hugetlb::find(&pagemap, vma).or_fail(failed)?;
    }
    for vma in vmas.iter_mut().filter(|vma| !vma.guards.is_empty()) {
        let mut found = Vec::new();
        match sys::scan_guards(&pagemap, Span::from(&*vma), &mut found) {
            // Where there are any then, a page cannot be read.
            Err(Errno::EINVAL | Errno::ENOTTY) => {}
            told => told.or_fail(failed)?,
        }
        vma.guards = found.iter().map(|span| (span.start, span.end)).collect();
    }
    Ok(())
}

/// The private memory of a stopped process, as the appshot is to hold it.
#[derive(Debug, Default)]
pub struct Private {
    /// All of it, ascending, with its protection.
    kept: Vec<(Range<u64>, u32)>,
    /// Is as it was copied while the app ran.
    same: Vec<Span>,
    /// Was copied then, and has changed; some of it may be no more.
    changed: Vec<Span>,
    /// Must be read anew.
    fresh: Vec<Span>,
    /// The same, and others may share it.
    shared: Vec<Span>,
    /// The same, and the process itself may not read it.
    hidden: Vec<Span>,
    /// Is to be had from another process.
    common: Vec<Common>,
    copies: Copies,
}

impl Private {
    /// Finds it. `watched`: copied while it ran.
    pub fn look(pid: HostPid, vmas: &[Vma], watched: Option<&Watched>) -> Result<Private> {
        let failed = || format!("cannot read the memory of pid {pid}");
        let pagemap = pages::pagemap(pid)?;
        let mut private = Private::default();
        for vma in vmas {
            let whole = Span::from(vma);
            let readable = vma.prot & libc::PROT_READ as u32 != 0;
            let compared = watched
                .filter(|_| vma.kind == VmaKind::Anon && readable)
                .and_then(|watched| watched.compare(&pagemap, whole));
            let guards: Vec<Span> = vma.guards.iter().map(|&(start, end)| Span { start, end }).collect();
            if let Some(compared) = compared {
                let [same, changed] = [compared.same, compared.changed].map(|all| pages::without(&all, &guards));
                private.keep(&pages::union(&same, &changed), vma.prot);
                private.same.extend(same);
                private.changed.extend(changed);
                continue;
            }
            let mut found = Vec::new();
            if vma.kind == VmaKind::Vdso {
                // Kept whole, should another kernel have another one.
                found.push(whole);
            } else if holds_pages(&vma.kind) {
                let anonymous = matches!(vma.kind, VmaKind::Anon | VmaKind::Huge { .. });
                pages::find(&pagemap, whole, anonymous, &mut found).or_fail(failed)?;
                found = pages::without(&found, &guards);
            }
            private.keep(&found, vma.prot);
            match readable {
                true => private.fresh.extend(found),
                false => private.hidden.extend(found),
            }
        }
        Ok(private)
    }

    fn keep(&mut self, spans: &[Span], prot: u32) {
        self.kept.extend(spans.iter().map(|span| (span.start..span.end, prot)));
    }

    /// What others may have as well, ascending.
    pub fn sharable(&self) -> Vec<Span> {
        pages::union(&self.same, &self.fresh)
    }

    /// Leaves to others what they have in common with this process.
    pub fn leave(&mut self, Frames { common, shared }: &Frames) {
        let spans: Vec<Span> = common.iter().map(|common| common.span).collect();
        self.same = pages::without(&self.same, &spans);
        let fresh = pages::without(&self.fresh, &spans);
        self.fresh = pages::without(&fresh, shared);
        self.shared = pages::within(&fresh, shared);
        for (Range { start, end }, prot) in std::mem::take(&mut self.kept) {
            self.keep(&pages::without(&[Span { start, end }], &spans), prot);
        }
        self.common.extend_from_slice(common);
    }

    /// How much of it must be read while the process stands still.
    pub fn unread_bytes(&self) -> u64 {
        let unread = [&self.changed, &self.fresh, &self.shared, &self.hidden];
        unread.into_iter().flatten().map(Span::len).sum()
    }

    /// Copies what must be copied, or all, so that the process need not stand still.
    pub fn copy(&mut self, pid: HostPid, all: bool, stock: &mut Stock) -> Result<()> {
        let failed = || format!("cannot read the memory of pid {pid}");
        stock.copy(pid, &self.changed, &mut self.copies);
        let gone = pages::without(&std::mem::take(&mut self.changed), &self.copies.spans());
        if !gone.is_empty() {
            let kept = std::mem::take(&mut self.kept);
            for (Range { start, end }, prot) in kept {
                self.keep(&pages::without(&[Span { start, end }], &gone), prot);
            }
        }
        if !self.hidden.is_empty() {
            let mem = pages::mem(pid)?;
            for span in std::mem::take(&mut self.hidden).into_iter().flat_map(pages::pieces) {
                stock.copy_by_tracer(&mem, span, &mut self.copies).or_fail(failed)?;
            }
        }
        match all {
            true => {
                stock.copy_shared(pid, &std::mem::take(&mut self.shared), &mut self.copies)?;
                stock.copy_all(pid, &std::mem::take(&mut self.fresh), &mut self.copies)
            }
            false => Ok(()),
        }
    }

    /// Puts it into a core file; what was not copied is read until the writer has
    /// finished. `rounds`: copies of the time before, the newest last. `others`: where
    /// the pages of the processes before this one are. `go_on` is asked before each
    /// piece; its error ends it.
    pub fn store(
        self,
        pid: HostPid,
        core: &mut CoreWriter,
        rounds: &[Arc<Held>],
        stock: &Arc<Closed>,
        others: &[Layout],
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        core.retain(&self.kept)?;
        for Common { span, owner } in &self.common {
            core.borrow(span.start..span.end, &others[*owner])?;
        }
        let live: Arc<dyn Memory> = Arc::new(Pages::of_stopped(pid));
        let copies: Arc<dyn Memory> = Arc::new(self.copies.clone().held(stock));
        let mut sources = vec![(self.copies.spans(), copies), (self.fresh, live)];
        if !self.shared.is_empty() {
            let live: Arc<dyn Memory> = Arc::new(Pages::of_stopped(pid).shared()?);
            sources.push((self.shared, live));
        }
        let mut left = self.same;
        for round in rounds.iter().rev() {
            let newest = pages::within(&round.spans(), &left);
            left = pages::without(&left, &newest);
            let round: Arc<dyn Memory> = Arc::<Held>::clone(round);
            sources.push((newest, round));
        }
        let mut missing = Vec::new();
        for (spans, memory) in &sources {
            for piece in spans.iter().flat_map(|span| pages::pieces(*span)) {
                go_on()?;
                let new = core.replace(piece.start..piece.end, memory)?;
                missing.extend(new.into_iter().map(|span| (span, memory)));
            }
        }
        missing.sort_by_key(|(span, _)| span.start);
        let mut kept = self.kept.iter().peekable();
        for (mut span, memory) in missing {
            go_on()?;
            while !span.is_empty() {
                while kept.next_if(|(own, _)| own.end <= span.start).is_some() {}
                let (own, prot) = kept
                    .peek()
                    .ok_or_else(|| Error::failed("memory is stored that is not kept"))?;
                let end = own.end.min(span.end);
                core.memory(span.start..end, *prot, memory)?;
                span.start = end;
            }
        }
        Ok(())
    }
}

/// What this machine is, as an appshot states it.
pub fn needs(xsave: &[u8], vdso: &[u8]) -> Needs {
    let xcr0 = xsave
        .get(464..472)
        .map_or(0, |w| u64::from_le_bytes(w.try_into().unwrap_or_default()));
    Needs {
        arch: std::env::consts::ARCH.to_owned(),
        kernel_release: nix::sys::utsname::uname()
            .map_or_else(|_| String::new(), |u| u.release().to_string_lossy().into_owned()),
        page_size: PAGE,
        xsave_bytes: xsave.len() as u32,
        xcr0,
        vdso_blake3: blake3::hash(vdso).to_hex().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_id_is_read_from_a_shared_library() {
        let maps = crate::proc::mappings(HostPid(std::process::id() as i32)).unwrap();
        let libc = maps.iter().find(|m| m.name.contains("libc.so")).unwrap();
        assert_eq!(build_id(&libc.name).map(|id| id.len()), Some(40));
    }

    #[test]
    fn our_own_mappings_are_all_carried() {
        let pid = HostPid(std::process::id() as i32);
        let mappings = crate::proc::mappings(pid).unwrap();
        let mut refusals = Refusals::default();
        let vmas = classify(pid, &mappings, None, &mut Tables::new(pid), &mut refusals);
        assert_eq!(refusals.into_vec(), []);
        assert!(vmas.iter().any(|v| v.kind == VmaKind::Vdso));
    }
}
