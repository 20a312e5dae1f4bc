//! The appshot engine.
pub mod error;
pub mod ids;
pub mod image;
pub mod store;
pub mod target;

/// Stubs while the engine is being written.
pub mod launch {
    use crate::{error::Result, target::*};
    /// Starts a command as a new app, in its own namespaces and cgroup.
    pub fn run(_options: &RunOptions) -> Result<Instance> {
        Err(crate::error::Error::failed("not built yet"))
    }
}
pub mod snapshot {
    use crate::{error::Result, target::*};
    use std::path::Path;
    /// Writes an appshot of `target` to the new directory `dest`. Uses ptrace:
    /// runs wholly on the calling thread. `progress` is told each step as it begins.
    pub fn snapshot(
        _target: &Target,
        _dest: &Path,
        _options: &SnapshotOptions,
        _progress: &mut dyn FnMut(&str),
    ) -> Result<SnapshotReport> {
        Err(crate::error::Error::failed("not built yet"))
    }
    /// Lists everything that a snapshot would refuse; touches nothing.
    pub fn check(_target: &Target, _options: &SnapshotOptions) -> Result<CheckReport> {
        Err(crate::error::Error::failed("not built yet"))
    }
}
pub mod restore {
    use crate::{error::Result, target::*};
    use std::path::Path;
    /// Restores the appshot at `path`. Uses ptrace: runs wholly on the calling thread.
    pub fn restore(_path: &Path, _options: &RestoreOptions) -> Result<Instance> {
        Err(crate::error::Error::failed("not built yet"))
    }
}
pub mod cgroup {
    use std::path::Path;
    /// Kills every process of an app's cgroup and removes the cgroup.
    pub fn destroy(_cgroup: &Path) -> crate::error::Result<()> {
        Err(crate::error::Error::failed("not built yet"))
    }
    /// CPU time in nanoseconds and memory in bytes of an app's cgroup.
    #[derive(Clone, Copy, Debug, Default)]
    pub struct Usage {
        pub cpu_ns: u64,
        pub memory_bytes: Option<u64>,
    }
    pub fn usage(_cgroup: &Path) -> crate::error::Result<Usage> {
        Err(crate::error::Error::failed("not built yet"))
    }
}
pub mod kernel {
    /// Every kernel feature the engine uses, probed by use.
    pub fn features() -> Vec<crate::target::Feature> {
        Vec::new()
    }
}
