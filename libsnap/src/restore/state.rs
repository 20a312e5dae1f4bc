//! What a process is besides memory and descriptors, given to it in the order
//! that its rights allow: what needs root first, then its own credentials, then
//! timers, and registers at the very end.

use super::skeleton::{Skeleton, wait_born};
use crate::error::{Error, OrFail, Result};
use crate::executor::{self, Batch};
use crate::ids::{HostPid, VirtualPid};
use crate::image::records::{
    Blocked, Creds, PosixTimer, ProcessRecord, Seccomp, SeccompFilter, SigInfo, ThreadRecord, TimerValue, VmaKind,
};
use crate::image::{Appshot, Core, ThreadImage};
use crate::seccomp;
use crate::sys::blob;
use crate::sys::memory::Span;
use crate::sys::ptrace::{self, Regs, Stop, reg};
use crate::sys::task::{self, CloneArgs, SchedAttr};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// `CLONE_*` of pthread_create, without the parts that are set later.
const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM) as u64;
/// `prctl` options that libc does not name (Linux 6.15).
const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;

/// Makes the threads of process `at` besides its main one, and gives all of them
/// their seccomp filters (suspended while we trace), as long as they have the
/// right to install them.
pub fn threads(skeleton: &mut Skeleton, at: usize, core: &Core, filters: &[SeccompFilter]) -> Result<()> {
    let (main, others) = core
        .image
        .threads
        .split_first()
        .ok_or_else(|| Error::failed("a process without threads"))?;
    let main = &main.record.seccomp;
    let mut born = HashMap::new();
    for have in 0..=main.filters().len() {
        // Those that share just these filters with the main thread inherit them.
        let now = others
            .iter()
            .map(|t| &t.record)
            .filter(|record| seccomp::shared(main, &record.seccomp) == have);
        clone_threads(skeleton, at, &now.collect::<Vec<_>>(), &mut born)?;
        if let Some(next) = main.filters().get(have) {
            let husk = &skeleton.husks[at];
            seccomp::install(&skeleton.executor, husk.pid, &husk.regs, &[&filters[*next as usize]])?;
        }
    }
    for record in others.iter().map(|thread| &thread.record) {
        let own = &record.seccomp.filters()[seccomp::shared(main, &record.seccomp)..];
        let own: Vec<_> = own.iter().map(|at| &filters[*at as usize]).collect();
        seccomp::install(&skeleton.executor, born[&record.tid], &skeleton.husks[at].regs, &own)?;
    }
    skeleton.husks[at].threads = others.iter().map(|thread| born[&thread.record.tid]).collect();
    Ok(())
}

fn clone_threads(
    skeleton: &Skeleton,
    at: usize,
    records: &[&ThreadRecord],
    born: &mut HashMap<VirtualPid, HostPid>,
) -> Result<()> {
    let mut rest = records;
    while !rest.is_empty() {
        let mut batch = skeleton.batch();
        let mut count = 0;
        while count < rest.len() && batch.has_room(1, 120) {
            add_thread(&mut batch, rest[count].tid.0);
            count += 1;
        }
        let tids = skeleton.run(at, &mut batch)?;
        for tid in &tids {
            wait_born(*tid)?;
        }
        born.extend(rest.iter().map(|record| record.tid).zip(tids));
        rest = &rest[count..];
    }
    Ok(())
}

fn add_thread(batch: &mut Batch, tid: i32) {
    let set_tid = batch.bytes(&tid.to_le_bytes());
    let args = CloneArgs {
        flags: THREAD,
        set_tid: set_tid.address,
        set_tid_size: 1,
        ..CloneArgs::default()
    };
    let args = batch.bytes(&args.to_bytes());
    batch.must("clone3", libc::SYS_clone3, &[args.address, CloneArgs::SIZE]);
}

fn tids(skeleton: &Skeleton, at: usize) -> Vec<HostPid> {
    let husk = &skeleton.husks[at];
    [husk.pid].into_iter().chain(husk.threads.iter().copied()).collect()
}

/// Everything of a process that is set by system calls, its threads included.
pub fn process(skeleton: &Skeleton, at: usize, core: &Core) -> Result<()> {
    let image = &core.image;
    let record = &image.process;
    from_outside(skeleton.husks[at].pid, record)?;
    common(skeleton, at, record)?;
    for (tid, thread) in tids(skeleton, at).into_iter().zip(&image.threads) {
        schedule(tid, &thread.record)?;
        let mut batch = skeleton.batch();
        own_state(&mut batch, &thread.record);
        if tid == skeleton.husks[at].pid {
            timers(&mut batch, record);
            queue_shared(&mut batch, record, &record.pending);
        }
        queue_own(&mut batch, record, &thread.record);
        rights(&mut batch, &thread.record);
        if thread.record.seccomp == Seccomp::Strict {
            seccomp::restrict(&mut batch);
        }
        skeleton.executor.run(tid, &skeleton.husks[at].regs, &mut batch)?;
    }
    last(skeleton, at, record)
}

/// What another process may set.
fn from_outside(pid: HostPid, record: &ProcessRecord) -> Result<()> {
    let write = |name: &str, value: String| {
        std::fs::write(format!("/proc/{pid}/{name}"), value).or_fail(|| format!("cannot set {name} of the app"))
    };
    write("oom_score_adj", record.oom_score_adj.to_string())?;
    write("coredump_filter", format!("{:#x}", record.coredump_filter))?;
    for (which, limit) in (0u32..).zip(&record.rlimits) {
        let now = task::prlimit_get(pid, which).unwrap_or((0, 0));
        if now != *limit {
            set_limit(pid, which, *limit, now)?;
        }
    }
    Ok(())
}

/// Raising a hard limit needs CAP_SYS_RESOURCE. Without it the limits are set as
/// far as this process's own allow, with a note: the app goes on, and only what
/// it would do beyond the lower limit can differ.
fn set_limit(pid: HostPid, which: u32, wanted: (u64, u64), now: (u64, u64)) -> Result<()> {
    if task::prlimit_set(pid, which, wanted).is_ok() {
        return Ok(());
    }
    let hard = now.1.min(wanted.1);
    let possible = (wanted.0.min(hard), hard);
    task::prlimit_set(pid, which, possible).or_fail(|| format!("cannot set resource limit {which} of the app"))?;
    tracing::warn!(which, wanted = ?wanted, given = ?possible, "a resource limit stays lower: raising it needs CAP_SYS_RESOURCE");
    Ok(())
}

/// Directory, mask, signal actions, prctls.
fn common(skeleton: &Skeleton, at: usize, record: &ProcessRecord) -> Result<()> {
    let mut batch = skeleton.batch();
    let cwd = batch.c_string(&record.cwd);
    batch.must("chdir", libc::SYS_chdir, &[cwd.address]);
    batch.must("umask", libc::SYS_umask, &[u64::from(record.umask)]);
    batch.must("personality", libc::SYS_personality, &[record.personality]);
    for (signal, action) in (1u64..).zip(&record.sigactions) {
        if [libc::SIGKILL, libc::SIGSTOP].contains(&(signal as i32)) {
            continue;
        }
        let action = batch.words(&[action.handler, action.flags, action.restorer, action.mask]);
        batch.must("rt_sigaction", libc::SYS_rt_sigaction, &[signal, action.address, 0, 8]);
    }
    prctl(
        &mut batch,
        libc::PR_SET_CHILD_SUBREAPER,
        u64::from(record.child_subreaper),
    );
    if record.thp_disable {
        prctl(&mut batch, libc::PR_SET_THP_DISABLE, 1);
    }
    skeleton.run(at, &mut batch).map(drop)
}

fn prctl(batch: &mut Batch, option: i32, argument: u64) {
    batch.must("prctl", libc::SYS_prctl, &[option as u64, argument, 0, 0, 0]);
}

fn schedule(tid: HostPid, record: &ThreadRecord) -> Result<()> {
    let failed = || format!("cannot set the scheduling of task {}", record.tid);
    let sched = &record.sched;
    let attr = SchedAttr {
        size: 48,
        policy: sched.policy,
        flags: sched.flags,
        nice: sched.nice,
        priority: sched.priority,
        ..SchedAttr::default()
    };
    let now = task::sched_getattr(tid).or_fail(failed)?;
    if (now.policy, now.flags, now.nice, now.priority) != (attr.policy, attr.flags, attr.nice, attr.priority) {
        task::sched_setattr(tid, &attr).or_fail(failed)?;
    }
    if task::sched_getaffinity(tid).or_fail(failed)? != sched.affinity {
        task::sched_setaffinity(tid, &sched.affinity)
            .or_fail(|| format!("cannot bind task {} to the processors it was bound to", record.tid))?;
    }
    if record.ioprio != task::ioprio_get(tid).unwrap_or(0) {
        task::ioprio_set(tid, record.ioprio).or_fail(failed)?;
    }
    Ok(())
}

/// What belongs to a thread and needs no rights.
fn own_state(batch: &mut Batch, record: &ThreadRecord) {
    batch.must("set_tid_address", libc::SYS_set_tid_address, &[record.tid_address]);
    if record.robust_list.1 != 0 {
        batch.must(
            "set_robust_list",
            libc::SYS_set_robust_list,
            &[record.robust_list.0, record.robust_list.1],
        );
    }
    if let Some(rseq) = record.rseq {
        let args = [rseq.pointer, u64::from(rseq.size), 0, u64::from(rseq.signature)];
        batch.must("rseq", libc::SYS_rseq, &args);
    }
    let stack = record.sigaltstack;
    let words = batch.words(&[stack.sp, stack.flags as u32 as u64, stack.size]);
    batch.must("sigaltstack", libc::SYS_sigaltstack, &[words.address, 0]);
    let name = batch.c_string(&record.comm);
    prctl(batch, libc::PR_SET_NAME, name.address);
    prctl(batch, libc::PR_SET_TIMERSLACK, record.timer_slack_ns.max(1));
}

/// Pending signals of the process, sent by itself: any siginfo may be sent so.
fn queue_shared(batch: &mut Batch, process: &ProcessRecord, pending: &[SigInfo]) {
    for info in pending {
        let slot = batch.words(&info.0);
        let args = [process.pid.0 as u64, signal_of(info), slot.address];
        batch.must("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo, &args);
    }
}

fn queue_own(batch: &mut Batch, process: &ProcessRecord, record: &ThreadRecord) {
    for info in &record.pending {
        let slot = batch.words(&info.0);
        let args = [process.pid.0 as u64, record.tid.0 as u64, signal_of(info), slot.address];
        batch.must("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo, &args);
    }
}

fn signal_of(info: &SigInfo) -> u64 {
    info.0[0] & 0xffff_ffff
}

/// Credentials, in the order that loses no right before it has been used.
fn rights(batch: &mut Batch, record: &ThreadRecord) {
    const SECBIT_KEEP_CAPS: u32 = 1 << 4;
    const SECBIT_NO_SETUID_FIXUP: u64 = 1 << 2;
    let creds = &record.creds;
    for capability in (0..=last_capability()).filter(|c| creds.cap_bounding & (1 << c) == 0) {
        prctl(batch, libc::PR_CAPBSET_DROP, capability);
    }
    // Changing user ids must not take capabilities away by itself.
    prctl(batch, libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP);
    let groups: Vec<u8> = creds.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
    let list = batch.bytes(&groups);
    batch.must(
        "setgroups",
        libc::SYS_setgroups,
        &[creds.groups.len() as u64, list.address],
    );
    let ids = |four: [u32; 4]| four.map(u64::from);
    let (gid, uid) = (ids(creds.gid), ids(creds.uid));
    batch.must("setresgid", libc::SYS_setresgid, &gid[..3]);
    batch.call("setfsgid", libc::SYS_setfsgid, &gid[3..]);
    batch.must("setresuid", libc::SYS_setresuid, &uid[..3]);
    batch.call("setfsuid", libc::SYS_setfsuid, &uid[3..]);
    prctl(
        batch,
        libc::PR_SET_SECUREBITS,
        u64::from(creds.securebits & !SECBIT_KEEP_CAPS),
    );
    capabilities(batch, creds);
    if creds.securebits & SECBIT_KEEP_CAPS != 0 {
        prctl(batch, libc::PR_SET_KEEPCAPS, 1);
    }
    if record.no_new_privs {
        prctl(batch, libc::PR_SET_NO_NEW_PRIVS, 1);
    }
    prctl(batch, libc::PR_SET_PDEATHSIG, record.pdeathsig as u64);
}

fn capabilities(batch: &mut Batch, creds: &Creds) {
    const VERSION_3: u64 = 0x2008_0522;
    let header = batch.words(&[VERSION_3]);
    let low = |word: u64| word & 0xffff_ffff;
    let pair = |a: u64, b: u64| a | b << 32;
    let (e, p, i) = (creds.cap_effective, creds.cap_permitted, creds.cap_inheritable);
    let data = batch.words(&[pair(low(e), low(p)), pair(low(i), e >> 32), pair(p >> 32, i >> 32)]);
    batch.must("capset", libc::SYS_capset, &[header.address, data.address]);
    for capability in (0..=last_capability()).filter(|c| creds.cap_ambient & (1 << c) != 0) {
        let args = [
            libc::PR_CAP_AMBIENT as u64,
            libc::PR_CAP_AMBIENT_RAISE as u64,
            capability,
            0,
            0,
        ];
        batch.must("prctl(PR_CAP_AMBIENT)", libc::SYS_prctl, &args);
    }
}

fn last_capability() -> u64 {
    std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .ok()
        .and_then(|t| t.trim().parse().ok())
        .unwrap_or(40)
}

/// Timers under their old ids, still disarmed.
fn timers(batch: &mut Batch, record: &ProcessRecord) {
    if record.posix_timers.is_empty() {
        return;
    }
    prctl(batch, PR_TIMER_CREATE_RESTORE_IDS as i32, 1);
    for timer in &record.posix_timers {
        // struct sigevent: value, signal, notify, thread id.
        let signal = u64::from(timer.signal as u32) | u64::from(timer.notify as u32) << 32;
        let event = batch.words(&[
            timer.sigev_value,
            signal,
            u64::from(timer.thread.0 as u32),
            0,
            0,
            0,
            0,
            0,
        ]);
        let id = batch.words(&[timer.id as u64]);
        batch.must(
            "timer_create",
            libc::SYS_timer_create,
            &[timer.clock as i64 as u64, event.address, id.address],
        );
    }
    prctl(batch, PR_TIMER_CREATE_RESTORE_IDS as i32, 0);
}

/// What comes once all threads have their rights: dumpable (reset by them) and
/// the clocks that run from now on.
fn last(skeleton: &Skeleton, at: usize, record: &ProcessRecord) -> Result<()> {
    let mut batch = skeleton.batch();
    if record.dumpable != 2 {
        prctl(&mut batch, libc::PR_SET_DUMPABLE, record.dumpable as u64);
    }
    for (which, timer) in (0u64..).zip(&record.itimers) {
        if timer.value_ns != 0 {
            let micros = |ns: u64| [ns / 1_000_000_000, ns % 1_000_000_000 / 1000];
            let words = [micros(timer.interval_ns), micros(timer.value_ns.max(1000))].concat();
            let value = batch.words(&words);
            batch.must("setitimer", libc::SYS_setitimer, &[which, value.address, 0]);
        }
    }
    for timer in record.posix_timers.iter().filter(|t| t.time != TimerValue::default()) {
        arm(&mut batch, timer);
    }
    batch.must("close", libc::SYS_close, &[skeleton.socket_number as u64]);
    skeleton.run(at, &mut batch).map(drop)
}

fn arm(batch: &mut Batch, timer: &PosixTimer) {
    let parts = |ns: u64| [ns / 1_000_000_000, ns % 1_000_000_000];
    let value = batch.words(&[parts(timer.time.interval_ns), parts(timer.time.value_ns)].concat());
    batch.must(
        "timer_settime",
        libc::SYS_timer_settime,
        &[timer.id as u64, 0, value.address, 0],
    );
}

/// Stops the processes that job control had stopped, while their parents can
/// still be made to take what they would hear of it a second time.
pub fn stops(skeleton: &Skeleton, shot: &Appshot) -> Result<()> {
    for entry in &shot.manifest.processes {
        if entry.stopped.is_none() {
            continue;
        }
        let at = |pid: VirtualPid| shot.cores.iter().position(|core| core.image.process.pid == pid);
        let Some(own) = at(entry.pid) else { continue };
        stop(&tids(skeleton, own)).or_fail(|| format!("cannot stop process {} as it was stopped", entry.pid))?;
        if let Some(parent) = at(entry.ppid) {
            forget_stop(skeleton, parent, &shot.cores[parent], entry.pid)?;
        }
    }
    Ok(())
}

/// Stops a process and sees every thread into the group stop; a tracer can run
/// them in it all the same. Let go, they stay stopped. (Of the stop signals only
/// SIGSTOP comes through a full mask and works in an orphaned group.)
fn stop(tids: &[HostPid]) -> crate::sys::Sys<()> {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(tids[0].0), nix::sys::signal::SIGSTOP)?;
    // The main thread first: it takes the signal, the others follow.
    for tid in tids {
        ptrace::cont(*tid, 0)?;
        loop {
            match ptrace::wait(*tid, true)? {
                Some(Stop::Group(_)) => break,
                Some(Stop::Signal(libc::SIGSTOP)) => ptrace::cont(*tid, libc::SIGSTOP)?,
                Some(Stop::Trap) => ptrace::cont(*tid, 0)?,
                _ => return Err(nix::Error::ESRCH),
            }
        }
    }
    Ok(())
}

/// The parent has had the SIGCHLD and the wait status of that stop before.
fn forget_stop(skeleton: &Skeleton, parent: usize, core: &Core, child: VirtualPid) -> Result<()> {
    let mut batch = skeleton.batch();
    let flags = libc::__WALL | libc::WUNTRACED | libc::WNOHANG;
    batch.call("wait4", libc::SYS_wait4, &[child.0 as u64, 0, flags as u32 as u64, 0]);
    let pending = &core.image.process.pending;
    if !pending.iter().any(|info| signal_of(info) == libc::SIGCHLD as u64) {
        let only = batch.words(&[1 << (libc::SIGCHLD - 1)]);
        let now = batch.words(&[0, 0]);
        batch.call(
            "rt_sigtimedwait",
            libc::SYS_rt_sigtimedwait,
            &[only.address, 0, now.address, 8],
        );
    }
    skeleton.run(parent, &mut batch).map(drop)
}

/// Removes the executor and gives every thread its registers: what is left is
/// the app, stopped.
pub fn registers(skeleton: &Skeleton, at: usize, core: &Core) -> Result<()> {
    let husk = &skeleton.husks[at];
    let mut code: Vec<_> = core.image.vmas.iter().filter(|v| v.prot & 4 != 0).collect();
    code.sort_by_key(|v| v.kind != VmaKind::Vdso);
    let spans: Vec<Span> = code
        .iter()
        .map(|v| Span {
            start: v.start,
            end: v.end,
        })
        .collect();
    let gate = executor::find_gate(husk.pid, &spans)?;
    let tids = tids(skeleton, at);
    let mut results = Vec::with_capacity(tids.len());
    let threads: Vec<(HostPid, &ThreadImage)> = tids.iter().copied().zip(&core.image.threads).collect();
    for group in threads.chunks(WAITS_AT_ONCE) {
        results.extend(enter_waits(skeleton, husk.pid, &husk.regs, group)?);
    }
    if let Some(action) = crate::process::trap_to_ignore(&core.image.process) {
        skeleton.executor.ignore_trap(husk.pid, &husk.regs, gate, action)?;
    }
    skeleton.executor.cure(husk.pid, &husk.regs, gate)?;
    for ((tid, thread), result) in tids.into_iter().zip(&core.image.threads).zip(results) {
        let failed = || format!("cannot give task {} its registers", thread.record.tid);
        let regs = with_result(Regs(thread.regs), result);
        if let Some(rseq) = thread.record.rseq.filter(|rseq| rseq.section != 0) {
            // Registering cleared it: the kernel must know what to abort.
            let at = rseq.pointer + 8;
            crate::sys::memory::write(tid, at, &rseq.section.to_le_bytes()).or_fail(failed)?;
        }
        ptrace::set_xsave(tid, &thread.xsave).or_fail(failed)?;
        ptrace::set_regs(tid, &regs).or_fail(failed)?;
        ptrace::set_sigmask(tid, thread.record.sigmask).or_fail(failed)?;
    }
    Ok(())
}

/// What became of a thread's wait.
#[derive(Clone, Copy, Debug)]
enum Entered {
    /// It has none, or is in it: registers stay as they are.
    AsBefore,
    /// The call ended at once, with this result.
    Ended(u64),
}

fn with_result(regs: Regs, entered: Entered) -> Regs {
    match entered {
        Entered::AsBefore => regs,
        Entered::Ended(result) => regs.with(reg::RAX, result).with(reg::ORIG_RAX, u64::MAX),
    }
}

/// How long threads may take to get into their calls.
const ENTER_MAX: Duration = Duration::from_secs(2);
/// Left in rax of a call that the kernel restarts from its restart block.
const RESTART_BLOCK: i64 = -516;

/// Threads that enter their calls together: each has its own entries in the payload.
const WAITS_AT_ONCE: usize = 1000;
/// Entry, end mark, time.
const WAIT_BYTES: u64 = 2 * blob::ENTRY_BYTES as u64 + 16;
const _: () = assert!(WAITS_AT_ONCE as u64 * WAIT_BYTES <= executor::PAYLOAD_BYTES);

/// Calls with a relative time-out go on for the time that was left: each thread
/// enters its call again with that time and is interrupted at once, so that the
/// kernel holds the same restart block as it did for the original. All threads
/// enter first, then all are interrupted.
fn enter_waits(
    skeleton: &Skeleton,
    pid: HostPid,
    husk: &Regs,
    threads: &[(HostPid, &ThreadImage)],
) -> Result<Vec<Entered>> {
    let places = (0u64..).map(|n| skeleton.executor.payload() + n * WAIT_BYTES);
    let mut waiting = Vec::with_capacity(threads.len());
    for ((tid, thread), place) in threads.iter().zip(places) {
        let entry = wait_entry(thread, place + 2 * blob::ENTRY_BYTES as u64);
        if let Some(words) = entry {
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            let failed = || format!("cannot put task {tid} back into its system call");
            crate::sys::memory::write(pid, place, &bytes).or_fail(failed)?;
            skeleton.executor.start(*tid, husk, place)?;
            waiting.push(Some(place));
        } else {
            waiting.push(None);
        }
    }
    let since = Instant::now();
    threads
        .iter()
        .zip(waiting)
        .map(|((tid, thread), place)| match place {
            Some(place) => settle(*tid, thread, place, since),
            None => Ok(Entered::AsBefore),
        })
        .collect()
}

/// The call of a thread with the time left, for the executor; `time` is where
/// that stands. None: it waits in no such call.
fn wait_entry(thread: &ThreadImage, time: u64) -> Option<Vec<u64>> {
    let Blocked::Timed { left_ns } = thread.record.blocked_in else {
        return None;
    };
    let regs = Regs(thread.regs);
    let mut args = [reg::RDI, reg::RSI, reg::RDX, reg::R10, reg::R8, reg::R9].map(|at| regs.get(at));
    let call = regs.get(reg::ORIG_RAX) as i64;
    match call {
        libc::SYS_nanosleep => args[0] = time,
        libc::SYS_clock_nanosleep => args[2] = time,
        libc::SYS_futex => args[3] = time,
        libc::SYS_poll => args[2] = left_ns.div_ceil(1_000_000),
        _ => return None,
    }
    let entry = blob::Entry {
        number: call as u64,
        args,
        ..Default::default()
    };
    let end = blob::Entry {
        number: u64::MAX,
        ..Default::default()
    };
    let mut words = [entry.to_words(), end.to_words()].concat();
    words.extend([left_ns / 1_000_000_000, left_ns % 1_000_000_000]);
    Some(words)
}

fn settle(tid: HostPid, thread: &ThreadImage, place: u64, since: Instant) -> Result<Entered> {
    let failed = || format!("cannot put task {tid} back into its system call");
    let call = thread.regs[reg::ORIG_RAX] as i64;
    loop {
        ptrace::interrupt(tid).or_fail(failed)?;
        match ptrace::wait(tid, true).or_fail(failed)? {
            Some(Stop::Trap | Stop::Group(_)) => {}
            // It came to the end of its entries.
            Some(Stop::Signal(libc::SIGTRAP)) => {
                const RESULT: u64 = 56;
                return crate::sys::memory::read_u64(tid, place + RESULT)
                    .or_fail(failed)
                    .map(Entered::Ended);
            }
            other => return Err(Error::failed(failed()).because(format!("{other:?}"))),
        }
        let now = ptrace::get_regs(tid).or_fail(failed)?;
        let (value, shown) = (now.get(reg::RAX) as i64, now.get(reg::ORIG_RAX) as i64);
        if shown == call && value == RESTART_BLOCK {
            if let Blocked::Timed { left_ns } = thread.record.blocked_in {
                crate::timed::note(tid, call, Some(left_ns));
            }
            return Ok(Entered::AsBefore);
        }
        if since.elapsed() > ENTER_MAX {
            return Err(Error::failed(failed()).because("it does not wait there"));
        }
        // Not there yet, or just out of it and on the way to the end mark.
        ptrace::cont(tid, 0).or_fail(failed)?;
        std::thread::yield_now();
    }
}
