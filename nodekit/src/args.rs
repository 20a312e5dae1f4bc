//! Arguments that several programs take.

use clap::{Args, ValueEnum};
use libsnap::cgroup::Limits;
use libsnap::error::Result;
use libsnap::store::{DATA_DIR_ENV, DEFAULT_DATA_DIR, DEFAULT_RUN_DIR, RUN_DIR_ENV, Store, use_run_dir};
use libsnap::target::{
    Allow, HeldDescriptor, Hook, Hooks, Identity, Memory, Network, OutsidePolicy, PidMode, RestoreOptions, Stdio,
    TcpPolicy,
};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::IntoRawFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Stands below the help of every program.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  a step failed
  2  the command makes no sense
  3  no such app, process or appshot
  4  refused: state that cannot be carried, or an appshot that asks for too much
  5  conflict: a name, number or port is taken, or another tracer is there
  6  unavailable: the kernel, a right or a resource is missing
  7  an appshot was taken, and its rehearsal has failed
`appshot run`, `appshot restore` and `restore` without -d end with the app's own code, 128 + N after signal N.";

/// Where the registry is.
#[derive(Args, Clone, Debug)]
pub struct Dirs {
    /// Directory of records, locks and sockets
    #[arg(long, global = true, env = RUN_DIR_ENV, default_value = DEFAULT_RUN_DIR, value_name = "DIR")]
    pub run_dir: PathBuf,
    /// Directory of appshots and logs
    #[arg(long, global = true, env = DATA_DIR_ENV, default_value = DEFAULT_DATA_DIR, value_name = "DIR")]
    pub data_dir: PathBuf,
}

impl Dirs {
    /// Every program begins here: it brings in order first what killed ones left.
    pub fn open(&self) -> Result<Store> {
        let store = self.open_as_is()?;
        if let Err(error) = store.recover() {
            tracing::warn!(%error, "what a killed process left is not in order yet");
        }
        Ok(store)
    }

    /// For the one that tells what is left, and removes it itself.
    pub fn open_as_is(&self) -> Result<Store> {
        let store = Store::open(&self.run_dir, &self.data_dir)?;
        use_run_dir(store.run_dir());
        Ok(store)
    }

    /// The socket of a daemon: named, or in the run directory.
    pub fn socket(&self, given: Option<PathBuf>, daemon: &str) -> PathBuf {
        given.unwrap_or_else(|| self.run_dir.join(format!("{daemon}.sock")))
    }
}

/// How results are written to stdout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables and sentences for people
    #[default]
    Text,
    /// JSON with stable field names
    Json,
}

/// The form of a result.
#[derive(Args, Clone, Copy, Debug)]
pub struct Output {
    /// How the result is written
    #[arg(
        short = 'o',
        long = "output",
        alias = "format",
        id = "output",
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    pub format: Format,
}

/// What happens to connections whose other end is outside the app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Tcp {
    /// Refuse the snapshot, naming them
    #[default]
    Refuse,
    /// The restored app goes on with them where they were, one instance, once; their peers are kept
    /// away until then
    Established,
    /// The restored app sees them closed by their peer
    Close,
}

impl From<Tcp> for TcpPolicy {
    fn from(tcp: Tcp) -> TcpPolicy {
        match tcp {
            Tcp::Refuse => TcpPolicy::Refuse,
            Tcp::Established => TcpPolicy::Established,
            Tcp::Close => TcpPolicy::Close,
        }
    }
}

/// What happens to terminals and pipes that lead outside the app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Outside {
    /// Refuse the snapshot, naming them
    #[default]
    Refuse,
    /// The restored app gets the restorer's stdio in their place
    Replace,
}

impl From<Outside> for OutsidePolicy {
    fn from(outside: Outside) -> OutsidePolicy {
        match outside {
            Outside::Refuse => OutsidePolicy::Refuse,
            Outside::Replace => OutsidePolicy::Replace,
        }
    }
}

/// Whom a program runs as, as chown(1) takes it: `USER[:GROUP]`, names or numbers. The
/// group is the user's; a user that is a bare number keeps ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: Option<u32>,
}

impl FromStr for User {
    type Err = String;

    fn from_str(text: &str) -> Result<User, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group_id(group)?)),
            None => (text, None),
        };
        if let Ok(uid) = user.parse() {
            return Ok(User { uid, gid: group });
        }
        match nix::unistd::User::from_name(user) {
            Ok(Some(found)) => Ok(User {
                uid: found.uid.as_raw(),
                gid: group.or(Some(found.gid.as_raw())),
            }),
            _ => Err(format!("there is no user {user:?}")),
        }
    }
}

fn group_id(group: &str) -> Result<u32, String> {
    match (group.parse(), nix::unistd::Group::from_name(group)) {
        (Ok(gid), _) => Ok(gid),
        (_, Ok(Some(found))) => Ok(found.gid.as_raw()),
        _ => Err(format!("there is no group {group:?}")),
    }
}

/// Which PIDs the app gets on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pids {
    /// A PID namespace of its own: instances run side by side
    #[default]
    New,
    /// The host's: a restored app gets the same numbers on the host
    Host,
}

impl From<Pids> for PidMode {
    fn from(pids: Pids) -> PidMode {
        match pids {
            Pids::New => PidMode::New,
            Pids::Host => PidMode::Host,
        }
    }
}

/// When the app gets its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filling {
    /// What it needed first before it runs, the rest as it is touched and in the background
    #[default]
    Lazy,
    /// All of it before it runs
    Eager,
}

impl From<Filling> for Memory {
    fn from(filling: Filling) -> Memory {
        match filling {
            Filling::Lazy => Memory::Lazy,
            Filling::Eager => Memory::Eager,
        }
    }
}

/// Which network an instance is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Net {
    /// That of the restorer
    #[default]
    Host,
    /// One of its own, with a loopback device and nothing else
    Own,
    /// One of its own where the app is bound to an internet port
    Auto,
}

impl From<Net> for Network {
    fn from(net: Net) -> Network {
        match net {
            Net::Host => Network::Host,
            Net::Own => Network::Own,
            Net::Auto => Network::Auto,
        }
    }
}

/// A network namespace that others have made.
#[derive(Args, Clone, Copy, Debug)]
pub struct JoinedNetwork {
    /// Network namespace to be in: one of `ip netns`, or a path such as /proc/PID/ns/net
    #[arg(long, value_name = "NAME|PATH", value_parser = netns)]
    pub netns: Option<HeldDescriptor>,
}

/// It stays open as long as this program runs.
fn netns(text: &str) -> Result<HeldDescriptor, String> {
    let path = match text.contains('/') {
        true => PathBuf::from(text),
        false => Path::new("/run/netns").join(text),
    };
    let file = File::open(&path).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
    Ok(HeldDescriptor::own(&file.into_raw_fd()))
}

/// Policies of snapshot and check.
#[derive(Args, Clone, Copy, Debug)]
pub struct Policies {
    /// Connections whose other end is outside the app
    #[arg(long, value_enum, default_value_t)]
    pub tcp: Tcp,
    /// Terminals and pipes that lead outside the app
    #[arg(long, value_enum, default_value_t)]
    pub outside: Outside,
}

/// What an app is told before its snapshots, and how long that may take.
#[derive(Args, Clone, Debug, Default)]
pub struct Before {
    /// Tell the app before it is stopped: signal:NAME (its first process),
    /// signal-all:NAME, or a URL on this machine that is asked (POST) from within its
    /// network; without a good answer there is no snapshot
    #[arg(long, value_name = "HOOK")]
    pub before_snapshot: Vec<Hook>,
}

/// What an app is told after its restores.
#[derive(Args, Clone, Debug, Default)]
pub struct After {
    /// Tell the restored app: signal:NAME (waits for its first process before that runs),
    /// signal-all:NAME, or a URL that is asked (POST) once it runs
    #[arg(long, value_name = "HOOK")]
    pub after_restore: Vec<Hook>,
    /// End the restored app where it does not answer
    #[arg(long)]
    pub hook_required: bool,
}

/// How long it is waited for an answer.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Patience {
    /// How long each of the app's answers may take, in seconds [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub hook_timeout: Option<Duration>,
}

/// Whether an app is told at all.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Silence {
    /// Tell the app nothing, and ask none of those that take part in it
    #[arg(long)]
    pub no_hooks: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.0..=86400.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "expected seconds, a day at most".to_owned())
}

/// Of all that was said.
pub fn hooks(before: Option<&Before>, after: Option<&After>, patience: Patience, silence: Silence) -> Hooks {
    Hooks {
        before_snapshot: before.map_or_else(Vec::new, |before| before.before_snapshot.clone()),
        after_restore: after.map_or_else(Vec::new, |after| after.after_restore.clone()),
        timeout_ms: patience
            .hook_timeout
            .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        required: after.is_some_and(|after| after.hook_required),
        none: silence.no_hooks,
    }
}

/// What the app may take of the machine.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct LimitArgs {
    /// Memory that the app may have, such as 512M; beyond that the kernel ends a process of it
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    pub limit_memory: Option<u64>,
    /// Processors that it may use, such as 0.5
    #[arg(long, value_name = "N", value_parser = processors)]
    pub limit_cpus: Option<f64>,
    /// Processes and threads that it may have at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..1 << 22))]
    pub limit_processes: Option<u64>,
}

impl LimitArgs {
    pub fn limits(&self) -> Limits {
        Limits {
            memory: self.limit_memory,
            cpu_millis: self.limit_cpus.map(cpu_millis),
            processes: self.limit_processes,
        }
    }
}

/// In less an init and a husk would not come up.
pub const LIMIT_MEMORY_MIN: u64 = 1 << 20;
const LIMIT_CPUS: std::ops::RangeInclusive<f64> = 0.01..=10_000.0;

fn memory_size(text: &str) -> Result<u64, String> {
    match libsnap::units::parse_bytes(text)? {
        bytes if bytes < LIMIT_MEMORY_MIN => Err("1M at least".to_owned()),
        bytes => Ok(bytes),
    }
}

fn processors(text: &str) -> Result<f64, String> {
    let count = text.parse().map_err(|_| format!("{text:?} is no number such as 0.5"))?;
    match LIMIT_CPUS.contains(&count) {
        true => Ok(count),
        false => Err("from 0.01 to 10000".to_owned()),
    }
}

/// Thousandths of a processor; of none, as few as there are.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is in bounds")]
pub fn cpu_millis(cpus: f64) -> u64 {
    (cpus.clamp(*LIMIT_CPUS.start(), *LIMIT_CPUS.end()) * 1000.0).round() as u64
}

/// Whether an app can be limited to so many processors.
pub fn is_cpu_limit(cpus: f64) -> bool {
    LIMIT_CPUS.contains(&cpus)
}

/// How an appshot is restored, and what it is allowed to ask for.
#[derive(Args, Clone, Debug)]
pub struct RestoreArgs {
    /// Return when the app runs again; its output goes to its log
    #[arg(short, long)]
    pub detach: bool,
    /// Name of the new instance [default: the appshot's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// PIDs of the instance on the host
    #[arg(long, value_enum, default_value_t)]
    pub pids: Pids,
    /// When the app gets its memory
    #[arg(long, value_enum, default_value_t)]
    pub memory: Filling,
    /// Network of the instance
    #[arg(long, value_enum, default_value_t, conflicts_with = "netns")]
    pub network: Net,
    #[command(flatten)]
    pub joined: JoinedNetwork,
    /// A value for this instance alone, which the app finds in the file
    /// /run/appshot-instance/vars/NAME; more than once for several
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = variable)]
    pub vars: Vec<(String, String)>,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub after: After,
    #[command(flatten)]
    pub patience: Patience,
    #[command(flatten)]
    pub silence: Silence,
    /// Connections that would go on with their peers (snapshot --tcp=established) come back as closed by these
    #[arg(long)]
    pub tcp_close: bool,
    /// Restore although files that the app uses have changed since
    #[arg(long)]
    pub allow_changed_files: bool,
    /// User ids the app may run as [default: any]
    #[arg(long, value_name = "UID", value_delimiter = ',')]
    pub allow_uid: Option<Vec<u32>>,
    /// Group ids it may belong to [default: those of the users allowed, or any]
    #[arg(long, value_name = "GID", value_delimiter = ',')]
    pub allow_gid: Option<Vec<u32>>,
    /// Directory below which the files are that it may name; more than once for
    /// several [default: any]
    #[arg(long, value_name = "DIR")]
    pub allow_path: Option<Vec<PathBuf>>,
    /// Refuse an app of which a thread has no seccomp filter
    #[arg(long)]
    pub require_seccomp: bool,
    /// Capabilities its threads may hold, as a hexadecimal mask like CapBnd
    /// in /proc/PID/status [default: any]
    #[arg(long, value_name = "MASK", value_parser = mask)]
    pub allow_capabilities: Option<u64>,
}

impl RestoreArgs {
    pub fn hooks(&self) -> Hooks {
        hooks(None, Some(&self.after), self.patience, self.silence)
    }

    pub fn options(&self) -> RestoreOptions {
        RestoreOptions {
            name: self.name.clone(),
            pids: self.pids.into(),
            memory: self.memory.into(),
            network: self.network.into(),
            joins: self.joined.netns,
            identity: Identity {
                vars: self.vars.iter().cloned().collect(),
                ..Identity::default()
            },
            limits: self.limits.limits(),
            stdio: Stdio::default(),
            tcp_close: self.tcp_close,
            allow: Allow {
                uids: self.allow_uid.clone(),
                gids: self.allow_gid.clone(),
                paths: self.allow_path.clone(),
                unconfined: !self.require_seccomp,
                capabilities: self.allow_capabilities.unwrap_or(u64::MAX),
                changed_files: self.allow_changed_files,
            },
            ..RestoreOptions::default()
        }
    }
}

/// `NAME=VALUE`.
pub fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn mask(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).map_err(|e| format!("not a hexadecimal mask: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_hexadecimal() {
        assert_eq!(mask("0x1f"), Ok(31));
        assert_eq!(mask("000001ffffffffff"), Ok(0x1ff_ffff_ffff));
        assert!(mask("all").is_err());
    }
}
