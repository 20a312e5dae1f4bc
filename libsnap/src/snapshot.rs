//! Taking an appshot.
//!
//! ```text
//!  survey -> freeze -> survey again -> infect -> capture -> memory -> cure -> seal -> end or thaw
//!     |         |            |            \________________________/
//!  refusals  budget      refusals           any error: cure, thaw
//! ```
//!
//! Nothing of the app is changed before every refusal is known. An error after
//! that gives every thread its registers back and lets the app go on; the
//! half-written appshot is removed by its writer. A halted app is ended only
//! once its appshot is sealed.

use crate::clocks::Timeline;
use crate::error::{Error, Kind, OrFail, Result};
use crate::executor::{self, Executor};
use crate::files::{self, FileTable, Member};
use crate::freeze::{self, Frozen, FrozenProcess};
use crate::ids::{HostPid, VirtualPid};
use crate::image::records::ProcessRecord;
use crate::image::records::{Clocks, Life, Manifest, SnapEntry, Vma, VmaKind};
use crate::image::{ProcessImage, ThreadImage, Unsealed, Writer};
use crate::ipc::{self, Objects};
use crate::journal::{Entered, Journal};
use crate::memory::{self, Tables};
use crate::proc::{self, Fields};
use crate::process;
use crate::refusals::Refusals;
use crate::seccomp::Filters;
use crate::survey;
use crate::sys::memory::Span;
use crate::target::{CheckReport, Phase, SnapshotOptions, SnapshotReport, Target};
use std::path::Path;
use std::time::Instant;

/// Writes an appshot of `target` to the new directory `dest`. Uses ptrace: runs
/// wholly on the calling thread. `progress` is told each step as it begins.
pub fn snapshot(
    target: &Target,
    dest: &Path,
    options: &SnapshotOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<SnapshotReport> {
    snapshot_unless(&|| false, target, dest, options, progress)
}

/// [`snapshot`], given up and undone once `cancelled` says so. It is asked at
/// each step and at each megabyte of memory; not any more once sealing begins.
pub fn snapshot_unless(
    cancelled: &dyn Fn() -> bool,
    target: &Target,
    dest: &Path,
    options: &SnapshotOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<SnapshotReport> {
    let subject = &survey::subject(target);
    let begin = Instant::now();
    let mut steps = Steps::new(progress);
    steps.start("survey");
    survey::await_memory(target, cancelled)?;
    survey::admissible(target)?;
    // Outlives everything that it tells how to undo.
    let mut journal = Journal::begin(target, dest)?;
    let writer = Writer::create(dest)?;
    steps.start("freeze");
    let waits = freeze::waits(target)?;
    journal.waits(&waits)?;
    let frozen = freeze::freeze(target, waits).map_err(|e| told(e, subject))?;
    let request = Request {
        target,
        options,
        subject,
        cancelled,
    };
    let taken = take(&frozen, request, writer, &mut journal, &mut steps)
        .map_err(|e| told(e, subject).state("the app was let go and is running as before"))?;
    finish(frozen, request, &mut journal, taken, begin, steps)
}

/// What is wanted.
#[derive(Clone, Copy)]
struct Request<'a> {
    target: &'a Target,
    options: &'a SnapshotOptions,
    /// How messages name the target.
    subject: &'a str,
    cancelled: &'a dyn Fn() -> bool,
}

fn told(mut error: Error, subject: &str) -> Error {
    if !error.what.contains("cannot snapshot") {
        error.what = format!("cannot snapshot {subject}: {}", error.what);
    }
    error
}

fn go_on(cancelled: &dyn Fn() -> bool) -> Result<()> {
    if cancelled() {
        return Err(
            Error::failed("the snapshot was given up").because("the one who asked for it has cancelled it or is gone")
        );
    }
    Ok(())
}

/// What was captured while the app stood still.
struct Taken {
    appshot: Unsealed,
    manifest: Manifest,
    memory_bytes: u64,
}

fn take(
    frozen: &Frozen,
    request: Request<'_>,
    writer: Writer,
    journal: &mut Journal,
    steps: &mut Steps<'_>,
) -> Result<Taken> {
    let Request {
        target,
        options,
        subject,
        cancelled,
    } = request;
    go_on(cancelled)?;
    if frozen.processes.is_empty() {
        return Err(Error::new(Kind::NotFound, "no process of the app is left")
            .because("it ended by itself while it was being stopped")
            .state("the app has ended"));
    }
    steps.start("look");
    let members = frozen
        .processes
        .iter()
        .map(|p| Member::open(p.pid, p.vpid))
        .collect::<Result<Vec<_>>>()?;
    let mut refusals = Refusals::default();
    let mut tables = Tables::default();
    survey::processes(target, &frozen_pids(frozen), &mut refusals);
    let spaces = address_spaces(&frozen_pids(frozen), &mut tables, &mut refusals)?;
    let table = files::capture(&members, options, Some(frozen.at), &mut tables, &mut refusals)?;
    survey::terminals(&members, &table, options, &mut refusals);
    let numbers: Vec<(HostPid, VirtualPid)> = frozen.processes.iter().map(|p| (p.pid, p.vpid)).collect();
    let mut objects = ipc::look(&numbers, target, &mut tables.shm, true, &mut refusals);
    let filters = Filters::look(frozen, &mut refusals)?;
    let names = survey::host_names(frozen.processes[0].pid, &mut refusals)?;
    refusals.into_result(subject)?;
    steps.start("capture");
    let mut timeline = Timeline {
        app: survey::clocks(&frozen.at, frozen.processes[0].pid),
        freeze: frozen.at,
    };
    let places = frozen.processes.iter().zip(&spaces);
    let places = places
        .map(|(process, vmas)| place(process, vmas))
        .collect::<Result<Vec<_>>>()?;
    journal.enter(places.clone())?;
    let mut captured = Vec::with_capacity(spaces.len());
    for (process, place) in frozen.processes.iter().zip(&places) {
        go_on(cancelled)?;
        let (record, mut threads) = capture_process(process, place, &mut objects, &timeline)?;
        filters.note(process, &mut threads);
        captured.push((record, threads));
    }
    timeline.app.stood_ns = timeline.passed_ns();
    steps.start("memory");
    let needs = needs(frozen, &spaces, &captured)?;
    let snaplist = snaplist(frozen)?;
    let private_bytes = store(frozen, captured, spaces, &snaplist, &table, &writer, cancelled)?;
    let memory_bytes = private_bytes + tables.shm.store(&writer)?;
    let appshot = writer.close()?;
    let mut manifest = manifest(names, target, timeline.app, needs, snaplist, table, tables);
    manifest.seccomp = filters.into_records();
    (manifest.semaphores, manifest.queues) = (objects.semaphores, objects.queues);
    Ok(Taken {
        appshot,
        manifest,
        memory_bytes,
    })
}

fn frozen_pids(frozen: &Frozen) -> Vec<HostPid> {
    frozen.processes.iter().map(|p| p.pid).collect()
}

fn address_spaces(pids: &[HostPid], tables: &mut Tables, refusals: &mut Refusals) -> Result<Vec<Vec<Vma>>> {
    let mut spaces = Vec::with_capacity(pids.len());
    for pid in pids {
        let mappings = proc::mappings(*pid).or_fail(|| format!("cannot read the mappings of pid {pid}"))?;
        spaces.push(memory::classify(*pid, &mappings, tables, refusals));
    }
    Ok(spaces)
}

/// Where the process can be entered, and what it has before.
fn place(process: &FrozenProcess, vmas: &[Vma]) -> Result<Entered> {
    let gate = executor::find_held_gate(process.pid, &memory::code(vmas))?;
    let mut used: Vec<Span> = vmas.iter().map(Span::from).collect();
    let hole = executor::find_hole(&mut used, executor::FOOTPRINT).ok_or_else(|| {
        Error::refused(format!(
            "the address space of pid {} has no room for the executor",
            process.pid
        ))
    })?;
    Entered::new(process, gate, hole)
}

/// Enters the process, asks it, and leaves it as it was.
fn capture_process(
    process: &FrozenProcess,
    &Entered { gate, base, .. }: &Entered,
    objects: &mut Objects,
    timeline: &Timeline,
) -> Result<(ProcessRecord, Vec<ThreadImage>)> {
    let main = process.main();
    main.prepare()?;
    let captured = Executor::infect(main.tid, &main.regs, gate, base).and_then(|executor| {
        let captured = objects
            .ask(process, &executor)
            .and_then(|()| process::capture(process, &executor, timeline));
        let left = process.leave(executor, gate);
        captured.and_then(|captured| left.map(|()| captured))
    });
    // Also where it could not be entered.
    main.recover()?;
    captured
}

fn needs(
    frozen: &Frozen,
    spaces: &[Vec<Vma>],
    captured: &[(ProcessRecord, Vec<ThreadImage>)],
) -> Result<crate::image::records::Needs> {
    let vdso = spaces.iter().zip(&frozen.processes).find_map(|(vmas, process)| {
        let vma = vmas.iter().find(|v| v.kind == VmaKind::Vdso)?;
        let mut bytes = vec![0; (vma.end - vma.start) as usize];
        crate::sys::memory::read(process.pid, vma.start, &mut bytes).ok()?;
        Some(bytes)
    });
    let xsave = &captured[0].1[0].xsave;
    Ok(memory::needs(xsave, &vdso.unwrap_or_default()))
}

fn store(
    frozen: &Frozen,
    captured: Vec<(ProcessRecord, Vec<ThreadImage>)>,
    spaces: Vec<Vec<Vma>>,
    snaplist: &[SnapEntry],
    table: &FileTable,
    writer: &Writer,
    cancelled: &dyn Fn() -> bool,
) -> Result<u64> {
    let mut bytes = 0;
    for (at, ((mut record, threads), vmas)) in captured.into_iter().zip(spaces).enumerate() {
        let process = &frozen.processes[at];
        record.fds = table.fds[at].clone();
        let tty = proc::stat(process.pid)
            .or_fail(|| format!("cannot read the state of pid {}", process.pid))?
            .tty;
        record.ctty = files::pty::controlling(&table.files, snaplist[at].sid, tty);
        let mut core = writer.core(&part_name(process.vpid))?;
        memory::store_pages(process.pid, &vmas, &mut core, &|| go_on(cancelled))?;
        bytes += core.stored_bytes();
        let entry = &snaplist[at];
        core.finish(&ProcessImage {
            process: record,
            comm: entry.comm.clone(),
            ppid: entry.ppid,
            pgid: entry.pgid,
            sid: entry.sid,
            threads,
            vmas,
        })?;
    }
    Ok(bytes)
}

fn part_name(pid: VirtualPid) -> String {
    format!("{pid}.core")
}

/// The process as the snaplist names it.
fn snap_entry(pid: HostPid) -> Result<SnapEntry> {
    let failed = || format!("cannot read the state of pid {pid}");
    let status = Fields::status(pid).or_fail(failed)?;
    let stat = proc::stat(pid).or_fail(failed)?;
    let vpid = VirtualPid(status.innermost("NSpid"));
    let life = if stat.state == b'Z' {
        Life::Zombie {
            wait_status: stat.exit_code,
        }
    } else {
        Life::Alive { part: part_name(vpid) }
    };
    Ok(SnapEntry {
        pid: vpid,
        ppid: VirtualPid(stat.ppid),
        pgid: VirtualPid(status.innermost("NSpgid")),
        sid: VirtualPid(status.innermost("NSsid")),
        exit_signal: stat.exit_signal,
        comm: proc::comm(pid),
        life,
        stopped: None,
    })
}

/// Live processes in the order of `frozen`, then zombies.
fn snaplist(frozen: &Frozen) -> Result<Vec<SnapEntry>> {
    let numbers: std::collections::HashMap<i32, VirtualPid> =
        frozen.processes.iter().map(|p| (p.pid.0, p.vpid)).collect();
    let pids = frozen
        .processes
        .iter()
        .map(|p| p.pid)
        .chain(frozen.zombies.iter().copied());
    pids.map(|pid| {
        let mut entry = snap_entry(pid)?;
        entry.stopped = frozen.processes.iter().find(|p| p.pid == pid).and_then(|p| p.stopped);
        // A parent outside the app is its init.
        entry.ppid = numbers
            .get(&entry.ppid.0)
            .copied()
            .unwrap_or(VirtualPid(i32::from(entry.pid.0 != 1)));
        Ok(entry)
    })
    .collect()
}

fn manifest(
    (hostname, domainname): (String, String),
    target: &Target,
    clocks: Clocks,
    needs: crate::image::records::Needs,
    processes: Vec<SnapEntry>,
    table: FileTable,
    tables: Tables,
) -> Manifest {
    Manifest {
        format: crate::image::FORMAT,
        product: concat!("appshot ", env!("CARGO_PKG_VERSION")).to_owned(),
        app: survey::app_name(target),
        created_unix_ms: (clocks.realtime_ns / 1_000_000) as u64,
        needs,
        clocks,
        hostname,
        domainname,
        processes,
        files: table.files,
        pipes: table.pipes,
        shmem: tables.shm.into_records(),
        semaphores: Vec::new(),
        queues: Vec::new(),
        seccomp: Vec::new(),
        external: tables.external.into_vec(),
        parts: Vec::new(),
    }
}

fn finish(
    frozen: Frozen,
    request: Request<'_>,
    journal: &mut Journal,
    taken: Taken,
    begin: Instant,
    mut steps: Steps<'_>,
) -> Result<SnapshotReport> {
    let app = taken.manifest.app.clone();
    let (processes, threads) = (frozen.processes.len(), frozen.threads());
    let (sealed, frozen_for) = if request.options.leave_running {
        let frozen_for = frozen.thaw();
        steps.start("seal");
        let sealed = taken
            .appshot
            .seal(taken.manifest)
            .map_err(|e| e.state("the app is running as before"))?;
        (sealed, frozen_for)
    } else {
        steps.start("seal");
        let sealed = taken
            .appshot
            .seal(taken.manifest)
            .map_err(|e| e.state("the app was let go and is running as before"))?;
        steps.start("end");
        (sealed, frozen.kill(request.target, || journal.end()))
    };
    Ok(SnapshotReport {
        appshot: sealed.path,
        app,
        processes,
        threads,
        memory_bytes: taken.memory_bytes,
        disk_bytes: sealed.disk_bytes,
        frozen_micros: frozen_for.as_micros() as u64,
        total_micros: begin.elapsed().as_micros() as u64,
        phases: steps.end(),
    })
}

/// Lists everything that a snapshot would refuse; touches nothing.
pub fn check(target: &Target, options: &SnapshotOptions) -> Result<CheckReport> {
    survey::await_memory(target, &|| false)?;
    survey::admissible(target)?;
    let pids: Vec<HostPid> = freeze::members(target)?
        .into_iter()
        .filter(|pid| !survey::is_zombie(*pid))
        .collect();
    let mut report = CheckReport {
        processes: pids.len(),
        ..CheckReport::default()
    };
    let mut refusals = Refusals::default();
    let mut tables = Tables::default();
    survey::processes(target, &pids, &mut refusals);
    address_spaces(&pids, &mut tables, &mut refusals)?;
    let numbers: Vec<(HostPid, VirtualPid)> = pids.iter().map(|pid| (*pid, VirtualPid(pid.0))).collect();
    ipc::look(&numbers, target, &mut tables.shm, false, &mut refusals);
    let members = pids
        .iter()
        .map(|pid| Member::open(*pid, VirtualPid(pid.0)))
        .collect::<Result<Vec<_>>>()?;
    let table = files::capture(&members, options, None, &mut tables, &mut refusals)?;
    survey::terminals(&members, &table, options, &mut refusals);
    if let Some(pid) = pids.first() {
        survey::host_names(*pid, &mut refusals)?;
    }
    report.threads = pids.iter().map(|pid| proc::threads(*pid).map_or(0, |t| t.len())).sum();
    report.depends = tables.external.paths().map(|path| format!("file {path}")).collect();
    report.refusals = refusals.into_vec();
    Ok(report)
}

/// Names and times the steps of a protocol.
pub(crate) struct Steps<'a> {
    progress: &'a mut dyn FnMut(&str),
    done: Vec<Phase>,
    now: Option<(String, Instant)>,
}

impl<'a> Steps<'a> {
    pub fn new(progress: &'a mut dyn FnMut(&str)) -> Self {
        Steps {
            progress,
            done: Vec::new(),
            now: None,
        }
    }

    pub fn start(&mut self, name: &str) {
        self.close();
        crate::sys::moment();
        (self.progress)(name);
        self.now = Some((name.to_owned(), Instant::now()));
    }

    fn close(&mut self) {
        if let Some((name, since)) = self.now.take() {
            let micros = since.elapsed().as_micros() as u64;
            tracing::debug!(phase = %name, micros);
            self.done.push(Phase { name, micros });
        }
    }

    pub fn end(mut self) -> Vec<Phase> {
        self.close();
        self.done
    }
}
