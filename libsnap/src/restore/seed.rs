//! A seed: a husk in the host's namespaces, off which the inits of many instances are
//! forked. That takes a fraction of what a program takes that has to be executed, and
//! none of the memory of this process, which would be copied for it, is touched.
//!
//! ```text
//!   seed ── clone3(new PID, IPC, UTS, mount namespaces; CLONE_PARENT; into the cgroup) ──> init (1)
//!                                                          init mounts what is its own
//! ```

use super::place;
use super::script::Script;
use super::settle;
use super::skeleton::{Husk, Skeleton, wait_born};
use crate::cgroup;
use crate::error::{Error, OrFail, Result};
use crate::executor::Executor;
use crate::identity;
use crate::ids::HostPid;
use crate::launch::{self, NAMESPACES, Place};
use crate::sys::task::{CLONE_INTO_CGROUP, CloneArgs};
use crate::target::{Network, PidMode};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// What the seed takes from us for a moment, by number.
const GROUP: i32 = 0;

/// Ended by dropping it. ptrace belongs to a thread: so do the inits.
#[derive(Debug)]
pub struct Seed {
    skeleton: Skeleton,
    husk: Husk,
}

impl Seed {
    /// `restorer` is the number under which its inits hold what descriptors are taken
    /// through.
    pub fn make(restorer: i32) -> Result<Seed> {
        identity::prepare_host();
        let place = Place {
            pids: PidMode::Host,
            ..Place::default()
        };
        let (skeleton, husk) = Skeleton::begin(place, restorer, Vec::new())?;
        Ok(Seed { skeleton, husk })
    }

    pub fn executor(&self) -> Executor {
        self.skeleton.executor
    }

    pub fn pid(&self) -> HostPid {
        self.husk.pid
    }

    /// A skeleton of nothing but an init, in this cgroup, which becomes its own.
    pub fn skeleton(&self, group: Option<PathBuf>, network: Network) -> Result<Skeleton> {
        let made = self.begin(group.clone(), network);
        // Nobody else knows of it.
        made.inspect_err(|_| drop(group.as_deref().map(cgroup::destroy)))
    }

    fn begin(&self, group: Option<PathBuf>, network: Network) -> Result<Skeleton> {
        let failed = || "cannot make an instance's init";
        let joined = group.as_deref().filter(|_| cgroup::is_v2()).map(File::open).transpose();
        let joined = joined.or_fail(failed)?;
        let mut script = Script::new(self.skeleton.executor, self.husk.pid, &self.husk.regs);
        let restorer = self.skeleton.restorer;
        let mut how = Clone {
            flags: NAMESPACES | libc::CLONE_PARENT as u64,
            ..Clone::default()
        };
        // What an attempt that failed has left.
        script.must("close_range", libc::SYS_close_range, &[0, GROUP as u64, 0])?;
        if let Some(group) = &joined {
            place::take(&mut script, restorer, group.as_raw_fd(), GROUP)?;
            how.cgroup = Some(GROUP);
        }
        how.add(&mut script)?;
        script.must("close_range", libc::SYS_close_range, &[0, GROUP as u64, 0])?;
        let born = one(script.flush()?)?;
        let mut skeleton = self.skeleton.another(born, group.clone());
        wait_born(born)?;
        if let (Some(group), None) = (group, joined) {
            cgroup::join(&group, born)?;
        }
        let init = Husk {
            pid: born,
            ..self.husk.clone()
        };
        let mut script = Script::new(skeleton.executor, init.pid, &init.regs);
        script.must("close_range", libc::SYS_close_range, &[0, GROUP as u64, 0])?;
        script.must("setsid", libc::SYS_setsid, &[])?;
        set_up(&mut script)?;
        if network == Network::Own {
            settle::make_network(&mut script)?;
            skeleton.has_network = true;
        }
        script.flush()?;
        skeleton.init = Some(init);
        Ok(skeleton)
    }
}

/// clone3(2) by a husk.
#[derive(Debug, Default)]
pub(super) struct Clone {
    pub flags: u64,
    pub exit_signal: i32,
    /// In its innermost PID namespace; any where it is none.
    pub pid: Option<i32>,
    /// The caller's number of a cgroup's directory.
    pub cgroup: Option<i32>,
}

impl Clone {
    pub fn add(&self, script: &mut Script<'_>) -> Result<()> {
        let batch = script.room(1, 128)?;
        let set_tid = self.pid.map(|pid| batch.bytes(&pid.to_le_bytes()).address);
        let into = if self.cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
        let args = CloneArgs {
            flags: self.flags | into,
            exit_signal: self.exit_signal as u64,
            set_tid: set_tid.unwrap_or(0),
            set_tid_size: u64::from(set_tid.is_some()),
            cgroup: self.cgroup.map_or(0, |number| number as u64),
            ..CloneArgs::default()
        };
        let args = batch.bytes(&args.to_bytes());
        batch.must("clone3", libc::SYS_clone3, &[args.address, CloneArgs::SIZE]);
        Ok(())
    }
}

/// The only task that a script has made.
pub(super) fn one(born: Vec<HostPid>) -> Result<HostPid> {
    let first = born.first().copied();
    first.ok_or_else(|| Error::failed("clone3 made no process"))
}

/// What [`launch::Place`] sets up in a process of ours.
fn set_up(script: &mut Script<'_>) -> Result<()> {
    let private = libc::MS_REC | libc::MS_PRIVATE;
    mount(script, None, "/", None, private, None)?;
    for mounted in launch::mounts().iter().filter(|mounted| Path::new(mounted.at).exists()) {
        let source = Some(mounted.source);
        mount(script, source, mounted.at, mounted.kind, mounted.flags, mounted.options)?;
    }
    Ok(())
}

fn mount(
    script: &mut Script<'_>,
    source: Option<&str>,
    at: &str,
    kind: Option<&str>,
    flags: u64,
    options: Option<&str>,
) -> Result<()> {
    let batch = script.room(1, 512)?;
    let mut text = |text: Option<&str>| text.map_or(0, |text| batch.c_string(text).address);
    let args = [text(source), text(Some(at)), text(kind), flags, text(options)];
    batch.must("mount", libc::SYS_mount, &args);
    Ok(())
}
