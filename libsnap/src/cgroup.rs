//! The cgroup that holds an app: everything it forks stays in it.
//!
//! On a host with cgroup v2 (mounted alone, or beside v1 without controllers)
//! the group is there, and children are born into it (CLONE_INTO_CGROUP, Linux
//! 5.7). On a v1-only host it is a group of the freezer, which only tells who
//! belongs together, and of memory and cpuacct for the meter. See cgroups(7).

use crate::error::{Error, Kind, OrFail, Result};
use crate::ids::HostPid;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// All app groups stand below this one.
const PARENT: &str = "appshot";
/// Controllers of v1 that are of use: who belongs together, what it uses, what it may use.
const V1: [&str; 5] = ["freezer", "memory", "cpuacct", "cpu", "pids"];
/// What names of rehearsals begin with.
const REHEARSAL: &str = "rehearsal-";

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mounts {
    v2: Option<PathBuf>,
    /// v1 hierarchies by controller.
    v1: Vec<(String, PathBuf)>,
}

fn mounts() -> &'static Mounts {
    static FOUND: OnceLock<Mounts> = OnceLock::new();
    FOUND.get_or_init(|| parse_mounts(&fs::read_to_string("/proc/self/mounts").unwrap_or_default()))
}

fn parse_mounts(text: &str) -> Mounts {
    let mut found = Mounts {
        v2: None,
        v1: Vec::new(),
    };
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, place, kind, options, ..] = words[..] else {
            continue;
        };
        match kind {
            "cgroup2" => found.v2 = Some(place.into()),
            "cgroup" => {
                for controller in options.split(',').filter(|option| V1.contains(option)) {
                    found.v1.push((controller.into(), place.into()));
                }
            }
            _ => {}
        }
    }
    found
}

fn v1(controller: &str) -> Option<PathBuf> {
    let found = mounts().v1.iter().find(|(name, _)| name == controller)?;
    Some(found.1.clone())
}

/// Whether app groups are cgroup v2.
pub fn is_v2() -> bool {
    mounts().v2.is_some()
}

/// Where the group of the app `name` is, or will be. `None` where the host has
/// no cgroups.
pub fn of(name: &str) -> Option<PathBuf> {
    let base = mounts().v2.clone().or_else(|| v1("freezer"))?;
    Some(base.join(PARENT).join(name))
}

/// Makes a group that no app's name leads to.
pub fn create_spare() -> Result<Option<PathBuf>> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        match create(&format!(".spare-{}-{number}", std::process::id())) {
            // Another process that had our number left it, with an app that lives.
            Err(error) if error.kind == Kind::Conflict => {}
            made => return made,
        }
    }
}

/// What the group of a rehearsal by this process is called.
pub fn rehearsal_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("{REHEARSAL}{}-{number}", std::process::id())
}

/// Removes the groups of rehearsals by processes that were killed; the kernel has ended what
/// was in them.
pub fn sweep_rehearsals() {
    let groups = of(REHEARSAL).and_then(|group| group.parent()?.read_dir().ok());
    for entry in groups.into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let maker = name.strip_prefix(REHEARSAL).and_then(|rest| rest.split('-').next());
        if maker.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            fs::remove_dir(entry.path()).ok();
            remove_beside(&entry.path());
        }
    }
}

/// Makes the group of the app `name`. `None` where the host has no cgroups.
pub fn create(name: &str) -> Result<Option<PathBuf>> {
    let Some(group) = of(name) else { return Ok(None) };
    let failed = || format!("cannot make the cgroup {}", group.display());
    let parent = group.parent().unwrap_or(&group);
    fs::create_dir_all(parent).or_fail(failed)?;
    static COUNTS_IO: OnceLock<bool> = OnceLock::new();
    COUNTS_IO.get_or_init(|| enable(parent, "io").is_ok());
    remove_beside(&group);
    match fs::create_dir(&group) {
        Ok(()) => Ok(Some(group)),
        // Its counters are another instance's.
        Err(e) if e.kind() == ErrorKind::AlreadyExists && processes(&group)?.is_empty() => {
            fs::remove_dir(&group)
                .and_then(|()| fs::create_dir(&group))
                .or_fail(failed)?;
            Ok(Some(group))
        }
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            Err(Error::new(Kind::Conflict, format!("an app named {name} is running"))
                .because(format!("the cgroup {} holds processes", group.display()))
                .fix("choose another name with --name, or end that app with `appshot kill`"))
        }
        Err(e) => Err(Error::failed(failed()).because(e)),
    }
}

/// Has the groups below `parent` (v2) be governed by a controller, where it is offered that one.
/// What the root offers is the host's own decision.
fn enable(parent: &Path, controller: &str) -> std::io::Result<()> {
    let has = |file: &str| {
        let text = fs::read_to_string(parent.join(file)).unwrap_or_default();
        text.split_ascii_whitespace().any(|word| word == controller)
    };
    match (has("cgroup.subtree_control"), has("cgroup.controllers")) {
        (true, _) => Ok(()),
        (false, true) => fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}")),
        (false, false) => Err(ErrorKind::Unsupported.into()),
    }
}

/// Removes what v1 has under the name of a group: its counters and limits are another instance's.
fn remove_beside(group: &Path) {
    for controller in V1.into_iter().filter(|controller| *controller != "freezer") {
        beside(controller, group).map(fs::remove_dir);
    }
}

/// Moves a process into the group, where it could not be born in it (v1).
pub fn join(group: &Path, pid: HostPid) -> Result<()> {
    fs::write(group.join("cgroup.procs"), pid.to_string())
        .or_fail(|| format!("cannot move pid {pid} into {}", group.display()))?;
    let Some(name) = group.file_name().filter(|_| !is_v2()) else {
        return Ok(());
    };
    for controller in ["memory", "cpuacct"] {
        if let Some(base) = v1(controller) {
            let beside = base.join(PARENT).join(name);
            // Only the meter needs these: an app runs without them.
            let joined =
                fs::create_dir_all(&beside).and_then(|()| fs::write(beside.join("cgroup.procs"), pid.to_string()));
            if let Err(cause) = joined {
                tracing::warn!(controller, %cause, "the app's use cannot be metered by its cgroup");
            }
        }
    }
    Ok(())
}

/// Processes of the group as the host numbers them.
pub fn processes(group: &Path) -> Result<Vec<HostPid>> {
    let path = group.join("cgroup.procs");
    let text = crate::proc::read(&path).or_fail(|| format!("cannot read {}", path.display()))?;
    Ok(parse_processes(&text))
}

fn parse_processes(text: &[u8]) -> Vec<HostPid> {
    let text = String::from_utf8_lossy(text);
    text.lines().filter_map(|line| line.parse().ok()).map(HostPid).collect()
}

/// Holds every process of the group still, or lets them go. v1 cannot be used for
/// that, and nothing is done: a task that its freezer holds comes into no stop of
/// ptrace, and attaching to one that was stopped before waits for ever.
pub fn freeze(group: &Path, frozen: bool) -> Result<()> {
    crate::sys::moment();
    if !is_v2() {
        return Ok(());
    }
    let (file, word) = (group.join("cgroup.freeze"), if frozen { "1" } else { "0" });
    fs::write(&file, word).or_fail(|| format!("cannot write {word} to {}", file.display()))
}

/// Holds a group still whose processes are yet to be let go: they run nothing then.
pub fn hold(group: Option<&Path>) -> Result<()> {
    match group.filter(|_| is_v2()) {
        Some(group) => freeze(group, true),
        None => Err(Error::new(Kind::Unavailable, "the app cannot be held still")
            .because("cgroup v2 is not mounted")
            .needs("cgroup v2, for cgroup.freeze (Linux 5.2)")),
    }
}

/// Whether nothing runs in a group that is held: v2 tells it in `cgroup.events`, v1 in
/// `freezer.state`.
pub fn is_still(group: &Path) -> bool {
    let (file, still) = match is_v2() {
        true => ("cgroup.events", "frozen 1"),
        false => ("freezer.state", "FROZEN"),
    };
    let told = crate::proc::read(group.join(file)).unwrap_or_default();
    has_line(&told, still)
}

fn has_line(text: &[u8], line: &str) -> bool {
    text.split(|byte| *byte == b'\n').any(|of| of == line.as_bytes())
}

/// Whether the group is held still, or about to be.
pub fn is_held(group: &Path) -> bool {
    fs::read_to_string(group.join("cgroup.freeze")).is_ok_and(|word| word.trim() == "1")
}

/// Kills every process of the group and removes the group.
pub fn destroy(group: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    freeze(group, false).ok();
    while group.exists() {
        kill(group);
        match fs::remove_dir(group) {
            Ok(()) => break,
            Err(e) if e.kind() == ErrorKind::NotFound => break,
            Err(e) if Instant::now() > deadline => {
                return Err(Error::failed(format!("cannot remove the cgroup {}", group.display())).because(e));
            }
            Err(_) => std::thread::sleep(Duration::from_micros(200)),
        }
    }
    remove_beside(group);
    Ok(())
}

/// What an instance may take of the machine; the kernel sees to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Memory in bytes. Where it needs more, and nothing of it can be written out, one of its
    /// processes is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Time of the processors, in thousandths of one. Beyond that it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    /// Processes and threads at once. Beyond that it gets no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
}

/// In which the time of processors is shared out (`cpu.max`), in microseconds.
const PERIOD_MICROS: u64 = 100_000;

impl Limits {
    pub fn are_none(&self) -> bool {
        *self == Limits::default()
    }

    /// What is to be written for each controller.
    fn settings(&self) -> Vec<Setting> {
        let mut settings = Vec::new();
        if let Some(bytes) = self.memory {
            let text = bytes.to_string();
            settings.push(Setting {
                controller: "memory",
                v2: vec![("memory.max", text.clone())],
                v1: vec![("memory.limit_in_bytes", text)],
            });
        }
        if let Some(millis) = self.cpu_millis {
            // The kernel shares out a millisecond at least.
            let quota = (PERIOD_MICROS * millis / 1000).max(1000);
            settings.push(Setting {
                controller: "cpu",
                v2: vec![("cpu.max", format!("{quota} {PERIOD_MICROS}"))],
                v1: vec![
                    ("cpu.cfs_period_us", PERIOD_MICROS.to_string()),
                    ("cpu.cfs_quota_us", quota.to_string()),
                ],
            });
        }
        if let Some(processes) = self.processes {
            // Its init is not its own.
            let text = (processes + 1).to_string();
            settings.push(Setting {
                controller: "pids",
                v2: vec![("pids.max", text.clone())],
                v1: vec![("pids.max", text)],
            });
        }
        settings
    }
}

/// Files of a controller, and what is to be in them.
struct Setting {
    controller: &'static str,
    v2: Vec<(&'static str, String)>,
    v1: Vec<(&'static str, String)>,
}

/// Has the kernel keep a group within limits, by cgroup v2 where that has the controller, else
/// by v1: what is in the group then belongs to one of v1 as well, for which nothing counts
/// that it has already.
pub fn limit(group: &Path, limits: &Limits) -> Result<()> {
    for Setting { controller, v2, v1 } in limits.settings() {
        let failed = || format!("cannot limit the app: no {controller} limit");
        let write = |to: &Path, files: &[(&str, String)]| {
            let mut files = files.iter();
            files.try_for_each(|(file, text)| fs::write(to.join(file), text))
        };
        let parent = group.parent().unwrap_or(group);
        // The root of all does not offer by itself what the app's owner asks for.
        let root = parent.parent().unwrap_or(parent);
        let enabled = match is_v2() {
            true => enable(root, controller).and_then(|()| enable(parent, controller)),
            false => Err(ErrorKind::Unsupported.into()),
        };
        let cause = match enabled {
            Ok(()) => {
                write(group, &v2).or_fail(failed)?;
                continue;
            }
            Err(cause) => cause,
        };
        let Some(beside) = beside(controller, group) else {
            let because = match cause.kind() {
                ErrorKind::Unsupported => format!("neither cgroup v2 nor v1 has the {controller} controller here"),
                _ => format!("cgroup v2 has the {controller} controller, and does not give it to us: {cause}"),
            };
            return Err(Error::new(Kind::Unavailable, failed())
                .because(because)
                .fix(format!(
                    "leave that limit out, or have the {controller} controller delegated"
                ))
                .state("nothing was started"));
        };
        fs::create_dir_all(&beside)
            .and_then(|()| write(&beside, &v1))
            .or_fail(failed)?;
        for pid in processes(group)? {
            fs::write(beside.join("cgroup.procs"), pid.to_string()).or_fail(failed)?;
        }
    }
    Ok(())
}

/// Kills every process of the group, and does not wait for their ends.
pub fn kill(group: &Path) {
    if fs::write(group.join("cgroup.kill"), "1").is_err() {
        for pid in processes(group).unwrap_or_default() {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.0), nix::sys::signal::SIGKILL).ok();
        }
    }
}

/// CPU time and memory of an app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_ns: u64,
    /// What the group is charged with, or the sum of its processes' PSS where
    /// the host's cgroup has no memory controller; `None` when neither is known.
    pub memory_bytes: Option<u64>,
}

pub fn usage(group: &Path) -> Result<Usage> {
    Ok(Usage {
        cpu_ns: cpu_ns(group).or_fail(|| format!("cannot read the CPU time of {}", group.display()))?,
        memory_bytes: memory_bytes(group),
    })
}

/// What a group has counted since it was made. What the host does not tell is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counters {
    /// CPU time of all that was ever in it.
    pub cpu_ns: u64,
    /// Of this, in programs and in the kernel.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub user_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub system_ns: Option<u64>,
    /// The most memory that it was charged with at once.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_peak: Option<u64>,
    /// Moved from and to block devices.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub read_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub written_bytes: Option<u64>,
}

impl Counters {
    /// What was counted since `before`.
    #[must_use]
    pub fn since(self, before: Counters) -> Counters {
        let rest = |now: Option<u64>, before: Option<u64>| Some(now?.saturating_sub(before.unwrap_or_default()));
        Counters {
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
            user_ns: rest(self.user_ns, before.user_ns),
            system_ns: rest(self.system_ns, before.system_ns),
            memory_peak: self.memory_peak,
            read_bytes: rest(self.read_bytes, before.read_bytes),
            written_bytes: rest(self.written_bytes, before.written_bytes),
        }
    }
}

/// All counters of the group.
pub fn counters(group: &Path) -> std::io::Result<Counters> {
    let io = fs::read_to_string(group.join("io.stat")).ok();
    Ok(with_others(processor_counters(group)?, group, io.as_deref()))
}

/// What is counted besides the processor's.
fn with_others(processor: Counters, group: &Path, io: Option<&str>) -> Counters {
    let moved = |key: &str| io.map(|io| sum_of(io, key));
    Counters {
        memory_peak: charged(group, "memory.max_usage_in_bytes"),
        read_bytes: moved("rbytes="),
        written_bytes: moved("wbytes="),
        ..processor
    }
}

/// Those of them that a group has without any controller.
pub fn processor_counters(group: &Path) -> std::io::Result<Counters> {
    let Ok(text) = crate::proc::read(group.join("cpu.stat")) else {
        return processor_counters_v1(group);
    };
    Ok(parse_cpu_stat(&text))
}

fn parse_cpu_stat(text: &[u8]) -> Counters {
    let text = String::from_utf8_lossy(text);
    let micros = |key: &str| Some(field(&text, key)? * 1000);
    Counters {
        cpu_ns: micros("usage_usec ").unwrap_or_default(),
        user_ns: micros("user_usec "),
        system_ns: micros("system_usec "),
        ..Counters::default()
    }
}

/// A group that is looked at again and again. Its files stay open: to find them takes longer than
/// to read them. Where there are none (v1), or no descriptors, the path is gone again each time.
#[derive(Debug)]
pub struct Watched {
    group: PathBuf,
    stat: Option<fs::File>,
    processes: Option<fs::File>,
    events: Option<fs::File>,
    io: Option<fs::File>,
}

impl Watched {
    pub fn path(&self) -> &Path {
        &self.group
    }

    pub fn new(group: &Path) -> Watched {
        let open = |name: &str| fs::File::open(group.join(name)).ok();
        Watched {
            group: group.to_owned(),
            stat: open("cpu.stat"),
            processes: open("cgroup.procs"),
            events: open("cgroup.events"),
            io: open("io.stat"),
        }
    }

    /// Those of the processor.
    pub fn counters(&self) -> std::io::Result<Counters> {
        match &self.stat {
            Some(stat) => Ok(parse_cpu_stat(&crate::proc::read_again(stat)?)),
            None => processor_counters(&self.group),
        }
    }

    /// All, of which these are the processor's.
    pub fn with_others(&self, processor: Counters) -> Counters {
        let io = self.io.as_ref().and_then(|file| crate::proc::read_again(file).ok());
        let io = io.as_deref().map(String::from_utf8_lossy);
        with_others(processor, &self.group, io.as_deref())
    }

    /// As [`is_still`].
    pub fn is_still(&self) -> bool {
        match self.events.as_ref().map(crate::proc::read_again) {
            Some(Ok(told)) => has_line(&told, "frozen 1"),
            _ => is_still(&self.group),
        }
    }

    pub fn processes(&self) -> Result<Vec<HostPid>> {
        match self.processes.as_ref().map(crate::proc::read_again) {
            Some(Ok(bytes)) => Ok(parse_processes(&bytes)),
            _ => processes(&self.group),
        }
    }
}

/// CPU time of all that was ever in the group, since it was made.
pub fn cpu_ns(group: &Path) -> std::io::Result<u64> {
    Ok(processor_counters(group)?.cpu_ns)
}

/// What all tasks of the machine ran for since it booted, in nanoseconds, where a hierarchy of
/// cpuacct tells: its root counts what each task runs for, and no ticks (`root_cpuacct_cpuusage`,
/// v1 only; cgroup v2's own root tells of ticks). `None` where the root that is mounted is not the machine's.
pub fn node_cpu_ns() -> Option<u64> {
    let base = v1("cpuacct")?;
    // Only the root of all has it.
    base.join("release_agent").exists().then_some(())?;
    number(&base.join("cpuacct.usage"))
}

/// Where a v1 controller has a group of the same name.
fn beside(controller: &str, group: &Path) -> Option<PathBuf> {
    Some(v1(controller)?.join(PARENT).join(group.file_name()?))
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn processor_counters_v1(group: &Path) -> std::io::Result<Counters> {
    let group = beside("cpuacct", group).ok_or(ErrorKind::Unsupported)?;
    let text = fs::read_to_string(group.join("cpuacct.usage"))?;
    Ok(Counters {
        cpu_ns: text.trim().parse().unwrap_or(0),
        user_ns: number(&group.join("cpuacct.usage_user")),
        system_ns: number(&group.join("cpuacct.usage_sys")),
        ..Counters::default()
    })
}

/// The number after `key`, which begins a line.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.parse().ok())
}

/// The numbers after all `key`s of `io.stat`, together.
fn sum_of(text: &str, key: &str) -> u64 {
    let words = text.split_ascii_whitespace();
    words
        .filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok())
        .sum()
}

fn memory_bytes(group: &Path) -> Option<u64> {
    if let Some(charged) = charged_bytes(group) {
        return Some(charged);
    }
    processes(group).ok()?.into_iter().map(pss_bytes).sum()
}

/// The memory that the group is charged with, where there is v1 alone. With v2 it is known
/// by its processes: a group may have got its memory before it had the controller, for a limit, which
/// counts nothing of that.
pub fn charged_bytes(group: &Path) -> Option<u64> {
    charged(group, "memory.usage_in_bytes")
}

fn charged(group: &Path, file: &str) -> Option<u64> {
    match is_v2() {
        true => None,
        false => number(&beside("memory", group)?.join(file)),
    }
}

/// The proportional set size of a process: of a page that several have, its share.
pub fn pss_bytes(pid: HostPid) -> Option<u64> {
    let rollup = fs::File::open(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let text = String::from_utf8(crate::proc::read_again(&rollup).ok()?).ok()?;
    let kb = crate::proc::Fields::new(text).number("Pss")?;
    u64::try_from(kb).ok().map(|kb| kb * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_and_pure_hosts_are_told_apart() {
        let hybrid = "cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                      cgroup /x cgroup rw,cpu,cpuacct 0 0\n";
        let found = parse_mounts(hybrid);
        assert_eq!(found.v2, Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(found.v1.len(), 3);
        assert_eq!(parse_mounts("proc /proc proc rw 0 0").v2, None);
    }

    #[test]
    fn counters_are_found_in_their_lines() {
        let stat = "usage_usec 3000\nuser_usec 1000\nsystem_usec 2000\nnice_usec 7\n";
        assert_eq!(field(stat, "user_usec "), Some(1000));
        assert_eq!(field(stat, "burst_usec "), None);
        let io = "8:0 rbytes=10 wbytes=1 rios=3\n8:16 rbytes=5 wbytes=0\n";
        assert_eq!((sum_of(io, "rbytes="), sum_of(io, "wbytes=")), (15, 1));
    }
}
