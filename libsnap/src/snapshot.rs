//! Taking an appshot.
//!
//! ```text
//!  survey -> [copy while it runs] -> freeze -> look -> infect, ask, cure -> memory
//!     |                                |         |     \_____ any error: cure, thaw
//!  refusals                          budget   refusals
//!
//!  it is to run on, and what is left is little:  copy it, thaw, write, seal
//!  otherwise:                                    write, [thaw,] seal, [end]
//! ```
//!
//! Nothing of the app is changed before every refusal is known. An error after
//! that gives every thread its registers back and lets the app go on; the
//! half-written appshot is removed by its writer. A halted app is ended only
//! once its appshot is sealed.
//!
//! What can be found out before the app stands still is: its mappings above all, whose
//! flags the kernel tells only together with a look at every page. In the stop it is
//! only seen that the mappings are the same ([`Seen`]). A flag that changes in between
//! does not show there, so an app that runs on is looked at once more: where flags
//! differ, it is stopped again, and everything is done in the stop.

use crate::clocks::Timeline;
use crate::error::{Error, Kind, OrFail, Result};
use crate::executor::{self, Executor, Gate};
use crate::files::tcp::Ending;
use crate::files::{self, FileTable, Member, Still};
use crate::frames;
use crate::freeze::{self, Frozen, FrozenProcess};
use crate::hidden;
use crate::ids::{HostPid, VirtualPid};
use crate::image::records::ProcessRecord;
use crate::image::records::{Clocks, Life, Manifest, Namespace, SnapEntry, VMA_FLAGS, Vma, VmaKind};
use crate::image::{Former, ProcessImage, Sealed, ThreadImage, Unsealed, Writer, core_name};
use crate::ipc::{self, Objects};
use crate::journal::{Entered, Journal};
use crate::memory::{self, Private, Tables};
use crate::mounts::{self, Views};
use crate::namespaces::{Kind as SpaceKind, Looked};
use crate::netns;
use crate::nsthread::Door;
use crate::pages::Stock;
use crate::participants;
use crate::polite::politely;
use crate::precopy::{self, Precopy};
use crate::proc::{self, Fields, Mapping};
use crate::process;
use crate::refusals::Refusals;
use crate::rehearsal::{self, Rehearsal};
use crate::restore::Cancelled;
use crate::seccomp::Filters;
use crate::settings;
use crate::shared;
use crate::survey::{self, Wanted};
use crate::sys::memory::Span;
use crate::sys::uffd::WriteNotes;
use crate::target::{CheckReport, Phase, SnapshotOptions, SnapshotReport, Target};
use crate::urgent::Urgent;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

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

/// So much is copied in the stop at most; more is written in it.
const HELD_MAX: u64 = 256 << 20;
/// An app with more anonymous memory is copied while it runs: where it runs on
/// afterwards, and where it is to be halted.
const PRECOPY_MIN: u64 = 16 << 20;
const PRECOPY_HALTED_MIN: u64 = 256 << 20;
/// Processes with less are left to the stop.
const PRECOPY_PROCESS_MIN: u64 = 1 << 20;
/// How much an app may get between a look at it and its stop.
const SPARE: u64 = 512 << 10;
/// Looks at what runs before that is given up.
const LOOKS: usize = 5;

/// [`snapshot`], given up and undone once `cancelled` says so. It is asked at
/// each step and at each megabyte of memory; not any more once sealing begins.
pub fn snapshot_unless(
    cancelled: Cancelled<'_>,
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
    // What differs from a parent shows when it is written.
    if let (Some(room), None) = (options.room, &options.parent) {
        let fits = room.holds(survey::memory_bytes(target)?);
        fits.map_err(|e| told(e, subject).state("the app was not touched and is running"))?;
    }
    // Outlives everything that it tells how to undo.
    let mut journal = Journal::begin(target, dest)?;
    let writer = politely(options.leave_running, || match &options.parent {
        Some(parent) => Writer::create_on(dest, Former::open(parent, dest)?),
        None => Writer::create(dest),
    })?;
    let request = Request {
        target,
        options,
        subject,
        cancelled,
    };
    let undisturbed = |e| told(e, subject).state("the app is running as before");
    let mut stood = Duration::ZERO;
    let mut precopy = copy_ahead(request, &writer, &mut journal, &mut stood, &mut steps).map_err(undisturbed)?;
    // A halted app is not waited for: everything is looked at in its stop.
    let mut exact = !options.leave_running;
    loop {
        let mut seen = (!exact).then(|| Seen::look(target, precopy.as_ref())).flatten();
        let (frozen, mut taken, urgent) = stop(request, precopy.as_mut(), seen.as_mut(), &mut journal, &mut steps)?;
        let count = (frozen.processes.len(), frozen.threads());
        let result = if options.leave_running && taken.is_held {
            steps.enter("thaw");
            drop(std::mem::take(&mut taken.ending));
            stood += frozen.thaw();
            drop(urgent);
            steps.enter("check");
            if seen.is_some_and(|seen| !seen.holds()) {
                exact = true;
                continue;
            }
            let finished = politely(true, || finish_running(request, taken, writer, precopy, &mut steps));
            finished
                .map(|(sealed, stored)| (sealed, stored, None))
                .map_err(undisturbed)
        } else {
            drop(urgent);
            let finished = finish_standing(request, frozen, taken, writer, precopy, &mut journal, &mut steps);
            finished.map(|(sealed, stored, last, rehearsal)| {
                stood += last;
                (sealed, stored, rehearsal)
            })
        };
        let (sealed, stored, rehearsal) = result?;
        let rehearsal = rehearsal.or_else(|| request.rehearse(&sealed, &mut steps));
        return Ok(SnapshotReport {
            appshot: sealed.path,
            app: stored.app,
            processes: count.0,
            threads: count.1,
            memory_bytes: stored.memory_bytes,
            disk_bytes: sealed.disk_bytes,
            frozen_micros: stood.as_micros() as u64,
            total_micros: begin.elapsed().as_micros() as u64,
            phases: steps.end(),
            rehearsal,
            unseen: crate::kernel::unseen(),
        });
    }
}

/// Copies the memory of a large app while it runs. Where that cannot be done, or where
/// the snapshot is going to be refused, it is left to the stop.
fn copy_ahead(
    request: Request<'_>,
    writer: &Writer,
    journal: &mut Journal,
    stood: &mut Duration,
    steps: &mut Steps<'_>,
) -> Result<Option<Precopy>> {
    let Request {
        target,
        options,
        cancelled,
        ..
    } = request;
    let (all_min, one_min) = match (options.precopy.or_else(wanted_by_trial), options.leave_running) {
        (Some(false), _) => return Ok(None),
        (Some(true), _) => (0, 0),
        (None, true) => (PRECOPY_MIN, PRECOPY_PROCESS_MIN),
        (None, false) => (PRECOPY_HALTED_MIN, PRECOPY_PROCESS_MIN),
    };
    if precopy::anonymous_bytes(&freeze::members(target)?) < all_min || !precopy::works() {
        return Ok(None);
    }
    // What forks and ends meanwhile makes a look fail.
    let look = || check(target, options).ok();
    if !(0..LOOKS)
        .find_map(|_| look())
        .is_some_and(|report| report.refusals.is_empty())
    {
        return Ok(None);
    }
    steps.start("plant");
    let planted = Precopy::plant(target, one_min, writer, journal)?;
    let Some((mut precopy, took)) = planted else {
        return Ok(None);
    };
    *stood += took;
    steps.start("copy");
    politely(options.leave_running, || {
        precopy.copy(&|| go_on(cancelled))?;
        precopy.again(&|| go_on(cancelled))
    })?;
    if !options.leave_running {
        steps.start("prove");
        precopy.prove()?;
        precopy.again(&|| go_on(cancelled))?;
        precopy.prove()?;
    }
    Ok(Some(precopy))
}

/// For trials: `APPSHOT_PRECOPY=1` has all apps copied while they run, `0` none.
fn wanted_by_trial() -> Option<bool> {
    Some(std::env::var_os("APPSHOT_PRECOPY")? == "1")
}

/// Stops the app and takes everything that has to be taken in the stop.
fn stop(
    request: Request<'_>,
    mut precopy: Option<&mut Precopy>,
    seen: Option<&mut Seen>,
    journal: &mut Journal,
    steps: &mut Steps<'_>,
) -> Result<(Frozen, Taken, Urgent)> {
    let Request {
        target,
        subject,
        options,
        cancelled,
    } = request;
    let expected = match &precopy {
        Some(precopy) => precopy.expected_bytes(),
        None if options.leave_running => precopy::anonymous_bytes(&freeze::members(target)?),
        None => 0,
    };
    let stock = Stock::ready(expected.min(HELD_MAX) + SPARE);
    steps.start("freeze");
    let ahead = Ahead {
        stock,
        ..Ahead::look(target)?
    };
    let (urgent, prepared) = Urgent::begin(survey::root(target), || {
        // An app that is to be halted is not waited for.
        if options.leave_running {
            rehearse(target, options, &ahead, seen.as_deref().filter(|_| precopy.is_none()));
        }
        let again = precopy.as_mut().map(|precopy| precopy.again(&|| go_on(cancelled)));
        again.unwrap_or(Ok(()))
    });
    let before = prepared.and_then(|()| {
        // As late as can be: what runs goes on writing, and from one wait to another.
        if let Some(precopy) = &mut precopy {
            precopy.once()?;
        }
        let before = freeze::before(target)?;
        journal.before(&before)?;
        Ok(before)
    });
    let before = before.map_err(|e| told(e, subject))?;
    let (frozen, _still) = freeze::freeze(target, before).map_err(|e| told(e, subject))?;
    let taken = take(&frozen, request, ahead, precopy.as_deref(), seen, journal, steps)
        .map_err(|e| told(e, subject).state("the app was let go and is running as before"))?;
    Ok((frozen, taken, urgent))
}

/// Looks at what is going to be looked at in the stop, and forgets it: an app that runs
/// may change all of it. `seen`: where the memory is little.
fn rehearse(target: &Target, options: &SnapshotOptions, ahead: &Ahead, seen: Option<&Seen>) {
    look(target, options, ahead, false).ok();
    for (pid, seen) in seen.iter().flat_map(|seen| &seen.processes) {
        Private::look(*pid, &seen.vmas, None).ok();
        for name in process::FILES {
            proc::bytes(*pid, name).ok();
        }
    }
}

/// What is wanted.
#[derive(Clone, Copy)]
struct Request<'a> {
    target: &'a Target,
    options: &'a SnapshotOptions,
    /// How messages name the target.
    subject: &'a str,
    cancelled: Cancelled<'a>,
}

impl Request<'_> {
    /// Where that is wanted.
    fn rehearse(self, sealed: &Sealed, steps: &mut Steps<'_>) -> Option<Rehearsal> {
        if !self.options.verify {
            return None;
        }
        steps.start(rehearsal::STEP);
        Some(rehearsal::rehearse(&sealed.path, self.options, self.cancelled))
    }
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

/// What cannot change until the app stands still, opened and found out before.
struct Ahead {
    wanted: Wanted,
    ipc: ipc::Space,
    network: netns::Space,
    uts: Door,
    /// Where the app has an init, and so mounts of its own.
    mounts: Option<mounts::Own>,
    participants: Option<participants::Directory>,
    /// For copies.
    stock: Stock,
}

impl Ahead {
    fn look(target: &Target) -> Result<Ahead> {
        let host = survey::host(target);
        let failed = || format!("cannot enter the namespaces of pid {host}");
        hidden::ready();
        Ok(Ahead {
            wanted: Wanted::of(target),
            ipc: ipc::Space::open(host, target).or_fail(failed)?,
            network: netns::Space::open(host, target).or_fail(failed)?,
            uts: Door::open(host, &["uts"]).or_fail(failed)?,
            mounts: match target {
                Target::App { init: Some(_), .. } => Some(mounts::Own::look(host).or_fail(failed)?),
                _ => None,
            },
            participants: participants::Directory::of(survey::root(target)),
            stock: Stock::default(),
        })
    }
}

/// Mappings as they were seen before the app stood still.
struct Seen {
    processes: HashMap<HostPid, SeenProcess>,
    /// Of all processes; taken where they still are right.
    tables: Tables,
}

struct SeenProcess {
    /// `/proc/PID/maps`
    text: String,
    mappings: Vec<Mapping>,
    vmas: Vec<Vma>,
    gate: Option<Gate>,
}

impl Seen {
    /// `None` where a look at what runs does not fit together, or where something is
    /// going to be refused: then it is told in the stop.
    fn look(target: &Target, precopy: Option<&Precopy>) -> Option<Seen> {
        let mut refusals = Refusals::default();
        let mut tables = Tables::new(survey::host(target));
        let mut processes = HashMap::new();
        for pid in freeze::members(target).ok()? {
            if survey::is_zombie(pid) {
                continue;
            }
            let text = proc::text(pid, "maps").ok()?;
            let mappings = proc::mappings(pid).ok()?;
            let vmas = memory::classify(pid, &mappings, precopy, &mut tables, &mut refusals);
            let gate = executor::find_held_gate(pid, &memory::code(&vmas)).ok();
            let seen = SeenProcess {
                text,
                mappings,
                vmas,
                gate,
            };
            processes.insert(pid, seen);
        }
        refusals.into_vec().is_empty().then_some(Seen { processes, tables })
    }

    /// The address spaces of these processes and their gates, unless any has changed.
    fn take(&mut self, pids: &[HostPid], tables: &mut Tables) -> Option<Vec<(Vec<Vma>, Option<Gate>)>> {
        let same = |pid: &HostPid| {
            let seen = self.processes.get(pid);
            seen.is_some_and(|seen| proc::text(*pid, "maps").is_ok_and(|text| text == seen.text))
        };
        if self.processes.len() != pids.len() || !pids.iter().all(same) {
            return None;
        }
        std::mem::swap(&mut tables.shm, &mut self.tables.shm);
        std::mem::swap(&mut tables.external, &mut self.tables.external);
        let mut parts = |pid| {
            let seen = self.processes.get_mut(pid)?;
            Some((std::mem::take(&mut seen.vmas), seen.gate))
        };
        pids.iter().map(&mut parts).collect()
    }

    /// Whether flags are now as they were before the stop, and so were in it.
    fn holds(&self) -> bool {
        self.processes.iter().all(|(pid, seen)| {
            let now = proc::mappings(*pid).unwrap_or_default();
            let now: HashMap<(u64, u64), &Mapping> = now.iter().map(|map| ((map.start, map.end), map)).collect();
            seen.mappings.iter().all(|old| {
                let new = now.get(&(old.start, old.end));
                let mut flags = VMA_FLAGS.iter().chain(&[memory::GUARDED]);
                new.is_none_or(|new| old.key == new.key && flags.all(|flag| old.has(flag) == new.has(flag)))
            })
        })
    }
}

/// What was captured while the app stood still.
struct Taken {
    processes: Vec<TakenProcess>,
    /// All but what it needs, which is told by these and the first registers.
    manifest: Manifest,
    vdso: Vec<u8>,
    tables: Tables,
    stock: Stock,
    /// Of its sockets, for when it is ended.
    ending: Ending,
    rings: Vec<files::uring::Seen>,
    /// To be closed when the app runs again.
    _open: (Ahead, Vec<Member>),
    /// Nothing has to be read of the app any more.
    is_held: bool,
}

struct TakenProcess {
    pid: HostPid,
    image: ProcessImage,
    private: Private,
}

/// All parts are written.
struct Stored {
    app: String,
    memory_bytes: u64,
    /// Closing them takes long: not before the app is gone.
    _notes: Vec<Option<WriteNotes>>,
}

fn take(
    frozen: &Frozen,
    request: Request<'_>,
    mut ahead: Ahead,
    precopy: Option<&Precopy>,
    seen: Option<&mut Seen>,
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
    steps.enter("look");
    let members = frozen
        .processes
        .iter()
        .map(|p| Member::open(p.pid, p.vpid))
        .collect::<Result<Vec<_>>>()?;
    let mut refusals = Refusals::default();
    let mut tables = Tables::new(survey::host(target));
    let pids = frozen_pids(frozen);
    survey::processes(&mut ahead.wanted, &pids, &mut refusals);
    survey::ended(&frozen.zombies, &mut refusals);
    if let Some(mounts) = &ahead.mounts {
        mounts.refuse(survey::root(target), &mut refusals);
    }
    tables.open_beside(ahead.wanted.take_found())?;
    // Segments and files of two namespaces may be called alike: whose they are is not seen before.
    let mut both = [SpaceKind::Ipc, SpaceKind::Mnt].into_iter();
    let is_plain = both.all(|kind| !tables.beside.has(kind));
    let seen = seen.filter(|_| is_plain);
    let (mut spaces, gates): (Vec<Vec<Vma>>, Vec<_>) = match seen.and_then(|seen| seen.take(&pids, &mut tables)) {
        Some(seen) => seen.into_iter().unzip(),
        None => (
            address_spaces(&pids, precopy, &mut tables, &mut refusals)?,
            vec![None; pids.len()],
        ),
    };
    // Before packet filters of ours are there.
    let network_settings = ahead.network.look(frozen.processes[0].pid, &mut refusals);
    let still = Still {
        since: frozen.at,
        journal: &mut *journal,
    };
    let mut table = files::capture(
        &members,
        options,
        Some(still),
        ahead.ipc.queues_device(),
        &mut tables,
        &mut refusals,
    )?;
    survey::terminals(&members, &table, options, &mut refusals);
    let numbers: Vec<(HostPid, VirtualPid)> = frozen.processes.iter().map(|p| (p.pid, p.vpid)).collect();
    let mut objects = ipc::look(
        &numbers,
        target,
        (None, &ahead.ipc),
        (&mut tables.shm, Some(&mut table.queues)),
        true,
        &mut refusals,
    );
    let filters = Filters::look(frozen, &mut refusals)?;
    let names = survey::host_names(frozen.processes[0].pid, &ahead.uts, &mut refusals)?;
    let looked = Looked {
        target,
        numbers: &numbers,
        own: (&ahead.ipc, &objects),
        mapped: &spaces,
        mounts: &tables.mounts,
        take: true,
    };
    let mut namespaces = tables.beside.look(&looked, &mut tables.shm, &mut refusals)?;
    refusals.into_result(subject)?;
    steps.enter("capture");
    let mut timeline = Timeline {
        app: survey::clocks(&frozen.at, frozen.processes[0].pid),
        freeze: frozen.at,
    };
    let places = frozen.processes.iter().zip(&spaces).zip(gates);
    let places = places
        .map(|((process, vmas), gate)| place(process, vmas, gate))
        .collect::<Result<Vec<_>>>()?;
    journal.enter(places.clone())?;
    let all: Vec<VirtualPid> = frozen.processes.iter().map(|process| process.vpid).collect();
    let mut captured = Vec::with_capacity(spaces.len());
    for ((process, place), vmas) in frozen.processes.iter().zip(&places).zip(&mut spaces) {
        go_on(cancelled)?;
        let beside = tables.beside.which(process.pid, SpaceKind::Ipc);
        let objects = match beside.map(|number| &mut namespaces[number as usize]) {
            Some(Namespace::Ipc(objects)) => objects,
            _ => &mut objects,
        };
        let (mut record, mut threads) = capture_process(process, place, vmas, objects, &timeline, &all)?;
        record.namespaces = tables.beside.of(process.pid);
        filters.note(process, &mut threads);
        captured.push((record, threads));
    }
    timeline.app.stood_ns = timeline.passed_ns();
    // Nobody goes on from now on, not even in the kernel.
    if !table.rings.iter().all(files::uring::Seen::is_current) {
        return Err(Error::failed(format!(
            "cannot snapshot {subject}: a request of an io_uring was just done"
        ))
        .because("what it waited for came while the app was looked at")
        .fix("try again"));
    }
    steps.enter("rest");
    let vdso = vdso(frozen, &spaces);
    let snaplist = snaplist(frozen)?;
    let mut processes = images(frozen, captured, spaces, &snaplist, &table)?;
    steps.enter("pages");
    let mut unread = tables.shm.look()?;
    for process in &mut processes {
        go_on(cancelled)?;
        let watched = precopy.and_then(|precopy| precopy.of(process.pid));
        memory::find_parts(process.pid, &mut process.image.vmas)?;
        process.private = Private::look(process.pid, &process.image.vmas, watched)?;
    }
    leave_common(&mut processes)?;
    unread += processes
        .iter()
        .map(|process| process.private.unread_bytes())
        .sum::<u64>();
    let is_held = options.leave_running && unread <= HELD_MAX;
    steps.enter("memory");
    for process in &mut processes {
        go_on(cancelled)?;
        process.private.copy(process.pid, is_held, &mut ahead.stock)?;
    }
    if is_held {
        tables.shm.hold()?;
    }
    // What holds the app's mounts open.
    tables.mounts = Views::default();
    let (ending, rings) = (std::mem::take(&mut table.ending), std::mem::take(&mut table.rings));
    let barrier = ending.barrier();
    let mut manifest = manifest(names, target, timeline.app, snaplist, table);
    manifest.seccomp = filters.into_records();
    manifest.participants = participants::of(frozen.processes[0].pid, ahead.participants.as_ref());
    (manifest.semaphores, manifest.queues) = (objects.semaphores, objects.queues);
    manifest.ipc_settings = objects.settings;
    manifest.network_settings = network_settings;
    manifest.barrier = barrier;
    manifest.namespaces = namespaces;
    Ok(Taken {
        processes,
        vdso,
        manifest,
        tables,
        stock: std::mem::take(&mut ahead.stock),
        ending,
        rings,
        _open: (ahead, members),
        is_held,
    })
}

/// What processes share since a fork is read and stored once.
fn leave_common(processes: &mut [TakenProcess]) -> Result<()> {
    if processes.len() < 2 {
        return Ok(());
    }
    let sharable = processes
        .iter()
        .map(|process| (process.pid, process.private.sharable()));
    let frames = frames::look(&sharable.collect::<Vec<_>>())?;
    for (process, frames) in processes.iter_mut().zip(frames) {
        process.private.leave(&frames);
    }
    Ok(())
}

impl Taken {
    /// Writes all parts.
    fn store(
        mut self,
        writer: Writer,
        precopy: Option<Precopy>,
        Request { options, cancelled, .. }: Request<'_>,
    ) -> Result<(Unsealed, Manifest, Stored)> {
        let mut watched = precopy.map_or_else(Vec::new, Precopy::into_processes);
        for gone in watched.extract_if(.., |watched| !self.processes.iter().any(|own| own.pid == watched.pid)) {
            writer.discard(gone.into_parts().0)?;
        }
        let stock = self.stock.close();
        let first = self.processes.first().and_then(|process| process.image.threads.first());
        self.manifest.needs = memory::needs(first.map_or(&[], |thread| &thread.xsave), &self.vdso);
        let (mut memory_bytes, mut notes) = (0, Vec::new());
        let mut layouts = Vec::with_capacity(self.processes.len());
        for TakenProcess { pid, image, private } in self.processes {
            let own = watched.iter().position(|watched| watched.pid == pid);
            let (mut core, rounds) = match own.map(|at| watched.swap_remove(at).into_parts()) {
                Some((core, rounds, own)) => {
                    notes.push(own);
                    (core, rounds)
                }
                None => (writer.core(image.process.pid)?, Vec::new()),
            };
            private.store(pid, &mut core, &rounds, &stock, &layouts, &|| go_on(cancelled))?;
            memory_bytes += core.stored_bytes();
            layouts.push(core.finish(&image)?);
        }
        memory_bytes += self.tables.shm.store(&writer)?;
        let appshot = writer.close()?;
        if let Some(room) = options.room {
            room.holds(appshot.disk_bytes()?)?;
        }
        let mut manifest = self.manifest;
        manifest.shmem = self.tables.shm.into_records();
        manifest.external = self.tables.external.into_vec();
        let app = manifest.app.clone();
        let stored = Stored {
            app,
            memory_bytes,
            _notes: notes,
        };
        Ok((appshot, manifest, stored))
    }
}

fn frozen_pids(frozen: &Frozen) -> Vec<HostPid> {
    frozen.processes.iter().map(|p| p.pid).collect()
}

fn address_spaces(
    pids: &[HostPid],
    precopy: Option<&Precopy>,
    tables: &mut Tables,
    refusals: &mut Refusals,
) -> Result<Vec<Vec<Vma>>> {
    let mut spaces = Vec::with_capacity(pids.len());
    for pid in pids {
        let mappings = proc::mappings(*pid).or_fail(|| format!("cannot read the mappings of pid {pid}"))?;
        spaces.push(memory::classify(*pid, &mappings, precopy, tables, refusals));
    }
    Ok(spaces)
}

/// Where the process can be entered, and what it has before.
fn place(process: &FrozenProcess, vmas: &[Vma], known: Option<Gate>) -> Result<Entered> {
    let gate = match known.filter(|gate| gate.stands(process.pid)) {
        Some(gate) => gate,
        None => executor::find_held_gate(process.pid, &memory::code(vmas))?,
    };
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
    vmas: &mut [Vma],
    objects: &mut Objects,
    timeline: &Timeline,
    all: &[VirtualPid],
) -> Result<(ProcessRecord, Vec<ThreadImage>)> {
    let main = process.main();
    main.prepare()?;
    let captured = Executor::infect(main.tid, &main.regs, gate, base).and_then(|executor| {
        let captured = objects
            .ask(process, &executor)
            .and_then(|()| settings::ask_mappings(main, &executor, vmas))
            .and_then(|()| process::capture(process, &executor, timeline, all));
        let left = process.leave(executor, gate);
        captured.and_then(|captured| left.map(|()| captured))
    });
    // Also where it could not be entered.
    main.recover()?;
    captured
}

/// That of the first process that has one.
fn vdso(frozen: &Frozen, spaces: &[Vec<Vma>]) -> Vec<u8> {
    let vdso = spaces.iter().zip(&frozen.processes).find_map(|(vmas, process)| {
        let vma = vmas.iter().find(|v| v.kind == VmaKind::Vdso)?;
        let mut bytes = vec![0; (vma.end - vma.start) as usize];
        crate::sys::memory::read(process.pid, vma.start, &mut bytes).ok()?;
        Some(bytes)
    });
    vdso.unwrap_or_default()
}

/// Everything of the processes but their memory.
fn images(
    frozen: &Frozen,
    captured: Vec<(ProcessRecord, Vec<ThreadImage>)>,
    spaces: Vec<Vec<Vma>>,
    snaplist: &[SnapEntry],
    table: &FileTable,
) -> Result<Vec<TakenProcess>> {
    let all = captured.into_iter().zip(spaces).zip(&frozen.processes).zip(snaplist);
    all.enumerate()
        .map(|(at, ((((mut record, threads), vmas), process), entry))| {
            let stat =
                proc::kept_stat(process.pid).or_fail(|| format!("cannot read the state of pid {}", process.pid))?;
            record.fds = table.fds[at].clone();
            record.ctty = files::pty::controlling(&table.files, entry.sid, stat.tty);
            Ok(TakenProcess {
                pid: process.pid,
                image: ProcessImage {
                    process: record,
                    comm: entry.comm.clone(),
                    ppid: entry.ppid,
                    pgid: entry.pgid,
                    sid: entry.sid,
                    threads,
                    vmas,
                },
                private: Private::default(),
            })
        })
        .collect()
}

/// The process as the snaplist names it.
fn snap_entry(pid: HostPid) -> Result<SnapEntry> {
    let failed = || format!("cannot read the state of pid {pid}");
    let status = Fields::status(pid).or_fail(failed)?;
    let stat = proc::kept_stat(pid).or_fail(failed)?;
    let vpid = VirtualPid(status.innermost("NSpid"));
    let life = if stat.state == b'Z' {
        Life::Zombie {
            wait_status: stat.exit_code,
            uid: status.numbers("Uid").first().copied().unwrap_or(0),
        }
    } else {
        Life::Alive { part: core_name(vpid) }
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
        shares_files: false,
        shares_state: false,
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
        let own = frozen.processes.iter().find(|p| p.pid == pid);
        entry.stopped = own.and_then(|p| p.stopped);
        if own.is_some() && frozen.processes.iter().any(|p| p.pid.0 == entry.ppid.0) {
            (entry.shares_files, entry.shares_state) = shared::with_parent(pid, HostPid(entry.ppid.0));
        }
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
    processes: Vec<SnapEntry>,
    table: FileTable,
) -> Manifest {
    Manifest {
        format: crate::image::FORMAT,
        product: concat!("appshot ", env!("CARGO_PKG_VERSION")).to_owned(),
        app: survey::app_name(target),
        created_unix_ms: (clocks.realtime_ns / 1_000_000) as u64,
        needs: memory::needs(&[], &[]),
        clocks,
        hostname,
        domainname,
        processes,
        files: table.files,
        pipes: table.pipes,
        shmem: Vec::new(),
        semaphores: Vec::new(),
        queues: Vec::new(),
        posix_queues: table.queues.records,
        ipc_settings: BTreeMap::new(),
        network_settings: BTreeMap::new(),
        barrier: None,
        namespaces: Vec::new(),
        seccomp: Vec::new(),
        participants: Vec::new(),
        external: Vec::new(),
        lenders: Vec::new(),
        parents: Vec::new(),
        parts: Vec::new(),
    }
}

/// The app runs again.
fn finish_running(
    request: Request<'_>,
    taken: Taken,
    writer: Writer,
    mut precopy: Option<Precopy>,
    steps: &mut Steps<'_>,
) -> Result<(Sealed, Stored)> {
    steps.start("write");
    if let Some(precopy) = &mut precopy {
        precopy.let_go();
    }
    let (appshot, manifest, stored) = taken.store(writer, precopy, request)?;
    steps.start("seal");
    Ok((appshot.seal(manifest)?, stored))
}

/// The app stands still until all is written. Answers how long it stood, too.
fn finish_standing(
    request: Request<'_>,
    frozen: Frozen,
    mut taken: Taken,
    writer: Writer,
    precopy: Option<Precopy>,
    journal: &mut Journal,
    steps: &mut Steps<'_>,
) -> Result<(Sealed, Stored, Duration, Option<Rehearsal>)> {
    let Request {
        target,
        options,
        subject,
        ..
    } = request;
    let let_go = |e: Error| told(e, subject).state("the app was let go and is running as before");
    steps.start("write");
    let (mut ending, rings) = (std::mem::take(&mut taken.ending), std::mem::take(&mut taken.rings));
    let (appshot, manifest, stored) = taken.store(writer, precopy, request).map_err(let_go)?;
    if options.leave_running {
        drop(ending);
        let stood = frozen.thaw();
        steps.start("seal");
        let sealed = politely(true, || appshot.seal(manifest)).map_err(|e| e.state("the app is running as before"))?;
        return Ok((sealed, stored, stood, None));
    }
    steps.start("seal");
    let sealed = appshot.seal(manifest).map_err(let_go)?;
    let rehearsal = request.rehearse(&sealed, steps);
    if rehearsal.as_ref().is_some_and(|rehearsal| !rehearsal.verified) {
        return Ok((sealed, stored, frozen.thaw(), rehearsal));
    }
    steps.start("end");
    let decided = || {
        ending.begin(journal);
        journal.end();
        rings.iter().for_each(files::uring::Seen::give_up);
    };
    Ok((sealed, stored, frozen.kill(target, decided), rehearsal))
}

/// Lists everything that a snapshot would refuse; touches nothing.
pub fn check(target: &Target, options: &SnapshotOptions) -> Result<CheckReport> {
    survey::await_memory(target, &|| false)?;
    survey::admissible(target)?;
    look(target, options, &Ahead::look(target)?, true)
}

/// Looks, of an app that runs, at everything that can be seen then; at mappings only
/// where `spaces` says so.
fn look(target: &Target, options: &SnapshotOptions, ahead: &Ahead, spaces: bool) -> Result<CheckReport> {
    let (zombies, pids): (Vec<HostPid>, Vec<HostPid>) = freeze::members(target)?
        .into_iter()
        .partition(|pid| survey::is_zombie(*pid));
    let mut report = CheckReport {
        processes: pids.len(),
        ..CheckReport::default()
    };
    let mut refusals = Refusals::default();
    let mut tables = Tables::new(survey::host(target));
    let mut wanted = ahead.wanted.clone();
    survey::processes(&mut wanted, &pids, &mut refusals);
    survey::ended(&zombies, &mut refusals);
    if let Some(mounts) = &ahead.mounts {
        mounts.refuse(survey::root(target), &mut refusals);
    }
    tables.open_beside(wanted.take_found())?;
    let mapped = match spaces {
        true => address_spaces(&pids, None, &mut tables, &mut refusals)?,
        false => Vec::new(),
    };
    let numbers: Vec<(HostPid, VirtualPid)> = pids.iter().map(|pid| (*pid, VirtualPid(pid.0))).collect();
    let members = pids
        .iter()
        .map(|pid| Member::open(*pid, VirtualPid(pid.0)))
        .collect::<Result<Vec<_>>>()?;
    let device = ahead.ipc.queues_device();
    let mut table = files::capture(&members, options, None, device, &mut tables, &mut refusals)?;
    let objects = ipc::look(
        &numbers,
        target,
        (None, &ahead.ipc),
        (&mut tables.shm, Some(&mut table.queues)),
        false,
        &mut refusals,
    );
    if let Some(pid) = pids.first() {
        ahead.network.look(*pid, &mut refusals);
    }
    survey::terminals(&members, &table, options, &mut refusals);
    if let Some(pid) = pids.first() {
        survey::host_names(*pid, &ahead.uts, &mut refusals)?;
        let looked = Looked {
            target,
            numbers: &numbers,
            own: (&ahead.ipc, &objects),
            mapped: &mapped,
            mounts: &tables.mounts,
            take: false,
        };
        tables.beside.look(&looked, &mut tables.shm, &mut refusals)?;
        participants::of(*pid, ahead.participants.as_ref());
    }
    report.threads = pids.iter().map(|pid| proc::threads(*pid).map_or(0, |t| t.len())).sum();
    report.depends = tables.external.paths().map(|path| format!("file {path}")).collect();
    report.unseen = crate::kernel::unseen();
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
        (self.progress)(name);
        self.enter(name);
    }

    /// The same, and nobody is told: they would want the processor for it.
    fn enter(&mut self, name: &str) {
        self.close();
        crate::sys::moment();
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
