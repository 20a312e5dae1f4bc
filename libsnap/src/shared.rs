//! Descriptor tables and file-system state (working and root directory, umask) that processes share
//! (clone(2): CLONE_FILES, CLONE_FS without CLONE_THREAD).
//!
//! Who shares tells kcmp(2). A process comes to a table that is there by one way only: it is made so,
//! by whom it shares with. So each is forked by its parent with the same flags. The first of those that
//! share, their *owner*, gives the table its descriptors, and its state; the others work in it before,
//! one after the other, and leave nothing behind.
//!
//! Refused: memory that is shared, parts that are shared by processes of which one is no child of
//! another, threads that have parts of their own (unshare(2)).

use crate::ids::{HostPid, VirtualPid};
use crate::image::records::{Life, Manifest, SnapEntry};
use crate::proc;
use crate::refusals::Refusals;
use crate::sys::task::{self, Compare};
use std::cmp::Ordering;
use std::collections::HashMap;

/// What can be shared and kept.
const PARTS: [(Compare, &str); 2] = [(Compare::Files, "descriptor table"), (Compare::Fs, "file-system state")];

fn is_same(one: HostPid, other: HostPid, what: Compare) -> bool {
    task::kcmp(one, other, what, 0, 0) == Ok(Ordering::Equal)
}

/// Refuses what cannot be kept.
pub fn look(pids: &[HostPid], refusals: &mut Refusals) {
    for group in groups(pids, Compare::Vm) {
        for pid in &group[1..] {
            refusals.add(
                *pid,
                "memory",
                format!(
                    "shared with process {} (vfork in progress, or clone with CLONE_VM)",
                    group[0]
                ),
                "try again when the child has executed its program",
            );
        }
    }
    for (what, name) in PARTS {
        for group in groups(pids, what) {
            let is_child = |pid: &&HostPid| proc::stat(**pid).is_ok_and(|stat| group.contains(&HostPid(stat.ppid)));
            for pid in group.iter().filter(|pid| !is_child(pid)).skip(1) {
                refusals.add(
                    *pid,
                    name,
                    format!("shared with process {}, and its parent has no part in that", group[0]),
                    "let the process that made both keep it, or each have its own (unshare)",
                );
            }
        }
    }
    for pid in pids {
        for tid in proc::threads(*pid).unwrap_or_default().iter().skip(1) {
            for (_, name) in PARTS.into_iter().filter(|(what, _)| differs(*pid, *tid, *what)) {
                refusals.add(
                    *pid,
                    name,
                    format!("thread {tid} has one of its own (unshare), which is not carried yet"),
                    "let its threads share it",
                );
            }
        }
    }
}

/// A thread that has ended meanwhile does not.
fn differs(pid: HostPid, tid: HostPid, what: Compare) -> bool {
    task::kcmp(pid, tid, what, 0, 0).is_ok_and(|order| order != Ordering::Equal)
}

/// Those that share, two at least, in the order that they have.
fn groups(pids: &[HostPid], what: Compare) -> Vec<Vec<HostPid>> {
    let mut sorted = pids.to_vec();
    sorted.sort_by(|a, b| task::kcmp(*a, *b, what, 0, 0).unwrap_or(Ordering::Less));
    let groups = sorted.chunk_by(|one, other| is_same(*one, *other, what));
    let mut groups: Vec<Vec<HostPid>> = groups
        .filter(|group| group.len() > 1)
        .map(<[HostPid]>::to_vec)
        .collect();
    let place = |pid: &HostPid| pids.iter().position(|other| other == pid);
    groups.iter_mut().for_each(|group| group.sort_by_key(place));
    groups
}

/// What a process has together with its parent: descriptors, file-system state.
pub fn with_parent(pid: HostPid, parent: HostPid) -> (bool, bool) {
    (is_same(pid, parent, Compare::Files), is_same(pid, parent, Compare::Fs))
}

/// Of each core of an appshot, which has made what it has: itself, where it shares with none before it.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    files: Vec<usize>,
    states: Vec<usize>,
}

impl Owners {
    pub fn of(manifest: &Manifest) -> Owners {
        let mut owners = Owners::default();
        let mut places: HashMap<VirtualPid, usize> = HashMap::new();
        let live = |entry: &&SnapEntry| matches!(entry.life, Life::Alive { .. });
        for (at, entry) in manifest.processes.iter().filter(live).enumerate() {
            let parent = places.get(&entry.ppid).copied();
            let owner = |shares: bool, known: &[usize]| parent.filter(|_| shares).map_or(at, |parent| known[parent]);
            owners.files.push(owner(entry.shares_files, &owners.files));
            owners.states.push(owner(entry.shares_state, &owners.states));
            places.insert(entry.pid, at);
        }
        owners
    }

    /// Whose the descriptor table of this one is.
    pub fn files(&self, at: usize) -> usize {
        self.files.get(at).copied().unwrap_or(at)
    }

    /// Whether it gives its descriptor table what is in it.
    pub fn has_files(&self, at: usize) -> bool {
        self.files(at) == at
    }

    /// The same of working directory, root directory and umask.
    pub fn has_state(&self, at: usize) -> bool {
        self.states.get(at).is_none_or(|owner| *owner == at)
    }

    /// Whether others work in its descriptor table.
    pub fn are_guests_of(&self, at: usize) -> bool {
        self.files
            .iter()
            .enumerate()
            .any(|(other, owner)| *owner == at && other != at)
    }
}
