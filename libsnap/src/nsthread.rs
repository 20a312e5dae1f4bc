//! Doing something inside another process's namespaces: on a thread of its own
//! that enters them (setns(2)) and ends afterwards.

use crate::ids::HostPid;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io;

/// Runs `job` in the named namespaces (`ipc`, `uts`, `net`) of `pid`.
pub fn inside<T: Send>(pid: HostPid, names: &[&str], job: impl FnOnce() -> T + Send) -> io::Result<T> {
    let files = names
        .iter()
        .map(|name| File::open(format!("/proc/{pid}/ns/{name}")))
        .collect::<io::Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            for file in files {
                setns(file, CloneFlags::empty())?;
            }
            Ok(job())
        });
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a helper thread panicked")))
    })
}
