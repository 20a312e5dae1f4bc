//! What is told of an app.
//!
//! ```text
//!    deploy                                          somebody came, or it is time
//!      │                                        ┌───────────────────────┐
//!      v       it listens                       v      it runs          │
//!   starting ────────────> running <───────── waking                    │
//!      │                   │  ^  │                │                     │
//!      │           ended,  │  │  └─ nobody ──> falling-asleep ──────> asleep
//!      │           killed  │  └──── refused ──────┘  │                  ^ │
//!      v                   v                         v   suspend        │ v suspend
//!    failed <──────────────┴───────────────────  suspended ───resume────┘
//!      └── after a while: waking where it has an appshot, else starting
//! ```
//!
//! Another version takes over where it sleeps: asleep, suspended, or once it has fallen
//! asleep for that ([`crate::agent`], `versions`).
//!
//! ```text
//!   running ──> falling-asleep ──(other version)──> waking ──> running
//!      ^               │                              │ it cannot be restored
//!      └── refused ────┘                              └──(the one before)──> waking
//! ```
//!
//! While it runs it may have further instances, beside the first one, which alone sleeps:
//!
//! ```text
//!            more than there are may carry
//!   (none) ───────────────────────────────> waking ──> running ──┬── nobody needs it ──> (none)
//!                                             └── it fails ──────┴── it ends
//! ```
//!
//! The app falls asleep once there is none of them. What wakes, starts or is made waits in
//! that state until the node has room for it.

use crate::manifest::Instances;
use crate::node::Deployment;
use libsnap::ids::HostPid;
use libsnap::target::Phase;
use nodekit::traces::Place;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Its command was started, and it does not listen yet.
    Starting,
    Running,
    /// Its snapshot is taken.
    FallingAsleep,
    /// It has no process; its sockets are held, and who comes wakes it.
    Asleep,
    /// It is being restored.
    Waking,
    /// Asleep, and not to be woken. Who comes waits.
    Suspended,
    /// It could not be brought up. That is tried again.
    Failed,
    /// It goes.
    Removing,
}

impl State {
    pub const ALL: [State; 8] = [
        State::Starting,
        State::Running,
        State::FallingAsleep,
        State::Asleep,
        State::Waking,
        State::Suspended,
        State::Failed,
        State::Removing,
    ];

    /// It neither comes nor goes.
    pub fn lasts(self) -> bool {
        matches!(self, State::Running | State::Asleep | State::Suspended | State::Failed)
    }

    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Running => "running",
            State::FallingAsleep => "falling-asleep",
            State::Asleep => "asleep",
            State::Waking => "waking",
            State::Suspended => "suspended",
            State::Failed => "failed",
            State::Removing => "removing",
        }
    }
}

/// Why an app was brought up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    Deploy,
    /// Somebody came to one of its sockets.
    Request,
    /// Its owner wanted it.
    Operator,
    /// It had ended without being told to.
    Recovery,
    /// There was more to carry than its instances may.
    ScaleOut,
    /// Another version of it took over.
    Update,
    /// One of its own timers is about to be due.
    Timer,
    /// Its owner wants it to be awake at this time.
    Schedule,
}

impl Cause {
    pub fn name(self) -> &'static str {
        match self {
            Cause::Deploy => "deploy",
            Cause::Request => "request",
            Cause::Operator => "operator",
            Cause::Recovery => "recovery",
            Cause::ScaleOut => "scale-out",
            Cause::Update => "update",
            Cause::Timer => "timer",
            Cause::Schedule => "schedule",
        }
    }
}

/// How an instance came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// By its command.
    Started,
    /// Restored after a sleep.
    Woken,
    /// As a further instance, of an appshot.
    Cloned,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Started => "started",
            Kind::Woken => "woken",
            Kind::Cloned => "cloned",
        }
    }
}

/// How an app came up the last time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Activation {
    pub cause: Cause,
    pub kind: Kind,
    pub unix_ms: u64,
    /// From the moment at which that was decided until it ran.
    pub total_micros: u64,
    pub phases: Vec<Phase>,
    /// Under which it is found where traces are collected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Its span, and when that ended.
    #[serde(skip)]
    pub span: Place,
    #[serde(skip)]
    pub up: Option<Instant>,
}

/// How often, since the daemon began.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    pub starts: u64,
    pub wakes: u64,
    pub clones: u64,
    pub sleeps: u64,
    /// Snapshots that were refused or failed: it went on.
    pub sleeps_refused: u64,
    pub failures: u64,
}

/// One instance of an app as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// The first is called as the app is.
    pub name: String,
    pub root: Option<HostPid>,
    pub state: State,
    pub since_unix_ms: u64,
    /// Unknown as long as it does not run.
    pub kind: Option<Kind>,
    /// Of its own, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
}

/// A version that is kept, to be rolled back to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionStatus {
    pub version: u32,
    pub deployed_unix_ms: u64,
}

/// An app as it is shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub app: String,
    pub provider: String,
    pub state: State,
    pub since_unix_ms: u64,
    /// What keeps it in this state.
    pub why: Option<String>,
    pub listen: Vec<String>,
    /// Of its first instance.
    pub root: Option<HostPid>,
    /// Those that run, come or go, the first one first.
    pub instances: Vec<InstanceStatus>,
    /// How many there may be.
    pub bounds: Instances,
    pub counts: Counts,
    pub last: Option<Activation>,
    /// The one that serves; they count up from 1.
    pub version: u32,
    pub deployed_unix_ms: u64,
    /// Those that are kept; a rollback leads to the last.
    pub kept: Vec<VersionStatus>,
    /// What became of the last change of its version, where that went wrong.
    pub notice: Option<String>,
    /// Of its first instance, asleep or awake, where that has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
}

impl Status {
    /// Tells what is written down.
    pub fn written(&mut self, deployment: &Deployment) {
        self.bounds = deployment.manifest.instances;
        self.address = deployment.address.filter(|_| deployment.manifest.network.address);
        (self.version, self.deployed_unix_ms) = (deployment.versions.current, deployment.deployed_unix_ms);
        let kept = deployment.versions.kept.iter().map(|kept| VersionStatus {
            version: kept.number,
            deployed_unix_ms: kept.deployed_unix_ms,
        });
        self.kept = kept.collect();
    }
}
