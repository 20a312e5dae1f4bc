//! Files with a name: regular files, directories, devices without state; memfds;
//! advisory locks; and what stands in for files outside the app.
//!
//! Opened again by path inside the app's root, with their offset and flags. A
//! regular file that has no name any more is kept whole and made anew in its
//! directory; its descriptions are opened through /proc/self/fd.
//! Refused: files that lost one name of several, devices with state, leases that are broken,
//! secret memory.

use super::{Builder, Context, Description, Refused, refused};
use crate::error::{Error, OrFail, Result};
use crate::hugetlb;
use crate::ids::{FileId, HostPid, ShmId, VirtualPid};
use crate::image::records::{FileKind, FileLock, LockKind, OpenFile, ShmKind};
use crate::memory::{self, Tables};
use crate::namespaces;
use crate::nsthread;
use crate::proc;
use crate::sys::fd as sysfd;
use crate::target::Stdio;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Flags that make or change a file when it is opened: not for opening again.
pub(super) const ONCE: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOCTTY;
/// Devices of the kernel's memory driver: null, zero, full, random, urandom. Others
/// of it are the machine's memory and its log.
const MEMORY_DEVICES: u64 = 1;
/// `NSFS_MAGIC`
const NSFS: i64 = 0x6e73_6673;
const MEMORY_MINORS: [u64; 5] = [3, 5, 7, 8, 9];

pub fn capture(context: &Context<'_>, description: &Description, tables: &mut Tables) -> Result<FileKind, Refused> {
    let found = &description.found;
    if nix::sys::statfs::fstatfs(&description.dup).is_ok_and(|fs| fs.filesystem_type().0 == NSFS) {
        return namespace(context, description, tables);
    }
    if found.link.starts_with("/secretmem") {
        return refused(
            "memory that nobody but the app may read (memfd_secret)",
            "close and unmap it before the snapshot",
        );
    }
    let namespace = tables.mounts.of(&found.info);
    let view = tables.view_in(namespace, &found.link);
    let same =
        looked_up(&view, &found.link, at_home(context, tables)).is_ok_and(|meta| (meta.dev(), meta.ino()) == found.key);
    if !same && let Some(kind) = unlinked(description, tables) {
        if namespace.is_some() {
            return refused(
                "a file without a name in a mount namespace that a process has made for itself",
                "close it before the snapshot",
            );
        }
        return Ok(kind);
    }
    if !same && found.link.starts_with(SETTINGS) {
        return refused(
            "a setting of the kernel that is another one in the app's own namespaces",
            "close it before the snapshot",
        );
    }
    if !same {
        return refused(
            "the name by which it was opened is gone, or another file has taken it",
            "let the app close it, or give the file its name back",
        );
    }
    if found.link.starts_with(SYSVIPC) && found.flags & libc::O_PATH == 0 && found.mode & libc::S_IFMT == libc::S_IFREG
    {
        return refused(
            "a table of System V objects, which shows the IPC namespace of who opened it: that cannot be told",
            "close it before the snapshot",
        );
    }
    if tells_of_a_part(&found.link) {
        return refused(
            "a file of /proc that tells of a thread, a descriptor or a mapping, which come after it in a restore",
            "close it before the snapshot",
        );
    }
    match found.mode & libc::S_IFMT {
        libc::S_IFREG => {
            let reading = found.flags & (libc::O_ACCMODE | libc::O_PATH) == libc::O_RDONLY;
            if !reading
                && context
                    .options
                    .log
                    .as_deref()
                    .is_some_and(|log| log == Path::new(&found.link))
            {
                return Ok(FileKind::Outside {
                    what: "its log".to_owned(),
                });
            }
            let kernel = found.link.starts_with("/proc/") || found.link.starts_with("/sys/");
            if !kernel && !tables.enter_external(namespace, &found.link, reading) {
                return refused(
                    "a file that is covered in the app's own mounts",
                    "close it before the snapshot",
                );
            }
        }
        libc::S_IFDIR => {}
        libc::S_IFCHR if fs::metadata(&view).is_ok_and(|meta| is_memory_device(&meta)) => {}
        _ => {
            return refused(
                "a device or special file whose state is not carried",
                "close it before the snapshot",
            );
        }
    }
    Ok(FileKind::Path {
        path: found.link.clone(),
        offset: found.pos,
        namespace,
    })
}

/// Where the kernel's settings stand (proc_sys(5)), of which those of a network and of System V IPC are other
/// files to whoever is in another namespace; by Linux 6.14 so is pid_max, and no thread changes that one of
/// its namespaces.
const SETTINGS: &str = "/proc/sys/";

/// Tables of System V objects (sysvipc(7)), each of the namespace in which it was opened (`ipc/util.c`).
const SYSVIPC: &str = "/proc/sysvipc/";

fn looked_up(view: &str, link: &str, pid: HostPid) -> std::io::Result<fs::Metadata> {
    match link.starts_with(SETTINGS) {
        true => nsthread::inside(pid, &["ipc", "net"], || fs::symlink_metadata(view))?,
        false => fs::symlink_metadata(view),
    }
}

/// A process whose namespaces are the app's own, as far as there is one.
fn at_home(context: &Context<'_>, tables: &Tables) -> HostPid {
    let mut members = context.members.iter().map(|member| member.pid);
    members.find(|pid| tables.beside.is_home(*pid)).unwrap_or(tables.base)
}

/// A namespace that was opened by its link (namespaces(7)).
fn namespace(context: &Context<'_>, description: &Description, tables: &Tables) -> Result<FileKind, Refused> {
    let link = description.found.link.as_str();
    let number = tables.beside.by_link(link);
    let home = at_home(context, tables);
    let is_own = |name: &str| proc::link(home, &format!("ns/{name}")).is_ok_and(|own| own == link);
    let name = link.split(':').next().unwrap_or_default();
    match namespaces::OPENED.contains(&name) && (number.is_some() || is_own(name)) {
        true => Ok(FileKind::Namespace {
            name: name.to_owned(),
            number,
        }),
        false => refused(
            "a namespace in which no process of the app is, or one of time or of future children",
            "close it before the snapshot",
        ),
    }
}

pub fn restore_namespace(builder: &Builder<'_>, name: &str, number: Option<u32>, flags: i32) -> Result<OwnedFd> {
    let link = match number {
        Some(number) => format!("/proc/self/fd/{}", builder.namespaces[number as usize].as_raw_fd()),
        None if name == "net" => builder.network.clone(),
        None => format!("/proc/{}/ns/{name}", builder.base),
    };
    open_again(&link, flags & !libc::O_NOFOLLOW).or_fail(|| format!("cannot open a {name} namespace for the app again"))
}

/// Whether this is a file of /proc about something that a process has.
fn tells_of_a_part(link: &str) -> bool {
    let mut names = link.strip_prefix("/proc/").unwrap_or_default().split('/');
    let (process, kind, part) = (names.next(), names.next(), names.next());
    match (kind, part) {
        (Some("fdinfo" | "map_files"), Some(_)) => true,
        // The first thread is there with its process.
        (Some("task"), part @ Some(_)) => part != process,
        _ => false,
    }
}

/// A regular file of which no name is left.
fn unlinked(description: &Description, tables: &mut Tables) -> Option<FileKind> {
    let found = &description.found;
    let meta = File::from(description.dup.try_clone().ok()?).metadata().ok()?;
    let huge = hugetlb::page_bytes(&format!("/proc/self/fd/{}", description.dup.as_raw_fd())) != 0;
    let kind = memory::unlinked(&found.link, &meta).filter(|_| !huge)?;
    let shm = enter(description, tables, |_| kind)?;
    Some(FileKind::Unlinked { shm, offset: found.pos })
}

/// Enters a file whose content is kept. What is in flight only is known by a number of ours:
/// it is held until its content has been read.
fn enter(description: &Description, tables: &mut Tables, kind: impl FnOnce(&str) -> ShmKind) -> Option<ShmId> {
    let found = &description.found;
    let view = format!("/proc/{}/fd/{}", found.pid, found.fd);
    if found.pid.0 as u32 == std::process::id() {
        let held = File::from(description.dup.try_clone().ok()?);
        return tables.shm.enter_held(None, held, kind(&view)).ok();
    }
    Some(tables.shm.enter(found.key, &view, || kind(&view)))
}

/// Another description of an unlinked file that was made again. `opened`: this one was
/// opened when it was made.
pub fn restore_unlinked(
    builder: &Builder<'_>,
    shm: ShmId,
    offset: u64,
    flags: i32,
    opened: Option<OwnedFd>,
) -> Result<OwnedFd> {
    let source = builder
        .shm
        .get(&shm)
        .ok_or_else(|| Error::failed(format!("unlinked file {shm} is missing")))?;
    let failed = || format!("cannot open unlinked file {shm} again");
    // The link in /proc must be followed, and what it leads to exists.
    let again = || open_again(source, flags & !(libc::O_TMPFILE | libc::O_NOFOLLOW));
    let opened = opened.map_or_else(again, Ok).or_fail(failed)?;
    if flags & libc::O_PATH == 0 {
        use nix::unistd::{Whence, lseek};
        lseek(&opened, i64::try_from(offset).or_fail(failed)?, Whence::SeekSet).or_fail(failed)?;
    }
    Ok(opened)
}

/// A file that has no name, and those of its descriptions that nobody can open by a link in
/// /proc: by O_NOFOLLOW, or by the O_TMPFILE that made it.
#[derive(Debug)]
pub struct Unlinked {
    pub file: File,
    pub opened: Vec<(FileId, OwnedFd)>,
}

/// Makes a file of this kind, in the directory that it was in, for descriptions with these flags.
pub fn make_unlinked(view: &str, kind: &ShmKind, descriptions: &[(FileId, i32)]) -> Result<Unlinked> {
    let ShmKind::Unlinked {
        path,
        unnamed,
        mode,
        uid,
        gid,
        ..
    } = kind
    else {
        return Err(Error::failed("it is no unlinked file"));
    };
    let failed = || format!("cannot make the unlinked file {path} again");
    let whole = format!("{view}{path}");
    let made = match unnamed {
        true => unnamed_file(directory_of(&whole), descriptions),
        false => once_named(&whole, descriptions),
    };
    let made = made.or_fail(failed)?;
    std::os::unix::fs::fchown(&made.file, Some(*uid), Some(*gid)).or_fail(failed)?;
    made.file
        .set_permissions(std::os::unix::fs::PermissionsExt::from_mode(*mode))
        .or_fail(failed)?;
    Ok(made)
}

fn directory_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("/", |(directory, _)| directory)
}

/// One that can still be given a name (linkat), which only its first opening makes.
fn unnamed_file(directory: &str, descriptions: &[(FileId, i32)]) -> nix::Result<Unlinked> {
    // Set when its content is there.
    const LATER: i32 = libc::O_APPEND | libc::O_DIRECT;
    let first = descriptions
        .iter()
        .find(|(_, flags)| flags & libc::O_TMPFILE == libc::O_TMPFILE);
    let flags = first.map_or(libc::O_RDWR, |(_, flags)| flags & !LATER);
    let file = File::from(open_new(directory, flags | libc::O_TMPFILE)?);
    let first = first.map(|(id, _)| Ok((*id, OwnedFd::from(file.try_clone()?))));
    let opened = first.transpose().map_err(|_: std::io::Error| nix::Error::last())?;
    Ok(Unlinked {
        file,
        opened: opened.into_iter().collect(),
    })
}

/// One that loses its name: the one it had where that is free, so that /proc shows the same.
fn once_named(whole: &str, descriptions: &[(FileId, i32)]) -> nix::Result<Unlinked> {
    const NEW: i32 = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
    let (whole, file) = match open_new(whole, NEW) {
        Err(nix::Error::EEXIST) => {
            let unique = crate::identity::uuid().map_err(|_| nix::Error::EEXIST)?;
            let other = format!("{}/.appshot-{unique}", directory_of(whole));
            let file = open_new(&other, NEW)?;
            (other, file)
        }
        made => (whole.to_owned(), made?),
    };
    let by_name = descriptions.iter().filter(|(_, flags)| flags & libc::O_NOFOLLOW != 0);
    let opened = by_name.map(|(id, flags)| Ok((*id, open_again(&whole, *flags)?)));
    let opened: nix::Result<_> = opened.collect();
    nix::unistd::unlink(whole.as_str())?;
    Ok(Unlinked {
        file: file.into(),
        opened: opened?,
    })
}

fn open_new(path: &str, flags: i32) -> nix::Result<OwnedFd> {
    use nix::fcntl::{OFlag, open};
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_CLOEXEC;
    open(path, flags, nix::sys::stat::Mode::from_bits_retain(0o600))
}

/// One of the devices without state: null, zero, full, random, urandom.
pub fn is_memory_device(meta: &fs::Metadata) -> bool {
    meta.mode() & libc::S_IFMT == libc::S_IFCHR
        && nix::sys::stat::major(meta.rdev()) == MEMORY_DEVICES
        && MEMORY_MINORS.contains(&nix::sys::stat::minor(meta.rdev()))
}

/// Whether an open file with a name is carried by this name.
pub fn is_carried(meta: &fs::Metadata) -> bool {
    meta.is_file() || meta.is_dir() || is_memory_device(meta)
}

pub fn restore(builder: &Builder<'_>, namespace: Option<u32>, path: &str, offset: u64, flags: i32) -> Result<OwnedFd> {
    let failed = || format!("cannot open {path} for the app again");
    let open = || match namespace {
        // Validated: there is such a namespace.
        Some(number) => open_within(builder.members[number as usize], path, flags),
        None => open_again(&format!("{}{path}", builder.view), flags),
    };
    let opened = match path.starts_with(SETTINGS) {
        // In its network this thread is already.
        true => nsthread::inside(builder.base, &["ipc"], open).or_fail(failed)?,
        false => open(),
    };
    let opened = opened.or_fail(failed)?;
    // Looked at before, by its name: another may have taken that since.
    let meta = fs::metadata(format!("/proc/self/fd/{}", opened.as_raw_fd())).or_fail(failed)?;
    if !is_carried(&meta) && flags & libc::O_PATH == 0 {
        return Err(Error::failed(failed()).because("it is a device or special file now"));
    }
    if offset > 0 && flags & libc::O_PATH == 0 {
        use nix::unistd::{Whence, lseek};
        let at = i64::try_from(offset).or_fail(failed)?;
        // Devices that cannot seek have no offset to lose.
        match lseek(&opened, at, Whence::SeekSet) {
            Ok(_) | Err(nix::Error::ESPIPE) => {}
            Err(errno) => return Err(Error::failed(failed()).because(errno)),
        }
    }
    Ok(opened)
}

/// Opens what a path leads to in the mounts of a process. Links in them are the app's own work, and no path
/// that the kernel gives goes by one.
fn open_within(pid: HostPid, path: &str, flags: i32) -> nix::Result<OwnedFd> {
    use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
    let root = open(
        format!("/proc/{pid}/root/").as_str(),
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )?;
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let how = |flags: OFlag| OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    let wanted = OFlag::from_bits_retain(flags & !ONCE);
    // What else is said of one that is not to be opened this call refuses.
    let seen = wanted & (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW) | OFlag::O_PATH;
    let there = openat2(&root, path, how(seen))?;
    if wanted.contains(OFlag::O_PATH) {
        return Ok(there);
    }
    // Nobody answers at a FIFO.
    match is_carried(&File::from(there).metadata().map_err(|_| nix::Error::EIO)?) {
        true => openat2(&root, path, how(wanted | OFlag::O_NOCTTY)),
        false => Err(nix::Error::ENXIO),
    }
}

pub(super) fn open_again(view: &str, flags: i32) -> nix::Result<OwnedFd> {
    use nix::fcntl::{OFlag, open};
    let flags = OFlag::from_bits_retain(flags & !ONCE) | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    open(view, flags, nix::sys::stat::Mode::empty())
}

pub fn capture_memfd(description: &Description, tables: &mut Tables) -> Result<FileKind, Refused> {
    let found = &description.found;
    let name = found.link.strip_prefix("/memfd:").unwrap_or(&found.link);
    let name = name.strip_suffix(" (deleted)").unwrap_or(name);
    match enter(description, tables, |view| memory::memfd_kind(name, view)) {
        Some(shm) => Ok(FileKind::Memfd { shm, offset: found.pos }),
        None => refused("its content cannot be reached", "try again"),
    }
}

pub fn restore_memfd(builder: &Builder<'_>, shm: ShmId, offset: u64, flags: i32) -> Result<OwnedFd> {
    let source = builder
        .shm
        .get(&shm)
        .ok_or_else(|| Error::failed(format!("shared memory object {shm} is missing")))?;
    let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
    let file = OpenOptions::new()
        .read(true)
        .write(write)
        .open(source)
        .or_fail(|| "cannot open a memfd again")?;
    use nix::unistd::{Whence, lseek};
    lseek(&file, offset as i64, Whence::SeekSet).or_fail(|| "cannot set the offset of a memfd")?;
    Ok(file.into())
}

/// stdin, stdout or stderr of the restorer's choice for what led outside.
pub fn restore_outside(builder: &Builder<'_>, what: &str, flags: i32) -> Result<OwnedFd> {
    let failed = || format!("cannot replace {what}, which leads outside the app");
    let reading = flags & libc::O_ACCMODE == libc::O_RDONLY;
    let opened = match builder.stdio {
        Stdio::Inherit if reading => std::io::stdin().as_fd().try_clone_to_owned(),
        Stdio::Inherit => std::io::stdout().as_fd().try_clone_to_owned(),
        Stdio::Log(path) if !reading => OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map(OwnedFd::from),
        Stdio::Null | Stdio::Log(_) => OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map(OwnedFd::from),
    };
    opened.or_fail(failed)
}

/// Locks as `fdinfo` lists them: `1: FLOCK  ADVISORY  WRITE 77 08:01:4711 0 EOF`. In an order of their own:
/// the kernel's tells in which they were taken.
pub fn locks(context: &Context<'_>, description: &Description) -> Result<Vec<FileLock>, Refused> {
    let lines = description.locks.iter();
    let locks = lines.map(|(_, line)| parse_lock(context, description.id, line));
    let mut locks: Vec<FileLock> = locks.collect::<Result<_, _>>()?;
    locks.sort();
    Ok(locks)
}

fn has_open(context: &Context<'_>, process: VirtualPid, file: FileId) -> bool {
    let mut fds = context.members.iter().zip(context.fds);
    fds.any(|(member, fds)| member.vpid == process && fds.iter().any(|entry| entry.file == file))
}

fn parse_lock(context: &Context<'_>, id: FileId, line: &str) -> Result<FileLock, Refused> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let unknown = || {
        (
            "a file lock of unknown form".to_owned(),
            "release it before the snapshot".to_owned(),
        )
    };
    let [_, kind, state, access, pid, _, start, end] = words[..] else {
        return Err(unknown());
    };
    let kind = match kind {
        "FLOCK" => LockKind::Flock,
        "POSIX" => LockKind::Process,
        "OFDLCK" => LockKind::OpenFile,
        "LEASE" if state == "ACTIVE" => LockKind::Lease,
        "LEASE" => {
            return refused(
                "a file lease that somebody waits for",
                "let the app give it up, then try again",
            );
        }
        _ => return refused("a file delegation is not carried", "release it before the snapshot"),
    };
    let start: u64 = start.parse().map_err(|_| unknown())?;
    let len = match end {
        "EOF" => 0,
        end => end.parse::<u64>().map_err(|_| unknown())?.saturating_sub(start) + 1,
    };
    let owner = pid.parse().ok().and_then(|pid| context.virtual_pid(pid));
    if kind == LockKind::Lease && !owner.is_some_and(|owner| has_open(context, owner, id)) {
        return refused(
            "a file lease that was taken by a process that has ended or has closed the file",
            "release it before the snapshot",
        );
    }
    Ok(FileLock {
        kind,
        write: access == "WRITE",
        start,
        len,
        pid: owner.unwrap_or(VirtualPid(0)),
    })
}

/// Locks of the description; those of a process are taken inside it.
pub fn restore_locks(file: &OpenFile, fd: &OwnedFd) -> Result<()> {
    let failed = || format!("cannot take the lock on open file {} again", file.id);
    for lock in &file.locks {
        match lock.kind {
            LockKind::Flock => {
                let how = if lock.write { libc::LOCK_EX } else { libc::LOCK_SH };
                flock(fd, how | libc::LOCK_NB).or_fail(failed)?;
            }
            LockKind::OpenFile => {
                let wanted = as_flock(lock);
                nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_OFD_SETLK(&wanted)).or_fail(failed)?;
            }
            LockKind::Process | LockKind::Lease => {}
        }
    }
    Ok(())
}

pub fn as_flock(lock: &FileLock) -> libc::flock {
    libc::flock {
        l_type: if lock.write { libc::F_WRLCK } else { libc::F_RDLCK } as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: lock.start as i64,
        l_len: lock.len as i64,
        l_pid: 0,
    }
}

fn flock(fd: &OwnedFd, how: i32) -> crate::sys::Sys<()> {
    sysfd::flock(fd.as_raw_fd(), how)
}
