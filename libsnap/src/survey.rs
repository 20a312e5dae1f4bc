//! What can be told of an app without stopping it: whether it may be
//! snapshotted at all, and which of its state nobody could bring back.

use crate::clocks::Reading;
use crate::error::{Error, Kind, OrFail, Result};
use crate::files::{FileTable, Member, pty};
use crate::freeze;
use crate::hidden;
use crate::ids::HostPid;
use crate::image::records::Clocks;
use crate::namespaces::{Found, Kind as SpaceKind};
use crate::nsthread::Door;
use crate::proc::{self, Fields};
use crate::refusals::Refusals;
use crate::shared;
use crate::target::{OutsidePolicy, SnapshotOptions, Target};
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

const PF_KTHREAD: u32 = 0x0020_0000;

/// `pid 4312 (postgres)`, for messages.
pub fn subject(target: &Target) -> String {
    let root = root(target);
    match target {
        Target::Pid(_) => format!("pid {root} ({})", proc::comm(root)),
        Target::App { name, .. } => format!("app {name} (pid {root}, {})", proc::comm(root)),
    }
}

/// Whose namespaces those of the app must be, as far as they are not its own: its
/// init's, or ours.
pub fn host(target: &Target) -> HostPid {
    match target {
        Target::App { init: Some(init), .. } => *init,
        _ => HostPid(std::process::id() as i32),
    }
}

pub fn root(target: &Target) -> HostPid {
    match target {
        Target::Pid(pid) | Target::App { root: pid, .. } => *pid,
    }
}

pub fn app_name(target: &Target) -> String {
    match target {
        Target::App { name, .. } => name.clone(),
        Target::Pid(pid) => {
            let comm = proc::comm(*pid);
            let plain: String = comm
                .chars()
                .map(|c| {
                    if c.is_ascii_alphanumeric() {
                        c.to_ascii_lowercase()
                    } else {
                        '-'
                    }
                })
                .collect();
            format!("{}-{pid}", plain.trim_matches('-'))
        }
    }
}

/// Anonymous memory that the app has, in bytes; what processes share counts once. It is
/// about what an appshot takes: pages of zeroes are not stored, files' pages partly are.
pub fn memory_bytes(target: &Target) -> Result<u64> {
    let of = |pid: HostPid| {
        // A zombie has none.
        let fields = Fields::new(proc::text(pid, "smaps_rollup").unwrap_or_default());
        ["Pss_Anon", "SwapPss"].map(|key| fields.number(key).unwrap_or_default() as u64 * 1024)
    };
    Ok(freeze::members(target)?.into_iter().flat_map(of).sum())
}

pub fn is_zombie(pid: HostPid) -> bool {
    proc::stat(pid).is_ok_and(|stat| stat.state == b'Z')
}

/// How long the memory of an app that was just restored may take to be there.
const FILLING_MAX: Duration = Duration::from_secs(120);
const FILLING_INTERVAL: Duration = Duration::from_millis(2);

/// Waits until all memory of a restored app is its own: what is owed by its pager
/// (`restore::pager`) looks like memory that was never used. Its init has
/// descriptors until then.
pub fn await_memory(target: &Target, cancelled: &dyn Fn() -> bool) -> Result<()> {
    let Target::App { init: Some(init), .. } = target else {
        return Ok(());
    };
    let begin = Instant::now();
    crate::restore::pager::hurry(*init);
    while std::fs::read_dir(format!("/proc/{init}/fd")).is_ok_and(|mut fds| fds.next().is_some()) {
        if cancelled() {
            return Ok(());
        }
        if begin.elapsed() > FILLING_MAX {
            return Err(Error::failed(format!("cannot snapshot {}", subject(target)))
                .because("it was restored and still does not have all its memory")
                .fix("look whether the process that restored it is stopped")
                .state("the app was not changed and is running"));
        }
        thread::sleep(FILLING_INTERVAL);
    }
    Ok(())
}

/// Refuses what is no app: missing, a kernel thread, init, ourselves, already
/// traced.
pub fn admissible(target: &Target) -> Result<()> {
    let root = root(target);
    let what = format!("cannot snapshot {}", subject(target));
    crate::kernel::require_unfiltered(what.clone())
        .and_then(|()| crate::kernel::require_comparing(what.clone()))
        .map_err(|e| e.state("the app was not changed and is running"))?;
    let stat = proc::stat(root).map_err(|_| {
        Error::new(Kind::NotFound, format!("cannot snapshot pid {root}")).because("there is no such process")
    })?;
    let refused = |because: &str, fix: &str| Err(Error::refused(what.clone()).because(because).fix(fix));
    if stat.flags & PF_KTHREAD != 0 {
        return refused("it is a kernel thread", "name a process of an app");
    }
    if root.0 == 1 {
        return refused("it is the init of this machine", "name a process of an app");
    }
    if stat.state == b'Z' {
        return refused("it has ended and waits to be reaped (zombie)", "let its parent reap it");
    }
    let own = HostPid(std::process::id() as i32);
    for pid in freeze::members(target)? {
        if pid == own {
            return refused(
                "it holds the process that would take the snapshot",
                "run the command from outside the app",
            );
        }
        unmolested(pid, &what)?;
    }
    Ok(())
}

fn unmolested(pid: HostPid, what: &str) -> Result<()> {
    let Ok(status) = Fields::status(pid) else { return Ok(()) };
    let tracer = status.number("TracerPid").unwrap_or(0);
    if tracer != 0 {
        let name = proc::comm(HostPid(tracer as i32));
        return Err(Error::new(Kind::Conflict, what)
            .because(format!("pid {pid} is traced by pid {tracer} ({name})"))
            .fix("end the debugger or tracer first")
            .state("the app was not changed and is running"));
    }
    Ok(())
}

/// State that no record holds yet.
pub fn processes(wanted: &mut Wanted, pids: &[HostPid], refusals: &mut Refusals) {
    for pid in pids {
        wanted.check(*pid, refusals);
        names(*pid, refusals);
        // Asked as the kernel tells it: an app's own init is no member.
        if Fields::status(*pid)
            .is_ok_and(|status| status.numbers::<i32>("NSpid").get(1..).is_some_and(|n| n.contains(&1)))
        {
            refusals.add(
                *pid,
                "process 1",
                "it is the init of a PID namespace, which each instance has of its own",
                "name a process below it",
            );
        }
        if !wanted.has_own_mounts(*pid) && !has_reachable_root(*pid, &wanted.init) {
            refusals.add(
                *pid,
                "root directory",
                "it cannot be reached by its name (any more)",
                "let the process change its root (chroot) to a directory that has its name",
            );
        }
    }
    shared::look(pids, refusals);
    hidden::look(pids, |pid, tid| wanted.has_own(pid, tid), refusals);
}

/// Processes that wait to be reaped.
pub fn ended(zombies: &[HostPid], refusals: &mut Refusals) {
    let has_dumped = |pid: &&HostPid| proc::stat(**pid).is_ok_and(|stat| libc::WCOREDUMP(stat.exit_code));
    for pid in zombies.iter().filter(has_dumped) {
        refusals.add(
            *pid,
            "how it has ended",
            "it has left a core file, of which its parent would not be told any more (WCOREDUMP)",
            "let its parent reap it (waitpid), or run it without core files (ulimit -c 0)",
        );
    }
}

/// Whether the root directory of a process is found by its name, from that of the init, or
/// from ours.
fn has_reachable_root(pid: HostPid, init: &str) -> bool {
    let Ok(name) = proc::link(pid, "root") else { return true };
    let key = |path: String| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    name == "/" || key(format!("/proc/{pid}/root/")) == key(format!("/proc/{init}/root{name}"))
}

/// Controlling terminals that are not among the app's own.
pub fn terminals(members: &[Member], table: &FileTable, options: &SnapshotOptions, refusals: &mut Refusals) {
    if options.outside == OutsidePolicy::Replace {
        return;
    }
    for member in members {
        let Ok(stat) = proc::kept_stat(member.pid) else {
            continue;
        };
        let leader = members.iter().find(|m| m.pid.0 == stat.session);
        let own = leader.is_some_and(|leader| pty::controlling(&table.files, leader.vpid, stat.tty).is_some());
        if stat.tty != 0 && !own {
            refusals.add(
                member.pid,
                format!("controlling terminal ({})", pty::name(stat.tty)),
                "it is outside the app",
                "start the app with `appshot run` or setsid(1), or pass --outside=replace to restore it without one",
            );
        }
    }
}

/// Paths that are not UTF-8: records hold text. Those of descriptors are seen with them.
fn names(pid: HostPid, refusals: &mut Refusals) {
    let mut refuse = |what: &str, name: &[u8]| {
        if std::str::from_utf8(name).is_err() {
            let object = format!("{what} ({})", OsStr::from_bytes(name).display());
            refusals.add(pid, object, NOT_TEXT.0, NOT_TEXT.1);
        }
    };
    let own = [
        ("program", "exe"),
        ("current directory", "cwd"),
        ("root directory", "root"),
    ];
    for (what, link) in own {
        refuse(what, &proc::link_bytes(pid, link).unwrap_or_default());
    }
    let maps = proc::bytes(pid, "maps").unwrap_or_default();
    if std::str::from_utf8(&maps).is_ok() {
        return;
    }
    // A program's name stands there several times.
    let names: BTreeSet<&[u8]> = maps
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.iter().position(|byte| *byte == b'/').map(|at| &line[at..]))
        .collect();
    for name in names {
        refuse("mapping", name);
    }
}

/// Why a name is refused.
pub const NOT_TEXT: (&str, &str) = ("its name is not UTF-8, and not carried yet", "rename it");

fn ns(pid: &str, name: &str) -> Option<String> {
    fs::read_link(format!("/proc/{pid}/ns/{name}"))
        .ok()
        .map(|link| link.to_string_lossy().into_owned())
}

/// The namespaces that processes of the app are to be in. Its own are those its init
/// made, or the network that it has joined; everything else must be the host's, or one of
/// those that are kept beside.
#[derive(Clone, Debug)]
pub struct Wanted {
    init: String,
    root: String,
    /// Those beside its own. `None`: it is a process like others, and may have none.
    found: Option<Found>,
    /// Its namespaces are its init's, not those that its first process was started in.
    has_init: bool,
    /// Of those that have been asked for.
    known: HashMap<(String, &'static str), Option<String>>,
}

impl Wanted {
    /// Also before the app stands still: neither we nor its init change ours.
    pub fn of(target: &Target) -> Wanted {
        let init = host(target).to_string();
        let host = ["user", "cgroup"].map(|name| ("self", name));
        let own = ["mnt", "ipc", "uts", "net"].map(|name| (init.as_str(), name));
        let known = host.into_iter().chain(own);
        let known = known.map(|(owner, name)| ((owner.to_owned(), name), ns(owner, name)));
        let mut known: HashMap<_, _> = known.collect();
        if let Target::App {
            network: Some(inode), ..
        } = target
        {
            known.insert((init.clone(), "net"), Some(format!("net:[{inode}]")));
        }
        Wanted {
            root: root(target).to_string(),
            found: matches!(target, Target::App { .. }).then(Found::default),
            has_init: matches!(target, Target::App { init: Some(_), .. }),
            known,
            init,
        }
    }

    fn check(&mut self, pid: HostPid, refusals: &mut Refusals) {
        let (init, root) = (self.init.clone(), self.root.clone());
        for name in ["user", "cgroup"] {
            self.check_one(pid, name, ("self", name), refusals);
        }
        for name in ["mnt", "ipc", "uts", "net"] {
            self.check_one(pid, name, (&init, name), refusals);
        }
        // Those of future children must be the process's own.
        for (name, children) in [("pid", "pid_for_children"), ("time", "time_for_children")] {
            self.check_one(pid, name, (&root, name), refusals);
            self.check_one(pid, children, (&root, name), refusals);
        }
    }

    /// The namespaces besides its own that processes of the app were found in.
    pub fn take_found(&mut self) -> Found {
        self.found.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Where its names lead is seen once its mounts are looked at.
    fn has_own_mounts(&self, pid: HostPid) -> bool {
        let found = self.found.as_ref();
        found.is_some_and(|found| found.which(pid, SpaceKind::Mnt).is_some())
    }

    /// The name of a namespace that this thread is in, which is not that of its process.
    fn has_own(&mut self, pid: HostPid, tid: HostPid) -> Option<&'static str> {
        const ALL: [&str; 7] = [
            "mnt",
            "ipc",
            "uts",
            "net",
            "cgroup",
            "pid_for_children",
            "time_for_children",
        ];
        let of_thread = tid.to_string();
        ALL.into_iter().find(|name| {
            let found = ns(&of_thread, name);
            // One for children has no name before the first of them.
            if found.is_none() && *name == "pid_for_children" {
                return ns(&of_thread, "mnt").is_some();
            }
            let known = self.known.entry((pid.to_string(), name));
            found.is_some() && found != *known.or_insert_with_key(|(owner, name)| ns(owner, name))
        })
    }

    fn check_one(&mut self, pid: HostPid, name: &str, (owner, own): (&str, &'static str), refusals: &mut Refusals) {
        let process = pid.to_string();
        if (process.as_str(), name) == (owner, own) {
            return;
        }
        let key = (owner.to_owned(), own);
        let wanted = self
            .known
            .entry(key)
            .or_insert_with_key(|(owner, name)| ns(owner, name));
        let found = ns(&process, name);
        // One for children has no name before the first of them.
        let is_empty = found.is_none() && name == "pid_for_children" && proc::exists(pid);
        let other = found.filter(|found| Some(found) != wanted.as_ref());
        let may_leave = self.has_init || process != self.root;
        let all = self.found.as_mut().filter(|_| may_leave);
        if let (Some(all), Some(kind), Some(link)) = (all, SpaceKind::named(name), &other) {
            all.enter(pid, kind, link.clone());
        } else if is_empty || other.is_some() {
            refusals.add(
                pid,
                format!("{name} namespace"),
                "the process is in a namespace of its own that is not carried yet",
                "start the app with `appshot run`, which makes the namespaces it needs, and let it make none by itself",
            );
        }
    }
}

/// This machine's clocks as the app reads them.
pub fn clocks(at: &Reading, pid: HostPid) -> Clocks {
    let offsets = proc::text(pid, "timens_offsets").unwrap_or_default();
    Clocks {
        realtime_ns: at.realtime_ns,
        monotonic_ns: at.monotonic_ns + offset(&offsets, "monotonic"),
        boottime_ns: at.boottime_ns + offset(&offsets, "boottime"),
        stood_ns: 0,
    }
}

/// `monotonic      -12         500`: seconds and nanoseconds.
fn offset(text: &str, clock: &str) -> i64 {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(clock));
    let mut words = line
        .unwrap_or("")
        .split_whitespace()
        .skip(1)
        .map(|w| w.parse::<i64>().unwrap_or(0));
    let seconds = words.next().unwrap_or(0);
    seconds * 1_000_000_000 + words.next().unwrap_or(0)
}

/// Host and domain name of `pid`, in the UTS namespace behind the door.
pub fn host_names(pid: HostPid, uts: &Door, refusals: &mut Refusals) -> Result<(String, String)> {
    // Not read from /proc/sys, which takes ten times as long.
    let names = uts.inside(nix::sys::utsname::uname);
    let names = names.and_then(|names| names.map_err(Into::into));
    let names = names.or_fail(|| "cannot read the host name")?;
    let mut text = |name: &str, found: &OsStr| {
        found.to_str().map(str::to_owned).unwrap_or_else(|| {
            refusals.add(pid, name, "it is not UTF-8", "give its UTS namespace another one");
            String::new()
        })
    };
    Ok((
        text("host name", names.nodename()),
        text("domain name", names.domainname()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_negative_clock_offset() {
        let text = "monotonic          -2         500000000\nboottime            3         0\n";
        assert_eq!(offset(text, "monotonic"), -1_500_000_000);
        assert_eq!(offset(text, "boottime"), 3_000_000_000);
    }

    #[test]
    fn what_is_no_app_is_refused() {
        let refuse = |pid: i32| admissible(&Target::Pid(HostPid(pid))).unwrap_err();
        assert_eq!(refuse(1).kind, Kind::Refused);
        assert_eq!(refuse(2).because.as_deref(), Some("it is a kernel thread"));
        assert_eq!(refuse(std::process::id() as i32).kind, Kind::Refused);
        assert_eq!(refuse(4_000_000).kind, Kind::NotFound);
    }
}
