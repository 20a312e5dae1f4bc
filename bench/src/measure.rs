//! One round of one workload on one side: everything that is measured, in the
//! order in which it happens, and nothing left behind.

use crate::clock::{millis_between, now_ns};
use crate::command::below;
use crate::engine::{After, Back, Engine};
use crate::place::Place;
use crate::workload::beat::BeatFile;
use crate::workload::{App, Workload};
use crate::{files, net, proc};
use anyhow::{Context, Result, bail, ensure};
use libsnap::target::Phase;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const START_LIMIT: Duration = Duration::from_secs(30);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long the heartbeat is watched without a snapshot, for scale.
const WATCH: Duration = Duration::from_millis(300);

/// Nothing may be started any more.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What one round gave.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    pub snapshot_ms: Option<f64>,
    /// The same, and until every byte is on the disk.
    pub durable_ms: Option<f64>,
    pub frozen_ms: Option<f64>,
    /// Longest pause of the same program when nothing is done to it.
    pub undisturbed_ms: Option<f64>,
    /// What the engine says about `frozen_ms`.
    pub told_frozen_ms: Option<f64>,
    pub restore_ms: Option<f64>,
    pub reply_ms: Option<f64>,
    pub disk_mb: Option<f64>,
    pub memory_mb: Option<f64>,
    /// Memory of the original, for scale.
    pub original_mb: Option<f64>,
    /// The steps of the snapshot and of the restore.
    pub snapshot_phases: Vec<Phase>,
    pub restore_phases: Vec<Phase>,
    /// Each failure, with the step.
    pub failures: Vec<String>,
}

/// Measures one round.
#[derive(Debug)]
pub struct Meter<'a> {
    pub place: &'a Place,
    /// The heartbeat to preload, if it could be compiled.
    pub preload: Option<&'a Path>,
}

impl Meter<'_> {
    pub fn round(&self, workload: &dyn Workload, engine: &dyn Engine) -> Figures {
        let mut figures = Figures::default();
        if let Err(error) = self.there_and_back(workload, engine, &mut figures) {
            figures.failures.push(format!("{error:#}"));
            // Half a round counts for nothing.
            figures.restore_ms = None;
            figures.reply_ms = None;
        }
        if let Err(error) = self.stand_still(workload, engine, &mut figures) {
            figures.failures.push(format!("leave running: {error:#}"));
        }
        figures
    }

    /// Start, snapshot with end, restore, answer, verify.
    fn there_and_back(&self, workload: &dyn Workload, engine: &dyn Engine, figures: &mut Figures) -> Result<()> {
        let dest = self.place.disk().join("appshot");
        let mut guard = Guard::new(&dest);
        let app = workload.prepare(self.place)?;
        let root = start(&*app, engine, None)?;
        let originals = proc::tree(root);
        figures.original_mb = Some(megabytes(proc::pss_bytes(&originals)));

        files::warm_memory(workload.memory_bytes());
        let taken = engine.snapshot(root, &dest, After::End).context("snapshot")?;
        proc::wait_gone(&originals, Duration::from_secs(5)).context("after the snapshot")?;
        figures.snapshot_ms = Some(taken.millis);
        figures.snapshot_phases = taken.phases;
        figures.durable_ms = Some(taken.millis + files::sync(&dest)?);
        figures.disk_mb = Some(megabytes(files::disk_bytes(&dest)?));

        app.forget()?;
        files::warm_cache(&dest)?;
        files::warm_memory(workload.memory_bytes());
        let (back, answered) = restore_and_ask(&*app, engine, &dest);
        let back = back.context("restore")?;
        guard.cgroup.clone_from(&back.cgroup);
        let answered_ns = answered?;
        let tree = proc::tree(back.root);
        app.verify(&tree).context("after the restore")?;
        figures.restore_ms = Some(back.millis);
        figures.restore_phases = back.phases;
        figures.reply_ms = Some(millis_between(back.begin_ns, answered_ns));
        figures.memory_mb = Some(megabytes(proc::pss_bytes(&tree)));
        Ok(())
    }

    /// Start with a heartbeat, snapshot with leave-running, longest pause.
    fn stand_still(&self, workload: &dyn Workload, engine: &dyn Engine, figures: &mut Figures) -> Result<()> {
        let dest = self.place.disk().join("appshot");
        let _guard = Guard::new(&dest);
        let app = workload.prepare(self.place)?;
        let (path, preload) = match (app.beat(), self.preload) {
            (Some(own), _) => (own, None),
            (None, Some(library)) => (self.place.beat_file("preloaded")?, Some(library)),
            (None, None) => bail!("needs cc, for the heartbeat to preload"),
        };
        let beat = BeatFile::new(path)?;
        let root = start(&*app, engine, preload.map(|library| (library, beat.path.as_path())))?;
        beat.wait_beating()?;

        beat.clear_gap()?;
        std::thread::sleep(WATCH);
        figures.undisturbed_ms = Some(beat.gap_millis()?);
        files::warm_memory(workload.memory_bytes());
        beat.clear_gap()?;
        let taken = engine.snapshot(root, &dest, After::Run)?;
        let frozen_ms = beat.gap_millis()?;
        app.answers().context("the original, after the snapshot")?;
        app.verify(&proc::tree(root))
            .context("the original, after the snapshot")?;
        figures.frozen_ms = Some(frozen_ms);
        figures.told_frozen_ms = taken.told_frozen_millis;
        // Its write-back must not disturb the next round.
        files::sync(&dest)?;
        Ok(())
    }
}

/// Starts an app, fills it, and waits until it holds no connection.
/// `beat` is the heartbeat's library and file.
pub fn start(app: &dyn App, engine: &dyn Engine, beat: Option<(&Path, &Path)>) -> Result<i32> {
    let mut command = app.command();
    if app.system_v() && engine.wants_ipc_namespace() {
        command = below(&["unshare", "--ipc"], &command);
    }
    if let Some((library, file)) = beat {
        command.env("LD_PRELOAD", library).env("BENCH_BEAT", file);
    }
    ensure!(!INTERRUPTED.load(Ordering::SeqCst), "interrupted");
    let mut child = command.spawn().context("cannot start")?;
    let deadline = Instant::now() + START_LIMIT;
    while let Err(error) = app.answers() {
        if let Some(status) = child.try_wait()? {
            bail!("ended at start: {status}");
        }
        if Instant::now() > deadline {
            return Err(error.context("no answer after the start"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    app.fill().context("cannot fill it")?;
    if let Some(port) = app.port() {
        net::wait_quiet(port)?;
    }
    Ok(i32::try_from(child.id())?)
}

/// Restores, and asks from the beginning until the first answer.
pub fn restore_and_ask(app: &dyn App, engine: &dyn Engine, source: &Path) -> (Result<Back>, Result<u64>) {
    let given_up = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| first_answer_ns(app, &given_up));
        let back = engine.restore(source);
        given_up.store(back.is_err(), Ordering::Relaxed);
        (back, asking.join().expect("the prober does not panic"))
    })
}

/// When the app first answers right.
pub fn first_answer_ns(app: &dyn App, given_up: &AtomicBool) -> Result<u64> {
    let deadline = Instant::now() + ANSWER_LIMIT;
    loop {
        match app.answers() {
            Ok(()) => return Ok(now_ns()),
            Err(error) if given_up.load(Ordering::Relaxed) || Instant::now() > deadline => {
                return Err(error.context("no answer after the restore"));
            }
            Err(_) => std::thread::sleep(Duration::from_micros(50)),
        }
    }
}

pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Ends everything that a round started, however it went.
pub struct Guard<'a> {
    dest: &'a Path,
    cgroup: Option<PathBuf>,
}

impl<'a> Guard<'a> {
    pub fn new(dest: &'a Path) -> Self {
        Guard { dest, cgroup: None }
    }

    fn end(&self) -> Result<()> {
        proc::kill_all_below_me()?;
        if let Some(cgroup) = self.cgroup.as_ref().filter(|cgroup| cgroup.exists()) {
            libsnap::cgroup::destroy(cgroup)?;
        }
        Ok(())
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("bench: something is left behind: {error:#}");
        }
        files::remove(self.dest);
    }
}
