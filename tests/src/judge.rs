//! The judge: was the app left as it was (A1), is nothing left of a trial (A3)?
//!
//! It believes only what the kernel shows of the processes, never the engine.

use crate::verdict::poll;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

// ---------------------------------------------------------------- A1: untouched

/// What the kernel shows of a process tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    pub processes: BTreeMap<i32, Process>,
    /// Threads that were running on and off while the fingerprint was taken.
    moving: BTreeSet<(i32, i32)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    pub ppid: i32,
    pub comm: String,
    pub zombie: bool,
    pub cgroup: String,
    /// Lines of `/proc/PID/maps`.
    pub maps: Vec<String>,
    /// Number -> where it leads and with which flags.
    pub fds: BTreeMap<i32, String>,
    pub threads: BTreeMap<i32, Thread>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Thread {
    /// `R`, `S`, `T` … of `/proc/PID/task/TID/stat`.
    pub state: String,
    pub tracer: String,
    /// SigBlk, SigIgn, SigCgt, Seccomp, NoNewPrivs, the credentials, and how it is scheduled.
    pub marks: BTreeMap<String, String>,
}

/// What may differ between two looks at an app that runs on by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    /// It forks and reaps: only processes seen in both looks are compared.
    pub processes: bool,
    /// It maps and unmaps.
    pub maps: bool,
    /// It opens and closes.
    pub fds: bool,
    /// It starts and ends threads.
    pub threads: bool,
    /// It changes signal masks, as while a handler runs.
    pub masks: bool,
}

impl Changes {
    pub const NONE: Changes = Changes {
        processes: false,
        maps: false,
        fds: false,
        threads: false,
        masks: false,
    };
    /// A real server at work.
    pub const ALL: Changes = Changes {
        processes: true,
        maps: true,
        fds: true,
        threads: true,
        masks: true,
    };
}

const MARKS: &[&str] = &["SigBlk", "SigIgn", "SigCgt", "Seccomp", "NoNewPrivs", "Uid", "Gid"];
const MARKS_THAT_CHANGE: &[&str] = &["SigBlk", "SigIgn", "SigCgt"];

impl Fingerprint {
    /// Looks at the tree below `top`, itself included.
    pub fn take(top: i32) -> Fingerprint {
        let first = all_switches(top);
        let print = Fingerprint {
            processes: look(&tree(top)),
            moving: BTreeSet::new(),
        };
        // The programs under test look for their `go` every millisecond. A thread
        // that only came to rest just now moves in one of the two spans, not in both.
        std::thread::sleep(Duration::from_millis(20));
        let second = all_switches(top);
        std::thread::sleep(Duration::from_millis(20));
        let moving = moved(&second, &all_switches(top));
        let moving = moved(&first, &second).intersection(&moving).copied().collect();
        Fingerprint { moving, ..print }
    }

    /// Looks at this process alone, and not at what moves in it.
    pub fn of_one(pid: i32) -> Fingerprint {
        Fingerprint {
            processes: look(&[pid]),
            moving: BTreeSet::new(),
        }
    }
}

fn look(pids: &[i32]) -> BTreeMap<i32, Process> {
    pids.iter().filter_map(|&pid| Some((pid, process(pid)?))).collect()
}

type Switches = BTreeMap<(i32, i32), u64>;

fn moved(first: &Switches, second: &Switches) -> BTreeSet<(i32, i32)> {
    let more = |id: &(i32, i32), n: u64| second.get(id).is_some_and(|m| *m > n);
    first
        .iter()
        .filter(|(id, n)| more(id, **n))
        .map(|(id, _)| *id)
        .collect()
}

/// A1: the app is as it was, nobody traces it, and what moved still moves.
pub fn judge_untouched(before: &Fingerprint, after: &Fingerprint, may: Changes) -> Result<()> {
    if !may.processes {
        let (old, new): (Vec<_>, Vec<_>) = (before.processes.keys().collect(), after.processes.keys().collect());
        ensure!(old == new, "A1: processes were {old:?}, are {new:?}");
    }
    for (pid, new) in &after.processes {
        free_of_tracer(*pid, new, before.processes.get(pid))?;
        if let Some(old) = before.processes.get(pid) {
            same_process(*pid, old, new, may)?;
        }
    }
    still_moving(before, may)
}

fn free_of_tracer(pid: i32, new: &Process, old: Option<&Process>) -> Result<()> {
    for (tid, thread) in &new.threads {
        let was = old.and_then(|o| o.threads.get(tid));
        let tracer_was = was.map_or("0", |t| t.tracer.as_str());
        ensure!(
            thread.tracer == tracer_was,
            "A1: thread {tid} of {pid} is traced by {}, was by {tracer_was}",
            thread.tracer
        );
        let stopped = ["T", "t"].contains(&thread.state.as_str());
        let was_stopped = was.is_some_and(|t| ["T", "t"].contains(&t.state.as_str()));
        ensure!(!stopped || was_stopped, "A1: thread {tid} of {pid} stands stopped");
    }
    Ok(())
}

fn same_process(pid: i32, old: &Process, new: &Process, may: Changes) -> Result<()> {
    let same = |what: &str, equal: bool, old: String, new: String| {
        ensure!(equal, "A1: {what} of {pid} was {old}, is {new}");
        Ok(())
    };
    same(
        "cgroup",
        old.cgroup == new.cgroup,
        old.cgroup.clone(),
        new.cgroup.clone(),
    )?;
    if !may.processes {
        same(
            "parent",
            old.ppid == new.ppid,
            old.ppid.to_string(),
            new.ppid.to_string(),
        )?;
        same(
            "life",
            old.zombie == new.zombie,
            old.zombie.to_string(),
            new.zombie.to_string(),
        )?;
    }
    if !may.maps {
        let (was, is) = differences(&old.maps, &new.maps);
        same("maps", was.is_empty() && is.is_empty(), was.join("; "), is.join("; "))?;
    }
    if !may.fds {
        same(
            "descriptors",
            old.fds == new.fds,
            format!("{:?}", old.fds),
            format!("{:?}", new.fds),
        )?;
    }
    let (tids, tids_now): (Vec<_>, Vec<_>) = (old.threads.keys().collect(), new.threads.keys().collect());
    if !may.threads {
        same(
            "threads",
            tids == tids_now,
            format!("{tids:?}"),
            format!("{tids_now:?}"),
        )?;
    }
    for (tid, thread) in &old.threads {
        let Some(now) = new.threads.get(tid) else {
            continue;
        };
        for (mark, value) in &thread.marks {
            if may.masks && MARKS_THAT_CHANGE.contains(&mark.as_str()) {
                continue;
            }
            let value_now = now.marks.get(mark).cloned().unwrap_or_default();
            same(
                &format!("{mark} of thread {tid}"),
                *value == value_now,
                value.clone(),
                value_now,
            )?;
        }
    }
    Ok(())
}

/// Lines that only one side has.
fn differences(old: &[String], new: &[String]) -> (Vec<String>, Vec<String>) {
    let only =
        |these: &[String], those: &[String]| these.iter().filter(|line| !those.contains(line)).cloned().collect();
    (only(old, new), only(new, old))
}

fn still_moving(before: &Fingerprint, may: Changes) -> Result<()> {
    if may.threads {
        return some_moving(&before.moving);
    }
    for &(pid, tid) in &before.moving {
        let what = format!("A1: thread {tid} of {pid} to go on");
        let start = switches(pid, tid).with_context(|| format!("{what}, but it is gone"))?;
        poll(&what, Duration::from_secs(10), || {
            Ok(switches(pid, tid).is_none_or(|n| n > start).then_some(()))
        })?;
    }
    Ok(())
}

/// Of a server, threads come and go, and one that just served may rest for long.
fn some_moving(moving: &BTreeSet<(i32, i32)>) -> Result<()> {
    if moving.is_empty() {
        return Ok(());
    }
    let look = || moving.iter().map(|&(pid, tid)| switches(pid, tid)).collect::<Vec<_>>();
    let start = look();
    poll("A1: any thread to go on", Duration::from_secs(10), || {
        Ok((look() != start).then_some(()))
    })
}

fn process(pid: i32) -> Option<Process> {
    let base = PathBuf::from(format!("/proc/{pid}"));
    let (state, ppid) = state_and_parent(&base)?;
    let read = |name: &str| fs::read_to_string(base.join(name)).unwrap_or_default();
    let threads = numbers(&base.join("task"));
    Some(Process {
        ppid,
        comm: read("comm").trim().to_owned(),
        zombie: state == "Z" || state == "X",
        cgroup: read("cgroup"),
        maps: read("maps").lines().map(str::to_owned).collect(),
        fds: numbers(&base.join("fd"))
            .into_iter()
            .filter_map(|n| Some((n, fd(&base, n)?)))
            .collect(),
        threads: threads
            .into_iter()
            .filter_map(|t| Some((t, thread(&base, t)?)))
            .collect(),
    })
}

fn fd(base: &Path, number: i32) -> Option<String> {
    let leads = fs::read_link(base.join(format!("fd/{number}"))).ok()?;
    let info = fs::read_to_string(base.join(format!("fdinfo/{number}"))).ok()?;
    let flags = info
        .lines()
        .find(|line| line.starts_with("flags:"))
        .unwrap_or("flags: ?");
    Some(format!("{} {flags}", leads.display()))
}

fn thread(base: &Path, tid: i32) -> Option<Thread> {
    let dir = base.join(format!("task/{tid}"));
    let (state, _) = state_and_parent(&dir)?;
    let status = fs::read_to_string(dir.join("status")).ok()?;
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    };
    let mut marks: BTreeMap<String, String> = MARKS.iter().map(|mark| ((*mark).to_owned(), field(mark))).collect();
    marks.insert("scheduling".to_owned(), scheduling(tid)?);
    Some(Thread {
        state,
        tracer: field("TracerPid"),
        marks,
    })
}

/// Nice value, real-time priority, policy and timer slack.
fn scheduling(tid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{tid}/stat")).ok()?;
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
    let slack = fs::read_to_string(format!("/proc/{tid}/timerslack_ns")).ok()?;
    // Numbers of proc(5) count from 1, and two stand before.
    let [nice, priority, policy] = [19, 40, 41].map(|number| fields.get(number - 3).copied().unwrap_or_default());
    Some(format!("{nice} {priority} {policy} {}", slack.trim()))
}

/// State and parent of a process.
pub fn state_of(pid: i32) -> Option<(String, i32)> {
    state_and_parent(Path::new(&format!("/proc/{pid}")))
}

/// The two fields after the name, which may itself hold blanks and brackets.
fn state_and_parent(dir: &Path) -> Option<(String, i32)> {
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

fn switches(pid: i32, tid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
    let counts = status.lines().filter(|line| line.contains("voluntary_ctxt_switches"));
    Some(
        counts
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum(),
    )
}

fn all_switches(top: i32) -> Switches {
    let mut all = BTreeMap::new();
    for pid in tree(top) {
        for tid in numbers(Path::new(&format!("/proc/{pid}/task"))) {
            all.extend(switches(pid, tid).map(|n| ((pid, tid), n)));
        }
    }
    all
}

/// `top` and everything below it.
pub fn tree(top: i32) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for pid in numbers(Path::new("/proc")) {
        if let Some((_, ppid)) = state_and_parent(Path::new(&format!("/proc/{pid}"))) {
            children.entry(ppid).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut open = vec![top];
    while let Some(pid) = open.pop() {
        if Path::new(&format!("/proc/{pid}")).exists() {
            found.push(pid);
        }
        open.extend(children.get(&pid).into_iter().flatten());
    }
    found.sort_unstable();
    found
}

/// Names in a directory that are numbers.
fn numbers(dir: &Path) -> Vec<i32> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

// ------------------------------------------------------------ A3: nothing left

/// Which traces on the host belong to a trial: other tests run beside it.
#[derive(Clone, Debug)]
pub struct Scope {
    marks: Vec<String>,
    ports: Vec<u16>,
}

impl Scope {
    pub fn new(marks: impl IntoIterator<Item = String>) -> Scope {
        Scope {
            marks: marks.into_iter().collect(),
            ports: Vec::new(),
        }
    }

    #[must_use]
    pub fn with_port(mut self, port: u16) -> Scope {
        self.ports.push(port);
        self
    }

    fn concerns(&self, text: &str) -> bool {
        self.marks.iter().any(|mark| text.contains(mark.as_str()))
    }
}

/// The traces of a trial on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    pub processes: BTreeSet<String>,
    /// Children of the calling thread, dead or alive.
    pub children: BTreeSet<i32>,
    pub cgroups: BTreeSet<PathBuf>,
    /// Appshots that were begun and neither sealed nor deleted.
    pub partial: BTreeSet<PathBuf>,
    pub mounts: BTreeSet<String>,
    pub ports: BTreeSet<u16>,
}

impl HostState {
    pub fn take(scope: &Scope) -> HostState {
        HostState {
            processes: processes_in(scope),
            children: children_of_this_thread(),
            cgroups: cgroups_in(scope),
            partial: partial_in(scope),
            mounts: mounts_in(scope),
            ports: ports_in(scope),
        }
    }
}

/// A3: whatever is there now was there before. What ends by itself, such as a
/// process that was just killed, has a moment to do so.
pub fn judge_nothing_left(scope: &Scope, before: &HostState) -> Result<()> {
    let patience = std::time::Instant::now() + Duration::from_secs(5);
    loop {
        let verdict = nothing_new(before, &HostState::take(scope));
        if verdict.is_ok() || std::time::Instant::now() > patience {
            return verdict;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn nothing_new(before: &HostState, after: &HostState) -> Result<()> {
    fn new<T: Ord + std::fmt::Debug>(what: &str, old: &BTreeSet<T>, new: &BTreeSet<T>) -> Result<()> {
        let left: Vec<_> = new.difference(old).collect();
        ensure!(left.is_empty(), "A3: {what} left behind: {left:?}");
        Ok(())
    }
    new("processes", &before.processes, &after.processes)?;
    new("children", &before.children, &after.children)?;
    new("cgroups", &before.cgroups, &after.cgroups)?;
    new("unsealed appshots", &before.partial, &after.partial)?;
    new("mounts", &before.mounts, &after.mounts)?;
    new("listening ports", &before.ports, &after.ports)
}

fn processes_in(scope: &Scope) -> BTreeSet<String> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let pids = numbers(Path::new("/proc")).into_iter().filter(|pid| *pid != own);
    pids.filter_map(|pid| {
        let about = about(pid);
        let ours = scope.concerns(&about) && !waits_for_host(pid) && !is_prepared(pid);
        ours.then(|| format!("{pid}: {about}"))
    })
    .collect()
}

/// Stands ready in a `restored` that lives, which traces it, and belongs to no app yet.
pub fn is_prepared(pid: i32) -> bool {
    let field = |pid: i32, name: &str| -> Option<String> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().to_owned())
    };
    let daemon = || {
        let tracer = field(pid, "TracerPid:")?.parse().ok()?;
        field(tracer, "Tgid:")
    };
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    daemon().is_some_and(|daemon| groups.contains(&format!("/.spare-{daemon}-")))
}

/// Dead, and left to the init of the host, which reaps when it comes to it.
fn waits_for_host(pid: i32) -> bool {
    state_and_parent(&PathBuf::from(format!("/proc/{pid}"))).is_some_and(|(state, ppid)| state == "Z" && ppid == 1)
}

/// Everything in which a process can bear a mark.
fn about(pid: i32) -> String {
    let base = PathBuf::from(format!("/proc/{pid}"));
    let link = |name: &str| {
        fs::read_link(base.join(name))
            .map(|path| path.display().to_string())
            .unwrap_or_default()
    };
    let text = |name: &str| {
        let bytes = fs::read(base.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
    };
    let state = state_and_parent(&base).map(|(state, _)| state).unwrap_or_default();
    [state, text("cmdline"), link("cwd"), link("exe"), text("cgroup")].join(" | ")
}

/// The kernel lists the children by the thread that made them: those of other
/// tests, in other threads, do not appear.
fn children_of_this_thread() -> BTreeSet<i32> {
    let tid = nix::unistd::gettid();
    let text = fs::read_to_string(format!("/proc/self/task/{tid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn cgroups_in(scope: &Scope) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    // Version 2, or a hierarchy per controller one level below. Apps stand at most four deep.
    walk(Path::new("/sys/fs/cgroup"), 5, &mut |path| {
        if path.is_dir() && path.to_str().is_some_and(|text| scope.concerns(text)) {
            found.insert(path.to_owned());
        }
    });
    found
}

fn partial_in(scope: &Scope) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for dir in scope.marks.iter().filter(|mark| mark.starts_with('/')) {
        walk(Path::new(dir), 4, &mut |path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.contains(".partial-") {
                found.insert(path.to_owned());
            }
        });
    }
    found
}

fn mounts_in(scope: &Scope) -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines()
        .filter(|line| scope.concerns(line))
        .map(str::to_owned)
        .collect()
}

fn ports_in(scope: &Scope) -> BTreeSet<u16> {
    let mut all = BTreeSet::new();
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        all.extend(text.lines().skip(1).filter_map(listening_port));
    }
    all.retain(|port| scope.ports.contains(port));
    all
}

/// `sl local_address rem_address st`: state 0A is LISTEN.
fn listening_port(line: &str) -> Option<u16> {
    let mut fields = line.split_whitespace();
    let local = fields.nth(1)?;
    (fields.nth(1)? == "0A").then_some(())?;
    u16::from_str_radix(local.rsplit(':').next()?, 16).ok()
}

/// Ports on which this process listens, by the inodes of its sockets.
pub fn listening_ports_of(pid: i32) -> Vec<u16> {
    let base = PathBuf::from(format!("/proc/{pid}"));
    let links = numbers(&base.join("fd")).into_iter();
    let sockets: Vec<String> = links
        .filter_map(|n| fs::read_link(base.join(format!("fd/{n}"))).ok())
        .filter_map(|to| Some(to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = fs::read_to_string(base.join("net/tcp")).unwrap_or_default();
    let ours = |line: &&str| {
        line.split_whitespace()
            .nth(9)
            .is_some_and(|inode| sockets.iter().any(|s| s == inode))
    };
    table.lines().filter(ours).filter_map(listening_port).collect()
}

/// TCP connections of this port that either side has not yet closed wholly.
pub fn open_connections(port: u16) -> usize {
    let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
    let text: String = tables
        .iter()
        .map(|table| fs::read_to_string(table).unwrap_or_default())
        .collect();
    text.lines().filter(|line| is_open_connection(line, port)).count()
}

/// Neither LISTEN (0A) nor TIME_WAIT (06), which belongs to no process.
fn is_open_connection(line: &str, port: u16) -> bool {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, local, remote, state, ..] = fields[..] else {
        return false;
    };
    let port = format!(":{port:04X}");
    !["0A", "06", "st"].contains(&state) && (local.ends_with(&port) || remote.ends_with(&port))
}

fn walk(dir: &Path, depth: usize, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        visit(&path);
        if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, depth - 1, visit);
        }
    }
}

/// Descriptors of this process, for tests that run alone: a cycle must not leak any.
pub fn own_descriptors() -> usize {
    numbers(Path::new("/proc/self/fd")).len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_listening_line_gives_its_port() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000";
        assert_eq!(listening_port(line), Some(8080));
        assert_eq!(listening_port(&line.replace(" 0A ", " 01 ")), None);
    }

    /// The judge must see what it is there to see.
    #[test]
    fn a_stopped_process_and_a_left_over_are_found() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let scope = Scope::new([dir.path().display().to_string()]);
        let empty = HostState::take(&scope);
        let mut child = Command::new("sleep")
            .arg("1000")
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .spawn()?;
        let pid = i32::try_from(child.id())?;
        let ready = poll("sleep to sleep", Duration::from_secs(10), || {
            let print = Fingerprint::take(pid);
            let asleep = print
                .processes
                .get(&pid)
                .is_some_and(|p| p.comm == "sleep" && p.threads.get(&pid).is_some_and(|t| t.state == "S"));
            // Its mappings were read before its state.
            Ok(asleep.then(|| Fingerprint::take(pid)))
        })?;
        judge_untouched(&ready, &Fingerprint::take(pid), Changes::NONE)?;
        assert!(nothing_new(&empty, &HostState::take(&scope)).is_err());
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP)?;
        let stopped = poll("sleep to stop", Duration::from_secs(10), || {
            let print = Fingerprint::take(pid);
            Ok(judge_untouched(&ready, &print, Changes::NONE).err())
        })?;
        assert!(stopped.to_string().contains("stopped"), "{stopped}");
        child.kill()?;
        child.wait()?;
        judge_nothing_left(&scope, &empty)
    }
}
