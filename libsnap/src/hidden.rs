//! What threads keep for themselves and no file of their process shows: rules of Landlock
//! (landlock(7)), namespaces (unshare(2)).
//!
//! Read from the kernel's memory ([`KernelMemory`]). Where the rules stand among what security
//! modules keep of a thread is found out by putting a rule on a thread of ours. Where that
//! memory cannot be read, rules of Landlock are not seen.
//! Refused: both.

use crate::ids::HostPid;
use crate::kernel_memory::{KernelMemory, Unread};
use crate::proc;
use crate::refusals::Refusals;
use crate::sys::task;
use std::collections::HashMap;
use std::sync::OnceLock;

/// `own`: the namespace that a thread of a process has for itself, if it has one.
pub fn look(pids: &[HostPid], mut own: impl FnMut(HostPid, HostPid) -> Option<&'static str>, refusals: &mut Refusals) {
    let kernel = KernelMemory::open().ok();
    let mut seen = Seen::default();
    for pid in pids {
        let told = kernel.as_ref().and_then(|kernel| seen.threads(kernel, *pid).ok());
        let threads = told.unwrap_or_else(|| {
            let all = proc::threads(*pid).unwrap_or_default();
            let apart = all.into_iter().filter(|tid| tid != pid);
            apart
                .map(|tid| {
                    (
                        tid,
                        Hidden {
                            ruled: false,
                            apart: true,
                        },
                    )
                })
                .collect()
        });
        for (tid, hidden) in threads {
            if hidden.ruled {
                refusals.add(
                    *pid,
                    format!("rules of Landlock on task {tid}"),
                    "nobody can tell what it has forbidden itself, so they are not carried",
                    "run the app without them",
                );
            }
            if let Some(name) = Some(tid).filter(|_| hidden.apart).and_then(|tid| own(*pid, tid)) {
                refusals.add(
                    *pid,
                    format!("namespace of task {tid} ({name})"),
                    "the thread is in another one than its process",
                    "let a process of its own enter it, or none",
                );
            }
        }
    }
}

/// Of one thread.
#[derive(Clone, Copy, Debug)]
struct Hidden {
    ruled: bool,
    /// Its namespaces are not those of the main thread.
    apart: bool,
}

/// Finds out what does not depend on an app, so that no app stands still for it.
pub fn ready() {
    place();
}

/// Credentials that were looked at, and whether rules go with them.
#[derive(Debug, Default)]
struct Seen(HashMap<u64, bool>);

impl Seen {
    /// Threads that have something to tell.
    fn threads(&mut self, kernel: &KernelMemory, pid: HostPid) -> Result<Vec<(HostPid, Hidden)>, Unread> {
        let pidfd = task::pidfd_open(pid)?;
        let tasks = kernel.threads(&pidfd)?;
        let mut of_main = None;
        let mut found = Vec::new();
        for task in tasks {
            let spaces = kernel.u64(task, "task_struct.nsproxy")?;
            let hidden = Hidden {
                ruled: self.is_ruled(kernel, kernel.u64(task, "task_struct.cred")?)?,
                apart: *of_main.get_or_insert(spaces) != spaces,
            };
            if hidden.ruled || hidden.apart {
                let tid = kernel.u32(task, "task_struct.pid")?;
                found.push((task, HostPid(tid as i32), hidden));
            }
        }
        // A thread that ended meanwhile may have left anything to be read.
        if !found.is_empty() {
            let still = kernel.threads(&pidfd)?;
            found.retain(|(task, ..)| still.contains(task));
        }
        Ok(found.into_iter().map(|(_, tid, hidden)| (tid, hidden)).collect())
    }

    fn is_ruled(&mut self, kernel: &KernelMemory, credentials: u64) -> Result<bool, Unread> {
        if let Some(known) = self.0.get(&credentials) {
            return Ok(*known);
        }
        let ruled = match place() {
            Some(place) => {
                let kept = kernel.u64(credentials, "cred.security")?;
                kernel.words(kept.wrapping_add(place), 1)?[0] != 0
            }
            None => false,
        };
        self.0.insert(credentials, ruled);
        Ok(ruled)
    }
}

/// Where the rules of a thread stand in what security modules keep with its credentials.
fn place() -> Option<u64> {
    static PLACE: OnceLock<Option<u64>> = OnceLock::new();
    *PLACE.get_or_init(|| std::thread::spawn(find_place).join().ok().flatten())
}

/// By what changes when this thread, which ends then, puts rules on itself.
fn find_place() -> Option<u64> {
    const WORDS: usize = 32;
    let kernel = KernelMemory::open().ok()?;
    let kept = || {
        let credentials = kernel.u64(kernel.current().ok()?, "task_struct.cred").ok()?;
        let kept = kernel.u64(credentials, "cred.security").ok()?;
        kernel.words(kept, WORDS).ok()
    };
    let before = kept()?;
    task::landlock_self().ok()?;
    let after = kept()?;
    // One layer of rules, as they have it.
    let is_domain = |word: u64| word != 0 && kernel.u32(word, "landlock_ruleset.num_layers") == Ok(1);
    let pairs = before.iter().zip(&after).enumerate();
    let mut changed = pairs.filter(|(_, (before, after))| **before == 0 && is_domain(**after));
    changed.next().map(|(at, _)| 8 * at as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_seen_on_the_thread_that_has_them() {
        if place().is_none() {
            return; // where the kernel has no Landlock, or cannot be read
        }
        let own = HostPid(std::process::id() as i32);
        let ruled = move || {
            let kernel = KernelMemory::open().unwrap();
            let threads = Seen::default().threads(&kernel, own).unwrap();
            threads
                .into_iter()
                .filter(|(_, hidden)| hidden.ruled)
                .map(|(tid, _)| tid)
        };
        let thread = std::thread::spawn(move || {
            task::landlock_self().unwrap();
            let tid = HostPid(nix::unistd::gettid().as_raw());
            (tid, ruled().collect::<Vec<_>>())
        });
        let (tid, seen) = thread.join().unwrap();
        assert!(seen.contains(&tid), "{tid} is not among {seen:?}");
        assert!(!seen.contains(&own));
    }
}
