//! How many descriptors a daemon may have open: as many as it is allowed, which must not be
//! what the apps have that it starts (select(2) knows of 1024).

use libsnap::ids::HostPid;
use libsnap::sys::task::prlimit_set;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::sync::OnceLock;

static BEFORE: OnceLock<(u64, u64)> = OnceLock::new();

/// Raises the limit to what is allowed, and answers it.
pub fn raise() -> u64 {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let _ = BEFORE.set((soft, hard));
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, soft, "the limit of descriptors stays");
            soft
        }
    }
}

/// Gives a process that was just started the limit that we had. It is ours, and alive.
pub fn give_back(child: HostPid) {
    if let Some(before) = BEFORE.get()
        && let Err(error) = prlimit_set(child, Resource::RLIMIT_NOFILE as u32, *before)
    {
        tracing::warn!(%error, "an app has our limit of descriptors");
    }
}
