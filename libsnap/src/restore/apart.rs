//! Namespaces below the app's own ([`crate::namespaces`]): the first process that is to be in one
//! makes it, the others enter it, and what is in it is made again.
//!
//! ```text
//!   first:   unshare(2)  ── /proc/PID/ns/KIND is opened by us
//!   others:  take that descriptor (pidfd_getfd), setns(2)
//! ```
//!
//! Before anything is mapped or opened, while a process has no descriptors.

use super::place;
use super::skeleton::Skeleton;
use crate::error::{OrFail, Result};
use crate::ids::HostPid;
use crate::image::Appshot;
use crate::image::records::Namespace;
use crate::ipc::{self, Content};
use crate::namespaces::Kind;
use crate::netns;
use crate::nsthread::Door;
use crate::sys::task;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

impl Skeleton {
    /// The number of the namespace of this kind that a process is in, where that is not the app's own.
    pub(super) fn is_in(&self, shot: &Appshot, at: usize, kind: Kind) -> Option<u32> {
        let mut numbers = shot.cores[at].image.process.namespaces.iter().copied();
        numbers.find(|number| shot.manifest.namespaces[*number as usize].kind() == kind)
    }

    /// The app's own namespace of this kind.
    pub(super) fn own(&self, kind: Kind) -> Result<OwnedFd> {
        open(self.base(), kind)
    }

    /// Has each process be in its namespaces.
    pub(super) fn part(&mut self, shot: &Appshot) -> Result<()> {
        let all = &shot.manifest.namespaces;
        if all.is_empty() {
            return Ok(());
        }
        let mut made: BTreeMap<u32, OwnedFd> = BTreeMap::new();
        for (at, core) in shot.cores.iter().enumerate() {
            let mut script = self.script(at);
            for number in &core.image.process.namespaces {
                let kind = all[*number as usize].kind();
                if let Some(namespace) = made.get(number) {
                    // It has no other descriptor than that of the restorer, which is no small one.
                    place::take(&mut script, self.restorer, namespace.as_raw_fd(), 0)?;
                    script.must("setns", libc::SYS_setns, &[0, kind.flag() as u64])?;
                    script.must("close", libc::SYS_close, &[0])?;
                } else {
                    script.must("unshare", libc::SYS_unshare, &[kind.flag() as u64])?;
                    script.flush()?;
                    made.insert(*number, open(self.husks[at].pid, kind)?);
                }
            }
            script.flush()?;
        }
        self.namespaces = made.into_values().collect();
        let all_mounts = (0..).zip(all).filter(|(_, record)| record.kind() == Kind::Mnt);
        self.mounted = all_mounts.map(|(number, _)| number).collect();
        for ((number, namespace), record) in (0..).zip(&self.namespaces).zip(all) {
            match record {
                Namespace::Uts { hostname, domainname } => name(namespace, [hostname, domainname])?,
                Namespace::Cgroup | Namespace::Mnt(_) => {}
                Namespace::Ipc(objects) => ipc::widen(self.member(shot, Some(number)), Content::beside(objects))?,
                Namespace::Net { loopback, settings } => netns::restore_beside(namespace, *loopback, settings)?,
            }
        }
        Ok(())
    }

    /// What comes after shared memory, whose limits may be lower than what there is.
    pub(super) fn furnish(&self, shot: &Appshot) -> Result<()> {
        for (number, record) in (0..).zip(&shot.manifest.namespaces) {
            if let Namespace::Ipc(objects) = record {
                // Of POSIX message queues there are none.
                ipc::restore(self.member(shot, Some(number)), Content::beside(objects)).map(drop)?;
            }
        }
        Ok(())
    }

    /// A process that is in the namespace with this number, or in the app's own.
    pub(super) fn member(&self, shot: &Appshot, number: Option<u32>) -> HostPid {
        let Some(number) = number else { return self.base() };
        let is_in = |at: &usize| shot.cores[*at].image.process.namespaces.contains(&number);
        // Validated: each has somebody in it.
        let at = (0..self.husks.len()).find(is_in).unwrap_or(0);
        self.husks[at].pid
    }
}

fn open(pid: HostPid, kind: Kind) -> Result<OwnedFd> {
    let opened = File::open(format!("/proc/{pid}/ns/{}", kind.name()));
    opened
        .map(OwnedFd::from)
        .or_fail(|| format!("cannot open the {} namespace of the app", kind.name()))
}

/// Gives a UTS namespace its names.
pub(super) fn name(namespace: &OwnedFd, [host, domain]: [&str; 2]) -> Result<()> {
    let failed = || "cannot name a UTS namespace of the app";
    let door = Door::to("uts", namespace).or_fail(failed)?;
    let named = door.inside(|| nix::unistd::sethostname(host).and_then(|()| task::setdomainname(domain)));
    named.or_fail(failed)?.or_fail(failed)
}
