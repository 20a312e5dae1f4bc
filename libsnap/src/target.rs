//! What a person asks the engine to act on, and what it answers.

use crate::error::Refusal;
use crate::ids::HostPid;
use crate::restore::revert::Point;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
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
    },
}

/// What happens to connections whose other end is outside the app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TcpPolicy {
    /// The snapshot is refused, naming them.
    #[default]
    Refuse,
    /// The restored app sees them closed by their peer. The running original keeps them.
    Close,
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
    /// It can be reverted in place where it is such an app: with [`Memory::Shared`].
    pub revertible: bool,
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
    /// To what it can be reverted by the process that has restored it.
    #[serde(skip)]
    pub point: Option<Arc<Point>>,
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
    pub cwd: Option<PathBuf>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub hostname: Option<String>,
    pub pids: PidMode,
    pub stdio: Stdio,
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
