//! A husk in waiting: what every app begins with, made before anyone asks for it.
//!
//! ```text
//!   made:     init (1), traced, the executor in it ── fork ──> root (2)
//!             new PID, IPC, UTS, mount namespaces,             leader of its session
//!             /proc, /dev/pts, a cgroup
//! ```
//!
//! ptrace belongs to a thread: a spare can be used by the one that made it.

use super::eager::Eager;
use super::place;
use super::script::Script;
use super::settle::Had;
use super::skeleton::{Husk, Skeleton, adopted, fork_in, free_number};
use crate::error::Result;
use crate::ids::HostPid;
use crate::image::Appshot;
use crate::image::records::{Life, SnapEntry};
use crate::launch::{Place, ROOT};
use crate::sys::memory::Span;
use crate::sys::ptrace;
use crate::target::{Network, PidMode};
use std::fs;
use std::path::{Path, PathBuf};

/// The number under which a spare holds what its descriptors are taken through: the
/// last for which a process needs no larger table.
const RESTORER: i32 = 63;

/// Ended by dropping it, with its cgroup.
#[derive(Debug)]
pub struct Spare {
    skeleton: Skeleton,
    root: Husk,
    eager: Option<Eager>,
}

impl Spare {
    /// In this cgroup, which is the spare's own from now on.
    pub fn make(group: Option<PathBuf>) -> Result<Spare> {
        let place = Place {
            pids: PidMode::New,
            cgroup: group,
            ..Place::default()
        };
        crate::timed::prune();
        let (mut skeleton, init) = Skeleton::begin(place, RESTORER, Vec::new())?;
        let root = fork_in(&skeleton.executor, &init, ROOT, libc::SIGCHLD, 0)?;
        skeleton.born.push(root.pid);
        let mut script = Script::new(skeleton.executor, root.pid, &root.regs);
        script.must("setsid", libc::SYS_setsid, &[])?;
        place::clear(&skeleton, &mut script)?;
        script.flush()?;
        skeleton.had = Had::read(&skeleton, &root)?;
        skeleton.init = Some(init);
        // Its first look-up below /proc takes longer.
        fs::metadata(format!("/proc/{}/root", root.pid)).ok();
        Ok(Spare {
            skeleton,
            root,
            eager: None,
        })
    }

    /// To be called by its thread, which is about to wait for what the spare becomes:
    /// that will not wait for others. Answers the thread.
    pub fn await_eagerly(&mut self) -> Option<HostPid> {
        self.eager = Eager::begin();
        self.eager.as_ref().map(Eager::thread)
    }

    /// Takes that back.
    pub fn calm(&mut self) {
        self.eager = None;
    }

    pub fn group(&self) -> Option<&Path> {
        self.skeleton.group().map(PathBuf::as_path)
    }

    /// Whether it can become this app: one whose root has the number and the session
    /// of ours, no child that stayed in another, and room for the executor.
    pub fn suits(&self, shot: &Appshot, pids: PidMode) -> bool {
        let wanted = adopted(&shot.manifest.processes, pids);
        let root = &wanted[0];
        let is_ours = (root.pid.0, root.sid) == (ROOT, root.pid)
            && root.exit_signal == libc::SIGCHLD
            && matches!(root.life, Life::Alive { .. });
        let stays = |entry: &SnapEntry| entry.ppid == root.pid && entry.sid != root.pid && entry.sid != entry.pid;
        let own = self.skeleton.executor.span();
        let meets = |span: Span| span.start < own.end && own.start < span.end;
        let mut vmas = shot.cores.iter().flat_map(|core| &core.image.vmas);
        // Someone may have killed it.
        let lives = ptrace::get_regs(self.root.pid).is_ok();
        pids == PidMode::New
            && lives
            && is_ours
            && !wanted[1..].iter().any(|entry| stays(entry) || entry.pid == root.pid)
            && !wanted.iter().any(|entry| entry.pid == root.ppid)
            && !vmas.any(|vma| meets(Span::from(vma)))
    }

    /// Becomes the skeleton of an app that it suits.
    pub fn turn_into(self, shot: &Appshot, network: Network) -> Result<Skeleton> {
        let Spare {
            mut skeleton,
            root,
            eager,
        } = self;
        let wanted = adopted(&shot.manifest.processes, PidMode::New);
        skeleton.restorer = free_number(shot);
        // Others may be forked off init, which is not.
        skeleton.is_empty = wanted.len() == 1;
        skeleton.eager = eager;
        // What they fork has it under its number.
        for husk in skeleton.init.iter().chain([&root]) {
            let mut script = Script::new(skeleton.executor, husk.pid, &husk.regs);
            move_to(&mut script, RESTORER, skeleton.restorer)?;
            script.flush()?;
        }
        skeleton.early = Some(root);
        if network == Network::Own {
            skeleton.leave_network()?;
        }
        skeleton.grow(shot, &wanted)?;
        Ok(skeleton)
    }
}

fn move_to(script: &mut Script<'_>, from: i32, to: i32) -> Result<()> {
    if from != to {
        script.must("dup3", libc::SYS_dup3, &[from as u64, to as u64, 0])?;
        script.must("close", libc::SYS_close, &[from as u64])?;
    }
    Ok(())
}
