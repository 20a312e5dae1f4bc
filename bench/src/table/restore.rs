//! Rows of a restore: the appshot is taken once, then every side restores its
//! own in turn, again and again.

use super::Lab;
use super::husk::{self, Husk};
use super::row::{Column, Row};
use crate::clock::{millis_between, now_ns, to_real_ns};
use crate::engine::{After, Back, Daemon, Engine, Lazy};
use crate::workload::beat::BeatFile;
use crate::workload::{App, Workload};
use crate::{files, measure, net, proc};
use anyhow::{Context, Result, ensure};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Rounds that do not count: programs are read, probes made, caches filled.
const WARM_UP: usize = 2;
/// An app's first second is its working set.
const WORKING_SET: Duration = Duration::from_secs(1);

/// Where the clock stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    FirstInstruction,
    Reply,
    /// The command or answer has come back; every task exists.
    Return,
}

/// What the bare program does.
#[derive(Clone, Copy, Debug)]
pub enum Bare {
    First,
    Reply,
    Tasks(&'static str, usize),
    /// Reads as many bytes as the working set has.
    Read,
}

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub workload: &'static str,
    pub until: Until,
    pub bare: Bare,
    /// Every cache is dropped before each restore.
    pub cold: bool,
}

/// An app that was frozen.
struct Stored {
    app: Box<dyn App>,
    dir: PathBuf,
    original_ms: Vec<f64>,
    touched: u64,
    original_mb: f64,
}

pub fn measure(lab: &Lab<'_>, plan: &Plan, row: &mut Row) -> Result<()> {
    let workload = lab.workload(plan.workload)?;
    let scratch = lab.scratch()?;
    let sides: [(Column, Box<dyn Engine>); 3] = [
        (Column::Ours, Box::new(Daemon::new(scratch.path()))),
        (Column::Peer, Box::new(lab.criu(scratch.path()))),
        (Column::PeerLazy, Box::new(Lazy::new(lab.criu(scratch.path())))),
    ];
    let ours = lab.side(row, Column::Ours, || store(lab, workload, &*sides[0].1, scratch.path()));
    let peers = lab.side(row, Column::Peer, || store(lab, workload, &*sides[1].1, scratch.path()));
    if let Some(stored) = &ours {
        row.size_mb = Some(stored.original_mb);
        if plan.until == Until::Reply {
            stored
                .original_ms
                .iter()
                .for_each(|ms| row.push(Column::Original, Ok(*ms)));
        }
        row.note(format!(
            "the original has {:.0} MB and touches {:.1} MB in a second of being asked",
            stored.original_mb,
            measure::megabytes(stored.touched)
        ));
    }
    let stored = [ours.as_ref(), peers.as_ref(), peers.as_ref()];
    for round in 0..WARM_UP + lab.runs {
        let counts = round >= WARM_UP;
        for ((column, engine), stored) in sides.iter().zip(stored) {
            let Some(stored) = stored else { continue };
            if lab.interrupted() || row.hopeless(*column) {
                continue;
            }
            let result = restored(&**engine, stored, workload, plan);
            if result.is_err() {
                proc::kill_all_below_me()?;
            }
            if counts || result.is_err() {
                row.push(*column, result);
            }
        }
        if counts && let Some(stored) = ours.as_ref().or(peers.as_ref()) {
            row.push(Column::Floor, bare(lab, stored, plan));
        }
    }
    Ok(())
}

/// Starts the app, asks it, freezes it.
fn store(lab: &Lab<'_>, workload: &dyn Workload, engine: &dyn Engine, scratch: &Path) -> Result<Stored> {
    let app = workload.prepare(lab.place)?;
    let root = measure::start(&*app, engine, None)?;
    let tree = proc::tree(root);
    let original_ms = (0..lab.runs).map(|_| asked(&*app)).collect::<Result<Vec<f64>>>()?;
    let touched = proc::touched_bytes(&tree, || {
        asked(&*app)?;
        std::thread::sleep(WORKING_SET);
        Ok(())
    })?;
    if let Some(port) = app.port() {
        net::wait_quiet(port)?;
    }
    let original_mb = measure::megabytes(proc::pss_bytes(&tree));
    let dir = scratch.join(engine.name());
    engine.snapshot(root, &dir, After::End).context("snapshot")?;
    proc::wait_gone(&tree, Duration::from_secs(10)).context("after the snapshot")?;
    files::sync(&dir)?;
    files::warm_cache(&dir)?;
    Ok(Stored {
        app,
        dir,
        original_ms,
        touched,
        original_mb,
    })
}

fn asked(app: &dyn App) -> Result<f64> {
    let begin_ns = now_ns();
    app.answers()?;
    Ok(millis_between(begin_ns, now_ns()))
}

/// One restore, its figure, the check, the end.
fn restored(engine: &dyn Engine, stored: &Stored, workload: &dyn Workload, plan: &Plan) -> Result<f64> {
    stored.app.forget()?;
    files::warm_memory(workload.memory_bytes());
    if plan.cold {
        engine.cool()?;
        files::drop_caches()?;
    } else {
        // Again each time: where memory is short, other images have driven it out.
        files::warm_cache(&stored.dir)?;
    }
    let (back, millis) = match plan.until {
        Until::FirstInstruction => {
            let back = engine.restore(&stored.dir).context("restore")?;
            let millis = first_instruction(&*stored.app, &back);
            (back, millis)
        }
        Until::Reply | Until::Return => {
            let (back, answered) = measure::restore_and_ask(&*stored.app, engine, &stored.dir);
            let back = back.context("restore")?;
            let millis = answered.map(|answered_ns| match plan.until {
                Until::Return => back.millis,
                _ => millis_between(back.begin_ns, answered_ns),
            });
            (back, millis)
        }
    };
    let right = millis.and_then(|millis| {
        stored.app.verify(&proc::tree(back.root)).context("after the restore")?;
        Ok(millis)
    });
    let ended = engine.end(&back).context("ending it");
    right.and_then(|millis| ended.map(|()| millis))
}

fn first_instruction(app: &dyn App, back: &Back) -> Result<f64> {
    let begin_ns = to_real_ns(back.begin_ns);
    measure::first_answer_ns(app, &std::sync::atomic::AtomicBool::new(false))?;
    let first_ns = app
        .first_instruction_ns()?
        .context("it does not tell when it ran first")?;
    ensure!(first_ns > begin_ns, "it ran before it was asked for");
    Ok(millis_between(begin_ns, first_ns))
}

/// One round of the bare program.
fn bare(lab: &Lab<'_>, stored: &Stored, plan: &Plan) -> Result<f64> {
    let image = files::largest(&stored.dir)?;
    if let Bare::Read = plan.bare {
        if plan.cold {
            files::drop_caches()?;
        }
        return files::read_millis(&image, stored.touched);
    }
    let program = lab.bare.as_deref().context("needs cc, for the bare program")?;
    let file = BeatFile::new(lab.place.beat_file("bare")?)?;
    let port = net::free_port()?;
    let arguments: Vec<OsString> = match plan.bare {
        Bare::First | Bare::Read => vec!["first".into(), file.path.clone().into()],
        Bare::Reply => vec![
            "reply".into(),
            port.to_string().into(),
            image.into(),
            stored.touched.to_string().into(),
        ],
        Bare::Tasks(kind, n) => vec![
            "tasks".into(),
            kind.into(),
            n.to_string().into(),
            file.path.clone().into(),
        ],
    };
    let mut husk = Husk::start(program, &arguments)?;
    let begin_ns = husk.go()?;
    match plan.bare {
        Bare::Reply => Ok(millis_between(begin_ns, husk::answered_ns(port)?)),
        _ => {
            let begin_ns = to_real_ns(begin_ns);
            Ok(millis_between(begin_ns, husk::noted_ns(&file)?))
        }
    }
}
