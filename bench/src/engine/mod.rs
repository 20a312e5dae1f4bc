//! The sides that are compared: one trait, three ways to take a snapshot and
//! bring it back.

mod call;
mod criu;
mod daemon;
mod front_end;
mod lazy;

pub use call::{Call, operate};
pub use criu::Criu;
pub use daemon::Daemon;
pub use lazy::Lazy;

use crate::proc;
use anyhow::Result;
use libsnap::target::Phase;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What becomes of an app after its snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    End,
    Run,
    /// It runs on, and its clients stay connected.
    Serve,
}

impl After {
    const ALL: [(After, &str); 3] = [(After::End, "end"), (After::Run, "run"), (After::Serve, "serve")];

    fn name(self) -> &'static str {
        let found = After::ALL.iter().find(|(after, _)| *after == self);
        found.expect("each has a name").1
    }

    fn named(name: &str) -> Option<After> {
        After::ALL
            .iter()
            .find(|(_, told)| *told == name)
            .map(|(after, _)| *after)
    }
}

/// A snapshot that was taken.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Taken {
    pub millis: f64,
    /// How long the engine itself says that the app stood still.
    pub told_frozen_millis: Option<f64>,
    /// The steps, where the engine tells them.
    pub phases: Vec<Phase>,
}

/// An instance that was restored.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Back {
    /// What its engine calls it.
    pub name: String,
    /// When the restore began, on the clock of [`crate::clock::now_ns`].
    pub begin_ns: u64,
    pub millis: f64,
    /// Host PID of its first process, init of a namespace included.
    pub root: i32,
    /// To be removed when its processes are gone.
    pub cgroup: Option<PathBuf>,
    /// The steps, where the engine tells them.
    pub phases: Vec<Phase>,
}

/// One side.
pub trait Engine {
    fn name(&self) -> &'static str;

    /// What is measured, and the version.
    fn about(&self) -> String;

    /// Why it cannot be measured here.
    fn missing(&self) -> Option<String>;

    /// Does it want System V memory in an IPC namespace of the app's own?
    fn wants_ipc_namespace(&self) -> bool {
        false
    }

    /// Writes the tree below `root` to `dest`, which does not exist yet.
    fn snapshot(&self, root: i32, dest: &Path, after: After) -> Result<Taken>;

    /// Brings back what was written to `source`. Returns while it runs.
    fn restore(&self, source: &Path) -> Result<Back>;

    /// Nothing that would help a restore is in memory any more.
    fn cool(&self) -> Result<()> {
        Ok(())
    }

    /// Ends what it brought back, and waits until nothing is left of it.
    fn end(&self, back: &Back) -> Result<()> {
        let tree = proc::tree(back.root);
        proc::kill_tree(&tree);
        proc::wait_gone(&tree, Duration::from_secs(10))?;
        match &back.cgroup {
            Some(cgroup) if cgroup.exists() => Ok(libsnap::cgroup::destroy(cgroup)?),
            _ => Ok(()),
        }
    }
}

/// Every side: ours first, the peer last. `scratch` is for their output.
pub fn all(criu: Option<PathBuf>, scratch: &Path) -> Vec<Box<dyn Engine>> {
    vec![
        Box::new(call::Call::new(scratch)),
        Box::new(front_end::FrontEnd::new(scratch)),
        Box::new(criu::Criu::new(criu, scratch)),
    ]
}
