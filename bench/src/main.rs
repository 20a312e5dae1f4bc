//! Measures appshot against CRIU, round by round, on real programs.
//!
//! ```text
//! main ── place      where: private mounts, tmpfs on /run, temporary directories
//!      ── workload   what: start, ask, fill, verify; one module per program
//!      ── engine     by whom: our call, our command, the peer's command
//!      ── measure    one round of one workload on one side
//!      ── report     Markdown and JSON
//!      ── table      the rows that are to be reached, each with its floor
//!      ── entry      a node's two ways to an app, beside nginx and haproxy
//! ```
#![forbid(unsafe_code)]

mod clock;
mod command;
mod engine;
mod entry;
mod files;
mod floor;
mod machine;
mod measure;
mod net;
mod node;
mod pages;
mod place;
mod proc;
mod report;
mod stats;
mod table;
mod workload;

use crate::engine::Engine;
use crate::measure::{Figures, Meter};
use crate::place::Place;
use crate::report::{Measured, Report, Side};
use crate::workload::Workload;
use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// Measures appshot against CRIU on real programs. Runs as root.
#[derive(Debug, Parser)]
struct Arguments {
    /// The peer's binary; by default `criu` on the PATH.
    #[arg(long, value_name = "PATH")]
    criu: Option<PathBuf>,
    /// The table of what is to be reached, instead of the comparison of workloads.
    #[arg(long)]
    table: bool,
    /// What clients of a node get, beside nginx and haproxy, instead of the comparison.
    #[arg(long, conflicts_with_all = ["table", "criu", "only"])]
    entry: bool,
    /// Rounds of each workload on each side; by default 10, in the table 50, or
    /// 10 for gigabytes.
    #[arg(long)]
    runs: Option<usize>,
    /// Only these workloads, or rows of the table.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Where appshots are written.
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Writes every single figure to this file; rows of the table that it holds
    /// already and that are not measured now stay.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the report to this file; by default to the standard output.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Draws the pictures of the table into this directory.
    #[arg(long, value_name = "DIR", requires = "table")]
    pictures: Option<PathBuf>,
}

const RUNS: usize = 10;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match engine::operate(&arguments) {
        Some(operated) => operated,
        None => compare(&Arguments::parse()),
    }
}

fn compare(arguments: &Arguments) -> Result<()> {
    place::enter()?;
    let place = Place::new(&arguments.dir)?;
    end_all_on_interrupt(place.directories())?;
    if arguments.table {
        let request = table::Request {
            criu: arguments.criu.clone(),
            runs: arguments.runs,
            only: &arguments.only,
            json: arguments.json.as_deref(),
            markdown: arguments.markdown.as_deref(),
            pictures: arguments.pictures.as_deref(),
        };
        return table::run(&request, &place);
    }
    if arguments.entry {
        let report = entry::measure(&place, arguments.runs.unwrap_or(RUNS))?;
        return write(arguments, &report, &report.markdown());
    }
    let report = measure_all(arguments, &place)?;
    write(arguments, &report, &report.markdown())
}

fn write(arguments: &Arguments, report: &impl serde::Serialize, markdown: &str) -> Result<()> {
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_string_pretty(report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    match &arguments.markdown {
        Some(path) => std::fs::write(path, markdown).with_context(|| format!("cannot write {}", path.display())),
        None => {
            print!("{markdown}");
            Ok(())
        }
    }
}

/// On Ctrl-C nothing stays: neither processes nor files.
fn end_all_on_interrupt(directories: [PathBuf; 2]) -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    // Threads made later inherit the mask; programs started later do not.
    signals.thread_block()?;
    std::thread::spawn(move || {
        let _ = signals.wait();
        measure::INTERRUPTED.store(true, Ordering::SeqCst);
        let _ = proc::kill_all_below_me();
        directories.iter().for_each(|directory| files::remove(directory));
        std::process::exit(130);
    });
    Ok(())
}

fn measure_all(arguments: &Arguments, place: &Place) -> Result<Report> {
    let preload = workload::beat::build_preloaded(place);
    let workloads = chosen(place, preload.as_deref(), &arguments.only)?;
    let engines = engine::all(arguments.criu.clone(), place.disk());
    let sides: Vec<Side> = engines.iter().map(|engine| side(&**engine)).collect();
    let floor_ms = floor::measure()?;
    let meter = Meter {
        place,
        preload: preload.as_deref(),
    };
    let runs = arguments.runs.unwrap_or(RUNS);
    let measured = workloads
        .iter()
        .map(|workload| measured(runs, &meter, &**workload, &engines, &sides))
        .collect();
    Ok(Report {
        machine: machine::Machine::read(),
        runs,
        floor_ms,
        sides,
        workloads: measured,
    })
}

fn chosen(place: &Place, preload: Option<&Path>, only: &[String]) -> Result<Vec<Box<dyn Workload>>> {
    let mut workloads = workload::all(place, preload);
    let names: Vec<&str> = workloads.iter().map(|workload| workload.name()).collect();
    for name in only {
        ensure!(
            names.contains(&name.as_str()),
            "no workload {name}; there are {names:?}"
        );
    }
    workloads.retain(|workload| match only {
        [] => !workload::FOR_THE_TABLE.contains(&workload.name()),
        only => only.iter().any(|name| name == workload.name()),
    });
    Ok(workloads)
}

fn side(engine: &dyn Engine) -> Side {
    Side {
        name: engine.name(),
        about: engine.about(),
        missing: engine.missing(),
    }
}

/// All rounds of one workload: each side in turn, again and again.
fn measured(
    runs: usize,
    meter: &Meter<'_>,
    workload: &dyn Workload,
    engines: &[Box<dyn Engine>],
    sides: &[Side],
) -> Measured {
    let missing = workload.missing();
    let mut rounds: Vec<Vec<Figures>> = sides.iter().map(|_| Vec::new()).collect();
    for round in 0..if missing.is_some() { 0 } else { runs } {
        for ((engine, side), rounds) in engines.iter().zip(sides).zip(&mut rounds) {
            if side.missing.is_none() {
                eprintln!("{}: round {} of {runs}: {}", workload.name(), round + 1, side.name);
                rounds.push(meter.round(workload, &**engine));
            }
        }
    }
    Measured {
        name: workload.name(),
        about: workload.about(),
        missing,
        rounds,
    }
}
