//! Mounts of its own: what is other in a mount namespace (mount_namespaces(7), proc_pid_mountinfo(5)) than in the app's.
//!
//! One that a process has made for itself began as a copy of the app's own. It is told by what is other in it
//! ([`crate::image::mounts`]), mount by mount from the root on:
//!
//! ```text
//!   on a copy of a mount   what the app's own has there   is there: a copy, and so on
//!                                                         is not: it was unmounted
//!                          what it has not                the same file system is somewhere in the app's own:
//!                                                         bound, a copy, and so on; else it is nowhere else
//! ```
//!
//! Kept with their files are those in memory (tmpfs); new ones of processes and pseudo-terminals are made
//! again. Refused: all others that are nowhere in the app's own, mounts that others hear of (shared or slave),
//! and what is covered.

use crate::error::{OrFail, Result};
use crate::files::Refused;
use crate::identity;
use crate::ids::{HostPid, ShmId};
use crate::image::limits;
use crate::image::mounts::{Attribute, Entry, EntryKind, FileSystem, Mounts, Place, Step, Tree};
use crate::image::records::ShmKind;
use crate::launch;
use crate::memory::ShmTable;
use crate::namespaces::{Found, Kind};
use crate::proc::{self, Fields};
use crate::refusals::Refusals;
use crate::sys::fd as sysfd;
use crate::sys::mounts as sys;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

/// A namespace with more mounts, or made by more steps, or with more mounts one on the other, is refused: who may
/// mount in it may mount very often.
const ROWS_MAX: usize = 4096;
const STEPS_MAX: usize = 256;
const DEPTH_MAX: usize = 32;

/// A mount, as /proc tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    id: u64,
    parent: u64,
    device: String,
    /// What of its file system is mounted.
    root: String,
    at: String,
    /// Of mount(2).
    flags: u64,
    /// Somebody hears of what is mounted on it, or it hears of others.
    propagates: bool,
    /// It has an option besides these flags, such as owners of its own (idmapped).
    more: bool,
    kind: String,
    source: String,
    options: String,
}

/// The flags of mount(2) by their names in /proc.
const FLAGS: [(&str, u64); 8] = [
    ("ro", libc::MS_RDONLY),
    ("nosuid", libc::MS_NOSUID),
    ("nodev", libc::MS_NODEV),
    ("noexec", libc::MS_NOEXEC),
    ("nosymfollow", 256),
    ("noatime", libc::MS_NOATIME),
    ("nodiratime", libc::MS_NODIRATIME),
    ("relatime", libc::MS_RELATIME),
];

/// The mounts that a process is in.
fn table(process: impl std::fmt::Display) -> io::Result<Vec<Row>> {
    let text = proc::read(format!("/proc/{process}/mountinfo"))?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

fn parse(text: &str) -> Vec<Row> {
    text.lines().filter_map(parse_row).collect()
}

fn parse_row(line: &str) -> Option<Row> {
    let (mount, system) = line.split_once(" - ")?;
    let mut words = mount.split(' ');
    let mut next = || words.next();
    let (id, parent) = (next()?.parse().ok()?, next()?.parse().ok()?);
    let (device, root, at, options) = (next()?, next()?, next()?, next()?);
    let propagates = words.next().is_some();
    let mut words = system.split(' ');
    let (kind, source, super_options) = (words.next()?, words.next()?, words.next()?);
    let has = |name: &str| options.split(',').any(|option| option == name);
    let is_known = |option: &str| option == "rw" || FLAGS.iter().any(|(name, _)| *name == option);
    let more = !options.split(',').all(is_known);
    let given = FLAGS.iter().filter(|(name, _)| has(name)).map(|(_, flag)| flag);
    let mut flags = given.fold(0, |all, flag| all | flag);
    if flags & (libc::MS_NOATIME | libc::MS_RELATIME) == 0 {
        flags |= libc::MS_STRICTATIME;
    }
    Some(Row {
        id,
        parent,
        device: device.to_owned(),
        root: plain(root),
        at: plain(at),
        flags,
        propagates,
        more,
        kind: kind.to_owned(),
        source: plain(source),
        options: super_options.to_owned(),
    })
}

/// `\040` is a space.
fn plain(word: &str) -> String {
    let mut parts = word.split('\\');
    let mut plain = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part.get(..3).and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                plain.extend(&part.as_bytes()[3..]);
            }
            None => plain.extend(part.as_bytes()),
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// What a path has behind a directory: nothing, or a slash and more. `None`: it is not below it.
fn behind<'p>(path: &'p str, directory: &str) -> Option<&'p str> {
    let rest = path.strip_prefix(directory.trim_end_matches('/'))?;
    match rest {
        "/" => Some(""),
        _ => (rest.is_empty() || rest.starts_with('/')).then_some(rest),
    }
}

fn joined(directory: &str, rest: &str) -> String {
    match directory.trim_end_matches('/') {
        "" if rest.is_empty() => "/".to_owned(),
        directory => format!("{directory}{rest}"),
    }
}

/// What was done to a copy of the app's mounts. Numbers are places in its own table.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Done {
    /// On this mount.
    Unmounted(usize, String),
    Remounted(usize),
    Bound(usize, String),
    Made(usize),
}

/// A mount that is refused: where it is, and why.
type Unkept = (String, Refused);

fn refused(reason: impl Into<String>, fix: impl Into<String>) -> Refused {
    (reason.into(), fix.into())
}

fn too_many(what: &str) -> Refused {
    refused(
        format!("it has more mounts than are looked at: {what}"),
        "let the app mount less often",
    )
}

struct Comparison<'a> {
    own: &'a [Row],
    other: &'a [Row],
    /// Whether a path of the app's own leads to what this one has mounted.
    leads: &'a dyn Fn(&str, &Row) -> bool,
    done: Vec<Done>,
    /// From which step on a mount is there.
    since: HashMap<usize, usize>,
    unkept: Vec<Unkept>,
    depth: usize,
}

impl<'r> Comparison<'r> {
    fn new(own: &'r [Row], other: &'r [Row], leads: &'r dyn Fn(&str, &Row) -> bool) -> Comparison<'r> {
        let mut compared = Comparison {
            own,
            other,
            leads,
            done: Vec::new(),
            since: HashMap::new(),
            unkept: Vec::new(),
            depth: 0,
        };
        compared.all();
        match compared.done.len() > STEPS_MAX {
            true => compared
                .unkept
                .push(("/".to_owned(), too_many(&format!("{STEPS_MAX} are other ones")))),
            false => compared.refuse_covered(),
        }
        compared
    }

    fn root(rows: &[Row]) -> Option<usize> {
        let is_inside = |id: u64| rows.iter().any(|row| row.id == id);
        rows.iter()
            .position(|row| row.at == "/" && (row.parent == row.id || !is_inside(row.parent)))
    }

    fn all(&mut self) {
        let roots = (Self::root(self.own), Self::root(self.other));
        let (Some(own), Some(other)) = roots else {
            let reason = refused(
                "it cannot be told which mount it is",
                "let the app change its root by pivot_root(2)",
            );
            return self.unkept.push(("/".to_owned(), reason));
        };
        let (had, has) = (&self.own[own], &self.other[other]);
        if (&had.device, &had.root) == (&has.device, &has.root) {
            if had.flags != has.flags {
                self.done.push(Done::Remounted(other));
            }
            self.copy((own, "/"), other, 0);
        } else {
            self.made(other);
        }
    }

    /// By their places: the numbers of mounts are none of an order.
    fn children(rows: &[Row], of: usize) -> Vec<usize> {
        let is_child = |at: &usize| rows[*at].parent == rows[of].id && *at != of;
        let mut children: Vec<usize> = (0..rows.len()).filter(is_child).collect();
        children.sort_by(|one, other| rows[*one].at.cmp(&rows[*other].at));
        children
    }

    /// What is mounted on another, as far as that goes.
    fn deeper(&mut self, other: usize, on: impl FnOnce(&mut Self)) {
        if self.depth == DEPTH_MAX || self.done.len() > STEPS_MAX {
            let reason = too_many(&format!("{DEPTH_MAX} stand one on the other"));
            return self.unkept.push((self.other[other].at.clone(), reason));
        }
        self.depth += 1;
        on(self);
        self.depth -= 1;
    }

    /// `other` is a copy of what the app's own has at this path, with all that was mounted below.
    fn copy(&mut self, (own, from): (usize, &str), other: usize, since: usize) {
        self.refuse_shared(other);
        self.since.insert(other, since);
        let at = self.other[other].at.clone();
        let mut left = Self::children(self.other, other);
        let mut copies = Vec::new();
        for child in Self::children(self.own, own) {
            let had = &self.own[child];
            let Some(rest) = behind(&had.at, from) else { continue };
            let place = joined(&at, rest);
            let is_it = |row: &usize| {
                let has = &self.other[*row];
                (&has.at, &has.device, &has.root) == (&place, &had.device, &had.root)
            };
            match left.iter().position(is_it) {
                Some(found) => copies.push((child, left.remove(found))),
                None => self.done.push(Done::Unmounted(other, place)),
            }
        }
        for (child, copy) in &copies {
            if self.own[*child].flags != self.other[*copy].flags {
                self.done.push(Done::Remounted(*copy));
            }
            if self.own[*child].more != self.other[*copy].more {
                self.refuse_more(*copy);
            }
        }
        for (child, copy) in copies {
            let from = self.own[child].at.clone();
            self.deeper(copy, |this| this.copy((child, &from), copy, since));
        }
        left.into_iter()
            .for_each(|child| self.deeper(child, |this| this.made(child)));
    }

    fn refuse_more(&mut self, other: usize) {
        let row = &self.other[other];
        let reason = refused(
            "it has an option that is not carried, such as owners of its own (idmapped)",
            "let the app mount it without that",
        );
        self.unkept.push((row.at.clone(), reason));
    }

    /// Nothing of the app's own is there.
    fn made(&mut self, other: usize) {
        if self.other[other].more {
            self.refuse_more(other);
        }
        let new = &self.other[other];
        let sources = (0..self.own.len()).filter_map(|at| {
            let own = &self.own[at];
            let rest = behind(&new.root, &own.root).filter(|_| own.device == new.device)?;
            let from = joined(&own.at, rest);
            (self.leads)(&from, new).then_some((at, from))
        });
        // The same place is the best, then the closest.
        let source = sources.max_by_key(|(at, from)| (*from == new.at, self.own[*at].root.len()));
        if let Some((own, from)) = source {
            self.done.push(Done::Bound(other, from.clone()));
            return self.copy((own, &from), other, self.done.len());
        }
        self.refuse_shared(other);
        let others = self.other.iter().filter(|row| row.device == new.device).count();
        let reason = match new.kind.as_str() {
            _ if new.root.ends_with("//deleted") => Some(refused(
                "what is mounted has no name any more",
                "let the app unmount it before the snapshot",
            )),
            "tmpfs" | "proc" | "devpts" if others > 1 => Some(refused(
                "its file system is mounted at two places, and nowhere in the app's own mounts",
                "let the app mount another one at each",
            )),
            "proc" | "devpts" if new.root != "/" => Some(refused(
                "a part of its file system is mounted, which is nowhere in the app's own mounts",
                "let the app mount all of it",
            )),
            "tmpfs" | "proc" | "devpts" => None,
            _ => Some(refused(
                "its file system is nowhere in the app's own mounts, and of no kind that is carried",
                "let the app unmount it before the snapshot",
            )),
        };
        match reason {
            Some(reason) => self.unkept.push((new.at.clone(), reason)),
            None => self.done.push(Done::Made(other)),
        }
        self.since.insert(other, self.done.len());
        let children = Self::children(self.other, other);
        children
            .into_iter()
            .for_each(|child| self.deeper(child, |this| this.made(child)));
    }

    /// What a path leads to before a step is done.
    fn shown(&self, at: &str, step: usize) -> Option<usize> {
        let there = |row: &usize| self.since.get(row).is_some_and(|since| *since <= step);
        let mut now = Self::root(self.other)?;
        let ends = at.match_indices('/').map(|(end, _)| end).skip(1).chain([at.len()]);
        for place in ["/"].into_iter().chain(ends.map(|end| &at[..end])) {
            let on = |of: usize| {
                let mut children = Self::children(self.other, of).into_iter().filter(there);
                children.find(|child| self.other[*child].at == place)
            };
            while let Some(next) = on(now) {
                now = next;
            }
        }
        Some(now)
    }

    /// Each step is done to what its path leads to.
    fn refuse_covered(&mut self) {
        for (step, done) in self.done.iter().enumerate() {
            let at = match done {
                Done::Unmounted(_, at) => at,
                Done::Remounted(row) | Done::Bound(row, _) | Done::Made(row) => &self.other[*row].at,
            };
            let shown = self.shown(at, step);
            let parent = |row: usize| shown.is_some_and(|shown| self.other[shown].id == self.other[row].parent);
            let is_it = match done {
                Done::Unmounted(row, _) | Done::Remounted(row) => shown == Some(*row),
                Done::Bound(row, _) | Done::Made(row) => Self::root(self.other) == Some(*row) || parent(*row),
            };
            if !is_it {
                let reason = refused("it is covered by another mount", "let the app unmount what covers it");
                self.unkept.push((at.clone(), reason));
            }
        }
    }

    fn refuse_shared(&mut self, other: usize) {
        let row = &self.other[other];
        if row.propagates {
            let reason = refused(
                "others hear of what is mounted on it, or it of others (shared, slave, unbindable)",
                "let the app make it private (MS_PRIVATE)",
            );
            self.unkept.push((row.at.clone(), reason));
        }
    }
}

/// The mount namespaces of an app, while it is looked at.
#[derive(Debug, Default)]
pub struct Views {
    beside: BTreeMap<u32, View>,
}

#[derive(Debug)]
struct View {
    root: OwnedFd,
    rows: Vec<Row>,
    done: Vec<(Done, Option<Shown>)>,
    unkept: Vec<Unkept>,
    /// Without what is in files.
    mounts: Mounts,
}

/// A mount that was opened by its path.
#[derive(Debug)]
struct Shown {
    place: OwnedFd,
    /// Of a file system that is nowhere else: a copy that shows all of it.
    whole: nix::Result<OwnedFd>,
}

impl Views {
    /// `base`: a process whose mounts are the app's own.
    pub fn open(beside: &Found, base: HostPid) -> Result<Views> {
        if !beside.has(Kind::Mnt) {
            return Ok(Views::default());
        }
        let failed = |pid: HostPid| move || format!("cannot look at the mounts of pid {pid}");
        let own = table(base).or_fail(failed(base))?;
        let opened = beside.all(Kind::Mnt).map(|(number, pid)| {
            let enter = || View::open(pid, base, &own);
            let view = std::thread::scope(|scope| scope.spawn(enter).join());
            let view = view.unwrap_or_else(|_| Err(io::Error::other("a thread has failed")));
            Ok((number, view.or_fail(failed(pid))?))
        });
        let beside = opened.collect::<Result<BTreeMap<u32, View>>>()?;
        Ok(Views { beside })
    }

    /// A path in the namespace with this number, as it is reached from here.
    pub fn view(&self, number: u32, path: &str) -> Option<String> {
        let view = self.beside.get(&number)?;
        Some(format!("/proc/self/fd/{}{path}", view.root.as_raw_fd()))
    }

    /// The namespace beside the app's own in which a descriptor was opened.
    pub fn of(&self, info: &Fields) -> Option<u32> {
        let id = of_descriptor(info)?;
        let mut all = self.beside.iter();
        let (number, _) = all.find(|(_, view)| view.rows.iter().any(|row| row.id == id))?;
        Some(*number)
    }

    /// Where a path of that namespace leads to.
    pub fn place(&self, number: u32, path: &str) -> Place {
        match self.beside.get(&number) {
            Some(view) => view.mounts.place(path),
            None => Place::Own(path.to_owned()),
        }
    }

    /// What is to be done to make the namespace of this number again, with what is in it. `take`: the content
    /// of files, too.
    pub fn look(
        &self,
        (number, pid): (u32, HostPid),
        take: bool,
        shm: &mut ShmTable,
        refusals: &mut Refusals,
    ) -> Mounts {
        let Some(view) = self.beside.get(&number) else {
            return Mounts::default();
        };
        let mut mounts = view.mounts.clone();
        for (at, refused) in &view.unkept {
            refuse(refusals, pid, at, refused.clone());
        }
        for ((done, shown), step) in view.done.iter().zip(&mut mounts.steps) {
            let Done::Made(at) = done else { continue };
            let row = &view.rows[*at];
            let mut others = self.beside.iter().filter(|(other, _)| **other != number);
            if others.any(|(_, other)| other.rows.iter().any(|other| other.device == row.device)) {
                let reason = refused(
                    "its file system is in another mount namespace of the app, too, and not in the app's own mounts",
                    "let the app mount another one in each",
                );
                refuse(refusals, pid, &row.at, reason);
                continue;
            }
            let Some(shown) = shown.as_ref().filter(|shown| is_mount(&shown.place, row.id)) else {
                let reason = refused("it is covered by another mount", "let the app unmount what covers it");
                refuse(refusals, pid, &row.at, reason);
                continue;
            };
            if let Step::Mount { kind, .. } = step
                && let Err(refused) = fill(kind, row, shown, pid, take, shm)
            {
                refuse(refusals, pid, &row.at, refused);
            }
        }
        mounts
    }
}

/// The app's own mounts, and what it has mounted there itself: that would not be there after a restore.
///
/// They are private, so that only the app changes them once it runs. A file system of the host's that was
/// unmounted there meanwhile looks alike, but was mounted before those that each instance has for itself; that is
/// told since Linux 6.8, and before nothing is.
#[derive(Debug)]
pub struct Own {
    init: HostPid,
    /// Tells when it has changed (proc_pid_mountinfo(5)).
    table: File,
    found: Vec<String>,
    changed: Cell<bool>,
}

impl Own {
    pub fn look(init: HostPid) -> io::Result<Own> {
        let table = File::open(format!("/proc/{init}/mountinfo"))?;
        Ok(Own {
            found: mounted_by_the_app(init)?,
            init,
            table,
            changed: Cell::new(false),
        })
    }

    /// Refuses what is there now, in the name of this process.
    pub fn refuse(&self, pid: HostPid, refusals: &mut Refusals) {
        let mut told = [PollFd::new(self.table.as_fd(), PollFlags::POLLPRI)];
        let changed = poll(&mut told, PollTimeout::ZERO).is_ok_and(|count| count > 0);
        self.changed.set(self.changed.get() || changed);
        let now = self.changed.get().then(|| mounted_by_the_app(self.init));
        let found = match &now {
            None => &self.found,
            Some(Ok(found)) => found,
            Some(Err(error)) => {
                let reason = refused(format!("what is mounted cannot be seen: {error}"), "try again");
                return refuse(refusals, pid, "/", reason);
            }
        };
        for at in found {
            let reason = refused(
                "the app has mounted it among its own mounts, which are made anew at a restore",
                "let the app unmount it, or mount it in a mount namespace of its own (unshare -m)",
            );
            refuse(refusals, pid, at, reason);
        }
    }
}

/// Where an app has file systems in its own mounts that are nowhere on the host.
fn mounted_by_the_app(init: HostPid) -> io::Result<Vec<String>> {
    let host = table("self")?;
    let is_on_host = |row: &&Row| host.iter().any(|other| other.device == row.device);
    let own = launch::mounts();
    let is_own = |row: &&Row| {
        own.iter()
            .any(|own| own.at == row.at && own.kind.is_none_or(|kind| kind == row.kind))
    };
    let number = |at: &str| mount_number(&format!("/proc/{init}/root{at}"));
    let mut others = table(init)?;
    others.retain(|row| !is_on_host(&row) && !is_own(&row));
    let last = if others.is_empty() {
        None
    } else {
        number(identity::DIRECTORY)
    };
    let later = |row: &Row| last.zip(number(&row.at)).is_some_and(|(last, number)| number > last);
    Ok(others.into_iter().filter(later).map(|row| row.at).collect())
}

fn mount_number(path: &str) -> Option<u64> {
    sys::number(Path::new(path)).ok().flatten()
}

fn refuse(refusals: &mut Refusals, pid: HostPid, at: &str, (reason, fix): Refused) {
    refusals.add(pid, format!("mount {at}"), reason, fix);
}

/// Whether this is open by way of the mount with this number.
fn is_mount(place: &OwnedFd, id: u64) -> bool {
    mount_id(&format!("/proc/self/fdinfo/{}", place.as_raw_fd())) == Some(id)
}

fn mount_id(fdinfo: &str) -> Option<u64> {
    let text = proc::read(fdinfo).ok()?;
    of_descriptor(&Fields::new(String::from_utf8_lossy(&text).into_owned()))
}

impl View {
    /// By a thread of its own: one that shares its directories with others cannot enter (setns(2)).
    fn open(pid: HostPid, base: HostPid, own: &[Row]) -> io::Result<View> {
        let namespace = File::open(format!("/proc/{pid}/ns/mnt"))?;
        // What /proc is there, and whether there is one, is the app's affair.
        let thread = open_path(AT_FDCWD, "/proc/thread-self/")?;
        let own_root = open_path(AT_FDCWD, &format!("/proc/{base}/root/"))?;
        unshare(CloneFlags::CLONE_FS)?;
        setns(namespace, CloneFlags::CLONE_NEWNS)?;
        let table = openat(&thread, "mountinfo", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut text = Vec::new();
        File::from(table).read_to_end(&mut text)?;
        let rows = parse(&String::from_utf8_lossy(&text));
        let root = open_path(AT_FDCWD, "/")?;
        // That of another user namespace is refused as such.
        let is_foreign = proc::link(pid, "ns/user").ok() != proc::link(base, "ns/user").ok();
        if is_foreign || rows.len() > ROWS_MAX {
            let reason = match is_foreign {
                true => refused(
                    "it is of a user namespace of its own, which is not carried yet",
                    "let the app make it as the user that it is",
                ),
                false => too_many(&format!("{ROWS_MAX}")),
            };
            return Ok(View {
                root,
                done: Vec::new(),
                unkept: vec![("/".to_owned(), reason)],
                mounts: Mounts::default(),
                rows: Vec::new(),
            });
        }
        let key = |directory: &OwnedFd, path: &str| {
            let opened = open_path(directory, below(path)).ok()?;
            let meta = File::from(opened).metadata().ok()?;
            Some((meta.dev(), meta.ino()))
        };
        let leads = |from: &str, row: &Row| {
            let there = key(&own_root, from);
            there.is_some() && there == key(&root, &row.at)
        };
        let Comparison { done, mut unkept, .. } = Comparison::new(own, &rows, &leads);
        let steps = done.iter().map(|done| step(done, &rows, &mut unkept)).collect();
        let shown = |done: &Done| {
            let Done::Made(at) = done else { return None };
            let place = open_path(&root, below(&rows[*at].at)).ok()?;
            let whole = sys::copy(place.as_fd());
            Some(Shown { place, whole })
        };
        let shown: Vec<Option<Shown>> = done.iter().map(shown).collect();
        Ok(View {
            root,
            done: done.into_iter().zip(shown).collect(),
            unkept,
            mounts: Mounts { steps },
            rows,
        })
    }
}

fn open_path(directory: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    // The link of a process's root is followed by its slash.
    Ok(openat(directory, path, flags, Mode::empty())?)
}

/// A path from a directory that is open.
fn below(path: &str) -> &str {
    match path.trim_start_matches('/') {
        "" => ".",
        path => path,
    }
}

fn step(done: &Done, rows: &[Row], unkept: &mut Vec<Unkept>) -> Step {
    match done {
        Done::Unmounted(_, at) => Step::Unmount { at: at.clone() },
        Done::Remounted(row) => Step::Remount {
            at: rows[*row].at.clone(),
            flags: rows[*row].flags,
        },
        Done::Bound(row, from) => Step::Bind {
            at: rows[*row].at.clone(),
            from: from.clone(),
            flags: rows[*row].flags,
        },
        Done::Made(row) => {
            let row = &rows[*row];
            let kind = match row.kind.as_str() {
                "proc" => FileSystem::Proc,
                "devpts" => FileSystem::Devpts,
                _ => FileSystem::Tmpfs(Tree {
                    root: row.root.clone(),
                    ..Tree::default()
                }),
            };
            Step::Mount {
                at: row.at.clone(),
                flags: row.flags,
                source: row.source.clone(),
                options: options(row, unkept),
                kind,
            }
        }
    }
}

fn options(row: &Row, unkept: &mut Vec<Unkept>) -> BTreeMap<String, String> {
    let mut options = BTreeMap::new();
    for option in row.options.split(',').filter(|option| *option != "rw") {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        if FileSystem::options(&row.kind).contains(&name) {
            options.insert(name.to_owned(), value.to_owned());
        } else {
            let reason = refused(
                "its file system has an option that is not carried",
                "mount it without that",
            );
            unkept.push((row.at.clone(), reason));
        }
    }
    options
}

/// Looks at what is in a file system that is nowhere else.
fn fill(
    kind: &mut FileSystem,
    row: &Row,
    shown: &Shown,
    pid: HostPid,
    take: bool,
    shm: &mut ShmTable,
) -> std::result::Result<(), Refused> {
    let unread = |error: &dyn std::fmt::Display| {
        refused(
            format!("what is in it cannot be read: {error}"),
            "let the app unmount it before the snapshot",
        )
    };
    let whole = || shown.whole.as_ref().map_err(|errno| unread(errno));
    match kind {
        FileSystem::Proc if is_of_own_processes(shown, pid) => Ok(()),
        FileSystem::Proc => Err(refused(
            "it shows the processes of another PID namespace",
            "let the app unmount it before the snapshot",
        )),
        FileSystem::Devpts => {
            let names = fs::read_dir(format!("/proc/self/fd/{}", whole()?.as_raw_fd()));
            let mut names = names
                .map_err(|error| unread(&error))?
                .filter_map(std::result::Result::ok);
            match names.all(|name| name.file_name() == "ptmx") {
                true => Ok(()),
                false => Err(refused("pseudo-terminals are in it", "close them before the snapshot")),
            }
        }
        FileSystem::Tmpfs(tree) => {
            let whole = whole()?;
            sys::leave_times(whole.as_fd()).ok();
            let walk = Walk::new(whole, take);
            let mut walk = walk.map_err(|errno| unread(&errno))?;
            walk.all().map_err(|error| match error {
                Unwalked::Refused(refused) => refused,
                Unwalked::Failed(error) => unread(&error),
            })?;
            tree.root.clone_from(&row.root);
            tree.content = walk.content(shm).map_err(|error| unread(&error))?;
            tree.entries = walk.entries;
            Ok(())
        }
    }
}

/// Whether a process has the number there that it has for itself.
fn is_of_own_processes(shown: &Shown, pid: HostPid) -> bool {
    let numbers = |fields: &Fields| fields.numbers::<i32>("NSpid");
    let own = Fields::status(pid).map(|status| (numbers(&status), proc::link(pid, "ns/pid")));
    let Ok((Some(own), Ok(link))) = own.map(|(numbers, link)| (numbers.last().copied(), link)) else {
        return false;
    };
    let there = format!("/proc/self/fd/{}/{own}", shown.place.as_raw_fd());
    let status = proc::read(format!("{there}/status")).unwrap_or_default();
    let told = numbers(&Fields::new(String::from_utf8_lossy(&status).into_owned()));
    let leads = fs::read_link(format!("{there}/ns/pid")).is_ok_and(|to| to.as_os_str() == link.as_str());
    told == [own] && leads
}

enum Unwalked {
    Refused(Refused),
    Failed(io::Error),
}

impl From<io::Error> for Unwalked {
    fn from(error: io::Error) -> Unwalked {
        Unwalked::Failed(error)
    }
}

impl From<nix::Error> for Unwalked {
    fn from(errno: nix::Error) -> Unwalked {
        Unwalked::Failed(errno.into())
    }
}

fn not_text() -> Refused {
    refused("a name in it is not UTF-8, and not carried yet", "rename it")
}

/// Goes through the files of a file system, which others may change meanwhile.
struct Walk<'a> {
    root: &'a OwnedFd,
    entries: Vec<Entry>,
    /// Files of several names, by their inode.
    known: HashMap<u64, String>,
    content: Option<File>,
    bytes: u64,
}

impl Walk<'_> {
    fn new(root: &OwnedFd, take: bool) -> crate::sys::Sys<Walk<'_>> {
        let content = take.then(|| sysfd::memfd("appshot-mounted", libc::MFD_CLOEXEC).map(File::from));
        Ok(Walk {
            root,
            entries: Vec::new(),
            known: HashMap::new(),
            content: content.transpose()?,
            bytes: 0,
        })
    }

    /// Each directory before what is in it.
    fn all(&mut self) -> std::result::Result<(), Unwalked> {
        let mut left = vec![String::new()];
        while let Some(name) = left.pop() {
            if self.entries.len() >= limits::MOUNTED_FILES {
                return Err(Unwalked::Refused(refused(
                    format!("more than {} files are in it", limits::MOUNTED_FILES),
                    "let the app remove some of them",
                )));
            }
            let opened = self.open(&name)?;
            let entry = self.entry(name, &opened)?;
            if entry.kind == EntryKind::Directory {
                let mut names = Vec::new();
                for inside in fs::read_dir(view(&opened))? {
                    let inside = inside?.file_name().into_string();
                    names.push(inside.map_err(|_| Unwalked::Refused(not_text()))?);
                }
                names.sort_unstable();
                let within = |inside: &String| match entry.name.as_str() {
                    "" => inside.clone(),
                    directory => format!("{directory}/{inside}"),
                };
                left.extend(names.iter().rev().map(within));
            }
            self.entries.push(entry);
        }
        Ok(())
    }

    /// A file by its name, whatever it is: nothing that takes its place meanwhile is opened, no link is followed.
    fn open(&self, name: &str) -> nix::Result<File> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV);
        openat2(self.root, below(name), how).map(File::from)
    }

    fn entry(&mut self, name: String, opened: &File) -> std::result::Result<Entry, Unwalked> {
        let meta = opened.metadata()?;
        let kind = meta.file_type();
        let kind = if kind.is_dir() {
            EntryKind::Directory
        } else if let Some(to) = self.known.get(&meta.ino()) {
            EntryKind::Link { to: to.clone() }
        } else if kind.is_file() {
            EntryKind::File {
                bytes: meta.len(),
                runs: self.read(&view(opened), meta.len())?,
            }
        } else if kind.is_symlink() {
            let to = String::from_utf8(readlinkat(opened, "")?.into_vec());
            EntryKind::Symlink {
                to: to.map_err(|_| Unwalked::Refused(not_text()))?,
            }
        } else if kind.is_fifo() {
            EntryKind::Fifo
        } else if kind.is_socket() {
            EntryKind::Socket
        } else {
            return Err(Unwalked::Refused(refused(
                format!("{name} is in it, a device"),
                "let the app remove it, or bind that of its own mounts",
            )));
        };
        if kind != EntryKind::Directory && meta.nlink() > 1 {
            self.known.entry(meta.ino()).or_insert_with(|| name.clone());
        }
        let ns = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Ok(Entry {
            attributes: attributes(&view(opened))?,
            name,
            kind,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            atime_ns: ns(meta.atime(), meta.atime_nsec()),
            mtime_ns: ns(meta.mtime(), meta.mtime_nsec()),
        })
    }

    /// Copies what a file holds behind what is there, and answers where.
    fn read(&mut self, path: &str, bytes: u64) -> std::result::Result<Vec<(u64, u64, u64)>, Unwalked> {
        let file = File::open(path)?;
        let mut runs = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        let mut at = 0;
        while at < bytes {
            // From here on it has none.
            let Ok(begin) = lseek(&file, at as i64, Whence::SeekData) else {
                break;
            };
            let begin = begin as u64;
            let end = lseek(&file, begin as i64, Whence::SeekHole).map_or(bytes, |end| end as u64);
            let end = end.min(bytes);
            if end <= begin {
                break;
            }
            if self.bytes + (end - begin) > limits::MOUNTED_BYTES {
                let most = limits::MOUNTED_BYTES >> 20;
                return Err(Unwalked::Refused(refused(
                    format!("its files hold more than {most} MiB"),
                    "let the app remove some of them",
                )));
            }
            runs.push((begin, self.bytes, end - begin));
            let mut from = begin;
            while let Some(content) = self.content.as_ref().filter(|_| from < end) {
                let length = (end - from).min(buffer.len() as u64) as usize;
                file.read_exact_at(&mut buffer[..length], from)?;
                content.write_all_at(&buffer[..length], self.bytes + (from - begin))?;
                from += length as u64;
            }
            self.bytes += end - begin;
            at = end;
        }
        Ok(runs)
    }

    fn content(&mut self, shm: &mut ShmTable) -> io::Result<Option<ShmId>> {
        match self.content.take().filter(|_| self.bytes > 0) {
            Some(content) => shm.enter_held(None, content, ShmKind::Anon).map(Some),
            None => Ok(None),
        }
    }
}

/// What is open by its path alone, as a path that leads to just that.
fn view(opened: &File) -> String {
    format!("/proc/self/fd/{}", opened.as_raw_fd())
}

fn attributes(path: &str) -> std::result::Result<Vec<Attribute>, Unwalked> {
    let path = Path::new(path);
    let mut kept = Vec::new();
    let names = match sys::attributes(path) {
        Err(nix::Error::ENOTSUP) => Vec::new(),
        names => names?,
    };
    for name in names {
        let value = sys::attribute(path, &name)?;
        let name = name.into_string();
        let name = name.map_err(|_| Unwalked::Refused(not_text()))?;
        kept.push(Attribute { name, value });
    }
    kept.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(kept)
}

/// The mount by which a descriptor was opened.
fn of_descriptor(info: &Fields) -> Option<u64> {
    info.number("mnt_id").and_then(|id| u64::try_from(id).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "\
20 1 8:1 / / rw,relatime - ext4 /dev/root rw
21 20 0:5 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
22 20 0:6 / /dev rw,nosuid - devtmpfs dev rw,size=4k
23 22 0:7 / /dev/pts rw,nosuid,noexec,relatime - devpts devpts rw,gid=5
";

    fn compare(other: &str) -> (Vec<Done>, Vec<Unkept>) {
        let (own, other) = (parse(OWN), parse(other));
        let compared = Comparison::new(&own, &other, &|_, _| true);
        (compared.done, compared.unkept)
    }

    #[test]
    fn a_copy_is_the_same() {
        let copy = OWN.replace("20 1 ", "40 1 ").replace(" 20 ", " 40 ");
        assert_eq!(compare(&copy), (Vec::new(), Vec::new()));
    }

    #[test]
    fn what_was_done_is_told_in_its_order() {
        let other = "\
40 1 8:1 / / rw,relatime - ext4 /dev/root rw
41 40 0:5 / /proc ro,nosuid,nodev,noexec,relatime - proc proc rw
42 40 0:6 / /dev rw,nosuid - devtmpfs dev rw,size=4k
44 40 0:9 / /tmp\\040x rw - tmpfs mine rw,size=64k
45 44 8:1 /etc /tmp\\040x/etc ro,relatime - ext4 /dev/root rw
46 40 0:10 / /mnt rw master:3 - xfs disk rw
";
        let (done, unkept) = compare(other);
        let expected = [
            Done::Remounted(1),
            Done::Unmounted(2, "/dev/pts".to_owned()),
            Done::Made(3),
            Done::Bound(4, "/etc".to_owned()),
        ];
        assert_eq!(done, expected);
        let refused: Vec<&str> = unkept.iter().map(|(at, _)| at.as_str()).collect();
        assert_eq!(refused, ["/mnt", "/mnt"]);
    }

    #[test]
    fn another_root_is_made_first() {
        let other = "\
40 1 0:9 /newroot / rw,nosuid - tmpfs tmpfs rw
41 40 8:1 / /usr rw,relatime - ext4 /dev/root rw
43 41 0:6 / /usr/dev rw,nosuid - devtmpfs dev rw,size=4k
";
        let (done, unkept) = compare(other);
        let expected = [
            Done::Made(0),
            Done::Bound(1, "/".to_owned()),
            Done::Unmounted(1, "/usr/proc".to_owned()),
            Done::Unmounted(2, "/usr/dev/pts".to_owned()),
        ];
        assert_eq!((done, unkept), (expected.to_vec(), Vec::new()));
    }

    #[test]
    fn places_lead_back() {
        let steps = vec![
            Step::Mount {
                at: "/".into(),
                flags: 0,
                source: "tmpfs".into(),
                options: BTreeMap::new(),
                kind: FileSystem::Tmpfs(Tree::default()),
            },
            Step::Bind {
                at: "/usr".into(),
                from: "/".into(),
                flags: 0,
            },
            Step::Unmount { at: "/usr/proc".into() },
        ];
        let mounts = Mounts { steps };
        let places = ["/usr", "/usr/lib/x", "/etc", "/usr/proc/1"].map(|path| mounts.place(path));
        let own = |path: &str| Place::Own(path.to_owned());
        assert_eq!(places, [own("/"), own("/lib/x"), Place::Beside, Place::Covered]);
    }
}
