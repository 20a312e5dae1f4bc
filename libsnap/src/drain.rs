//! Keeping an app from accepting connections, while it goes on with those that it has.
//!
//! Instances of an app share their listening sockets, so none can be closed for one of
//! them. The threads of that one are traced instead, from one system call to the next:
//!
//! ```text
//!   thread ──> accept(2), accept4(2) on such a socket ──> does not block: answered EAGAIN
//!      │                                             └──> blocks: held before it is made
//!      └─────> any other call ──> made as it is
//! ```
//!
//! Nothing of ours is in the app. When the thread that traces ends, or is killed, the
//! kernel lets all go on; those that were held make their call then. Until then every
//! system call costs two stops: this is for a fraction of a second.
//!
//! Not for an app that waits for connections with EPOLLEXCLUSIVE: one of which the kernel
//! told it alone would be heard of by nobody.

use crate::cgroup;
use crate::error::{Error, OrFail, Result};
use crate::freeze::Frozen;
use crate::ids::HostPid;
use crate::proc;
use crate::sys::ptrace::{self, Stop, reg};
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// So that new threads and processes are traced from their beginning. Filters of the app
/// apply: it runs.
const OPTIONS: i32 =
    libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK;

/// Between two looks at what it has.
const LOOK: Duration = Duration::from_millis(1);

/// A listening socket that the app shares with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    pub inode: u64,
    /// accept(2) waits there.
    pub blocks: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Outside,
    /// In a system call.
    Inside,
    /// Before one that would wait for a connection.
    Held,
}

/// An app that accepts nothing. To let it go on the calling thread has to end.
#[derive(Debug)]
pub struct Drain {
    threads: HashMap<HostPid, At>,
    shared: Vec<Shared>,
}

impl Drain {
    /// Lets an app that stands still go on so.
    pub fn begin(frozen: Frozen, shared: Vec<Shared>) -> Result<Drain> {
        if frozen.processes.iter().any(|process| process.stopped.is_some()) {
            return Err(Error::failed("cannot wait until the app has done what it does")
                .because("one of its processes is stopped")
                .state("the app was let go on"));
        }
        let threads = frozen.to_calls(OPTIONS);
        let threads = threads.into_iter().map(|tid| (tid, At::Outside)).collect();
        Ok(Drain { threads, shared })
    }

    /// Until this is so, as long as that may take; whether it is.
    pub fn until(&mut self, patience: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<bool> {
        let (since, mut looked, mut rounds) = (Instant::now(), Instant::now(), 0);
        while since.elapsed() < patience {
            if self.serve() {
                rounds = 0;
            } else {
                ptrace::pause(&mut rounds);
            }
            if looked.elapsed() > LOOK {
                if is_so()? {
                    return Ok(true);
                }
                looked = Instant::now();
            }
        }
        Ok(false)
    }

    /// Holds it still by its cgroup from now on: what waits to accept goes back to before its
    /// call, and makes it once the cgroup is thawed. Once the calling thread has ended nobody
    /// traces the app.
    pub fn hold(self, group: &Path) -> Result<()> {
        cgroup::freeze(group, true)?;
        let held = self.threads.iter().filter(|(_, at)| **at == At::Held);
        for (tid, _) in held {
            back_before_call(*tid).or_fail(|| format!("cannot hold thread {tid}"))?;
        }
        Ok(())
    }

    /// Hears of the end of all threads, where the app was killed.
    pub fn ended(mut self, patience: Duration) {
        let (since, mut rounds) = (Instant::now(), 0);
        while !self.threads.is_empty() && since.elapsed() < patience {
            if !self.serve() {
                ptrace::pause(&mut rounds);
            }
        }
    }

    /// Has threads that have come to a stop go on. Whether there were any.
    fn serve(&mut self) -> bool {
        let mut any = false;
        let tids: Vec<HostPid> = self.threads.keys().copied().collect();
        for tid in tids {
            while let Some(stop) = ptrace::wait(tid, false).unwrap_or(Some(Stop::Killed(libc::SIGKILL))) {
                any = true;
                // One that was killed in its stop is heard of next.
                let _ = self.next(tid, stop);
                if matches!(stop, Stop::Exited(_) | Stop::Killed(_)) {
                    break;
                }
            }
        }
        any
    }

    fn next(&mut self, tid: HostPid, stop: Stop) -> crate::sys::Sys<()> {
        match stop {
            Stop::Exited(_) | Stop::Killed(_) => {
                self.threads.remove(&tid);
                Ok(())
            }
            Stop::Signal(signal) => ptrace::to_syscall(tid, signal),
            Stop::Group(_) => ptrace::listen(tid),
            Stop::Trap => ptrace::to_syscall(tid, 0),
            Stop::Event(_) => {
                // Of a new one, where there is one.
                if let Ok(new) = ptrace::event_message(tid).map(|number| i32::try_from(number).unwrap_or(0))
                    && new > 0
                {
                    self.threads.entry(HostPid(new)).or_insert(At::Outside);
                }
                ptrace::to_syscall(tid, 0)
            }
            Stop::Syscall => self.call(tid),
        }
    }

    /// At the entry to a system call, or at its end.
    fn call(&mut self, tid: HostPid) -> crate::sys::Sys<()> {
        let at = self.threads.entry(tid).or_insert(At::Outside);
        let regs = ptrace::get_regs(tid)?;
        // What the kernel answers until the call is made.
        let enters = *at == At::Outside && regs.get(reg::RAX) as i64 == -i64::from(libc::ENOSYS);
        *at = if enters { At::Inside } else { At::Outside };
        let number = regs.get(reg::ORIG_RAX) as i64;
        if enters && [libc::SYS_accept, libc::SYS_accept4].contains(&number) {
            let link = proc::link(tid, &format!("fd/{}", regs.get(reg::RDI) as i32)).unwrap_or_default();
            let is_it = |shared: &&Shared| link == format!("socket:[{}]", shared.inode);
            match self.shared.iter().find(is_it) {
                Some(shared) if shared.blocks => {
                    *at = At::Held;
                    return Ok(());
                }
                // At once, so that it stays so whatever becomes of us.
                Some(_) => {
                    let answer = -i64::from(libc::EAGAIN);
                    let denied = regs.with(reg::ORIG_RAX, u64::MAX).with(reg::RAX, answer as u64);
                    ptrace::set_regs(tid, &denied)?;
                }
                None => {}
            }
        }
        ptrace::to_syscall(tid, 0)
    }
}

/// At the entry to a system call: it is not made, but entered again (the instruction has two
/// bytes).
fn back_before_call(tid: HostPid) -> crate::sys::Sys<()> {
    let regs = ptrace::get_regs(tid)?;
    let again = regs
        .with(reg::RAX, regs.get(reg::ORIG_RAX))
        .with(reg::RIP, regs.get(reg::RIP) - 2)
        .with(reg::ORIG_RAX, u64::MAX);
    ptrace::set_regs(tid, &again)
}
