//! Rows of what a restored app costs for good: the same work, in turn, by an app
//! that was never frozen and by one that was, before and after. Two apps differ
//! a little from the begin, and the machine drifts: the ratio of ratios is told.

use super::Lab;
use super::row::{Column, Row};
use crate::clock::{millis_between, now_ns};
use crate::engine::{After, Back, Daemon, Engine};
use crate::stats::quantile;
use crate::workload::{App, Workload};
use crate::{measure, net, proc};
use anyhow::{Context, Result};
use std::path::Path;
use std::time::{Duration, Instant};

/// Until compilers and allocators have settled.
const WARM_UP: Duration = Duration::from_secs(5);
/// Pieces of work in a pair, one by each in turn: a collection of garbage falls into some.
const PIECES: usize = 5;
/// Pairs before the snapshot.
const BEFORE: usize = 20;

pub fn measure(lab: &Lab<'_>, workload: &str, row: &mut Row) -> Result<()> {
    let workload = lab.workload(workload)?;
    let scratch = lab.scratch()?;
    let daemon = Daemon::new(scratch.path());
    let criu = lab.criu(scratch.path());
    let original = workload.prepare(lab.place)?;
    let root = measure::start(&*original, &daemon, None)?;
    for (column, engine) in [(Column::Ours, &daemon as &dyn Engine), (Column::Peer, &criu)] {
        let dir = scratch.path().join(engine.name());
        if let Err(error) = side(lab, workload, &*original, engine, column, &dir, row) {
            row.missing(column, format!("{error:#}"));
        }
    }
    proc::kill_tree(&proc::tree(root));
    Ok(())
}

fn side(
    lab: &Lab<'_>,
    workload: &dyn Workload,
    original: &dyn App,
    engine: &dyn Engine,
    column: Column,
    dir: &Path,
    row: &mut Row,
) -> Result<()> {
    let app = workload.prepare(lab.place)?;
    let root = measure::start(&*app, engine, None)?;
    let tree = proc::tree(root);
    let warm = Instant::now() + WARM_UP;
    while Instant::now() < warm {
        pair(original, &*app)?;
    }
    let before = (0..BEFORE)
        .map(|_| pair(original, &*app))
        .collect::<Result<Vec<f64>>>()?;
    let before = quantile(&before, 0.5).context("no pairs")?;
    if let Some(port) = app.port() {
        net::wait_quiet(port)?;
    }
    engine.snapshot(root, dir, After::End).context("snapshot")?;
    proc::wait_gone(&tree, Duration::from_secs(10))?;
    app.forget()?;
    let (back, answered) = measure::restore_and_ask(&*app, engine, dir);
    let back: Back = back.context("restore")?;
    answered?;
    for _ in 0..lab.runs {
        row.push(column, pair(original, &*app).map(|after| 100.0 * after / before));
    }
    engine.end(&back)
}

/// The original's time for the same work, in those of the other app: its speed.
fn pair(original: &dyn App, app: &dyn App) -> Result<f64> {
    let (mut originals_ms, mut ours_ms) = (0.0, 0.0);
    for _ in 0..PIECES {
        originals_ms += worked_ms(original)?;
        ours_ms += worked_ms(app)?;
    }
    Ok(originals_ms / ours_ms)
}

fn worked_ms(app: &dyn App) -> Result<f64> {
    let begin_ns = now_ns();
    app.work()?;
    Ok(millis_between(begin_ns, now_ns()))
}
