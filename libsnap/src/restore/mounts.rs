//! Mount namespaces below the app's own ([`crate::image::mounts`]), as copies of it to which the same is done.
//!
//! ```text
//!   first process   copies of the app's own: open_tree(2), before anything else is done
//!                   step by step: umount2(2), move_mount(2), mount(2), pivot_root(2)
//!   this one        writes what is in a file system that is nowhere else, before anything is mounted on it
//! ```
//!
//! Nothing that is mounted in it is heard of by anybody else: all of it is private first.

use super::place::Shared;
use super::script::Script;
use super::skeleton::Skeleton;
use crate::error::{Error, OrFail, Result};
use crate::image::Appshot;
use crate::image::mounts::{Entry, EntryKind, FileSystem, Mounts, Step, Tree};
use crate::image::records::Namespace;
use crate::sys::mounts as sys;
use crate::sys::task;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{FchownatFlags, Gid, Uid, fchownat, linkat, mkdir, symlinkat};
use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

impl Skeleton {
    /// Has what is in mount namespaces beside the app's own be there.
    pub(super) fn mount(&self, shot: &Appshot, shared: &mut Shared) -> Result<()> {
        for (number, record) in (0..).zip(&shot.manifest.namespaces) {
            let Namespace::Mnt(mounts) = record else { continue };
            // Validated: somebody is in it.
            let first = self.member(shot, Some(number));
            let at = self.husks.iter().position(|husk| husk.pid == first).unwrap_or(0);
            let mounter = Mounter { skeleton: self, at };
            mounter.all(mounts, shared)?;
            mounts
                .trees()
                .filter_map(|tree| tree.content)
                .for_each(|content| drop(shared.shm.remove(&content)));
        }
        Ok(())
    }
}

/// A process that mounts.
struct Mounter<'a> {
    skeleton: &'a Skeleton,
    at: usize,
}

/// An argument of a call.
enum Arg<'t> {
    Number(u64),
    Text(&'t str),
    Words(&'t [u64]),
}

use Arg::{Number, Text, Words};

const HERE: Arg<'static> = Number(libc::AT_FDCWD as u64);

impl Mounter<'_> {
    fn call(&self, what: &str, name: &'static str, number: i64, args: &[Arg<'_>]) -> Result<u64> {
        let mut script: Script<'_> = self.skeleton.script(self.at);
        let bytes = args.iter().map(|arg| match arg {
            Number(_) => 0,
            Text(text) => text.len() + 1,
            Words(words) => size_of_val(*words),
        });
        let batch = script.room(1, bytes.sum())?;
        let args: Vec<u64> = args
            .iter()
            .map(|arg| match arg {
                Number(number) => *number,
                Text(text) => batch.c_string(*text).address,
                Words(words) => batch.words(words).address,
            })
            .collect();
        let call = batch.call(name, number, &args);
        let done = script.run()?;
        done.result(call)
            .or_fail(|| format!("cannot mount {what} for the app again ({name})"))
    }

    fn close(&self, fd: u64) -> Result<()> {
        self.call("it", "close", libc::SYS_close, &[Number(fd)]).map(drop)
    }

    fn all(&self, mounts: &Mounts, shared: &Shared) -> Result<()> {
        let private = Number(libc::MS_REC | libc::MS_PRIVATE);
        let none = || Number(0);
        self.call(
            "/",
            "mount",
            libc::SYS_mount,
            &[none(), Text("/"), none(), private, none()],
        )?;
        let mut copies = HashMap::new();
        for (nth, step) in mounts.steps.iter().enumerate() {
            if let Step::Bind { from, .. } = step {
                const AT_RECURSIVE: u32 = 0x8000;
                let flags = sys::OPEN_TREE_CLONE
                    | sys::OPEN_TREE_CLOEXEC
                    | AT_RECURSIVE
                    | libc::AT_SYMLINK_NOFOLLOW.cast_unsigned();
                let args = [HERE, Text(from), Number(flags.into())];
                copies.insert(nth, self.call(from, "open_tree", libc::SYS_open_tree, &args)?);
            }
        }
        for (nth, step) in mounts.steps.iter().enumerate() {
            self.leads_by_no_link(step.at())?;
            match step {
                Step::Unmount { at } => {
                    let flags = Number((libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) as u64);
                    self.call(at, "umount2", libc::SYS_umount2, &[Text(at), flags])?;
                }
                Step::Remount { at, flags } => self.give_flags(at, *flags)?,
                Step::Bind { at, flags, .. } => self.attach(copies[&nth], at, *flags)?,
                Step::Mount {
                    at,
                    flags,
                    source,
                    options,
                    kind,
                } => {
                    let made = self.make(at, source, options, kind)?;
                    let made = match kind {
                        FileSystem::Tmpfs(tree) => self.furnish(made, at, tree, shared)?,
                        FileSystem::Proc | FileSystem::Devpts => made,
                    };
                    self.attach(made, at, *flags)?;
                }
            }
        }
        Ok(())
    }

    /// Where a link of what was made leads is not where it was judged to.
    fn leads_by_no_link(&self, at: &str) -> Result<()> {
        let flags = (libc::O_PATH | libc::O_CLOEXEC).cast_unsigned();
        let how = [flags.into(), 0, libc::RESOLVE_NO_SYMLINKS];
        let args = [HERE, Text(at), Words(&how), Number(size_of_val(&how) as u64)];
        let opened = self.call(at, "openat2", libc::SYS_openat2, &args)?;
        self.close(opened)
    }

    fn give_flags(&self, at: &str, flags: u64) -> Result<()> {
        let flags = Number(libc::MS_REMOUNT | libc::MS_BIND | flags);
        let args = [Number(0), Text(at), Number(0), flags, Number(0)];
        self.call(at, "mount", libc::SYS_mount, &args).map(drop)
    }

    fn attach(&self, mount: u64, at: &str, flags: u64) -> Result<()> {
        self.move_to(mount, at)?;
        if at == "/" {
            // It takes the place of the root that it is on (pivot_root(2)), for this process and those beside.
            self.call(at, "fchdir", libc::SYS_fchdir, &[Number(mount)])?;
            self.call(at, "pivot_root", libc::SYS_pivot_root, &[Text("."), Text(".")])?;
            self.leave_here(at)?;
        }
        self.close(mount)?;
        self.give_flags(at, flags)
    }

    fn move_to(&self, mount: u64, at: &str) -> Result<()> {
        const MOVE_MOUNT_F_EMPTY_PATH: u64 = 4;
        let args = [Number(mount), Text(""), HERE, Text(at), Number(MOVE_MOUNT_F_EMPTY_PATH)];
        self.call(at, "move_mount", libc::SYS_move_mount, &args).map(drop)
    }

    /// Unmounts what is mounted last on the current directory.
    fn leave_here(&self, at: &str) -> Result<()> {
        let detach = Number(libc::MNT_DETACH as u64);
        self.call(at, "umount2", libc::SYS_umount2, &[Text("."), detach])?;
        self.call(at, "chdir", libc::SYS_chdir, &[Text("/")]).map(drop)
    }

    /// A file system that is mounted nowhere yet (fsopen(2)).
    fn make(&self, at: &str, source: &str, options: &BTreeMap<String, String>, kind: &FileSystem) -> Result<u64> {
        const FSOPEN_CLOEXEC: u64 = 1;
        const SET_FLAG: u64 = 0;
        const SET_STRING: u64 = 1;
        const CREATE: u64 = 6;
        let args = [Text(kind.name()), Number(FSOPEN_CLOEXEC)];
        let system = self.call(at, "fsopen", libc::SYS_fsopen, &args)?;
        let configure = |command: u64, name: Arg<'_>, value: Arg<'_>| {
            let args = [Number(system), Number(command), name, value, Number(0)];
            self.call(at, "fsconfig", libc::SYS_fsconfig, &args).map(drop)
        };
        configure(SET_STRING, Text("source"), Text(source))?;
        for (name, value) in options {
            match value.is_empty() {
                true => configure(SET_FLAG, Text(name), Number(0))?,
                false => configure(SET_STRING, Text(name), Text(value))?,
            }
        }
        configure(CREATE, Number(0), Number(0))?;
        let args = [Number(system), Number(FSOPEN_CLOEXEC), Number(0)];
        let made = self.call(at, "fsmount", libc::SYS_fsmount, &args)?;
        self.close(system)?;
        Ok(made)
    }

    /// Writes what is in it. Answers the mount of the directory that is to be mounted.
    fn furnish(&self, made: u64, at: &str, tree: &Tree, shared: &Shared) -> Result<u64> {
        let pid = self.skeleton.husks[self.at].pid;
        let failed = || format!("cannot write what is in the app's mount {at}");
        let process = task::pidfd_open(pid).or_fail(failed)?;
        let ours = task::pidfd_getfd(process.as_fd(), made as i32).or_fail(failed)?;
        let content = tree.content.and_then(|content| shared.shm.get(&content));
        let root = format!("/proc/self/fd/{}{}", ours.as_raw_fd(), tree.root.trim_end_matches('/'));
        fs::create_dir_all(&root).or_fail(failed)?;
        write(&root, tree, content).map_err(|mut error| {
            error.what = format!("{}: {}", failed(), error.what);
            error
        })?;
        drop(ours);
        if tree.root == "/" {
            return Ok(made);
        }
        // Of what is mounted nowhere no part can be: it is, for a moment.
        self.move_to(made, "/")?;
        let args = [
            Number(made),
            Text(tree.root.trim_start_matches('/')),
            Number((sys::OPEN_TREE_CLONE | sys::OPEN_TREE_CLOEXEC).into()),
        ];
        let part = self.call(at, "open_tree", libc::SYS_open_tree, &args)?;
        self.call(at, "fchdir", libc::SYS_fchdir, &[Number(made)])?;
        self.leave_here(at)?;
        self.close(made)?;
        Ok(part)
    }
}

/// Writes the files of a tree below a directory that nobody else can reach.
fn write(root: &str, tree: &Tree, content: Option<&OwnedFd>) -> Result<()> {
    let path = |entry: &Entry| match entry.name.as_str() {
        // What the descriptor leads to, not its link.
        "" => format!("{root}/"),
        name => format!("{root}/{name}"),
    };
    for entry in &tree.entries {
        let failed = || format!("cannot make {:?}", entry.name);
        let path = path(entry);
        make(root, &path, entry, content)?;
        if let EntryKind::Link { .. } = entry.kind {
            continue;
        }
        let owner = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
        fchownat(
            nix::fcntl::AT_FDCWD,
            path.as_str(),
            owner.0,
            owner.1,
            FchownatFlags::AT_SYMLINK_NOFOLLOW,
        )
        .or_fail(failed)?;
        if !matches!(entry.kind, EntryKind::Symlink { .. }) {
            // Behind the owner, who takes some bits away.
            fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode)).or_fail(failed)?;
        }
    }
    // Whatever is made in a directory changes its times, and has what it hands down (acl(5)).
    for entry in tree.entries.iter().rev() {
        for attribute in &entry.attributes {
            let failed = || format!("cannot give {:?} its attribute {}", entry.name, attribute.name);
            let name = CString::new(attribute.name.as_str()).or_fail(failed)?;
            sys::set_attribute(Path::new(&path(entry)), &name, &attribute.value).or_fail(failed)?;
        }
        let time = |ns: i64| TimeSpec::new(ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
        utimensat(
            nix::fcntl::AT_FDCWD,
            path(entry).as_str(),
            &time(entry.atime_ns),
            &time(entry.mtime_ns),
            UtimensatFlags::NoFollowSymlink,
        )
        .or_fail(|| format!("cannot set the times of {:?}", entry.name))?;
    }
    Ok(())
}

fn make(root: &str, path: &str, entry: &Entry, content: Option<&OwnedFd>) -> Result<()> {
    let failed = || format!("cannot make {:?}", entry.name);
    let own = Mode::from_bits_truncate(0o600);
    match &entry.kind {
        EntryKind::Directory if entry.name.is_empty() => Ok(()),
        EntryKind::Directory => mkdir(path, Mode::from_bits_truncate(0o700)).or_fail(failed),
        EntryKind::Symlink { to } => symlinkat(to.as_str(), nix::fcntl::AT_FDCWD, path).or_fail(failed),
        EntryKind::Fifo => mknod(path, SFlag::S_IFIFO, own, 0).or_fail(failed),
        EntryKind::Socket => mknod(path, SFlag::S_IFSOCK, own, 0).or_fail(failed),
        EntryKind::Link { to } => {
            let (here, flags) = (nix::fcntl::AT_FDCWD, nix::fcntl::AtFlags::empty());
            linkat(here, format!("{root}/{to}").as_str(), here, path, flags).or_fail(failed)
        }
        EntryKind::File { bytes, runs } => {
            let new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            let file = new.or_fail(failed)?;
            file.set_len(*bytes).or_fail(failed)?;
            let content = content.map(|content| content.try_clone().map(File::from));
            let content = content.transpose().or_fail(failed)?;
            runs.iter().try_for_each(|run| match &content {
                Some(content) => copy(content, &file, *run).or_fail(failed),
                None => Err(Error::failed(failed()).because("its content is missing")),
            })
        }
    }
}

fn copy(content: &File, to: &File, (offset, from, length): (u64, u64, u64)) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut done = 0;
    while done < length {
        let piece = (length - done).min(buffer.len() as u64) as usize;
        content.read_exact_at(&mut buffer[..piece], from + done)?;
        to.write_all_at(&buffer[..piece], offset + done)?;
        done += piece as u64;
    }
    Ok(())
}
