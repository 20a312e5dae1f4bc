//! Doing something inside another process's namespaces (setns(2)): this thread
//! enters them and comes back. A thread of its own would cost ten times as much, while
//! an app stands still.

use crate::ids::HostPid;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// The way into namespaces and back.
#[derive(Debug)]
pub struct Door {
    own: Vec<File>,
    other: Vec<File>,
}

impl Door {
    /// To the named namespaces (`ipc`, `uts`, `net`) that `pid` is in now.
    pub fn open(pid: HostPid, names: &[&str]) -> io::Result<Door> {
        let open = |owner: &str| {
            let files = names.iter().map(|name| File::open(format!("/proc/{owner}/ns/{name}")));
            files.collect::<io::Result<Vec<_>>>()
        };
        let (own, other) = (open("thread-self")?, open(&pid.to_string())?);
        Ok(Door { own, other })
    }

    /// To this namespace, which is one of this name.
    pub fn to(name: &str, namespace: &impl AsFd) -> io::Result<Door> {
        let own = File::open(format!("/proc/thread-self/ns/{name}"))?;
        Ok(Door {
            own: vec![own],
            other: vec![namespace.as_fd().try_clone_to_owned()?.into()],
        })
    }

    /// To this network namespace.
    pub fn to_network(network: &OwnedFd) -> io::Result<Door> {
        Door::to("net", network)
    }

    /// Runs `job` in them.
    pub fn inside<T>(&self, job: impl FnOnce() -> T) -> io::Result<T> {
        let entered = self.other.iter().try_for_each(|file| setns(file, CloneFlags::empty()));
        let done = entered.map(|()| job());
        // What was entered was ours before: the way back is open.
        self.own.iter().try_for_each(|file| setns(file, CloneFlags::empty()))?;
        Ok(done?)
    }
}

/// Runs `job` in the named namespaces of `pid`.
pub fn inside<T>(pid: HostPid, names: &[&str], job: impl FnOnce() -> T) -> io::Result<T> {
    Door::open(pid, names)?.inside(job)
}
