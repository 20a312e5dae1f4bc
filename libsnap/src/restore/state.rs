//! What a process is besides memory and descriptors, given to it in the order
//! that its rights allow: what needs root first, then its own credentials, then
//! timers, and registers at the very end.

use super::script::{self, Calls, Running, Script};
use super::skeleton::{Husk, Skeleton, wait_born};
use super::vdso::Vdso;
use crate::clocks::Timeline;
use crate::error::{Error, OrFail, Result};
use crate::executor::{self, Batch, Executor, Step};
use crate::ids::{HostPid, VirtualPid};
use crate::image::records::{Blocked, Creds, ProcessRecord, Seccomp, SeccompFilter, SigAction, SigInfo, ThreadRecord};
use crate::image::{Appshot, Core, ThreadImage};
use crate::memory;
use crate::proc::Fields;
use crate::process::{with_time_out, write_time_out};
use crate::seccomp;
use crate::settings;
use crate::sys::ptrace::{self, Regs, Stop, reg};
use crate::sys::task::{self, CloneArgs, SchedAttr};
use crate::timers;
use nix::unistd::{Pid, getpgid, getsid};
use std::collections::HashMap;
use std::sync::OnceLock;

/// `CLONE_*` of pthread_create, without the parts that are set later.
pub(super) const THREAD: u64 = (libc::CLONE_VM
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

/// What the threads of a process besides its main one are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// As they were made.
    Bare,
    /// They have made themselves what they are to be.
    Ready,
}

/// Everything of a process that is set by system calls, its threads included, but for
/// what is [`common`] to them. `script` is one of its main thread.
pub fn process<'a>(
    skeleton: &Skeleton,
    at: usize,
    core: &Core,
    had: &Limits,
    threads: Threads,
    mut script: Script<'a>,
    with_rights: &mut dyn FnMut(&mut Script<'a>) -> Result<()>,
) -> Result<Becoming<'a>> {
    let record = &core.image.process;
    let husk = &skeleton.husks[at];
    limits_to_set(had, record).try_for_each(|(which, wanted, now)| set_limit(husk.pid, which, wanted, now))?;
    let (main, others) = core
        .image
        .threads
        .split_first()
        .ok_or_else(|| Error::failed("a process without threads"))?;
    own_state(&mut script, &main.record)?;
    timers::make(&mut script, record)?;
    queue_shared(&mut script, record)?;
    finish_thread(&mut script, record, &main.record, skeleton.inherited.as_ref())?;
    with_rights(&mut script)?;
    restrict(&mut script, &main.record)?;
    let mut others = husk
        .threads
        .iter()
        .zip(others)
        .filter(|_| threads == Threads::Bare)
        .peekable();
    if others.peek().is_some() {
        script.flush()?;
    }
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
            finish_thread(&mut script, record, &thread.record, None)?;
            restrict(&mut script, &thread.record)?;
            scripts.push(script);
        }
        script::run_all(&mut scripts)?;
    }
    last(&mut script, &skeleton.timeline, record)?;
    if skeleton.owners.has_files(at) {
        script.must("close", libc::SYS_close, &[skeleton.restorer as u64])?;
    }
    let wait = match Wait::of(main, &skeleton.timeline) {
        Some(wait) if wait.is_over() => Some((wait, None)),
        Some(wait) => {
            let answer = script.at_last(&wait.time(), |place| (wait.call, wait.args(place)))?;
            Some((wait, Some(answer)))
        }
        None => None,
    };
    Ok(Becoming {
        tid: husk.pid,
        wait,
        running: script.start()?,
    })
}

/// A main thread at the last that it does, which may be to enter its wait.
#[derive(Debug)]
#[must_use = "it is at work until it is finished"]
pub struct Becoming<'a> {
    tid: HostPid,
    /// And where it writes the answer, unless it is over.
    wait: Option<(Wait, Option<u64>)>,
    running: Running<'a>,
}

/// Waits for all of them.
pub fn finish_becoming(all: Vec<Becoming<'_>>, waits: &mut Waits) -> Result<()> {
    let entering = all.iter().filter(|one| one.wait.is_some());
    let entering: Vec<_> = entering.map(|one| (one.tid, one.wait)).collect();
    script::finish_all(all.into_iter().map(|one| one.running).collect())?;
    for (tid, wait) in entering {
        match wait {
            Some((wait, None)) => waits.over(tid, wait),
            wait => waits.settle(tid, ptrace::get_regs(tid).or_fail(|| unwaited(tid))?, wait)?,
        }
    }
    Ok(())
}

/// Whether a thread can be worked on beside others ([`Executor::slices`]): nothing of it
/// may need more room than there is.
pub(super) fn fits_slice(record: &ThreadRecord) -> bool {
    // Besides at most 40 calls, one for each capability that it has or lacks.
    const SIGNALS_MAX: usize = 8;
    const SETTINGS_MAX: usize = 8;
    let payload = 4 * record.creds.groups.len() + (SIGINFO_BYTES + 8) * record.pending.len();
    payload <= executor::SLICE_PAYLOAD / 2
        && record.pending.len() <= SIGNALS_MAX
        && record.settings.len() <= SETTINGS_MAX
}

/// Credentials of a process that is being built, which those forked off it have, too.
#[derive(Debug)]
pub struct Inherited {
    creds: Creds,
    no_new_privs: bool,
}

impl Inherited {
    /// `None` where they cannot be read.
    pub fn read(pid: HostPid) -> Option<Inherited> {
        let status = Fields::status(pid).ok()?;
        // Ours: all but this one pass on through fork and exec.
        let securebits = task::securebits().ok().filter(|bits| bits & SECBIT_KEEP_CAPS == 0)?;
        Some(Inherited {
            creds: crate::process::creds(&status, securebits),
            no_new_privs: status.number("NoNewPrivs")? != 0,
        })
    }

    fn is_all_of(&self, record: &ThreadRecord) -> bool {
        self.creds == record.creds && self.no_new_privs == record.no_new_privs && record.pdeathsig == 0
    }
}

/// What takes rights away from a thread comes when all else is done.
pub(super) fn finish_thread(
    script: &mut impl Calls,
    process: &ProcessRecord,
    record: &ThreadRecord,
    had: Option<&Inherited>,
) -> Result<()> {
    queue_own(script, process, record)?;
    if !had.is_some_and(|had| had.is_all_of(record)) {
        rights(script, record)?;
    }
    Ok(())
}

/// A thread that may do next to nothing may not from now on.
pub(super) fn restrict(script: &mut impl Calls, record: &ThreadRecord) -> Result<()> {
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

/// Directories and mask.
pub(super) fn file_system(script: &mut Script<'_>, record: &ProcessRecord) -> Result<()> {
    let batch = script.room(1, record.cwd.len() + 1)?;
    let cwd = batch.c_string(&record.cwd);
    batch.must("chdir", libc::SYS_chdir, &[cwd.address]);
    if record.root != "/" {
        let batch = script.room(1, record.root.len() + 1)?;
        let root = batch.c_string(&record.root);
        batch.must("chroot", libc::SYS_chroot, &[root.address]);
    }
    let umask = [u64::from(record.umask)];
    script.must("umask", libc::SYS_umask, &umask).map(drop)
}

/// Signal actions, prctls.
pub(super) fn common(script: &mut Script<'_>, record: &ProcessRecord) -> Result<()> {
    script.must("personality", libc::SYS_personality, &[record.personality])?;
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
    settings::restore(
        script,
        record.settings.iter().filter(|setting| settings::is_early(setting)),
    )
}

fn prctl(script: &mut impl Calls, option: i32, argument: u64) -> Result<()> {
    let args = [option as u64, argument, 0, 0, 0];
    script.must("prctl", libc::SYS_prctl, &args).map(drop)
}

fn is_realtime(policy: u32) -> bool {
    [libc::SCHED_FIFO, libc::SCHED_RR].contains(&policy.cast_signed())
}

fn schedule(tid: HostPid, record: &ThreadRecord) -> Result<()> {
    let failed = || format!("cannot set the scheduling of task {}", record.tid);
    let sched = &record.sched;
    // Before: one that is bound to some processors only can be given no deadline.
    if task::sched_getaffinity(tid).or_fail(failed)? != sched.affinity {
        task::sched_setaffinity(tid, &sched.affinity)
            .or_fail(|| format!("cannot bind task {} to the processors it was bound to", record.tid))?;
    }
    let attr = SchedAttr {
        size: 48,
        policy: sched.policy,
        flags: sched.flags,
        nice: sched.nice,
        priority: sched.priority,
        runtime: sched.runtime_ns,
        deadline: sched.deadline_ns,
        period: sched.period_ns,
    };
    let now = task::sched_getattr(tid).or_fail(failed)?;
    let turn = |attr: &SchedAttr| (attr.policy, attr.flags, attr.nice, attr.priority);
    // Without a slice of its own one is told that of all.
    if turn(&now) != turn(&attr) || attr.runtime != 0 && now.runtime != attr.runtime {
        task::sched_setattr(tid, &attr).or_fail(failed)?;
        // Some policies leave it as it was (sched_setattr(2)), and have one all the same.
        if task::sched_getattr(tid).or_fail(failed)?.nice != attr.nice {
            task::set_nice(tid, attr.nice).or_fail(failed)?;
        }
        // One that came first had none, and could be given none (Linux 6.12).
        if is_realtime(now.policy) && !is_realtime(attr.policy) {
            let slack = record.timer_slack_ns.max(1).to_string();
            std::fs::write(format!("/proc/{tid}/timerslack_ns"), slack).or_fail(failed)?;
        }
    }
    if record.ioprio != task::ioprio_get(tid).unwrap_or(0) {
        task::ioprio_set(tid, record.ioprio).or_fail(failed)?;
    }
    Ok(())
}

/// What belongs to a thread and needs no rights.
pub(super) fn own_state(script: &mut impl Calls, record: &ThreadRecord) -> Result<()> {
    script.must("set_tid_address", libc::SYS_set_tid_address, &[record.tid_address])?;
    if record.robust_list.1 != 0 {
        let args = [record.robust_list.0, record.robust_list.1];
        script.must("set_robust_list", libc::SYS_set_robust_list, &args)?;
    }
    if let Some(rseq) = record.rseq {
        let args = [rseq.pointer, u64::from(rseq.size), 0, u64::from(rseq.signature)];
        script.must("rseq", libc::SYS_rseq, &args)?;
    }
    let name = record.comm_bytes.as_deref().unwrap_or(record.comm.as_bytes());
    let stack = record.sigaltstack;
    // A husk has none, and so has a new thread.
    if stack.flags != libc::SS_DISABLE {
        let batch = script.room(1, 24)?;
        let words = batch.words(&[stack.sp, stack.flags as u32 as u64, stack.size]);
        batch.must("sigaltstack", libc::SYS_sigaltstack, &[words.address, 0]);
    }
    let batch = script.room(1, name.len() + 1)?;
    let name = batch.c_string(name);
    prctl(script, libc::PR_SET_NAME, name.address)?;
    prctl(script, libc::PR_SET_TIMERSLACK, record.timer_slack_ns.max(1))?;
    settings::restore(script, &record.settings)
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

fn queue_own(script: &mut impl Calls, process: &ProcessRecord, record: &ThreadRecord) -> Result<()> {
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

const SECBIT_KEEP_CAPS: u32 = 1 << 4;

/// Credentials, in the order that loses no right before it has been used.
fn rights(script: &mut impl Calls, record: &ThreadRecord) -> Result<()> {
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

fn capabilities(script: &mut impl Calls, creds: &Creds) -> Result<()> {
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
fn last(script: &mut Script<'_>, timeline: &Timeline, record: &ProcessRecord) -> Result<()> {
    if record.dumpable != 2 {
        prctl(script, libc::PR_SET_DUMPABLE, record.dumpable as u64)?;
    }
    settings::restore(
        script,
        record.settings.iter().filter(|setting| !settings::is_early(setting)),
    )?;
    timers::arm(script, timeline, record)
}

/// Stops the processes that job control had stopped, while their parents can
/// still be made to take what they would hear of it a second time.
pub fn stops(skeleton: &Skeleton, shot: &Appshot) -> Result<()> {
    for entry in &shot.manifest.processes {
        let Some(signal) = entry.stopped else { continue };
        let Some(own) = position(shot, entry.pid) else { continue };
        let with = match stops_by(skeleton, shot, own, signal) {
            true => signal,
            false => libc::SIGSTOP,
        };
        stop(&tids(skeleton, own), with).or_fail(|| format!("cannot stop process {} as it was stopped", entry.pid))?;
        if let Some(parent) = position(shot, entry.ppid) {
            forget_stop(skeleton, parent, &shot.cores[parent], entry.pid)?;
        }
    }
    Ok(())
}

/// Continues, right after they were made, processes of which nobody has asked yet since job control did so:
/// only what was stopped can be continued.
pub fn continues(skeleton: &Skeleton, shot: &Appshot) -> Result<()> {
    for (parent, core) in shot.cores.iter().enumerate() {
        for pid in &core.image.process.untold_continues {
            let Some(own) = position(shot, *pid) else { continue };
            let child = skeleton.husks[own].pid;
            let failed = || format!("cannot continue process {pid} as it was continued");
            stop(&[child], libc::SIGSTOP).or_fail(failed)?;
            hear(skeleton, parent, libc::SIGCHLD)?;
            task::tgkill(child, child, libc::SIGCONT)
                .and_then(|()| ptrace::cont(child, 0))
                .or_fail(failed)?;
            match ptrace::wait(child, true).or_fail(failed)? {
                Some(Stop::Trap) => {}
                other => return Err(Error::failed(failed()).because(format!("{other:?}"))),
            }
            hear(skeleton, own, libc::SIGCONT)?;
            hear(skeleton, parent, libc::SIGCHLD)?;
        }
    }
    Ok(())
}

fn position(shot: &Appshot, pid: VirtualPid) -> Option<usize> {
    shot.cores.iter().position(|core| core.image.process.pid == pid)
}

/// Whether this signal stops that process: a handler may have it, and all but SIGSTOP
/// do nothing in an orphaned group (setpgid(2)).
fn stops_by(skeleton: &Skeleton, shot: &Appshot, own: usize, signal: i32) -> bool {
    let actions = &shot.cores[own].image.process.sigactions;
    let at_default = |action: &SigAction| action.handler == libc::SIG_DFL as u64;
    let is_default = actions.get(signal as usize - 1).is_some_and(at_default);
    JOB_CONTROL.contains(&signal) && is_default && !is_orphaned(skeleton, shot, own)
}

const JOB_CONTROL: [i32; 3] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

fn is_orphaned(skeleton: &Skeleton, shot: &Appshot, own: usize) -> bool {
    let place = |pid: HostPid| {
        let pid = Some(Pid::from_raw(pid.0));
        getpgid(pid).ok().zip(getsid(pid).ok())
    };
    let parent = |core: &Core| match position(shot, core.image.ppid) {
        Some(parent) => Some(skeleton.husks[parent].pid),
        None => skeleton.init.as_ref().map(|init| init.pid),
    };
    let Some((group, _)) = place(skeleton.husks[own].pid) else {
        return true;
    };
    let holds = |(core, husk): (&Core, &Husk)| {
        let (own, parent) = (place(husk.pid), parent(core).and_then(place));
        own.zip(parent)
            .is_some_and(|(own, parent)| own.0 == group && parent.0 != group && parent.1 == own.1)
    };
    !shot.cores.iter().zip(&skeleton.husks).any(holds)
}

/// Stops a process and sees every thread into the group stop; a tracer can run
/// them in it all the same. Let go, they stay stopped. (Of the stop signals only
/// SIGSTOP comes through a full mask: as it is delivered, another takes its place.)
fn stop(tids: &[HostPid], signal: i32) -> crate::sys::Sys<()> {
    let main = tids[0];
    let mask = ptrace::get_sigmask(main)?;
    // Ours comes first: those of the thread come before those of the process, and SIGSTOP before the others.
    task::tgkill(main, main, libc::SIGSTOP)?;
    ptrace::set_sigmask(main, mask & !(1 << (signal - 1)))?;
    // The main thread first: it takes the signal, the others follow.
    for tid in tids {
        ptrace::cont(*tid, 0)?;
        loop {
            match ptrace::wait(*tid, true)? {
                Some(Stop::Group(_)) => break,
                Some(Stop::Signal(libc::SIGSTOP)) => ptrace::cont(*tid, signal)?,
                Some(Stop::Trap) => ptrace::cont(*tid, 0)?,
                _ => return Err(nix::Error::ESRCH),
            }
        }
    }
    ptrace::set_sigmask(main, mask)
}

/// The parent has had the SIGCHLD of that stop before, and its wait status where it has asked for it.
fn forget_stop(skeleton: &Skeleton, parent: usize, core: &Core, child: VirtualPid) -> Result<()> {
    if !core.image.process.untold_stops.contains(&child) {
        let mut batch = skeleton.batch();
        let flags = libc::__WALL | libc::WUNTRACED | libc::WNOHANG;
        batch.call("wait4", libc::SYS_wait4, &[child.0 as u64, 0, flags as u32 as u64, 0]);
        skeleton.run(parent, &mut batch)?;
    }
    let process = &core.image.process;
    let pending = process.pending.iter();
    let comes = process
        .sigactions
        .get(libc::SIGCHLD as usize - 1)
        .is_some_and(|action| action.handler != libc::SIG_IGN as u64 && action.flags & libc::SA_NOCLDSTOP as u64 == 0);
    if comes && !pending.map(signal_of).any(|signal| signal == libc::SIGCHLD as u64) {
        hear(skeleton, parent, libc::SIGCHLD)?;
    }
    Ok(())
}

/// Takes a signal that is about to come: the kernel tells a tracer first.
fn hear(skeleton: &Skeleton, at: usize, signal: i32) -> Result<()> {
    const PATIENCE_S: u64 = 1;
    let mut batch = skeleton.batch();
    let only = batch.words(&[1 << (signal - 1)]);
    let until = batch.words(&[PATIENCE_S, 0]);
    let args = [only.address, 0, until.address, 8];
    batch.call("rt_sigtimedwait", libc::SYS_rt_sigtimedwait, &args);
    skeleton.run(at, &mut batch).map(drop)
}

/// Removes the executor and gives every thread its registers: what is left is
/// the app, stopped.
pub fn registers(skeleton: &Skeleton, shot: &Appshot, vdsos: &[Vdso], waits: Waits) -> Result<()> {
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
    finish(&standing.collect::<Result<Vec<_>>>()?, waits)
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
/// at the same time. The first is its root. Some threads may be in their waits already.
pub fn finish(standing: &[Standing<'_>], mut waits: Waits) -> Result<()> {
    enter_waits(standing, &mut waits)?;
    if let Some(root) = standing.first() {
        waits.note(root.tids[0]);
    }
    let cured = standing.iter().map(Standing::start_cure);
    let cured: Vec<Option<Step>> = cured.collect::<Result<_>>()?;
    cured.into_iter().flatten().try_for_each(executor::finish_cure)?;
    for process in standing {
        for (tid, thread) in process.threads() {
            process.give_registers(tid, thread, waits.of(tid))?;
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
pub(super) enum Entered {
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
fn enter_waits(standing: &[Standing<'_>], waits: &mut Waits) -> Result<()> {
    let most = standing.iter().map(|process| process.tids.len()).max().unwrap_or(0);
    for from in (0..most).step_by(WAITS_AT_ONCE) {
        let mut started = Vec::new();
        for process in standing {
            started.extend(process.start_waits(from, waits)?);
        }
        for (tid, _) in &started {
            executor::await_syscall_stop(*tid)?;
            ptrace::interrupt(*tid).or_fail(|| unwaited(*tid))?;
            ptrace::cont(*tid, 0).or_fail(|| unwaited(*tid))?;
        }
        for (tid, wait) in started {
            let regs = await_stop(tid)?;
            waits.add(tid, wait, wait.entered(&regs));
        }
    }
    Ok(())
}

/// The waits that threads have entered again, and what they came to.
#[derive(Debug, Default)]
pub struct Waits(HashMap<HostPid, (Wait, Entered)>);

impl Waits {
    fn add(&mut self, tid: HostPid, wait: Wait, entered: Entered) {
        self.0.insert(tid, (wait, entered));
    }

    fn over(&mut self, tid: HostPid, wait: Wait) {
        self.add(tid, wait, Entered::Ended(0));
    }

    /// Sees a thread that has said that it is done, and was stopped with these registers, to
    /// where it is to stay: in its wait, or behind it, where the answer is noted (not that
    /// of a wait that is over).
    pub(super) fn settle(&mut self, tid: HostPid, regs: Regs, last: Option<(Wait, Option<u64>)>) -> Result<()> {
        let mut regs = regs;
        loop {
            match (last, regs.get(reg::ORIG_RAX) as i64) {
                (Some((wait, Some(_))), call) if call == wait.call => {
                    self.add(tid, wait, wait.entered(&regs));
                    return Ok(());
                }
                (Some((wait, Some(answer))), libc::SYS_pause) => {
                    let answer = crate::sys::memory::read_u64(tid, answer).or_fail(|| unwaited(tid))?;
                    self.add(tid, wait, Entered::Ended(answer));
                    return Ok(());
                }
                (Some((wait, None)), libc::SYS_pause) => {
                    self.over(tid, wait);
                    return Ok(());
                }
                (None, libc::SYS_pause) => return Ok(()),
                // It was about to go there.
                _ => {
                    let again = ptrace::cont(tid, 0).and_then(|()| ptrace::interrupt(tid));
                    again.or_fail(|| unwaited(tid))?;
                    regs = await_stop(tid)?;
                }
            }
        }
    }

    fn of(&self, tid: HostPid) -> Entered {
        self.0.get(&tid).map_or(Entered::AsBefore, |(_, entered)| *entered)
    }

    /// For a later snapshot.
    fn note(&self, root: HostPid) {
        let entered = self
            .0
            .iter()
            .filter(|(_, (_, entered))| matches!(entered, Entered::AsBefore));
        let notes = entered.map(|(tid, (wait, _))| (*tid, wait.call, Some(wait.end_ns)));
        crate::timed::note(root, &notes.collect::<Vec<_>>());
    }
}

impl Standing<'_> {
    /// Sends those of the next [`WAITS_AT_ONCE`] threads that wait to the entry of their calls.
    fn start_waits(&self, from: usize, waits: &mut Waits) -> Result<Vec<(HostPid, Wait)>> {
        let mut started = Vec::new();
        let mut times = Vec::new();
        for (tid, thread) in self.threads().skip(from).take(WAITS_AT_ONCE) {
            if waits.0.contains_key(&tid) {
                continue;
            }
            match Wait::of(thread, self.timeline) {
                None => {}
                Some(wait) if wait.is_over() => waits.over(tid, wait),
                Some(wait) => {
                    times.extend(wait.time().iter().flat_map(|w| w.to_le_bytes()));
                    started.push((tid, wait));
                }
            }
        }
        if started.is_empty() {
            return Ok(started);
        }
        let written = crate::sys::memory::write(self.tids[0], self.executor.payload(), &times);
        written.or_fail(|| unwaited(self.tids[0]))?;
        let places = (self.executor.payload()..).step_by(TIME_BYTES);
        for ((tid, wait), place) in started.iter().zip(places) {
            let regs = executor::call_registers(self.regs, self.gate, wait.call, wait.args(place));
            ptrace::set_regs(*tid, &regs).or_fail(|| unwaited(*tid))?;
            ptrace::to_syscall(*tid, 0).or_fail(|| unwaited(*tid))?;
        }
        Ok(started)
    }
}

/// Registers of a task that was interrupted, once it stands.
pub(super) fn await_stop(tid: HostPid) -> Result<Regs> {
    let failed = || format!("cannot stop task {tid}");
    match ptrace::wait(tid, true).or_fail(failed)? {
        Some(Stop::Trap | Stop::Group(_)) => ptrace::get_regs(tid).or_fail(failed),
        other => Err(Error::failed(failed()).because(format!("{other:?}"))),
    }
}

fn unwaited(tid: HostPid) -> String {
    format!("cannot put task {tid} back into its system call")
}

/// A call with the time that was left of its time-out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    pub(super) call: i64,
    args: [u64; 6],
    time: Time,
    left_ns: u64,
    end_ns: u64,
}

/// Which argument of a call its time-out is.
#[derive(Clone, Copy, Debug)]
enum Time {
    At(usize),
    Millis(usize),
}

impl Wait {
    /// None: it waits in no such call.
    pub(super) fn of(thread: &ThreadImage, timeline: &Timeline) -> Option<Wait> {
        let Blocked::Timed { left_ns } = thread.record.blocked_in else {
            return None;
        };
        let regs = Regs(thread.regs);
        let args = [reg::RDI, reg::RSI, reg::RDX, reg::R10, reg::R8, reg::R9].map(|at| regs.get(at));
        let call = regs.get(reg::ORIG_RAX) as i64;
        let time = match call {
            libc::SYS_nanosleep => Time::At(0),
            libc::SYS_clock_nanosleep => Time::At(2),
            libc::SYS_futex => Time::At(3),
            libc::SYS_poll => Time::Millis(2),
            _ => return None,
        };
        Some(Wait {
            call,
            args,
            time,
            left_ns: timeline.left_ns(left_ns),
            end_ns: timeline.end_ns(left_ns),
        })
    }

    /// Whether it would only be entered to come back at once: it has slept for all its time.
    pub(super) fn is_over(&self) -> bool {
        self.left_ns == 1 && [libc::SYS_nanosleep, libc::SYS_clock_nanosleep].contains(&self.call)
    }

    /// The time that is left, as the call wants it.
    pub(super) fn time(&self) -> [u64; 2] {
        [self.left_ns / 1_000_000_000, self.left_ns % 1_000_000_000]
    }

    /// Arguments of the call, where that time stands at `place`.
    pub(super) fn args(&self, place: u64) -> [u64; 6] {
        let mut args = self.args;
        match self.time {
            Time::At(argument) => args[argument] = place,
            Time::Millis(argument) => args[argument] = self.left_ns.div_ceil(1_000_000),
        }
        args
    }

    /// What it came to, going by the registers of a thread that is back from it, stopped.
    pub(super) fn entered(&self, regs: &Regs) -> Entered {
        match regs.get(reg::RAX) {
            result if result as i64 == RESTART_BLOCK => Entered::AsBefore,
            result => Entered::Ended(result),
        }
    }
}
