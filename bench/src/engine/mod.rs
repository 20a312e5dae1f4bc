//! The sides that are compared: one trait, three ways to take a snapshot and
//! bring it back.

mod call;
mod criu;
mod front_end;

pub use call::operate;

use anyhow::Result;
use libsnap::target::Phase;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

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

    /// Writes the tree below `root` to `dest`, which does not exist yet, and
    /// ends it unless it is left running.
    fn snapshot(&self, root: i32, dest: &Path, leave_running: bool) -> Result<Taken>;

    /// Brings back what was written to `source`. Returns while it runs.
    fn restore(&self, source: &Path) -> Result<Back>;
}

/// Every side: ours first, the peer last. `scratch` is for their output.
pub fn all(criu: Option<PathBuf>, scratch: &Path) -> Vec<Box<dyn Engine>> {
    vec![
        Box::new(call::Call::new(scratch)),
        Box::new(front_end::FrontEnd::new(scratch)),
        Box::new(criu::Criu::new(criu, scratch)),
    ]
}
