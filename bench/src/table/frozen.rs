//! Rows of a snapshot that leaves the app running: how long it stands still, and
//! what its clients get meanwhile. One app serves all rounds of all sides.

use super::Lab;
use super::row::{Column, Row};
use crate::clock::{millis_between, now_ns};
use crate::engine::{After, Call, Engine};
use crate::workload::beat::BeatFile;
use crate::workload::{App, Load};
use crate::{files, measure};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How long the clients are watched when nothing else happens.
const NORMAL: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Milliseconds of the longest pause.
    Pause,
    /// Requests served, in percent of those without a snapshot.
    Throughput,
}

/// An app that runs, its heartbeat, its clients.
struct Running<'a> {
    app: &'a dyn App,
    root: i32,
    beat: BeatFile,
    load: Option<Load>,
}

pub fn measure(lab: &Lab<'_>, workload: &str, load: bool, what: What, row: &mut Row) -> Result<()> {
    let workload = lab.workload(workload)?;
    let scratch = lab.scratch()?;
    let ours = Call::new(scratch.path());
    let peer = lab.criu(scratch.path());
    let app = workload.prepare(lab.place)?;
    let path = match app.beat() {
        Some(own) => own,
        None => lab.place.beat_file("preloaded")?,
    };
    let beat = BeatFile::new(path.clone())?;
    let preload = lab.preload.filter(|_| app.beat().is_none());
    let root = measure::start(&*app, &ours, preload.map(|library| (library, path.as_path())))?;
    beat.wait_beating()?;
    let mut running = Running {
        app: &*app,
        root,
        beat,
        load: load.then(|| app.load()).transpose()?,
    };
    let dest = scratch.path().join("appshot");
    let sides: [(Column, &dyn Engine); 2] = [(Column::Ours, &ours), (Column::Peer, &peer)];
    let mut told = Vec::new();
    for _ in 0..lab.runs {
        for (column, engine) in sides {
            if lab.interrupted() || row.hopeless(column) {
                continue;
            }
            files::warm_memory(workload.memory_bytes());
            let result = running.snapshot(engine, &dest, what, &mut told);
            row.push(column, result);
            files::sync(&dest)?;
            files::remove(&dest);
        }
        if what == What::Pause {
            row.push(Column::Floor, running.stop(lab));
            row.push(Column::Original, running.pause(|| std::thread::sleep(NORMAL / 5)));
        }
    }
    if let Some(median) = crate::stats::quantile(&told, 0.5) {
        row.note(format!("our own account of the standstill: {median:.2} ms"));
    }
    if what == What::Pause {
        row.note("original: longest pause of the same heartbeat in 100 ms without a snapshot");
    }
    running.app.answers().context("the original, after all snapshots")
}

impl Running<'_> {
    /// The longest pause of the heartbeat while something is done.
    fn pause(&self, during: impl FnOnce()) -> Result<f64> {
        self.beat.clear_gap()?;
        during();
        self.beat.gap_millis()
    }

    fn snapshot(&mut self, engine: &dyn Engine, dest: &Path, what: What, told: &mut Vec<f64>) -> Result<f64> {
        let after = if self.load.is_some() { After::Serve } else { After::Run };
        let normal = match what {
            What::Throughput => self.rate(|| std::thread::sleep(NORMAL))?,
            What::Pause => 0.0,
        };
        let mut taken = None;
        let mut rate = Ok(0.0);
        let gap = self.pause(|| match what {
            What::Pause => taken = Some(engine.snapshot(self.root, dest, after)),
            What::Throughput => rate = self.rate(|| taken = Some(engine.snapshot(self.root, dest, after))),
        })?;
        let taken = taken.context("no snapshot was taken")??;
        told.extend(taken.told_frozen_millis);
        if let Some(load) = &mut self.load {
            load.goes_on()?;
        }
        match what {
            What::Pause => Ok(gap),
            What::Throughput => Ok(100.0 * rate? / normal),
        }
    }

    /// Requests served in a millisecond while something is done.
    fn rate(&self, during: impl FnOnce()) -> Result<f64> {
        let (begin_ns, before) = (now_ns(), self.app.served()?);
        during();
        let (served, end_ns) = (self.app.served()?, now_ns());
        ensure!(served > before, "nothing was served");
        Ok((served - before) as f64 / millis_between(begin_ns, end_ns))
    }

    /// The floor: every thread is stopped, memory looked through, let go.
    fn stop(&self, lab: &Lab<'_>) -> Result<f64> {
        let program = lab.bare.as_deref().context("needs cc, for the bare program")?;
        let mut status = None;
        let gap = self.pause(|| {
            status = Some(Command::new(program).arg("stop").arg(self.root.to_string()).status());
        })?;
        let status = status.context("it did not run")??;
        ensure!(status.success(), "the bare program: {status}");
        Ok(gap)
    }
}
