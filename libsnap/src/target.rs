//! What a person asks the engine to act on, and what it answers.

use crate::cgroup::Limits;
use crate::error::Refusal;
use crate::files::tcp::Resumed;
use crate::ids::HostPid;
use crate::network::Joined;
use crate::rehearsal::Rehearsal;
use crate::restore::revert::Point;
use crate::store::Room;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// The processes a request is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The process tree below this host PID.
    Pid(HostPid),
    /// Everything in this app's cgroup, except its init (`None` with `--pids=host`).
    App {
        name: String,
        cgroup: Option<PathBuf>,
        root: HostPid,
        init: Option<HostPid>,
        /// The network namespace that it was made to join, by its inode: its init has another.
        network: Option<u64>,
    },
}

/// What happens to connections whose other end is outside the app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TcpPolicy {
    /// The snapshot is refused, naming them.
    #[default]
    Refuse,
    /// The restored app goes on with them where they were, wherever it has their addresses: one
    /// instance, once. Their peers are kept away until then.
    Established,
    /// The restored app sees them closed by their peer. The running original keeps them.
    Close,
    /// The same for those over which nothing is under way: that were accepted at a held
    /// socket, or that were made by the app. All others are refused.
    CloseIdle { accepted: bool, made: bool },
}

/// What happens to terminals and pipes that lead outside the app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutsidePolicy {
    /// The snapshot is refused, naming them.
    #[default]
    Refuse,
    /// The restored app gets the stdio that the restorer gives it (terminal,
    /// log file or /dev/null) in their place.
    Replace,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SnapshotOptions {
    /// The app goes on running; otherwise it is ended once the appshot is sealed.
    pub leave_running: bool,
    pub tcp: TcpPolicy,
    pub outside: OutsidePolicy,
    /// The file that gets the app's output: it is ours, not the app's. A
    /// restored app writes to where its restorer says.
    pub log: Option<PathBuf>,
    /// Memory is copied while the app runs, or only in its stop; by default as the
    /// size of the app suggests.
    pub precopy: Option<bool>,
    /// An appshot of the same app, in the directory where the new one is to be: what it
    /// has already is not stored once more.
    pub parent: Option<PathBuf>,
    /// Listening sockets of the app that somebody holds: who waits there to be accepted
    /// is not lost.
    pub held: Vec<HeldDescriptor>,
    /// Once sealed it is rehearsed ([`crate::rehearsal`]); an app that is to be halted waits for
    /// that, and goes on where the appshot is not verified.
    pub verify: bool,
    /// How large the appshot may be: refused before the app is touched, by the memory
    /// that it has, and before it is sealed, by what was written.
    pub room: Option<Room>,
}

/// What is open in another process, by its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldDescriptor {
    pub pid: HostPid,
    pub fd: i32,
}

/// A named step with its duration, for logs, progress and receipts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    pub micros: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotReport {
    pub appshot: PathBuf,
    pub app: String,
    pub processes: usize,
    pub threads: usize,
    /// Memory stored, without zero pages.
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    /// How long the app stood still, all stops together, where it goes on running;
    /// until it was ended otherwise.
    pub frozen_micros: u64,
    pub total_micros: u64,
    pub phases: Vec<Phase>,
    /// How its rehearsal went, where one was wanted. An app that was to be halted runs on if the
    /// appshot is not verified.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rehearsal: Option<Rehearsal>,
    /// What this host does not tell, so that it was not looked for; it is lost where the app has it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub unseen: Vec<String>,
}

impl SnapshotReport {
    /// Whether there was a rehearsal that has failed.
    pub fn is_unverified(&self) -> bool {
        self.rehearsal.as_ref().is_some_and(|rehearsal| !rehearsal.verified)
    }
}

/// What the app's monotonic clocks, and so its timers, make of the time in which it slept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Time {
    /// Nothing: they go on where they were.
    #[default]
    Stands,
    /// It went by: what fell due meanwhile falls due at once.
    Passes,
}

/// Which PIDs the restored app gets on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PidMode {
    /// A new PID namespace: the app sees its own numbers, any number of
    /// instances run side by side.
    #[default]
    New,
    /// The same numbers on the host.
    Host,
}

/// When a restored app gets its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Memory {
    /// All of it, before the app runs.
    #[default]
    Eager,
    /// What it needed first the last time before it runs, the rest when it is touched
    /// and in the background. The restoring process must live until that is done:
    /// if it dies before, the app is ended. Only with [`PidMode::New`]; eager where
    /// the kernel has no userfaultfd for us.
    Lazy,
    /// The same without the background: what an instance does not touch stays with the
    /// appshot, which is held in the restoring process's memory once for all its
    /// instances. That process must live as long as they do.
    Shared,
}

/// Which network an instance is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// The restorer's.
    #[default]
    Host,
    /// A network namespace of its own, which has a loopback device and nothing else.
    Own,
    /// One of its own where the app is bound to an internet port, so that several
    /// instances can be; else the restorer's.
    Auto,
}

/// Where stdin, stdout and stderr go when they led outside the app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdio {
    /// The caller's own.
    Inherit,
    #[default]
    Null,
    /// stdin from /dev/null, stdout and stderr appended to this file.
    Log(PathBuf),
}

/// What the destination allows an appshot to ask for (design, section 7).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Allow {
    /// User ids it may run as; `None` allows any.
    pub uids: Option<Vec<u32>>,
    /// Group ids it may belong to; `None` allows the groups of `uids`, or any
    /// where those are not limited either.
    pub gids: Option<Vec<u32>>,
    /// Capabilities (bit mask) its threads may hold, and what takes them to get.
    pub capabilities: u64,
    /// Directories below which every file it names must be; `None` allows any.
    pub paths: Option<Vec<PathBuf>>,
    /// Its threads need no seccomp filter.
    pub unconfined: bool,
    /// Files it names may have changed since the snapshot.
    pub changed_files: bool,
}

impl Default for Allow {
    fn default() -> Self {
        Allow {
            uids: None,
            gids: None,
            capabilities: u64::MAX,
            paths: None,
            unconfined: true,
            changed_files: false,
        }
    }
}

/// A signal that tells an app something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    pub signal: i32,
    /// For every process of the app, not for its first only.
    pub all: bool,
}

/// How an app is told what is done to it: `signal:USR1`, `signal-all:USR1`, or the URL
/// of a request, `http://127.0.0.1:8080/path`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Hook {
    Signal(Notice),
    /// Asked from within the app's network namespace.
    Http(String),
}

impl std::str::FromStr for Hook {
    type Err = String;

    fn from_str(text: &str) -> Result<Hook, String> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        match kind {
            "signal" | "signal-all" => Ok(Hook::Signal(Notice {
                signal: signal_number(rest)?,
                all: kind == "signal-all",
            })),
            "http" => Ok(Hook::Http(text.to_owned())),
            _ => Err("expected signal:NAME, signal-all:NAME or http://ADDRESS:PORT/PATH".to_owned()),
        }
    }
}

impl TryFrom<String> for Hook {
    type Error = String;

    fn try_from(text: String) -> Result<Hook, String> {
        text.parse()
    }
}

impl From<Hook> for String {
    fn from(hook: Hook) -> String {
        hook.to_string()
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hook::Signal(notice) => write!(f, "{notice}"),
            Hook::Http(url) => write!(f, "{url}"),
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.all { "signal-all" } else { "signal" };
        write!(f, "{kind}:{}", signal_name(self.signal))
    }
}

/// `SIGUSR1`, or the number where there is no name.
pub fn signal_name(number: i32) -> String {
    Signal::try_from(number).map_or_else(|_| number.to_string(), |signal| signal.as_str().to_owned())
}

/// A signal by name (`TERM`, `SIGTERM`, `term`) or number.
pub fn signal_number(text: &str) -> Result<i32, String> {
    let unknown = || format!("there is no signal {text}");
    if let Ok(number) = text.parse::<i32>() {
        return Signal::try_from(number).map(|_| number).map_err(|_| unknown());
    }
    let upper = text.to_ascii_uppercase();
    let name = format!("SIG{}", upper.strip_prefix("SIG").unwrap_or(&upper));
    let signal = name.parse::<Signal>().map_err(|_| unknown())?;
    Ok(signal as i32)
}

/// What the owner of an app wants it to be told, and how. An appshot does not know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hooks {
    /// Before it is stopped for a snapshot, which waits for them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub before_snapshot: Vec<Hook>,
    /// As soon as it runs again; signals wait for it then.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after_restore: Vec<Hook>,
    /// How long each of them may take; 5 s by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// A restored app that does not answer is ended.
    pub required: bool,
    /// Nobody is told anything, nor asked.
    pub none: bool,
}

impl Hooks {
    /// With what was declared before where nothing is said now.
    #[must_use]
    pub fn or(self, declared: &Hooks) -> Hooks {
        let either = |own: Vec<Hook>, other: &[Hook]| if own.is_empty() { other.to_vec() } else { own };
        Hooks {
            before_snapshot: either(self.before_snapshot, &declared.before_snapshot),
            after_restore: either(self.after_restore, &declared.after_restore),
            timeout_ms: self.timeout_ms.or(declared.timeout_ms),
            required: self.required || declared.required,
            none: self.none,
        }
    }

    pub fn are_none(&self) -> bool {
        *self == Hooks::default()
    }
}

/// What a new instance has for itself, see [`crate::identity`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Identity {
    /// It is a clone: nothing that has to be unique is what it was. Its host name is
    /// its name; `AT_RANDOM` is new; memory marked MADV_WIPEONFORK or MAP_DROPPABLE
    /// is empty, as a forked process would find it.
    pub renewed: bool,
    /// Values for it alone.
    pub vars: BTreeMap<String, String>,
    /// The same, which only the user of its first process may read. They are in no appshot, but
    /// for what the app has read.
    pub secrets: BTreeMap<String, String>,
}

/// A directory or file that an instance finds at another place than others: a bind mount of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// What the app calls it; something of its kind has to be there.
    pub at: PathBuf,
    /// Where it is.
    pub to: PathBuf,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RestoreOptions {
    /// Name of the new instance; the appshot's app id by default.
    pub name: Option<String>,
    pub pids: PidMode,
    pub stdio: Stdio,
    pub allow: Allow,
    pub memory: Memory,
    pub network: Network,
    pub identity: Identity,
    pub limits: Limits,
    /// Where it has open, or maps, what is below one of these, it gets what is there now.
    pub binds: Vec<Bind>,
    /// Signals that wait for it when it runs its first instruction.
    pub notices: Vec<Notice>,
    /// Listening sockets that it gets back instead of new ones.
    pub held: Vec<HeldDescriptor>,
    /// A network namespace that is there, which it is to be in; with [`Network::Host`].
    pub joins: Option<HeldDescriptor>,
    /// It can be reverted in place where it is such an app: with [`Memory::Shared`].
    pub revertible: bool,
    /// It stands still from its first instruction on, until its cgroup is let go
    /// ([`crate::cgroup::freeze`]). Needs cgroup v2.
    pub frozen: bool,
    /// Connections that would go on with their peers come back as closed by these.
    pub tcp_close: bool,
    /// It is ended should this thread end before.
    #[serde(skip)]
    pub dies_with_restorer: bool,
    pub time: Time,
    /// Its files and sockets are opened, made and removed with the rights over files that
    /// its first process had, not with the caller's.
    pub as_itself: bool,
    /// For tests: treat this kernel's vdso as another one than the app's.
    #[doc(hidden)]
    #[serde(skip)]
    pub force_vdso_bridge: bool,
}

/// A live instance, just started or restored. The caller is the parent of
/// `init` (or of `root` with `--pids=host`) and must reap it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Instance {
    pub name: String,
    /// Host PID of the app's first process.
    pub root: HostPid,
    /// Host PID of the instance's own init; its exit status is the app's
    /// (128 + N when a signal N ended it). `None` with `--pids=host`.
    pub init: Option<HostPid>,
    pub cgroup: Option<PathBuf>,
    pub processes: usize,
    pub total_micros: u64,
    pub phases: Vec<Phase>,
    /// What did not go as its owner wanted.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub warnings: Vec<String>,
    /// The network namespace that it has joined.
    #[serde(skip)]
    pub network: Option<Joined>,
    /// The same, open as long as the instance is supervised.
    #[serde(skip)]
    pub joined: Option<Arc<OwnedFd>>,
    /// What its cgroup had counted before anybody asked for it.
    #[serde(skip)]
    pub ahead: Option<crate::cgroup::Counters>,
    /// To what it can be reverted by the process that has restored it.
    #[serde(skip)]
    pub point: Option<Arc<Point>>,
    /// Connections that wait with it for it to be let go: those of one that stands still.
    #[serde(skip)]
    pub resumed: Option<Arc<Resumed>>,
}

/// What became of an instance that was to be reverted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RevertReport {
    pub name: String,
    pub manner: Manner,
    /// Why it was restored anew.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub because: Option<String>,
    /// Pages that were put back.
    pub dirty_pages: u64,
    pub total_micros: u64,
    pub phases: Vec<Phase>,
}

/// How an instance was reverted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Manner {
    /// The same processes go on from the appshot.
    InPlace,
    /// They were ended, and restored under the same name.
    Anew,
}

impl Instance {
    /// The child that the caller waits for.
    pub fn child(&self) -> HostPid {
        self.init.unwrap_or(self.root)
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunOptions {
    pub name: String,
    pub command: Vec<String>,
    /// `KEY=VALUE`, added to the caller's environment.
    pub env: Vec<String>,
    /// Of the caller's environment only PATH, LANG, TZ, HOME and USER: what else stands there
    /// is not for who runs the command.
    pub clear_env: bool,
    pub cwd: Option<PathBuf>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub hostname: Option<String>,
    pub pids: PidMode,
    /// [`Network::Own`] or that of who starts it.
    #[serde(default)]
    pub network: Network,
    /// A network namespace that is there, which it is to be in; with [`Network::Host`].
    pub joins: Option<HeldDescriptor>,
    pub stdio: Stdio,
    pub limits: Limits,
    /// Values for it alone, as [`Identity::vars`] and [`Identity::secrets`].
    pub vars: BTreeMap<String, String>,
    pub secrets: BTreeMap<String, String>,
    pub binds: Vec<Bind>,
}

/// What `check` found; nothing was touched.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CheckReport {
    pub processes: usize,
    pub threads: usize,
    /// A snapshot would be refused for each of these.
    pub refusals: Vec<Refusal>,
    /// What the appshot will need at restore: files, kernel features.
    pub depends: Vec<String>,
    /// What this host does not tell, so that it was not looked for; it is lost where the app has it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub unseen: Vec<String>,
}

/// A kernel feature for `appshot doctor`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Feature {
    pub name: String,
    pub present: bool,
    /// Without it nothing works; otherwise a fallback or refusal stands in.
    pub required: bool,
    pub needed_for: String,
    /// How to get it: kernel version, option, right.
    pub how: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["15", "TERM", "SIGTERM", "term"] {
            assert_eq!(signal_number(text), Ok(15), "{text}");
        }
        for text in ["0", "99", "-9", "NOPE", ""] {
            assert!(signal_number(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hooks_come_back_as_they_are_written() {
        for text in ["signal:SIGUSR1", "signal-all:SIGHUP", "http://127.0.0.1:80/x"] {
            let hook: Hook = text.parse().unwrap();
            assert_eq!(hook.to_string(), text);
        }
        for text in ["signal:", "signal:NOPE", "USR1", "https://x/", ""] {
            assert!(text.parse::<Hook>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_said_now_counts_more() {
        let hooks = |texts: [&str; 2]| Hooks {
            before_snapshot: texts[..1].iter().flat_map(|text| text.parse()).collect(),
            after_restore: texts[1..].iter().flat_map(|text| text.parse()).collect(),
            ..Hooks::default()
        };
        let declared = hooks(["signal:USR1", "signal:USR2"]);
        assert_eq!(
            hooks(["", "signal:HUP"]).or(&declared),
            hooks(["signal:USR1", "signal:HUP"])
        );
    }
}
