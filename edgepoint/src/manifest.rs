//! What a provider writes about an app (TOML), one file an app.
//!
//! ```toml
//! app = "web"
//! provider = "acme"
//!
//! [start]
//! command = ["python3", "-m", "http.server", "8080"]
//! user = "www-data"
//! directory = "/srv/web"
//! env = { LANG = "C.UTF-8" }
//!
//! [[listen]]
//! tcp = "0.0.0.0:8080"
//!
//! [idle]
//! timeout = "30s"
//!
//! [instances]
//! max = 4
//!
//! [capacity]
//! connections = 20
//! ```

use crate::archives::is_digest;
use crate::proxy::rules::{Quiet, Route, Rules, Timeouts, Waiting};
use crate::schedule::Schedule;
use libsnap::due::Timers;
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::identity::is_name;
use libsnap::store::{closest, validate, version_name, version_named};
use libsnap::target::{Bind, Hooks, Network, RunOptions, TcpPolicy};
use libsnap::units::{self, parse_span};
use nix::unistd::User as Known;
use nodekit::args::{LIMIT_MEMORY_MIN, User, cpu_millis, is_cpu_limit};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// Longer ones were not written by hand.
pub const BYTES_MAX: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// App id: what the app, its record and its appshot are called.
    pub app: String,
    /// Who owns it.
    #[serde(default = "local")]
    pub provider: String,
    /// Where memory is short, apps of less come to sleep first; from -100 to 100.
    #[serde(default, skip_serializing_if = "is_default")]
    pub priority: i32,
    /// Secrets of its provider that each instance finds in `/run/appshot-instance/secrets`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    pub start: Command,
    /// Where it takes requests; each wakes it.
    pub listen: Vec<Listen>,
    #[serde(default)]
    pub ready: Ready,
    /// What it is asked once it is ready, before it is for others and before its appshot is
    /// taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warmup: Vec<Warmup>,
    #[serde(default)]
    pub idle: Idle,
    #[serde(default, skip_serializing_if = "is_default")]
    pub schedule: Schedule,
    #[serde(default, skip_serializing_if = "is_default")]
    pub instances: Instances,
    /// Of each instance.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
    #[serde(default, skip_serializing_if = "is_default")]
    pub network: Net,
    #[serde(default, skip_serializing_if = "is_default")]
    pub instance: Own,
    /// What each instance, or each version, finds elsewhere than others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub place: Vec<Place>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub capacity: Capacity,
    /// Requests that come over the node's HTTP entry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub route: Vec<Route>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quiet: Vec<Quiet>,
    #[serde(default)]
    pub waiting: Waiting,
    #[serde(default)]
    pub timeouts: Timeouts,
    #[serde(default, skip_serializing_if = "is_default")]
    pub versions: Versions,
    /// What the app is told before a snapshot and after a restore.
    #[serde(default, skip_serializing_if = "Hooks::are_none")]
    pub hooks: Hooks,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Whose what is that nobody has said anything of.
const LOCAL: &str = "local";

pub fn local() -> String {
    LOCAL.to_owned()
}

/// How the app is started when it has no appshot; just one of the first two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// An appshot that is there already, by its name in the store or its path: the app begins
    /// asleep, with a copy of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub appshot: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// `USER[:GROUP]`, by name or number; root by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// Files that come along: unpacked, they are where it starts. A path beside the manifest, for who
    /// sends it ([`crate::archives`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<String>,
    /// Which one that is, by its BLAKE3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// A socket that the app listens on; just one of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<SocketAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unix: Option<PathBuf>,
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.tcp, &self.unix) {
            (Some(tcp), _) => write!(f, "{tcp}"),
            (None, Some(unix)) => write!(f, "{}", unix.display()),
            (None, None) => Ok(()),
        }
    }
}

/// When the app is up: as soon as it listens everywhere, and answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// How long that may take.
    #[serde(default = "patience")]
    pub timeout: Span,
    /// It is asked for this path, until it answers well (200 to 399).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// At one of its listeners, as it stands there; the first one that is TCP by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// Requests to warm it: what they have it load, compile and fill is in its appshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Warmup {
    pub path: String,
    /// One after the other.
    #[serde(default = "once")]
    pub times: u32,
    /// As of `ready`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// What they name as the host; where it listens by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

fn once() -> u32 {
    1
}

/// What each instance may take of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// Processors, such as 0.5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// With threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
}

impl From<Limits> for libsnap::cgroup::Limits {
    fn from(limits: Limits) -> libsnap::cgroup::Limits {
        libsnap::cgroup::Limits {
            memory: limits.memory.map(|size| size.0),
            cpu_millis: limits.cpus.map(cpu_millis),
            processes: limits.processes,
        }
    }
}

/// Where each instance is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// It reaches nobody, and of others only who comes to one of its TCP listeners reaches it: each
    /// instance has a network with a loopback device of its own. Its listeners are the node's.
    #[serde(default)]
    pub isolated: bool,
    /// The same, and it reaches others by an address of its own, at which the node reaches it.
    #[serde(default)]
    pub address: bool,
}

impl Net {
    /// What it listens on is the node's only where its manifest says so.
    pub fn is_own(self) -> bool {
        self.isolated || self.address
    }
}

/// What it joins is told besides; what waits until it is asked for is in one of its own until then.
impl From<Net> for Network {
    fn from(net: Net) -> Network {
        match net.is_own() {
            true => Network::Own,
            false => Network::Host,
        }
    }
}

/// What each instance has for itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Own {
    /// Files in `/run/appshot-instance/vars`, there before it runs. `{app}`, `{instance}`,
    /// `{number}` and `{version}` in a value are of the instance.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub vars: BTreeMap<String, String>,
}

/// When nobody needs the app.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Idle {
    /// It sleeps after so long without a connection, a new one or one that is open, and
    /// without work of its own.
    #[serde(default = "patience")]
    pub timeout: Span,
    /// Work of its own is what takes more than this share of one processor, in percent.
    #[serde(default = "floor")]
    pub cpu: f64,
    /// Connections that it has accepted, by TCP.
    #[serde(default, skip_serializing_if = "is_default")]
    pub connections: Keep,
    /// And those that it has made to others.
    #[serde(default, skip_serializing_if = "is_default")]
    pub made: Keep,
    /// A file that it has in its `awake` directory keeps it awake for so long after it was
    /// written, or while the process lives whose PID it holds; 0s: files do not.
    #[serde(default = "hold")]
    pub hold: Span,
    /// Which of its own timers wake it, just before they are due. Its clocks then tell that
    /// time went by while it slept.
    #[serde(default, skip_serializing_if = "is_default")]
    pub timers: Timers,
    /// Those that are due sooner after it fell asleep do not; the timeout by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timers_beyond: Option<Span>,
}

/// Which connections keep an app awake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// All that are open.
    #[default]
    Open,
    /// Those over which something is under way. When it sleeps it loses the others, as if
    /// its peers had closed them.
    Busy,
    /// The same, and the others stay open while it sleeps: what comes over one wakes it.
    Carried,
}

impl Keep {
    pub fn name(self) -> &'static str {
        match self {
            Keep::Open => "open",
            Keep::Busy => "busy",
            Keep::Carried => "carried",
        }
    }
}

impl Idle {
    pub fn timers_beyond(&self) -> Duration {
        self.timers_beyond.unwrap_or(self.timeout).0
    }

    /// What becomes of its connections when it sleeps. Where nobody carries them, those that would
    /// be are closed.
    pub fn tcp(&self, carries: bool) -> TcpPolicy {
        let closed = |keep: Keep| keep == Keep::Busy || keep == Keep::Carried && !carries;
        let (accepted, made) = (closed(self.connections), closed(self.made));
        match accepted || made {
            true => TcpPolicy::CloseIdle { accepted, made },
            false => TcpPolicy::Refuse,
        }
    }
}

/// How many instances there may be at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Instances {
    /// With one or more the app never sleeps.
    pub min: usize,
    pub max: usize,
}

impl Default for Instances {
    fn default() -> Instances {
        Instances { min: 0, max: 1 }
    }
}

/// What is kept of versions that were deployed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Versions {
    /// How many, beside the one that serves.
    pub keep: usize,
}

impl Default for Versions {
    fn default() -> Versions {
        Versions { keep: 2 }
    }
}

/// What one instance may carry. Where there is more, another one is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capacity {
    /// Connections, open and waiting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<usize>,
    /// CPU time, in percent of one processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// Requests at once, of those that come over a route; as many as come by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u32>,
    /// In which 95 of 100 requests that come over a route are to be answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_time: Option<Span>,
    /// Requests that may wait for that, of all instances together.
    pub queue: u32,
    /// And for how long.
    pub queue_timeout: Span,
}

impl Default for Capacity {
    fn default() -> Capacity {
        Capacity {
            connections: None,
            cpu: None,
            requests: None,
            response_time: None,
            queue: 1000,
            queue_timeout: Span(Duration::from_secs(10)),
        }
    }
}

impl Capacity {
    /// Whether it says when there is too much for one instance.
    fn is_bounded(&self) -> bool {
        self.connections.is_some() || self.cpu.is_some() || self.requests.is_some() || self.response_time.is_some()
    }
}

fn patience() -> Span {
    Span(Duration::from_secs(30))
}

fn hold() -> Span {
    Span(Duration::from_secs(3600))
}

fn floor() -> f64 {
    2.0
}

impl Default for Ready {
    fn default() -> Ready {
        Ready {
            timeout: patience(),
            http: None,
            to: None,
        }
    }
}

impl Default for Idle {
    fn default() -> Idle {
        Idle {
            timeout: patience(),
            cpu: floor(),
            connections: Keep::default(),
            made: Keep::default(),
            hold: hold(),
            timers: Timers::default(),
            timers_beyond: None,
        }
    }
}

/// `30s`, `5m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Span, String> {
        parse_span(&text).map(Span)
    }
}

impl From<Span> for String {
    fn from(span: Span) -> String {
        units::span(span.0)
    }
}

/// The same path leads to other places: what the app has open or maps there is opened there,
/// in each instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// What the app calls it: a directory or file that is there.
    pub at: PathBuf,
    /// Where it is, with the words of `instance.vars`. A directory that is not there is made, and is
    /// that of the app's user.
    pub to: String,
}

/// `512M`, `10G`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(pub u64);

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Size, String> {
        units::parse_bytes(&text).map(Size)
    }
}

impl From<Size> for String {
    fn from(size: Size) -> String {
        size.0.to_string()
    }
}

/// More instances of one app than a node is meant for.
pub const INSTANCES_MAX: usize = 100;
pub const KEPT_MAX: usize = 20;
const LISTENERS_MAX: usize = 16;
const ROUTES_MAX: usize = 100;
const QUIETS_MAX: usize = 100;
/// Of a schedule.
const LINES_MAX: usize = 50;
const WARMUPS_MAX: usize = 100;
const WARMUP_TIMES_MAX: u32 = 10_000;
const VARS_MAX: usize = 100;
/// PIDs of a 64-bit kernel (PID_MAX_LIMIT).
const PROCESSES_MAX: u64 = 1 << 22;
const READY_MAX: Duration = Duration::from_secs(3600);
/// An app that is to be told something holds up who waits for it.
const HOOKS_MS_MAX: u64 = 60_000;
const PRIORITIES: std::ops::RangeInclusive<i32> = -100..=100;

/// The shortest time after which an app sleeps.
const IDLE_MIN: Duration = Duration::from_secs(1);
/// What is shorter the clocks of a busy machine do not tell.
const RESPONSE_MIN: Duration = Duration::from_millis(1);

impl Manifest {
    #[cfg(test)]
    pub fn parse(text: &str) -> Result<Manifest> {
        Manifest::parse_with(text, None)
    }

    /// With the digest of the archive that it names by a path of its sender. Whatever is wrong is
    /// told with its line.
    pub fn parse_with(text: &str, digest: Option<&str>) -> Result<Manifest> {
        let mut manifest: Manifest = toml::from_str(text).map_err(|error| unreadable(text, &error))?;
        if let Some(digest) = digest {
            manifest.start.digest = Some(digest.to_owned());
        }
        if manifest.start.archive.is_some() && manifest.start.digest.is_none() {
            return Err(nonsense(&manifest.app, "nothing tells which archive it comes with")
                .fix("deploy it by `appshot deploy`, which sends start.archive; or send that and say start.digest"));
        }
        manifest.sensible()?;
        Ok(manifest)
    }

    fn sensible(&self) -> Result<()> {
        validate(&self.app)?;
        validate(&self.provider)?;
        let wrong = |because: &str, fix: &str| Err(nonsense(&self.app, because).fix(fix));
        match (&self.start.appshot, self.start.command.first()) {
            (Some(_), Some(_)) => {
                return wrong("start has a command and an appshot", "one of them");
            }
            (Some(_), None) => {}
            (None, first) if first.is_none_or(String::is_empty) => {
                return wrong("start.command is empty", "command = [\"program\", \"argument\"]");
            }
            (None, _) => {}
        }
        if self.listen.is_empty() {
            return wrong(
                "it listens nowhere: nothing could wake it",
                "[[listen]] with tcp = \"ADDRESS:PORT\" or unix = \"PATH\"",
            );
        }
        let schedule = &self.schedule;
        let lines = schedule.wake.len() + schedule.sleep.len() + schedule.awake.len();
        for (count, max, because) in [
            (self.listen.len(), LISTENERS_MAX, "it has too many [[listen]]"),
            (self.route.len(), ROUTES_MAX, "it has too many [[route]]"),
            (self.quiet.len(), QUIETS_MAX, "it has too many [[quiet]]"),
            (lines, LINES_MAX, "its [schedule] has too many lines"),
            (self.warmup.len(), WARMUPS_MAX, "it has too many [[warmup]]"),
            (self.instance.vars.len(), VARS_MAX, "its [instance] has too many vars"),
            (self.secrets.len(), VARS_MAX, "it has too many secrets"),
            (self.place.len(), VARS_MAX, "it has too many [[place]]"),
        ] {
            if count > max {
                return wrong(because, &format!("{max} at most"));
            }
        }
        for (at, listen) in self.listen.iter().enumerate() {
            match listen {
                Listen {
                    tcp: Some(tcp),
                    unix: None,
                } if tcp.port() == 0 => {
                    return wrong("a listener has port 0", "name the port that the app listens on");
                }
                Listen {
                    tcp: None,
                    unix: Some(path),
                } if path.is_relative() => {
                    return wrong("the path of a unix listener is relative", "name it from / on");
                }
                Listen {
                    tcp: Some(_),
                    unix: None,
                }
                | Listen {
                    tcp: None,
                    unix: Some(_),
                } => {}
                _ => return wrong("a listener needs tcp or unix, and just one", "one [[listen]] for each"),
            }
            if self.listen[..at].contains(listen) {
                return wrong("a listener stands there twice", "leave one out");
            }
        }
        let start = &self.start;
        let is_below = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
        match (start.digest.is_some(), start.directory.as_deref()) {
            (false, Some(directory)) if directory.is_relative() => {
                return wrong("start.directory is relative", "name it from / on");
            }
            (true, Some(directory)) if !is_below(directory) => {
                return wrong(
                    "start.directory leads out of the archive",
                    "name a directory that is in it, such as site, or none",
                );
            }
            _ => {}
        }
        if let Some(digest) = start.digest.as_ref().filter(|digest| !is_digest(digest)) {
            return wrong(
                &format!("start.digest: {digest:?} is no BLAKE3 digest"),
                "64 lower-case hexadecimal digits; `appshot deploy` says it of start.archive",
            );
        }
        if self.idle.timeout.0 < IDLE_MIN {
            return wrong("idle.timeout is too short", "1s at least");
        }
        if self.ready.timeout.0 > READY_MAX {
            return wrong("ready.timeout is too long", "1h at most");
        }
        if self.ready.to.is_some() && self.ready.http.is_none() {
            return wrong("ready.to says where to ask, and nothing what", "http = \"/PATH\"");
        }
        let asked = self.ready.http.iter().map(|path| (path, &self.ready.to));
        for (path, to) in asked.chain(self.warmup.iter().map(|warmup| (&warmup.path, &warmup.to))) {
            let is_path = path.parse::<hyper::Uri>().is_ok() && path.starts_with('/');
            if !is_path {
                return wrong(
                    &format!("{path:?} is no path that could be asked for"),
                    "such as /health?deep=1",
                );
            }
            if self.asked_at(to.as_deref()).is_none() {
                let place = to.as_deref().unwrap_or("TCP");
                return wrong(
                    &format!("it is to be asked for {path} by HTTP, and does not listen on {place}"),
                    "to = \"ADDRESS:PORT\", as a [[listen]] has it",
                );
            }
        }
        for warmup in &self.warmup {
            if !(1..=WARMUP_TIMES_MAX).contains(&warmup.times) {
                return wrong("warmup.times is out of bounds", "a number from 1 to 10000");
            }
            let host = warmup.host.as_deref().unwrap_or_default();
            if hyper::header::HeaderValue::from_str(host).is_err() {
                return wrong(&format!("warmup.host: {host:?} is no host"), "such as shop.example");
            }
        }
        let unix = self.listen.iter().any(|listen| listen.unix.is_some());
        let exact = |listen: &Listen| {
            listen
                .tcp
                .is_some_and(|tcp| !tcp.ip().is_unspecified() && !tcp.ip().is_loopback())
        };
        if self.network.isolated && self.network.address {
            return wrong(
                "network.isolated and network.address exclude each other",
                "leave one of them out: with an address it reaches others",
            );
        }
        if self.network.is_own() && (unix || self.listen.iter().any(exact)) {
            let key = if self.network.address { "address" } else { "isolated" };
            return wrong(
                &format!("network.{key} is for apps that listen by TCP alone, on all addresses or loopback ones"),
                &format!("leave the other listeners out, or network.{key}"),
            );
        }
        if self.start.appshot.is_some() {
            let start = &self.start;
            if unix {
                return wrong(
                    "start.appshot is for apps that listen by TCP alone",
                    "leave the unix listener out, or start it by its command",
                );
            }
            let unheard = !start.env.is_empty() || start.directory.is_some() || start.digest.is_some();
            if unheard || self.ready.http.is_some() || !self.warmup.is_empty() {
                return wrong(
                    "it begins with an appshot, which is up and warm: start.env, start.directory, start.archive, ready.http and [[warmup]] are for commands",
                    "leave them out",
                );
            }
        }
        for place in &self.place {
            if let Err(error) = self.bind(place, &self.app, 1).sensible() {
                return wrong(
                    &format!("place: {}", error.because.unwrap_or(error.what)),
                    "such as at = \"/srv/data\", to = \"/var/lib/web/{instance}\"",
                );
            }
        }
        if self.limits.memory.is_some_and(|size| size.0 < LIMIT_MEMORY_MIN) {
            return wrong("limits.memory is too small for any process", "1M at least");
        }
        if self.limits.cpus.is_some_and(|cpus| !is_cpu_limit(cpus)) {
            return wrong("limits.cpus is no number of processors", "such as 0.5; 0.01 at least");
        }
        if self.limits.processes == Some(0) {
            return wrong("limits.processes is 0: it could not start", "1 at least");
        }
        if self.limits.processes.is_some_and(|most| most >= PROCESSES_MAX) {
            return wrong("limits.processes is more than there can be", "4194303 at most");
        }
        let vars = self.instance.vars.keys().map(|name| ("instance.vars", name));
        let mut named = vars.chain(self.secrets.iter().map(|name| ("secrets", name)));
        if let Some((part, name)) = named.find(|(_, name)| !is_name(name)) {
            return wrong(
                &format!("{part}: {name:?} cannot be the name of a file"),
                "letters, digits, '_', '-' and '.'",
            );
        }
        if self.hooks.timeout_ms.is_some_and(|ms| ms > HOOKS_MS_MAX) {
            return wrong("hooks.timeout_ms is too long", "60000 at most");
        }
        if !(0.0..=10_000.0).contains(&self.idle.cpu) {
            return wrong(
                "idle.cpu is no share of a processor",
                "a number of percent, such as 2.0",
            );
        }
        if self.capacity.requests == Some(0) {
            return wrong("capacity.requests is 0: nobody could ask it", "1 at least");
        }
        if let Some(limit) = self.capacity.response_time {
            if limit.0 < RESPONSE_MIN {
                return wrong("capacity.response_time is too short", "1ms at least");
            }
            if self.route.is_empty() {
                return wrong(
                    "capacity.response_time is measured by the node's HTTP entry, and it has no [[route]]",
                    "a [[route]], or another bound of [capacity]",
                );
            }
        }
        if self.capacity.queue_timeout.0.is_zero() {
            return wrong(
                "capacity.queue_timeout is no time at all",
                "such as 10s, or queue = 0 where nobody is to wait",
            );
        }
        let rules = self.rules().sensible().and_then(|()| self.schedule.sensible());
        if let Err((because, fix)) = rules {
            return wrong(&because, &fix);
        }
        if !PRIORITIES.contains(&self.priority) {
            return wrong("priority is out of bounds", "a number from -100 to 100");
        }
        if !(1..=KEPT_MAX).contains(&self.versions.keep) {
            return wrong("versions.keep is out of bounds", "a number from 1 to 20");
        }
        self.counts("deploy")?;
        self.user().map(drop)
    }

    /// Where it is asked by HTTP: the listener that is named so, or the first one. Where it
    /// listens on all addresses, the loopback one.
    pub fn asked_at(&self, to: Option<&str>) -> Option<SocketAddr> {
        let mut all = self.listen.iter().filter(|listen| listen.tcp.is_some());
        let listen = match to {
            Some(to) => all.find(|listen| listen.to_string() == to),
            None => all.next(),
        };
        let mut address = listen?.tcp?;
        match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        Some(address)
    }

    /// `{app}`, `{instance}`, `{number}` and `{version}` in a text, for one of its instances.
    fn filled(&self, text: &str, instance: &str, version: u32) -> String {
        let number = instance.strip_prefix(&self.app).and_then(|rest| rest.strip_prefix('.'));
        let number = number.filter(|number| number.parse::<usize>().is_ok()).unwrap_or("1");
        let version = version.to_string();
        let known = [
            ("{app}", self.app.as_str()),
            ("{instance}", instance),
            ("{number}", number),
            ("{version}", &version),
        ];
        known
            .iter()
            .fold(text.to_owned(), |text, (key, own)| text.replace(key, own))
    }

    /// The values of one of its instances.
    pub fn vars_of(&self, (instance, address): (&str, Option<Ipv4Addr>), version: u32) -> BTreeMap<String, String> {
        let vars = self.instance.vars.iter();
        let filled = |value: &str| {
            let value = self.filled(value, instance, version);
            address.map_or(value.clone(), |address| {
                value.replace("{address}", &address.to_string())
            })
        };
        vars.map(|(name, value)| (name.clone(), filled(value))).collect()
    }

    fn bind(&self, place: &Place, instance: &str, version: u32) -> Bind {
        Bind {
            at: place.at.clone(),
            to: self.filled(&place.to, instance, version).into(),
        }
    }

    /// What one of its instances finds elsewhere; directories that are not there are made.
    pub fn binds_of(&self, instance: &str, version: u32) -> Result<Vec<Bind>> {
        let binds = self.place.iter().map(|place| self.bind(place, instance, version));
        let user = self.user()?;
        binds
            .map(|bind| {
                let failed = || format!("cannot make {} for {instance}", bind.to.display());
                if bind.to.symlink_metadata().is_err() {
                    if let Some(parent) = bind.to.parent() {
                        std::fs::create_dir_all(parent).or_fail(failed)?;
                    }
                    std::fs::create_dir(&bind.to).or_fail(failed)?;
                    // What has taken its place meanwhile is not given away.
                    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
                    let made = File::options()
                        .read(true)
                        .custom_flags(flags)
                        .open(&bind.to)
                        .or_fail(failed)?;
                    if let Some(user) = user {
                        std::os::unix::fs::fchown(&made, Some(user.uid), user.gid.or(Some(user.uid)))
                            .or_fail(failed)?;
                    }
                }
                Ok(bind)
            })
            .collect()
    }

    /// It does not say whose it is.
    pub fn is_local(&self) -> bool {
        self.provider == LOCAL
    }

    pub fn rules(&self) -> Rules<'_> {
        Rules {
            listen: &self.listen,
            routes: &self.route,
            quiet: &self.quiet,
            waiting: &self.waiting,
            timeouts: &self.timeouts,
        }
    }

    /// What is said about how many instances there may be, for who is about to do this.
    pub fn counts(&self, verb: &str) -> Result<()> {
        let wrong = |because: &str, fix: &str| Err(cannot(verb, &self.app, because).fix(fix));
        let Instances { min, max } = self.instances;
        if !(1..=INSTANCES_MAX).contains(&max) {
            return wrong("instances.max is out of bounds", "a number from 1 to 100");
        }
        if min > max {
            return wrong("instances.min is more than instances.max", "max = min at least");
        }
        if self.capacity.connections == Some(0) {
            return wrong("an instance that may carry no connection is of no use", "1 at least");
        }
        if self.capacity.cpu.is_some_and(|cpu| !(1.0..=10_000.0).contains(&cpu)) {
            return wrong(
                "capacity.cpu is no share of a processor",
                "a number of percent, such as 80.0",
            );
        }
        if max > 1 && min < max && !self.capacity.is_bounded() {
            return wrong(
                "nothing says when further instances are needed",
                "[capacity] with connections = N, requests = N, cpu = PERCENT, or response_time = TIME",
            );
        }
        let longest = [self.instance_name(max), self.version_name(u32::MAX)];
        longest.iter().try_for_each(|name| validate(name)).map_err(|_| {
            nonsense(&self.app, "the name is too long for its instances")
                .fix("they are called NAME.2, NAME.3 and so on, and its versions NAME.v2")
        })
    }

    /// What the instance of this number is called. The first has the name of the app.
    pub fn instance_name(&self, number: usize) -> String {
        match number {
            1 => self.app.clone(),
            _ => format!("{}.{number}", self.app),
        }
    }

    /// What the appshot of a version is called that is not the one that serves.
    pub fn version_name(&self, number: u32) -> String {
        version_name(&self.app, number)
    }

    /// The number of the version of this app that is called so.
    pub fn version_named(&self, name: &str) -> Option<u32> {
        version_named(&self.app, name)
    }

    /// Whether an instance or a version of this app may be called so.
    pub fn has_name(&self, name: &str) -> bool {
        self.version_named(name).is_some() || self.has_instance(name)
    }

    /// However many it may have now: that changes.
    pub fn has_instance(&self, name: &str) -> bool {
        let number = name.strip_prefix(&self.app).and_then(|rest| rest.strip_prefix('.'));
        let number = number.and_then(|number| number.parse().ok());
        number.is_some_and(|number| (2..=INSTANCES_MAX).contains(&number) && self.instance_name(number) == name)
    }

    /// User and group that the app's files are to be of; root's by default.
    pub fn owner(&self) -> Result<Option<(u32, u32)>> {
        Ok(self.user()?.map(|user| (user.uid, user.gid.unwrap_or(user.uid))))
    }

    /// How the app is run for the first time, as this version, with its archive there; its
    /// secrets are not in it, nor is the network that it is to join.
    pub fn run_options(&self, version: u32, files: Option<&Path>, address: Option<Ipv4Addr>) -> Result<RunOptions> {
        let user = self.user()?;
        let directory = match (files, &self.start.directory) {
            (Some(files), Some(below)) => Some(files.join(below)),
            (Some(files), None) => Some(files.to_owned()),
            (None, directory) => directory.clone(),
        };
        let known = user.and_then(|user| Known::from_uid(user.uid.into()).ok().flatten());
        let home = known.map(|known| [("HOME", known.dir.display().to_string()), ("USER", known.name)]);
        let own = self.start.env.iter().map(|(key, value)| format!("{key}={value}"));
        Ok(RunOptions {
            name: self.app.clone(),
            command: self.start.command.clone(),
            // What the manifest says comes last, and counts.
            env: home
                .into_iter()
                .flatten()
                .map(|(key, value)| format!("{key}={value}"))
                .chain(own)
                .collect(),
            clear_env: true,
            cwd: directory,
            uid: user.map(|user| user.uid),
            gid: user.and_then(|user| user.gid),
            network: match self.network.isolated {
                true => Network::Own,
                false => Network::Host,
            },
            limits: self.limits.into(),
            vars: self.vars_of((&self.app, address), version),
            binds: self.binds_of(&self.app, version)?,
            ..RunOptions::default()
        })
    }

    /// Whether it is run by another than root, and its files are to be opened so.
    pub fn has_own_user(&self) -> bool {
        // One that is unknown here by now is not root.
        !matches!(self.user(), Ok(None | Some(User { uid: 0, .. })))
    }

    fn user(&self) -> Result<Option<User>> {
        let parse = |text: &String| text.parse().map_err(|because: String| nonsense(&self.app, because));
        self.start.user.as_ref().map(parse).transpose()
    }
}

fn nonsense(app: &str, because: impl std::fmt::Display) -> Error {
    cannot("deploy", app, because)
}

fn cannot(verb: &str, app: &str, because: impl std::fmt::Display) -> Error {
    Error::new(Kind::Usage, format!("cannot {verb} {app}")).because(because)
}

/// With the line, and for an unknown key the one that was probably meant.
fn unreadable(text: &str, error: &toml::de::Error) -> Error {
    let line = error
        .span()
        .map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let what = match line {
        Some(line) => format!("cannot read the manifest: line {line}"),
        None => "cannot read the manifest".to_owned(),
    };
    let told = Error::new(Kind::Usage, what).because(error.message());
    match meant(error.message()) {
        Some(key) => told.fix(format!("did you mean {key}?")),
        None => told,
    }
}

/// ``unknown field `timout`, expected `timeout` or `cpu` ``
fn meant(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field ")?;
    let mut words = rest.split('`').skip(1).step_by(2);
    let wrong = words.next()?;
    closest(wrong, words).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
app = "web"
provider = "acme"

[start]
command = ["server", "--port", "8080"]
env = { LANG = "C" }
user = "root"
directory = "/srv"

[[listen]]
tcp = "0.0.0.0:8080"

[[listen]]
unix = "/run/web.sock"

[idle]
timeout = "5s"
cpu = 1.5
hold = "10m"
timers = "all"
made = "busy"

[schedule]
zone = "Europe/Berlin"
wake = ["55 7 * * 1-5"]
awake = [{ from = "0 8 * * 1-5", for = "10h" }]

[limits]
memory = "256M"
cpus = 0.5
processes = 40

[instance]
vars = { WHO = "{app} {instance} {number} v{version} {x}" }

[ready]
http = "/health"

[[warmup]]
path = "/?q=1"
times = 3

[[route]]
host = "shop.example"
to = "/run/web.sock"

[[route]]
host = "*.example"
path = "/api"
protocol = "h2c"

[capacity]
connections = 20
requests = 8
queue = 9

[[quiet]]
user_agent = "kube-probe*"

[waiting]
page = true

[timeouts]
answer = "90s"

[instances]
max = 4
"#;

    #[test]
    fn a_whole_one_is_read() {
        let manifest = Manifest::parse(WHOLE).unwrap();
        assert_eq!(manifest.app, "web");
        assert_eq!(manifest.listen.len(), 2);
        assert_eq!(manifest.idle.timeout.0, Duration::from_secs(5));
        assert!(manifest.has_instance("web.2") && manifest.has_instance("web.100"));
        for other in ["web", "web.", "web.1", "web.101", "web.02", "web.2.2", "webs.2"] {
            assert!(!manifest.has_instance(other), "{other}");
        }
        assert_eq!(manifest.version_named("web.v12"), Some(12));
        for other in ["web.12", "web.v", "web.v012", "web.v-1", "webs.v2"] {
            assert_eq!(manifest.version_named(other), None, "{other}");
        }
        let options = manifest.run_options(3, None, None).unwrap();
        assert_eq!((options.uid, options.gid), (Some(0), Some(0)));
        assert!(options.clear_env);
        assert_eq!(options.env, ["HOME=/root", "USER=root", "LANG=C"]);
        assert_eq!(options.vars["WHO"], "web web 1 v3 {x}");
        assert_eq!(manifest.vars_of(("web.7", None), 2)["WHO"], "web web.7 7 v2 {x}");
        assert_eq!(options.limits.memory, Some(256 << 20));
        assert_eq!(options.limits.cpu_millis, Some(500));
        assert_eq!(manifest.asked_at(None).unwrap().to_string(), "127.0.0.1:8080");
        assert_eq!(manifest.asked_at(Some("/run/web.sock")), None);
        let again = toml::to_string(&manifest).unwrap();
        assert_eq!(Manifest::parse(&again).unwrap(), manifest);
    }

    /// What is changed in the whole one, and what is said then.
    #[test]
    fn what_is_wrong_is_told() {
        let cases = [
            ("app = \"web\"", "", "missing field `app`"),
            ("app = \"web\"", "app = \"a b\"", "name"),
            ("app = \"web\"", "app = 7", "line 2"),
            ("provider = \"acme\"", "provder = \"acme\"", "did you mean provider?"),
            ("provider = \"acme\"", "provider = \"../x\"", "name"),
            ("timeout = \"5s\"", "timout = \"5s\"", "did you mean timeout?"),
            ("timeout = \"5s\"", "timeout = \"5 fortnights\"", "line 18"),
            ("timeout = \"5s\"", "timeout = \"100ms\"", "1s at least"),
            ("cpu = 1.5", "cpu = -1.0", "percent"),
            ("cpu = 1.5", "cpu = nan", "percent"),
            ("[\"server\", \"--port\", \"8080\"]", "[]", "start.command is empty"),
            ("[\"server\", \"--port\", \"8080\"]", "\"server\"", "line 6"),
            ("user = \"root\"", "user = \"nobody-of-this-name\"", "there is no user"),
            (
                "user = \"root\"",
                "user = \"0:nobody-of-this-name\"",
                "there is no group",
            ),
            ("directory = \"/srv\"", "directory = \"srv\"", "relative"),
            ("directory = \"/srv\"", "digest = \"abc\"", "is no BLAKE3 digest"),
            (
                "directory = \"/srv\"",
                "directory = \"../x\"\ndigest = \"0000000000000000000000000000000000000000000000000000000000000000\"",
                "leads out of the archive",
            ),
            ("tcp = \"0.0.0.0:8080\"", "tcp = \"8080\"", "line 12"),
            ("tcp = \"0.0.0.0:8080\"", "tcp = \"0.0.0.0:0\"", "port 0"),
            ("tcp = \"0.0.0.0:8080\"", "", "just one"),
            (
                "tcp = \"0.0.0.0:8080\"",
                "tcp = \"0.0.0.0:8080\"\nunix = \"/a\"",
                "just one",
            ),
            ("unix = \"/run/web.sock\"", "unix = \"web.sock\"", "relative"),
            ("unix = \"/run/web.sock\"", "tcp = \"0.0.0.0:8080\"", "twice"),
            ("[idle]", "[idle", "line 17"),
            ("hold = \"10m\"", "hold = true", "line 20"),
            ("hold = \"10m\"", "holds = \"10m\"", "did you mean hold?"),
            ("timers = \"all\"", "timers = \"some\"", "unknown variant"),
            ("timers = \"all\"", "timers_beyond = \"soon\"", "line 21"),
            (
                "made = \"busy\"",
                "made = \"idle\"",
                "expected one of `open`, `busy`, `carried`",
            ),
            ("made = \"busy\"", "conections = \"busy\"", "did you mean connections?"),
            ("55 7 * * 1-5", "55 7 * * 8", "is no time"),
            ("55 7 * * 1-5", "55 7 * *", "is no time"),
            ("55 7 * * 1-5", "@reboot", "is no time"),
            ("Europe/Berlin", "Europe/Atlantis", "Europe/Atlantis is no time"),
            ("zone = ", "zon = ", "did you mean zone?"),
            ("for = \"10h\"", "for = \"0s\"", "no time at all"),
            (", for = \"10h\"", "", "missing field `for`"),
            ("host = \"shop.example\"", "", "missing field `host`"),
            (
                "host = \"shop.example\"",
                "host = \"shop.example:80\"",
                "without a port",
            ),
            ("host = \"shop.example\"", "host = \"http://shop\"", "no host"),
            ("host = \"shop.example\"", "host = \"*shop.example\"", "whole names"),
            ("host = \"shop.example\"", "host = \"\"", "no host"),
            (
                "host = \"shop.example\"",
                "host = \"*.example\"\npath = \"/api\"",
                "twice",
            ),
            (
                "host = \"shop.example\"",
                "hots = \"shop.example\"",
                "did you mean host?",
            ),
            ("to = \"/run/web.sock\"", "to = \"/run/other.sock\"", "does not listen"),
            ("to = \"/run/web.sock\"", "to = 8080", "line 46"),
            ("path = \"/api\"", "path = \"api\"", "begins with /"),
            ("path = \"/api\"", "path = \"/api/\"", "at its end"),
            ("path = \"/api\"", "path = \"/a/../b\"", "a segment"),
            ("path = \"/api\"", "path = \"/a?b\"", "percent-encoded"),
            ("protocol = \"h2c\"", "protocol = \"h3\"", "h2c"),
            ("requests = 8", "requests = 0", "nobody could ask it"),
            ("requests = 8", "requests = -1", "line 55"),
            ("queue = 9", "queue_timeout = \"0s\"", "no time at all"),
            ("user_agent = \"kube-probe*\"", "status = 200", "would never wake"),
            (
                "user_agent = \"kube-probe*\"",
                "path = \"/\"\nstatus = 100",
                "200 to 599",
            ),
            (
                "user_agent = \"kube-probe*\"",
                "from = \"10.0.0.0/33\"",
                "nor a network",
            ),
            ("queue = 9", "queue = -9", "line 56"),
            ("page = true", "page = \"yes\"", "invalid type"),
            ("env = { LANG = \"C\" }", "env = { LANG = 7 }", "line 7"),
            ("page = true", "after = \"0s\"", "waiting.after"),
            ("answer = \"90s\"", "answer = \"0ms\"", "timeouts.answer"),
            ("answer = \"90s\"", "response = \"90s\"", "unknown field"),
            ("max = 4", "max = 0", "from 1 to 100"),
            ("max = 4", "max = 101", "from 1 to 100"),
            ("max = 4", "max = -1", "line 68"),
            ("max = 4", "min = 5\nmax = 4", "min is more"),
            ("max = 4", "maxx = 4", "did you mean max?"),
            ("[limits]", "[network]\nisolated = true\n[limits]", "by TCP alone"),
            (
                "[limits]",
                "[network]\nisolate = true\n[limits]",
                "did you mean isolated?",
            ),
            ("memory = \"256M\"", "memory = \"10k\"", "1M at least"),
            ("memory = \"256M\"", "memory = 256", "line 30"),
            ("memory = \"256M\"", "memory = \"much\"", "no size"),
            ("cpus = 0.5", "cpus = 0.0", "no number of processors"),
            ("cpus = 0.5", "cpus = nan", "no number of processors"),
            ("cpus = 0.5", "cpu = 0.5", "did you mean cpus?"),
            ("processes = 40", "processes = 0", "could not start"),
            ("processes = 40", "processes = 4194304", "more than there can be"),
            ("WHO =", "\"../x\" =", "name of a file"),
            ("[start]", "secrets = [\"a/b\"]\n[start]", "name of a file"),
            ("[start]", "secrets = \"db\"\n[start]", "line 5"),
            (
                "[limits]",
                "[[place]]\nat = \"srv\"\nto = \"/x\"\n[limits]",
                "from / on",
            ),
            ("[limits]", "[[place]]\nat = \"/\"\nto = \"/x\"\n[limits]", "/ stays"),
            (
                "[limits]",
                "[[place]]\nat = \"/srv\"\nto = \"/x/../{app}\"\n[limits]",
                "without `..`",
            ),
            ("[limits]", "[[place]]\nat = \"/srv\"\n[limits]", "missing field `to`"),
            ("user = \"root\"", "appshot = \"web\"", "one of them"),
            ("http = \"/health\"", "http = \"health\"", "no path"),
            ("http = \"/health\"", "to = \"0.0.0.0:8080\"", "nothing what"),
            (
                "http = \"/health\"",
                "http = \"/health\"\nto = \"/run/web.sock\"",
                "does not listen on /run/web.sock",
            ),
            ("http = \"/health\"", "timeout = \"2h\"", "1h at most"),
            ("path = \"/?q=1\"", "path = \"/ x\"", "no path"),
            ("path = \"/?q=1\"", "host = \"x\"", "missing field `path`"),
            ("times = 3", "times = 0", "from 1 to 10000"),
            ("times = 3", "host = \"a\\nb\"", "is no host"),
            ("connections = 20", "connections = 0", "no connection"),
            ("connections = 20", "conections = 20", "did you mean connections?"),
            ("connections = 20", "cpu = 0.0", "percent"),
            ("connections = 20", "cpu = inf", "percent"),
            ("connections = 20\nrequests = 8", "", "nothing says when"),
            ("[capacity]", "[capacity]\nresponse_time = \"0s\"", "too short"),
            ("[capacity]", "[versions]\nkeep = 0\n[capacity]", "from 1 to 20"),
            ("[capacity]", "[versions]\nkeep = 21\n[capacity]", "from 1 to 20"),
            ("provider = \"acme\"", "priority = 101", "from -100 to 100"),
            (
                "app = \"web\"",
                "app = \"a2345678901234567890123456789012345678901234567890123456789012\"",
                "too long for its instances",
            ),
        ];
        for (part, instead, told) in cases {
            let error = Manifest::parse(&WHOLE.replacen(part, instead, 1)).unwrap_err();
            assert_eq!(error.kind, Kind::Usage, "{instead}");
            assert!(error.to_string().contains(told), "{instead}: {error}");
        }
        for (many, told) in [
            ("[[listen]]\nunix = \"/N\"\n", "too many [[listen]]"),
            ("[[route]]\nhost = \"hN\"\n", "too many [[route]]"),
            ("[[quiet]]\npath = \"/N\"\n", "too many [[quiet]]"),
            (
                "[[schedule.awake]]\nfrom = \"N 8 * * *\"\nfor = \"1h\"\n",
                "too many lines",
            ),
            ("[hooks]\ntimeout_ms = 60001\n", "60000 at most"),
        ] {
            let counts = if many.starts_with("[[") { 0..101 } else { 0..1 };
            let more: String = counts.map(|n| many.replace('N', &n.to_string())).collect();
            let whole = WHOLE.replace("awake = [{ from = \"0 8 * * 1-5\", for = \"10h\" }]\n", "");
            let error = Manifest::parse(&(whole + &more)).unwrap_err();
            assert!(error.to_string().contains(told), "{told}: {error}");
        }
        let nowhere = WHOLE.split("[[listen]]").next().unwrap();
        assert!(Manifest::parse(nowhere).is_err());
    }
}
