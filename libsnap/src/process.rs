//! State of a process and its threads besides memory and descriptors.
//!
//! Most is read from /proc and by ptrace requests from outside. What only the
//! process itself can ask the kernel (signal actions, timers, the exact brk, the
//! alternate stack) is asked by one executor batch a thread.

use crate::clocks::Timeline;
use crate::error::{Error, Kind, OrFail, Result};
use crate::executor::{Batch, CallId, Executor, Slot};
use crate::freeze::{FrozenProcess, FrozenThread};
use crate::ids::{HostPid, VirtualPid};
use crate::image::ThreadImage;
use crate::image::records::{
    AltStack, Blocked, Creds, MmRecord, ProcessRecord, Rseq, Sched, Seccomp, Setting, SigAction, SigInfo, ThreadRecord,
};
use crate::keys;
use crate::proc::{self, Fields};
use crate::settings;
use crate::sys::ptrace::{self, Regs, reg};
use crate::sys::{Sys, memory, task};
use crate::timed::Wait;
use crate::timers;
use std::io;

const PR_GET_TID_ADDRESS: u64 = 40;
/// Signals kept of one queue at most; RLIMIT_SIGPENDING is of this order.
const SIGNALS_MAX: usize = 65536;

/// Restart codes the kernel leaves in rax of an interrupted call (never seen
/// by the app).
pub const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;

/// Calls that end with EINTR on any stop, even when no handler runs (signal(7)).
/// Having been stopped by us, they are restarted unless a handler runs.
const EINTR_CALLS: [i64; 23] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_io_getevents,
    libc::SYS_io_uring_enter,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
];

/// A wait for completions (io_uring_enter(2)) with a relative time-out: made again it would be
/// as long as the whole.
fn ends(regs: &Regs) -> bool {
    const ENTER_EXT_ARG: u64 = 1 << 3;
    const ENTER_ABS_TIMER: u64 = 1 << 5;
    let flags = regs.get(reg::R10);
    regs.get(reg::ORIG_RAX) as i64 == libc::SYS_io_uring_enter
        && flags & ENTER_EXT_ARG != 0
        && flags & ENTER_ABS_TIMER == 0
}

/// Whether the thread still was in that wait when it stopped.
pub fn is_waiting(regs: &Regs, wait: &Wait) -> bool {
    regs.get(reg::ORIG_RAX) as i64 == wait.shown
        && [ERESTART_RESTARTBLOCK, ERESTARTNOHAND, -i64::from(libc::EINTR)].contains(&(regs.get(reg::RAX) as i64))
}

/// Registers with which the thread is to go on: as they are, but a call that
/// our stop made fail with EINTR is restarted, with the time that it has left.
pub fn resumable(regs: Regs, left_ns: Option<u64>) -> Regs {
    let call = regs.get(reg::ORIG_RAX) as i64;
    let interrupted = regs.get(reg::RAX) as i64 == -i64::from(libc::EINTR);
    if !interrupted || !EINTR_CALLS.contains(&call) || ends(&regs) {
        return regs;
    }
    let regs = regs.with(reg::RAX, ERESTARTNOHAND as u64);
    left_ns.map_or(regs, |left| with_time_out(regs, left))
}

/// The time-out of epoll_wait is a register, in milliseconds: the call is simply
/// made again with what is left.
pub fn with_time_out(regs: Regs, left_ns: u64) -> Regs {
    let call = regs.get(reg::ORIG_RAX) as i64;
    let again = regs.get(reg::RAX) as i64 == ERESTARTNOHAND;
    if again && [libc::SYS_epoll_wait, libc::SYS_epoll_pwait].contains(&call) {
        return regs.with(reg::R10, left_ns.div_ceil(1_000_000));
    }
    regs
}

/// Where the kernel noted, at the stop, what was left of the time-out of select or
/// one of its kin, and the unit of its second word in ns.
fn noted_time_out(regs: &Regs) -> Option<(u64, u64)> {
    if regs.get(reg::RAX) as i64 != ERESTARTNOHAND {
        return None;
    }
    let noted = match regs.get(reg::ORIG_RAX) as i64 {
        libc::SYS_select => (regs.get(reg::R8), 1000),
        libc::SYS_pselect6 => (regs.get(reg::R8), 1),
        libc::SYS_ppoll => (regs.get(reg::RDX), 1),
        _ => return None,
    };
    Some(noted).filter(|(at, _)| *at != 0)
}

/// What was left of such a time-out at the stop.
pub fn time_out(tid: HostPid, regs: &Regs) -> Option<u64> {
    let (at, unit_ns) = noted_time_out(regs)?;
    let seconds = memory::read_u64(tid, at).ok()?.checked_mul(1_000_000_000)?;
    seconds.checked_add(memory::read_u64(tid, at + 8).ok()?.checked_mul(unit_ns)?)
}

/// Such a call is made again with what is noted: it is set right to what is left now.
pub fn write_time_out(tid: HostPid, regs: &Regs, left_ns: u64) -> Sys<()> {
    let Some((at, unit_ns)) = noted_time_out(regs) else {
        return Ok(());
    };
    let words = [
        left_ns / 1_000_000_000,
        (left_ns % 1_000_000_000)
            .div_ceil(unit_ns)
            .min(1_000_000_000 / unit_ns - 1),
    ];
    memory::write(tid, at, words.map(u64::to_le_bytes).as_flattened())
}

/// The time-out still to run of a call that the kernel would restart from its
/// restart block, which dies with the thread.
fn blocked_in(thread: &FrozenThread) -> Blocked {
    if (thread.regs.get(reg::ORIG_RAX) as i64) < 0 {
        return Blocked::No;
    }
    match (thread.regs.get(reg::RAX) as i64, thread.left_ns) {
        (ERESTART_RESTARTBLOCK | ERESTARTNOHAND, Some(left_ns)) => Blocked::Timed { left_ns },
        (ERESTART_RESTARTBLOCK..=-512, _) => Blocked::Restart,
        _ => Blocked::No,
    }
}

/// Registers as the appshot keeps them: the call that was made first stands
/// where the kernel shows only that it restarts one, and a wait without a known
/// end is simply made again.
fn kept_registers(thread: &FrozenThread) -> [u64; 27] {
    let mut regs = thread.regs;
    if let Some(wait) = thread.wait {
        regs = regs.with(reg::ORIG_RAX, wait.call as u64);
    }
    let restarted = regs.get(reg::RAX) as i64 == ERESTART_RESTARTBLOCK;
    if restarted && thread.left_ns.is_none() {
        // What restart_syscall stood for is not known: it ends as if interrupted.
        let unknown = regs.get(reg::ORIG_RAX) as i64 == libc::SYS_restart_syscall;
        let code = if unknown {
            -i64::from(libc::EINTR)
        } else {
            ERESTARTNOHAND
        };
        regs = regs.with(reg::RAX, code as u64);
    }
    regs.0
}

/// Asks a process by batch, then its threads; gives each its state.
/// `timeline`: its clocks at the freeze; `all`: the app's processes, of which some may be its children.
pub fn capture(
    process: &FrozenProcess,
    executor: &Executor,
    timeline: &Timeline,
    all: &[VirtualPid],
) -> Result<(ProcessRecord, Vec<ThreadImage>)> {
    let mut asked = AskProcess::new(executor);
    let main = process.main();
    executor.run(main.tid, &main.regs, &mut asked.batch)?;
    let main_asked = asked.main.answers(&asked.batch, main.tid);
    // Timers before signals: see `timers::settle`.
    let intervals = asked.timers.seen(&asked.batch, false);
    let timers = timers::ask(process, executor, timeline, intervals)?;
    let mut record = process_record(process, &asked, timers)?;
    if asked.has_news() {
        (record.untold_stops, record.untold_continues) = untold(process, executor, all)?;
    }
    let mut main_asked = Some(main_asked);
    let threads = process.threads.iter().map(|thread| {
        let pending = signals(thread.tid, false)?;
        let asked = match main_asked.take() {
            Some(asked) => asked,
            None => ask_thread(thread, executor)?,
        };
        capture_thread(thread, executor, pending, asked)
    });
    let mut threads = threads.collect::<Result<Vec<_>>>()?;
    timers::settle(&mut record, &mut threads, process.waiting, timeline);
    Ok((record, threads))
}

/// What is read of `/proc/PID` besides.
pub const FILES: [&str; 7] = [
    "status",
    "stat",
    "comm",
    "timers",
    "oom_score_adj",
    "coredump_filter",
    "auxv",
];

/// The action for SIGTRAP as the kernel takes it, where it is to ignore it.
pub fn trap_to_ignore(record: &ProcessRecord) -> Option<[u64; 4]> {
    let action = record.sigactions.get(libc::SIGTRAP as usize - 1)?;
    let ignored = action.handler == libc::SIG_IGN as u64;
    ignored.then_some([action.handler, action.flags, action.restorer, action.mask])
}

/// What the main thread is asked.
struct AskProcess {
    batch: Batch,
    actions: Vec<Slot>,
    brk: CallId,
    dumpable: CallId,
    subreaper: Slot,
    thp_disable: CallId,
    personality: CallId,
    timers: timers::Asked,
    settings: settings::OfProcess,
    news: Slot,
    keys: Option<keys::Asked>,
    /// Itself, as a thread.
    main: AskThread,
}

impl AskProcess {
    fn new(executor: &Executor) -> Self {
        let mut batch = executor.batch();
        let actions = (1..=64u64).map(|signal| {
            let slot = batch.space(32);
            batch.call("rt_sigaction", libc::SYS_rt_sigaction, &[signal, 0, slot.address, 8]);
            slot
        });
        let actions = actions.collect();
        let subreaper = batch.space(8);
        let prctl = |batch: &mut Batch, option: i32, argument: u64| {
            batch.call("prctl", libc::SYS_prctl, &[option as u64, argument, 0, 0, 0])
        };
        let dumpable = prctl(&mut batch, libc::PR_GET_DUMPABLE, 0);
        prctl(&mut batch, libc::PR_GET_CHILD_SUBREAPER, subreaper.address);
        let thp_disable = prctl(&mut batch, libc::PR_GET_THP_DISABLE, 0);
        let brk = batch.call("brk", libc::SYS_brk, &[0]);
        const AS_IT_IS: u64 = 0xffff_ffff;
        let personality = batch.call("personality", libc::SYS_personality, &[AS_IT_IS]);
        let settings = settings::OfProcess::ask(&mut batch, executor.span());
        let news = ask_news(&mut batch, libc::P_ALL, VirtualPid(0));
        let main = AskThread::new(&mut batch);
        let timers = timers::Asked::intervals(&mut batch);
        let keys = keys::Asked::ask(&mut batch);
        AskProcess {
            batch,
            actions,
            brk,
            dumpable,
            subreaper,
            thp_disable,
            personality,
            timers,
            settings,
            news,
            keys,
            main,
        }
    }

    fn result(&self, call: CallId) -> u64 {
        self.batch.result(call).unwrap_or(0)
    }

    /// Whether job control has something to tell of any of its children.
    fn has_news(&self) -> bool {
        news(&self.batch, self.news) != 0
    }

    fn action(&self, slot: Slot) -> SigAction {
        let words = self.batch.read_words(slot);
        SigAction {
            handler: words[0],
            flags: words[1],
            restorer: words[2],
            mask: words[3],
        }
    }
}

fn process_record(process: &FrozenProcess, asked: &AskProcess, timers: timers::Timers) -> Result<ProcessRecord> {
    let pid = process.pid;
    let failed = || format!("cannot read the state of pid {pid}");
    let status = Fields::status(pid).or_fail(failed)?;
    let number = |name: &str| -> i64 {
        proc::text(pid, name)
            .ok()
            .and_then(|t| t.trim().parse().ok())
            .unwrap_or(0)
    };
    let hex = |name: &str| {
        proc::text(pid, name)
            .ok()
            .and_then(|t| u64::from_str_radix(t.trim(), 16).ok())
            .unwrap_or(0)
    };
    let pending = signals(pid, true)?;
    Ok(ProcessRecord {
        pid: process.vpid,
        exe: proc::link(pid, "exe").or_fail(failed)?,
        cwd: proc::link(pid, "cwd").or_fail(failed)?,
        root: proc::link(pid, "root").or_fail(failed)?,
        umask: status.octal("Umask"),
        personality: asked.result(asked.personality),
        dumpable: asked.result(asked.dumpable) as i32,
        child_subreaper: asked.batch.read_words(asked.subreaper)[0] as u32 != 0,
        oom_score_adj: number("oom_score_adj") as i32,
        coredump_filter: hex("coredump_filter") as u32,
        thp_disable: asked.result(asked.thp_disable) != 0,
        mm: mm_record(pid, asked.result(asked.brk))?,
        rlimits: rlimits(pid).or_fail(failed)?,
        sigactions: asked.actions.iter().map(|slot| asked.action(*slot)).collect(),
        pending,
        itimers: timers.interval,
        posix_timers: timers.posix,
        fds: Vec::new(),
        ctty: None,
        namespaces: Vec::new(),
        settings: asked.settings.answers(&asked.batch),
        untold_stops: Vec::new(),
        untold_continues: Vec::new(),
        keys: asked.keys.as_ref().and_then(|keys| keys.answers(&asked.batch)),
    })
}

/// Of a child that is stopped, or was continued: what the process would be told of it, without telling it:
/// then something is written where nothing was (waitid(2)).
fn ask_news(batch: &mut Batch, which: libc::idtype_t, child: VirtualPid) -> Slot {
    let told = batch.space(NEWS_BYTES);
    let flags = libc::WSTOPPED | libc::WCONTINUED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    let arguments = [u64::from(which), child.0 as u64, told.address, flags as u32 as u64, 0];
    batch.call("waitid", libc::SYS_waitid, &arguments);
    told
}

/// `siginfo_t`.
const NEWS_BYTES: usize = 128;

/// CLD_STOPPED, CLD_CONTINUED; 0: nothing.
fn news(batch: &Batch, slot: Slot) -> i32 {
    batch.read_words(slot)[1] as i32
}

/// Those of which the process has not heard yet that they were stopped, or continued.
fn untold(
    process: &FrozenProcess,
    executor: &Executor,
    all: &[VirtualPid],
) -> Result<(Vec<VirtualPid>, Vec<VirtualPid>)> {
    let (mut stops, mut continues) = (Vec::new(), Vec::new());
    let main = process.main();
    let mut rest = all.iter().copied().peekable();
    while rest.peek().is_some() {
        let mut batch = executor.batch();
        let mut asked = Vec::new();
        while let Some(pid) = rest.next_if(|_| batch.has_room(1, NEWS_BYTES)) {
            asked.push((pid, ask_news(&mut batch, libc::P_PID, pid)));
        }
        executor.run(main.tid, &main.regs, &mut batch)?;
        for (pid, slot) in asked {
            match news(&batch, slot) {
                libc::CLD_STOPPED => stops.push(pid),
                libc::CLD_CONTINUED => continues.push(pid),
                _ => {}
            }
        }
    }
    Ok((stops, continues))
}

fn signals(tid: HostPid, shared: bool) -> Result<Vec<SigInfo>> {
    let found = ptrace::peek_signals(tid, shared, SIGNALS_MAX)
        .or_fail(|| format!("cannot read the pending signals of task {tid}"))?;
    Ok(found.into_iter().map(SigInfo).collect())
}

fn mm_record(pid: HostPid, brk: u64) -> Result<MmRecord> {
    let failed = || format!("cannot read the memory marks of pid {pid}");
    let marks = proc::marks(pid).or_fail(failed)?;
    let auxv = proc::read(format!("/proc/{pid}/auxv")).or_fail(failed)?;
    Ok(MmRecord {
        start_code: marks.start_code,
        end_code: marks.end_code,
        start_data: marks.start_data,
        end_data: marks.end_data,
        start_brk: marks.start_brk,
        brk,
        start_stack: marks.start_stack,
        arg_start: marks.arg_start,
        arg_end: marks.arg_end,
        env_start: marks.env_start,
        env_end: marks.env_end,
        auxv: auxv.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect(),
    })
}

/// Those of another user tells prlimit(2) to who has CAP_SYS_RESOURCE only, and /proc to
/// everybody.
fn rlimits(pid: HostPid) -> io::Result<Vec<(u64, u64)>> {
    let asked: Sys<Vec<(u64, u64)>> = (0..16).map(|which| task::prlimit_get(pid, which)).collect();
    asked.or_else(|_| {
        let all = parse_limits(&proc::text(pid, "limits")?);
        all.filter(|all| all.len() == 16)
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    })
}

/// `/proc/PID/limits`: a head, then soft and hard limit of each resource in the order of their
/// numbers, behind its name in 25 columns.
fn parse_limits(text: &str) -> Option<Vec<(u64, u64)>> {
    let limit = |word: &str| match word {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    };
    let line = |line: &str| {
        let mut words = line.get(25..)?.split_whitespace();
        Some((limit(words.next()?)?, limit(words.next()?)?))
    };
    text.lines().skip(1).map(line).collect()
}

fn capture_thread(
    thread: &FrozenThread,
    executor: &Executor,
    pending: Vec<SigInfo>,
    asked: AskedThread,
) -> Result<ThreadImage> {
    let tid = thread.tid;
    let failed = || format!("cannot read the state of task {tid}");
    let mut xsave = ptrace::get_xsave(tid).or_fail(failed)?;
    if let Some(rights) = thread.rights {
        keys::put(&mut xsave, rights);
    }
    let status = Fields::status(tid).or_fail(failed)?;
    let sched = sched(thread).or_fail(failed)?;
    let record = ThreadRecord {
        tid: thread.vtid,
        comm: proc::comm(tid),
        comm_bytes: proc::comm_bytes(tid).filter(|bytes| proc::comm(tid).as_bytes() != bytes.as_slice()),
        sigmask: thread.sigmask,
        pending,
        sigaltstack: asked.altstack,
        tid_address: asked.tid_address,
        robust_list: task::robust_list(tid).unwrap_or((0, 0)),
        rseq: rseq(thread, executor)?,
        creds: creds(&status, asked.securebits),
        no_new_privs: status.number("NoNewPrivs") == Some(1),
        seccomp: Seccomp::Off,
        pdeathsig: asked.pdeathsig,
        // One that comes before others for us is told none.
        timer_slack_ns: thread.turn.slack_ns().unwrap_or(asked.timer_slack_ns),
        sched,
        ioprio: task::ioprio_get(tid).unwrap_or(0),
        blocked_in: blocked_in(thread),
        settings: asked.settings,
    };
    Ok(ThreadImage {
        record,
        regs: kept_registers(thread),
        xsave,
    })
}

struct AskedThread {
    altstack: AltStack,
    tid_address: u64,
    pdeathsig: i32,
    timer_slack_ns: u64,
    securebits: u32,
    settings: Vec<Setting>,
}

/// What it has registered for restartable sequences: without it a thread would be told the processor of
/// long ago (getcpu, per-cpu data) for ever.
fn rseq(thread: &FrozenThread, executor: &Executor) -> Result<Option<Rseq>> {
    let registered = match ptrace::rseq(thread.tid) {
        Ok((pointer, size, signature)) => (pointer != 0).then_some(Rseq {
            pointer,
            size,
            signature,
            section: thread.rseq_section.map_or(0, |(_, section)| section),
        }),
        Err(_) if !has_rseq(thread, executor)? => None,
        Err(errno) => {
            let what = format!("cannot tell what task {} has registered (rseq)", thread.tid);
            return Err(Error::new(Kind::Unavailable, what)
                .because(format!("PTRACE_GET_RSEQ_CONFIGURATION: {errno}"))
                .needs("Linux 5.13"));
        }
    };
    Ok(registered)
}

/// Whether it has registered any, where nobody tells which: then rseq(2) says that another would not be the
/// same (EINVAL), before it looks at where this one would be, which is nowhere (EFAULT).
fn has_rseq(thread: &FrozenThread, executor: &Executor) -> Result<bool> {
    const NOWHERE: u64 = 0xffff_ffff_ffff_0000;
    const ORIG_RSEQ_SIZE: u64 = 32;
    let mut batch = executor.batch();
    let call = batch.call("rseq", libc::SYS_rseq, &[NOWHERE, ORIG_RSEQ_SIZE, 0, 0]);
    executor.run(thread.tid, &thread.regs, &mut batch)?;
    Ok(batch.result(call) == Err(nix::Error::EINVAL))
}

fn ask_thread(thread: &FrozenThread, executor: &Executor) -> Result<AskedThread> {
    thread.prepare()?;
    let mut batch = executor.batch();
    let asked = AskThread::new(&mut batch);
    executor.run(thread.tid, &thread.regs, &mut batch)?;
    Ok(asked.answers(&batch, thread.tid))
}

/// What each thread is asked.
struct AskThread {
    altstack: Slot,
    address: Slot,
    death: Slot,
    slack: CallId,
    bits: CallId,
    settings: settings::OfThread,
}

impl AskThread {
    fn new(batch: &mut Batch) -> AskThread {
        let altstack = batch.space(24);
        batch.must("sigaltstack", libc::SYS_sigaltstack, &[0, altstack.address]);
        let (address, death) = (batch.space(8), batch.space(8));
        batch.must(
            "prctl(PR_GET_TID_ADDRESS)",
            libc::SYS_prctl,
            &[PR_GET_TID_ADDRESS, address.address, 0, 0, 0],
        );
        batch.must(
            "prctl(PR_GET_PDEATHSIG)",
            libc::SYS_prctl,
            &[libc::PR_GET_PDEATHSIG as u64, death.address, 0, 0, 0],
        );
        let slack = batch.call(
            "prctl(PR_GET_TIMERSLACK)",
            libc::SYS_prctl,
            &[libc::PR_GET_TIMERSLACK as u64, 0, 0, 0, 0],
        );
        let bits = batch.call(
            "prctl(PR_GET_SECUREBITS)",
            libc::SYS_prctl,
            &[libc::PR_GET_SECUREBITS as u64, 0, 0, 0, 0],
        );
        AskThread {
            altstack,
            address,
            death,
            slack,
            bits,
            settings: settings::OfThread::ask(batch),
        }
    }

    fn answers(&self, batch: &Batch, tid: HostPid) -> AskedThread {
        let words = batch.read_words(self.altstack);
        AskedThread {
            altstack: AltStack {
                sp: words[0],
                // SS_ONSTACK is computed from the stack pointer, not set.
                flags: words[1] as i32 & !libc::SS_ONSTACK,
                size: words[2],
            },
            tid_address: batch.read_words(self.address)[0],
            pdeathsig: batch.read_words(self.death)[0] as i32,
            timer_slack_ns: batch.result(self.slack).unwrap_or(50_000),
            securebits: batch.result(self.bits).unwrap_or(0) as u32,
            settings: self
                .settings
                .answers(batch, || proc::stat(tid).map_or(0, |stat| stat.flags)),
        }
    }
}

/// Credentials, as `/proc/PID/status` tells them.
pub fn creds(status: &Fields, securebits: u32) -> Creds {
    let four = |key: &str| -> [u32; 4] { status.numbers(key).try_into().unwrap_or([0; 4]) };
    Creds {
        uid: four("Uid"),
        gid: four("Gid"),
        groups: status.numbers("Groups"),
        cap_inheritable: status.hex("CapInh"),
        cap_permitted: status.hex("CapPrm"),
        cap_effective: status.hex("CapEff"),
        cap_bounding: status.hex("CapBnd"),
        cap_ambient: status.hex("CapAmb"),
        securebits,
    }
}

fn sched(thread: &FrozenThread) -> Sys<Sched> {
    let turn = thread.turn;
    // One with a deadline is never made to come first by us.
    let times = match turn.policy == libc::SCHED_DEADLINE as u32 {
        true => task::sched_getattr(thread.tid).map(|attr| [attr.runtime, attr.deadline, attr.period])?,
        false => [turn.slice_ns().unwrap_or(0), 0, 0],
    };
    Ok(Sched {
        policy: turn.policy,
        flags: turn.flags,
        nice: turn.nice,
        priority: turn.priority,
        affinity: task::sched_getaffinity(thread.tid)?,
        runtime_ns: times[0],
        deadline_ns: times[1],
        period_ns: times[2],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_the_same_by_both_ways() {
        let own = HostPid(std::process::id() as i32);
        let asked: Vec<(u64, u64)> = (0..16).map(|which| task::prlimit_get(own, which).unwrap()).collect();
        assert_eq!(parse_limits(&proc::text(own, "limits").unwrap()), Some(asked));
        assert_eq!(
            parse_limits("Limit\nMax cpu time              soft hard seconds\n"),
            None
        );
    }

    #[test]
    fn only_listed_calls_are_restarted_after_eintr() {
        let regs = |call: i64, value: i64| {
            Regs([0; 27])
                .with(reg::ORIG_RAX, call as u64)
                .with(reg::RAX, value as u64)
        };
        let restarted = resumable(regs(libc::SYS_epoll_wait, -4), None);
        assert_eq!(restarted.get(reg::RAX) as i64, ERESTARTNOHAND);
        assert_eq!(resumable(regs(libc::SYS_close, -4), None).get(reg::RAX) as i64, -4);
        assert_eq!(resumable(regs(libc::SYS_epoll_wait, 3), None).get(reg::RAX), 3);
        assert_eq!(resumable(regs(-1, -4), None).get(reg::RAX) as i64, -4);
    }
}
