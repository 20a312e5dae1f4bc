//! Rehearsing an appshot: it is restored where nothing of it can be seen or felt, frozen
//! again before its first instruction, and held against itself record by record.
//!
//! ```text
//!   sealed appshot ── restore, held still ──> instance in a Scratch ── snapshot ──> second appshot
//!        │                                       (killed)                              │
//!        └────────────────────────── image::compare::differences ──────────────────────┘
//!                                     none: verified   any, or an error: not
//! ```
//!
//! The original may stand beside it, so the rehearsal gets a view of its own of everything
//! of which there is one on a machine ([`Claim`]): ports and abstract names by a network
//! namespace, files by copies on write of the directories concerned. What is tried on such a
//! view says nothing of who else has the object at a restore: each claim is told.

mod claims;
pub mod mark;
mod scratch;

pub use claims::Claim;

use crate::cgroup;
use crate::error::{Error, Kind, Result};
use crate::ids::HostPid;
use crate::image::compare::{self, Difference};
use crate::image::{Appshot, limits};
use crate::launch;
use crate::restore::opened::Opened;
use crate::restore::{self, Cancelled, From};
use crate::snapshot;
use crate::target::{Instance, OutsidePolicy, RestoreOptions, SnapshotOptions, Target, TcpPolicy};
use scratch::Scratch;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// The step of a snapshot in which this is done.
pub const STEP: &str = "rehearse";

/// More differences are counted, not listed.
const LISTED_MAX: usize = 50;

/// How a rehearsal went.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rehearsal {
    /// It could be restored, and nothing of it was otherwise than before.
    pub verified: bool,
    /// In what it was not the same; the first of them.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub differences: Vec<Difference>,
    /// How many there are in all.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub different: usize,
    /// Why it could not be restored or looked at.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failure: Option<Error>,
    /// What it had a view of its own of: whether somebody else has the thing itself shows at
    /// a restore.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub apart: Vec<Claim>,
    pub micros: u64,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Rehearsal {
    /// That the appshot at `path` is not verified, and why. `state` is the app's.
    pub fn into_result(self, path: &Path, state: &str) -> Result<Rehearsal> {
        if self.verified {
            return Ok(self);
        }
        let what = format!("the appshot {} is not verified", path.display());
        let error = Error::new(Kind::Unverified, what);
        let failure = self.failure.clone();
        let error = Error {
            needs: failure.as_ref().and_then(|failure| failure.needs.clone()),
            fix: failure.as_ref().and_then(|failure| failure.fix.clone()),
            refusals: failure.map_or_else(Vec::new, |failure| failure.refusals),
            ..error.because(self.because().unwrap_or_default())
        };
        Err(error
            .fix("restore it beside the app if you can do without that, or take another one")
            .state(format!("it was kept; {state}")))
    }

    /// Why it is not verified: the failure, or where it differs first.
    pub fn because(&self) -> Option<String> {
        let differs = |first: &Difference| match self.different {
            1 => format!("it came back otherwise: {first}"),
            many => format!("it came back otherwise in {many} places, the first: {first}"),
        };
        let failed = self.failure.as_ref().map(Error::in_short);
        failed.or_else(|| self.differences.first().map(differs))
    }
}

/// Rehearses the sealed appshot at `path`, which was taken with these options. Nothing of it
/// runs, and nothing is left.
pub fn rehearse(path: &Path, options: &SnapshotOptions, cancelled: Cancelled<'_>) -> Rehearsal {
    let begin = Instant::now();
    let mut apart = Vec::new();
    let compared = thread::scope(|scope| {
        // It enters namespaces and does not come back.
        let own = thread::Builder::new().name("rehearsal".to_owned());
        let play = || {
            Play {
                path,
                options,
                cancelled,
            }
            .play(&mut apart)
        };
        match own.spawn_scoped(scope, play) {
            Ok(thread) => thread.join().expect("a rehearsal does not panic"),
            Err(error) => Err(Error::failed("cannot begin a rehearsal").because(error)),
        }
    });
    let (mut differences, failure) = match compared {
        Ok(differences) => (differences, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let different = differences.len();
    differences.truncate(LISTED_MAX);
    Rehearsal {
        verified: different == 0 && failure.is_none(),
        differences,
        different,
        failure,
        apart,
        micros: begin.elapsed().as_micros() as u64,
    }
}

struct Play<'a> {
    path: &'a Path,
    options: &'a SnapshotOptions,
    cancelled: Cancelled<'a>,
}

impl Play<'_> {
    fn play(&self, apart: &mut Vec<Claim>) -> Result<Vec<Difference>> {
        if !cgroup::is_v2() {
            return Err(Error::new(Kind::Unavailable, "cannot rehearse the appshot")
                .because("what was restored cannot be held still")
                .needs("cgroup v2, for cgroup.freeze (Linux 5.2)"));
        }
        let from = From::Disk(Opened::open(self.path)?);
        let one = from.shot();
        *apart = claims::of(one);
        let scratch = Scratch::enter(self.path, apart)?;
        let restored = Restored::of(&from, self.cancelled)?;
        let again = scratch.beside().join("again");
        snapshot::snapshot_unless(
            self.cancelled,
            &restored.target(),
            &again,
            &self.to_look(&scratch, one),
            &mut |_| {},
        )?;
        drop(restored);
        let mut found = compare::differences(one, &Appshot::open_unverified_memory(&again)?)?;
        found.retain(|difference| !scratch.explains(one, difference));
        Ok(found)
    }

    /// How it is frozen again: pages that are as they were are not stored once more.
    fn to_look(&self, scratch: &Scratch, one: &Appshot) -> SnapshotOptions {
        let name = self.path.file_name().unwrap_or_default();
        SnapshotOptions {
            tcp: match self.options.tcp {
                policy @ (TcpPolicy::Refuse | TcpPolicy::Established) => policy,
                TcpPolicy::Close | TcpPolicy::CloseIdle { .. } => TcpPolicy::Close,
            },
            // Its restorer's stdio stands there.
            outside: OutsidePolicy::Replace,
            precopy: Some(false),
            parent: (one.manifest.parents.len() < limits::PARENTS).then(|| scratch.beside().join(name)),
            ..SnapshotOptions::default()
        }
    }
}

/// What is held still. Dropped, it is ended, and nothing is left of it.
struct Restored(Instance);

/// How long the kernel may take to hold it still.
const STILL_MAX: Duration = Duration::from_secs(10);

impl Restored {
    fn of(from: &From, cancelled: Cancelled<'_>) -> Result<Restored> {
        let options = RestoreOptions {
            name: Some(cgroup::rehearsal_name()),
            frozen: true,
            dies_with_restorer: true,
            ..RestoreOptions::default()
        };
        let restored = Restored(restore::restore_from(cancelled, from, &mut None, &options)?);
        let begin = Instant::now();
        while !restored.0.cgroup.as_deref().is_some_and(cgroup::is_still) {
            if begin.elapsed() > STILL_MAX {
                return Err(Error::failed("what was restored is not held still")
                    .because(format!("the kernel has not done so for {} s", STILL_MAX.as_secs())));
            }
            thread::sleep(Duration::from_micros(200));
        }
        Ok(restored)
    }

    fn target(&self) -> Target {
        Target::App {
            name: self.0.name.clone(),
            cgroup: self.0.cgroup.clone(),
            root: self.0.root,
            init: self.0.init,
            network: self.0.network.map(|network| network.inode),
        }
    }

    fn child(&self) -> HostPid {
        self.0.child()
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        if let Some(group) = &self.0.cgroup {
            cgroup::kill(group);
        }
        launch::reap(self.child());
        if let Some(group) = &self.0.cgroup
            && let Err(error) = cgroup::destroy(group)
        {
            tracing::warn!(%error, "a rehearsal's cgroup stays behind");
        }
    }
}
