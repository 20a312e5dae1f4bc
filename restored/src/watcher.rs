//! One thread that waits for the ends of many instances: one for each would be a good
//! part of what a clone takes.

use crate::pool::Watch;
use libsnap::error::{OrFail, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nodekit::process;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// Clones are the same.
#[derive(Clone)]
pub struct Watcher(Arc<Shared>);

struct Shared {
    epoll: Epoll,
    /// By the PID of the child, which nobody else has until it was reaped.
    watched: Mutex<HashMap<u64, (OwnedFd, Watch)>>,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watcher")
    }
}

impl Watcher {
    pub fn start() -> Result<Watcher> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).or_fail(|| "cannot watch instances")?;
        let watched = Mutex::default();
        let watcher = Watcher(Arc::new(Shared { epoll, watched }));
        let waiting = watcher.clone();
        std::thread::spawn(move || waiting.wait());
        Ok(watcher)
    }

    pub fn watch(&self, watch: Watch) -> Result<()> {
        let pidfd = process::open(watch.child)?;
        let number = u64::from(watch.child.0.unsigned_abs());
        // It may end at any time from now on.
        let mut watched = self.0.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
        self.0.epoll.add(&pidfd, event).or_fail(|| "cannot watch an instance")?;
        watched.insert(number, (pidfd, watch));
        Ok(())
    }

    fn wait(&self) {
        let mut events = [EpollEvent::empty(); 32];
        loop {
            let count = self.0.epoll.wait(&mut events, EpollTimeout::NONE).unwrap_or(0);
            for event in &events[..count] {
                let mut watched = self.0.watched.lock().unwrap_or_else(PoisonError::into_inner);
                let ended = watched.remove(&event.data());
                drop(watched);
                if let Some((pidfd, watch)) = ended {
                    self.0.epoll.delete(pidfd).ok();
                    // It may wait for a snapshot that is being finished.
                    std::thread::spawn(watch.at_end);
                }
            }
        }
    }
}
