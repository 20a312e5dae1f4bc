//! What a process is besides memory and descriptors, given to it in the order
//! that its rights allow: what needs root first, then its own credentials, then
//! timers, and registers at the very end.

use super::script::{self, Running, Script};
use super::skeleton::{Skeleton, wait_born};
use super::vdso::Vdso;
use crate::clocks::Timeline;
use crate::error::{Error, OrFail, Result};
use crate::executor::{self, Batch, Executor, Step};
use crate::ids::{HostPid, VirtualPid};
use crate::image::records::{Blocked, Creds, ProcessRecord, Seccomp, SeccompFilter, SigAction, SigInfo, ThreadRecord};
use crate::image::{Appshot, Core, ThreadImage};
use crate::memory;
use crate::process::{with_time_out, write_time_out};
use crate::seccomp;
use crate::sys::ptrace::{self, Regs, Stop, reg};
use crate::sys::task::{self, CloneArgs, SchedAttr};
use crate::timers;
use std::collections::HashMap;
use std::sync::OnceLock;

/// `CLONE_*` of pthread_create, without the parts that are set later.
const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM) as u64;

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

/// Everything of a process that is set by system calls, its threads included. `script`
/// is one of its main thread.
pub fn process<'a>(
    skeleton: &Skeleton,
    at: usize,
    core: &Core,
    had: &Limits,
    mut script: Script<'a>,
) -> Result<Running<'a>> {
    let record = &core.image.process;
    let husk = &skeleton.husks[at];
    limits_to_set(had, record).try_for_each(|(which, wanted, now)| set_limit(husk.pid, which, wanted, now))?;
    common(&mut script, record)?;
    let (main, others) = core
        .image
        .threads
        .split_first()
        .ok_or_else(|| Error::failed("a process without threads"))?;
    own_state(&mut script, &main.record)?;
    timers::make(&mut script, record)?;
    queue_shared(&mut script, record)?;
    finish_thread(&mut script, record, &main.record)?;
    if !others.is_empty() {
        script.flush()?;
    }
    let mut others = husk.threads.iter().zip(others).peekable();
    while let Some((_, next)) = others.peek() {
        let alone = [skeleton.executor];
        let together: Vec<Executor> = match fits_slice(&next.record) {
            true => skeleton.executor.slices().collect(),
            false => alone.to_vec(),
        };
        let mut scripts = Vec::with_capacity(together.len());
        for executor in &together {
            let fits = |(_, thread): &(&HostPid, &ThreadImage)| scripts.is_empty() || fits_slice(&thread.record);
            let Some((tid, thread)) = others.next_if(fits) else {
                break;
            };
            let mut script = Script::new(*executor, *tid, &husk.regs);
            own_state(&mut script, &thread.record)?;
            finish_thread(&mut script, record, &thread.record)?;
            scripts.push(script);
        }
        script::run_all(&mut scripts)?;
    }
    last(&mut script, skeleton.restorer, &skeleton.timeline, record)?;
    script.start()
}

/// Whether a thread can be worked on beside others ([`Executor::slices`]): nothing of it
/// may need more room than there is.
fn fits_slice(record: &ThreadRecord) -> bool {
    4 * record.creds.groups.len() <= executor::SLICE_PAYLOAD / 2
}

/// What takes rights away from a thread comes when all else is done.
fn finish_thread(script: &mut Script<'_>, process: &ProcessRecord, record: &ThreadRecord) -> Result<()> {
    queue_own(script, process, record)?;
    rights(script, record)?;
    if record.seccomp == Seccomp::Strict {
        seccomp::restrict(script.room(1, 0)?);
    }
    Ok(())
}

/// Soft and hard limit of every resource.
pub type Limits = Vec<(u64, u64)>;

/// What all processes of an app have that is being built: one is a fork of the other.
pub fn limits(pid: HostPid) -> Limits {
    let limit = |which| task::prlimit_get(pid, which).unwrap_or((0, 0));
    (0..RESOURCES).map(limit).collect()
}

/// RLIM_NLIMITS
const RESOURCES: u32 = 16;

/// Those that a process has not yet: number, limit, and what it has.
pub fn limits_to_set<'a>(
    had: &'a Limits,
    record: &'a ProcessRecord,
) -> impl Iterator<Item = (u32, (u64, u64), (u64, u64))> + 'a {
    let wanted = (0u32..).zip(&record.rlimits).zip(had);
    let both = wanted.map(|((which, limit), now)| (which, *limit, *now));
    both.filter(|(_, wanted, now)| wanted != now)
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
fn common(script: &mut Script<'_>, record: &ProcessRecord) -> Result<()> {
    let batch = script.room(3, record.cwd.len() + 1)?;
    let cwd = batch.c_string(&record.cwd);
    batch.must("chdir", libc::SYS_chdir, &[cwd.address]);
    batch.must("umask", libc::SYS_umask, &[u64::from(record.umask)]);
    batch.must("personality", libc::SYS_personality, &[record.personality]);
    for (signal, action) in (1u64..).zip(&record.sigactions) {
        // A husk has had all of them reset.
        if [libc::SIGKILL, libc::SIGSTOP].contains(&(signal as i32)) || *action == SigAction::default() {
            continue;
        }
        let batch = script.room(1, 32)?;
        let action = batch.words(&[action.handler, action.flags, action.restorer, action.mask]);
        batch.must("rt_sigaction", libc::SYS_rt_sigaction, &[signal, action.address, 0, 8]);
    }
    prctl(script, libc::PR_SET_CHILD_SUBREAPER, u64::from(record.child_subreaper))?;
    if record.thp_disable {
        prctl(script, libc::PR_SET_THP_DISABLE, 1)?;
    }
    Ok(())
}

fn prctl(script: &mut Script<'_>, option: i32, argument: u64) -> Result<()> {
    let args = [option as u64, argument, 0, 0, 0];
    script.must("prctl", libc::SYS_prctl, &args).map(drop)
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
fn own_state(script: &mut Script<'_>, record: &ThreadRecord) -> Result<()> {
    script.must("set_tid_address", libc::SYS_set_tid_address, &[record.tid_address])?;
    if record.robust_list.1 != 0 {
        let args = [record.robust_list.0, record.robust_list.1];
        script.must("set_robust_list", libc::SYS_set_robust_list, &args)?;
    }
    if let Some(rseq) = record.rseq {
        let args = [rseq.pointer, u64::from(rseq.size), 0, u64::from(rseq.signature)];
        script.must("rseq", libc::SYS_rseq, &args)?;
    }
    let stack = record.sigaltstack;
    let name = record.comm_bytes.as_deref().unwrap_or(record.comm.as_bytes());
    let batch = script.room(2, 24 + name.len() + 1)?;
    let words = batch.words(&[stack.sp, stack.flags as u32 as u64, stack.size]);
    batch.must("sigaltstack", libc::SYS_sigaltstack, &[words.address, 0]);
    let name = batch.c_string(name);
    prctl(script, libc::PR_SET_NAME, name.address)?;
    prctl(script, libc::PR_SET_TIMERSLACK, record.timer_slack_ns.max(1))
}

/// Pending signals of the process, sent by itself: any siginfo may be sent so.
fn queue_shared(script: &mut Script<'_>, process: &ProcessRecord) -> Result<()> {
    for info in &process.pending {
        let batch = script.room(1, SIGINFO_BYTES)?;
        let slot = batch.words(&info.0);
        let args = [process.pid.0 as u64, signal_of(info), slot.address];
        batch.must("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo, &args);
    }
    Ok(())
}

fn queue_own(script: &mut Script<'_>, process: &ProcessRecord, record: &ThreadRecord) -> Result<()> {
    for info in &record.pending {
        let batch = script.room(1, SIGINFO_BYTES)?;
        let slot = batch.words(&info.0);
        let args = [process.pid.0 as u64, record.tid.0 as u64, signal_of(info), slot.address];
        batch.must("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo, &args);
    }
    Ok(())
}

const SIGINFO_BYTES: usize = 128;

fn signal_of(info: &SigInfo) -> u64 {
    info.0[0] & 0xffff_ffff
}

/// Credentials, in the order that loses no right before it has been used.
fn rights(script: &mut Script<'_>, record: &ThreadRecord) -> Result<()> {
    const SECBIT_KEEP_CAPS: u32 = 1 << 4;
    const SECBIT_NO_SETUID_FIXUP: u64 = 1 << 2;
    let creds = &record.creds;
    for capability in (0..=last_capability()).filter(|c| creds.cap_bounding & (1 << c) == 0) {
        prctl(script, libc::PR_CAPBSET_DROP, capability)?;
    }
    // Changing user ids must not take capabilities away by itself.
    prctl(script, libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)?;
    let groups: Vec<u8> = creds.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
    let batch = script.room(1, groups.len())?;
    let list = batch.bytes(&groups);
    let args = [creds.groups.len() as u64, list.address];
    batch.must("setgroups", libc::SYS_setgroups, &args);
    let ids = |four: [u32; 4]| four.map(u64::from);
    let (gid, uid) = (ids(creds.gid), ids(creds.uid));
    let batch = script.room(4, 0)?;
    batch.must("setresgid", libc::SYS_setresgid, &gid[..3]);
    batch.call("setfsgid", libc::SYS_setfsgid, &gid[3..]);
    batch.must("setresuid", libc::SYS_setresuid, &uid[..3]);
    batch.call("setfsuid", libc::SYS_setfsuid, &uid[3..]);
    let securebits = u64::from(creds.securebits & !SECBIT_KEEP_CAPS);
    prctl(script, libc::PR_SET_SECUREBITS, securebits)?;
    capabilities(script, creds)?;
    if creds.securebits & SECBIT_KEEP_CAPS != 0 {
        prctl(script, libc::PR_SET_KEEPCAPS, 1)?;
    }
    if record.no_new_privs {
        prctl(script, libc::PR_SET_NO_NEW_PRIVS, 1)?;
    }
    prctl(script, libc::PR_SET_PDEATHSIG, record.pdeathsig as u64)
}

fn capabilities(script: &mut Script<'_>, creds: &Creds) -> Result<()> {
    const VERSION_3: u64 = 0x2008_0522;
    let batch = script.room(1, 32)?;
    let header = batch.words(&[VERSION_3]);
    let low = |word: u64| word & 0xffff_ffff;
    let pair = |a: u64, b: u64| a | b << 32;
    let (e, p, i) = (creds.cap_effective, creds.cap_permitted, creds.cap_inheritable);
    let data = batch.words(&[pair(low(e), low(p)), pair(low(i), e >> 32), pair(p >> 32, i >> 32)]);
    batch.must("capset", libc::SYS_capset, &[header.address, data.address]);
    for capability in (0..=last_capability()).filter(|c| creds.cap_ambient & (1 << c) != 0) {
        let raise = libc::PR_CAP_AMBIENT_RAISE as u64;
        let args = [libc::PR_CAP_AMBIENT as u64, raise, capability, 0, 0];
        script.must("prctl(PR_CAP_AMBIENT)", libc::SYS_prctl, &args)?;
    }
    Ok(())
}

fn last_capability() -> u64 {
    static LAST: OnceLock<u64> = OnceLock::new();
    *LAST.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok();
        text.and_then(|t| t.trim().parse().ok()).unwrap_or(40)
    })
}

/// What comes once all threads have their rights: dumpable (reset by them) and
/// the clocks that run from now on.
fn last(script: &mut Script<'_>, restorer: i32, timeline: &Timeline, record: &ProcessRecord) -> Result<()> {
    if record.dumpable != 2 {
        prctl(script, libc::PR_SET_DUMPABLE, record.dumpable as u64)?;
    }
    timers::arm(script, timeline, record)?;
    script.must("close", libc::SYS_close, &[restorer as u64]).map(drop)
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
pub fn registers(skeleton: &Skeleton, shot: &Appshot, vdsos: &[Vdso]) -> Result<()> {
    let tids: Vec<Vec<HostPid>> = (0..skeleton.husks.len()).map(|at| tids(skeleton, at)).collect();
    let cores = shot.cores.iter().zip(vdsos).zip(&skeleton.husks).zip(&tids);
    let standing = cores.map(|(((core, vdso), husk), tids)| {
        let gate = match vdso.gate(skeleton, &core.image.vmas) {
            Some(gate) => gate,
            None => executor::find_gate(husk.pid, &memory::code(&core.image.vmas))?,
        };
        Ok(Standing {
            core,
            executor: skeleton.executor,
            gate,
            regs: &husk.regs,
            tids,
            timeline: &skeleton.timeline,
        })
    });
    finish(&standing.collect::<Result<Vec<_>>>()?)
}

/// A process that is what it is to be but for registers, with the executor in it.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'a> {
    /// What it is to be.
    pub core: &'a Core,
    pub executor: executor::Executor,
    pub gate: executor::Gate,
    /// Those that foreign code runs with.
    pub regs: &'a Regs,
    /// In the order of the appshot, the main one first.
    pub tids: &'a [HostPid],
    pub timeline: &'a Timeline,
}

/// Removes the executor and gives every thread its registers, in all processes of an app
/// at the same time. The first is its root.
pub fn finish(standing: &[Standing<'_>]) -> Result<()> {
    let entered = enter_waits(standing)?;
    let cured = standing.iter().map(Standing::start_cure);
    let cured: Vec<Option<Step>> = cured.collect::<Result<_>>()?;
    cured.into_iter().flatten().try_for_each(executor::finish_cure)?;
    for process in standing {
        for (tid, thread) in process.threads() {
            let result = entered.get(&tid).copied().unwrap_or(Entered::AsBefore);
            process.give_registers(tid, thread, result)?;
        }
    }
    Ok(())
}

impl<'a> Standing<'a> {
    fn threads(&self) -> impl Iterator<Item = (HostPid, &'a ThreadImage)> {
        self.tids.iter().copied().zip(&self.core.image.threads)
    }

    /// Answers what is under way.
    fn start_cure(&self) -> Result<Option<Step>> {
        let Standing {
            executor, gate, regs, ..
        } = *self;
        let pid = self.tids[0];
        match crate::process::trap_to_ignore(&self.core.image.process) {
            Some(action) => {
                executor.ignore_trap(pid, regs, gate, action)?;
                executor.cure(pid, regs, gate).map(|()| None)
            }
            None => executor.start_cure(pid, regs, gate).map(Some),
        }
    }

    fn give_registers(&self, tid: HostPid, thread: &ThreadImage, result: Entered) -> Result<()> {
        let failed = || format!("cannot give task {} its registers", thread.record.tid);
        let mut regs = with_result(Regs(thread.regs), result);
        if let Blocked::Timed { left_ns } = thread.record.blocked_in {
            let left_ns = self.timeline.left_ns(left_ns);
            write_time_out(tid, &regs, left_ns).or_fail(failed)?;
            regs = with_time_out(regs, left_ns);
        }
        if let Some(rseq) = thread.record.rseq.filter(|rseq| rseq.section != 0) {
            // Registering cleared it: the kernel must know what to abort.
            let at = rseq.pointer + 8;
            crate::sys::memory::write(tid, at, &rseq.section.to_le_bytes()).or_fail(failed)?;
        }
        ptrace::set_xsave(tid, &thread.xsave).or_fail(failed)?;
        ptrace::set_regs(tid, &regs).or_fail(failed)?;
        ptrace::set_sigmask(tid, thread.record.sigmask).or_fail(failed)?;
        // Last: until now an app of low priority was built at ours.
        schedule(tid, &thread.record)
    }
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

/// Left in rax of a call that the kernel restarts from its restart block.
const RESTART_BLOCK: i64 = -516;

/// struct timespec
const TIME_BYTES: usize = 16;
/// Threads of a process that enter their calls together: each has its own time in the payload.
const WAITS_AT_ONCE: usize = executor::PAYLOAD_BYTES as usize / TIME_BYTES;

/// Calls with a relative time-out go on for the time that was left: each thread
/// enters its call again with that time and is interrupted in it, so that the
/// kernel holds the same restart block as it did for the original. The stop is
/// asked for at the entry: whatever the call would wait for, it comes back at
/// once. All threads go together.
fn enter_waits(standing: &[Standing<'_>]) -> Result<HashMap<HostPid, Entered>> {
    let mut entered = HashMap::new();
    let mut notes = Vec::new();
    let most = standing.iter().map(|process| process.tids.len()).max().unwrap_or(0);
    for from in (0..most).step_by(WAITS_AT_ONCE) {
        let started = standing.iter().map(|process| process.start_waits(from));
        let waits = started.collect::<Result<Vec<_>>>()?.concat();
        for (tid, _) in &waits {
            executor::await_syscall_stop(*tid)?;
            ptrace::interrupt(*tid).or_fail(|| unwaited(*tid))?;
            ptrace::cont(*tid, 0).or_fail(|| unwaited(*tid))?;
        }
        for (tid, wait) in waits {
            let result = wait.settle(tid)?;
            if let Entered::AsBefore = result {
                notes.push((tid, wait.call, Some(wait.end_ns)));
            }
            entered.insert(tid, result);
        }
    }
    if let Some(root) = standing.first() {
        crate::timed::note(root.tids[0], &notes);
    }
    Ok(entered)
}

impl Standing<'_> {
    /// Sends those of the next [`WAITS_AT_ONCE`] threads that wait to the entry of their calls.
    fn start_waits(&self, from: usize) -> Result<Vec<(HostPid, Wait)>> {
        let mut waits = Vec::new();
        let mut times = Vec::new();
        for (tid, thread) in self.threads().skip(from).take(WAITS_AT_ONCE) {
            let place = self.executor.payload() + times.len() as u64;
            if let Some(wait) = Wait::of(thread, place, self.timeline) {
                let time = [wait.left_ns / 1_000_000_000, wait.left_ns % 1_000_000_000];
                times.extend(time.iter().flat_map(|w| w.to_le_bytes()));
                waits.push((tid, wait));
            }
        }
        if times.is_empty() {
            return Ok(waits);
        }
        let written = crate::sys::memory::write(self.tids[0], self.executor.payload(), &times);
        written.or_fail(|| unwaited(self.tids[0]))?;
        for (tid, wait) in &waits {
            let regs = executor::call_registers(self.regs, self.gate, wait.call, wait.args);
            ptrace::set_regs(*tid, &regs).or_fail(|| unwaited(*tid))?;
            ptrace::to_syscall(*tid).or_fail(|| unwaited(*tid))?;
        }
        Ok(waits)
    }
}

fn unwaited(tid: HostPid) -> String {
    format!("cannot put task {tid} back into its system call")
}

/// A call with the time that was left of its time-out.
#[derive(Clone, Copy, Debug)]
struct Wait {
    call: i64,
    args: [u64; 6],
    left_ns: u64,
    end_ns: u64,
}

impl Wait {
    /// `time` is where the time left will stand. None: it waits in no such call.
    fn of(thread: &ThreadImage, time: u64, timeline: &Timeline) -> Option<Wait> {
        let Blocked::Timed { left_ns } = thread.record.blocked_in else {
            return None;
        };
        let end_ns = timeline.end_ns(left_ns);
        let left_ns = timeline.left_ns(left_ns);
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
        Some(Wait {
            call,
            args,
            left_ns,
            end_ns,
        })
    }

    /// What the call came back with.
    fn settle(&self, tid: HostPid) -> Result<Entered> {
        let failed = || unwaited(tid);
        match ptrace::wait(tid, true).or_fail(failed)? {
            Some(Stop::Trap | Stop::Group(_)) => {}
            other => return Err(Error::failed(failed()).because(format!("{other:?}"))),
        }
        let result = ptrace::get_regs(tid).or_fail(failed)?.get(reg::RAX);
        match result as i64 {
            RESTART_BLOCK => Ok(Entered::AsBefore),
            _ => Ok(Entered::Ended(result)),
        }
    }
}
