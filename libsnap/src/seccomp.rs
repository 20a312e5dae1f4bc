//! Filters on system calls (seccomp(2)).
//!
//! Read by PTRACE_SECCOMP_GET_FILTER (CONFIG_CHECKPOINT_RESTORE), installed again
//! by each thread itself. PTRACE_O_SUSPEND_SECCOMP keeps them from judging the
//! executor's calls; detaching ends that.
//!
//! The filters of a thread are a chain that grows at its end and is shared with
//! whoever was cloned from it; SECCOMP_FILTER_FLAG_TSYNC only works on threads
//! that share it. So the main thread installs its chain step by step, and each
//! thread is cloned at the step up to which its chain is the same.
//!
//! Refused: filters that ask a supervisor (SECCOMP_RET_USER_NOTIF), because no
//! one can give the supervisor its end again.

use crate::error::{OrFail, Result};
use crate::executor::{Batch, Executor};
use crate::freeze::{Frozen, FrozenProcess};
use crate::ids::HostPid;
use crate::image::ThreadImage;
use crate::image::records::{Seccomp, SeccompFilter};
use crate::proc::Fields;
use crate::refusals::Refusals;
use crate::sys::ptrace::{self, Regs};
use std::collections::HashMap;

const SET_MODE_STRICT: u64 = 0;
const SET_MODE_FILTER: u64 = 1;
const FLAG_LOG: u64 = 2;
const RET_USER_NOTIF: u64 = 0x7fc0_0000;

/// The filters of all threads of an app.
#[derive(Debug, Default)]
pub struct Filters {
    records: Vec<SeccompFilter>,
    known: HashMap<SeccompFilter, u32>,
    threads: HashMap<HostPid, Seccomp>,
}

impl Filters {
    /// Reads those of every thread.
    pub fn look(frozen: &Frozen, refusals: &mut Refusals) -> Result<Filters> {
        let mut filters = Filters::default();
        for process in &frozen.processes {
            for thread in &process.threads {
                let state = filters.thread(process.pid, thread.tid, refusals)?;
                filters.threads.insert(thread.tid, state);
            }
        }
        Ok(filters)
    }

    fn thread(&mut self, pid: HostPid, tid: HostPid, refusals: &mut Refusals) -> Result<Seccomp> {
        if ptrace::user_dispatch(tid).unwrap_or(false) {
            refusals.add(
                pid,
                format!("system calls of task {tid}"),
                "the program handles them itself (PR_SET_SYSCALL_USER_DISPATCH), which is not carried",
                "run it without that",
            );
        }
        let status = Fields::status(tid).or_fail(|| format!("cannot read the state of task {tid}"))?;
        match status.number("Seccomp").unwrap_or(0) {
            0 => Ok(Seccomp::Off),
            1 => Ok(Seccomp::Strict),
            _ => self.chain(pid, tid, refusals).map(Seccomp::Filters),
        }
    }

    fn chain(&mut self, pid: HostPid, tid: HostPid, refusals: &mut Refusals) -> Result<Vec<u32>> {
        let failed = || format!("cannot read the seccomp filters of task {tid}");
        let mut chain = Vec::new();
        loop {
            let code = match ptrace::seccomp_filter(tid, chain.len()) {
                Ok(code) => code,
                Err(nix::Error::ENOENT) => return Ok(chain),
                Err(errno) => return Err(crate::error::Error::failed(failed()).because(errno)),
            };
            if notifies(&code) {
                let object = format!("seccomp filter {} of task {tid}", chain.len());
                refusals.add(
                    pid,
                    object,
                    "it asks a supervisor (SECCOMP_RET_USER_NOTIF), which is not carried",
                    "run the app without its supervisor",
                );
            }
            let log = ptrace::seccomp_flags(tid, chain.len()).or_fail(failed)? & FLAG_LOG != 0;
            chain.push(self.enter(SeccompFilter { log, code }));
        }
    }

    fn enter(&mut self, filter: SeccompFilter) -> u32 {
        let next = self.records.len() as u32;
        *self.known.entry(filter).or_insert_with_key(|filter| {
            self.records.push(filter.clone());
            next
        })
    }

    /// Writes down what was found for the threads of a process.
    pub fn note(&self, process: &FrozenProcess, images: &mut [ThreadImage]) {
        for (thread, image) in process.threads.iter().zip(images) {
            image.record.seccomp = self.threads.get(&thread.tid).cloned().unwrap_or_default();
        }
    }

    pub fn into_records(self) -> Vec<SeccompFilter> {
        self.records
    }
}

/// Whether a program may return SECCOMP_RET_USER_NOTIF: the value stands in
/// some instruction, as what is returned or as what the result is made of.
fn notifies(code: &[u64]) -> bool {
    code.iter()
        .any(|instruction| instruction >> 32 & 0xffff_0000 == RET_USER_NOTIF && !compares(*instruction))
}

/// BPF_JMP.
fn compares(instruction: u64) -> bool {
    instruction & 7 == 5
}

/// How many of a thread's filters it has in common with the main thread.
pub fn shared(main: &Seccomp, thread: &Seccomp) -> usize {
    main.filters()
        .iter()
        .zip(thread.filters())
        .take_while(|(a, b)| a == b)
        .count()
}

/// Gives task `tid` these filters on top of those it has.
pub fn install(executor: &Executor, tid: HostPid, regs: &Regs, filters: &[&SeccompFilter]) -> Result<()> {
    let mut batch = executor.batch();
    for filter in filters {
        if !batch.has_room(1, 8 * filter.code.len() + 16) {
            executor.run(tid, regs, &mut batch)?;
            batch = executor.batch();
        }
        add(&mut batch, filter);
    }
    if !batch.is_empty() {
        executor.run(tid, regs, &mut batch)?;
    }
    Ok(())
}

fn add(batch: &mut Batch, filter: &SeccompFilter) {
    let code = batch.words(&filter.code);
    // struct sock_fprog: length, pointer.
    let program = batch.words(&[filter.code.len() as u64, code.address]);
    let flags = if filter.log { FLAG_LOG } else { 0 };
    batch.must("seccomp", libc::SYS_seccomp, &[SET_MODE_FILTER, flags, program.address]);
}

/// From the detach on, the thread may only read, write and end.
pub fn restrict(batch: &mut Batch) {
    batch.must("seccomp", libc::SYS_seccomp, &[SET_MODE_STRICT, 0, 0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(list: &[u32]) -> Seccomp {
        Seccomp::Filters(list.to_vec())
    }

    #[test]
    fn chains_are_shared_from_their_oldest_filter_on() {
        assert_eq!(shared(&filters(&[1, 2, 3]), &filters(&[1, 2])), 2);
        assert_eq!(shared(&filters(&[1, 2]), &filters(&[2, 1])), 0);
        assert_eq!(shared(&Seccomp::Strict, &filters(&[1])), 0);
    }

    #[test]
    fn a_filter_that_asks_a_supervisor_is_seen() {
        let ret = |value: u64| value << 32 | 0x06;
        assert!(notifies(&[ret(0x7fff_0000), ret(RET_USER_NOTIF)]));
        assert!(!notifies(&[ret(0x7fff_0000), ret(0x0005_0001)]));
        // Comparing a system call's argument with that number says nothing.
        assert!(!notifies(&[RET_USER_NOTIF << 32 | 0x15]));
    }
}
