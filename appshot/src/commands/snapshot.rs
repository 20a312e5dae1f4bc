//! `snapshot` and `check`.

use crate::cli;
use libsnap::error::{Kind, Result};
use libsnap::store::Store;
use libsnap::target::{CheckReport, SnapshotOptions, SnapshotReport};
use nodekit::jobs::{self, Job, Place, Snapshot};
use nodekit::{interrupt, out, progress};

pub fn snapshot(store: &Store, args: cli::Snapshot, quiet: bool) -> Result<u8> {
    if let Some(every) = args.every {
        return super::periodic::snapshots(store, args, every, quiet);
    }
    let format = args.output.format;
    let parent = args.parent.as_ref().map(|parent| store.resolve_appshot(parent));
    let options = SnapshotOptions {
        parent: parent.transpose()?,
        ..args.options()
    };
    let job = Job::Snapshot(Snapshot {
        store: store.clone(),
        options,
        hooks: args.hooks(),
        place: place(&args)?,
        target: args.target,
        cause: None,
    });
    let report: SnapshotReport = progress::shown(quiet, |progress| interrupt::in_worker(&job, progress))?;
    out::show(format, &report, |report| format!("{}\n", report.appshot.display()))?;
    if !quiet && format == nodekit::args::Format::Text {
        eprintln!("{}", told(&report));
        if let Some(rehearsal) = &report.rehearsal {
            eprint!("{}", super::rehearse::told(rehearsal));
        }
    }
    if let Some(rehearsal) = report.rehearsal {
        rehearsal.into_result(&report.appshot, "the app is running as before")?;
    }
    Ok(0)
}

/// The worker keeps our directory, but its answer should hold everywhere.
fn place(args: &cli::Snapshot) -> Result<Place> {
    match &args.dest {
        Some(dir) => Ok(Place::Path(libsnap::store::absolute(dir)?)),
        None => Ok(Place::Store {
            tag: args.tag.clone(),
            replace: args.replace,
        }),
    }
}

pub fn told(report: &SnapshotReport) -> String {
    format!(
        "{}: {}, {}, {} of memory in {} on disk; stood still {}, took {}",
        report.app,
        out::count(report.processes, "process", "processes"),
        out::count(report.threads, "thread", "threads"),
        out::bytes(report.memory_bytes),
        out::bytes(report.disk_bytes),
        out::millis(report.frozen_micros),
        out::millis(report.total_micros)
    ) + &unseen(&report.unseen)
}

fn unseen(what: &[String]) -> String {
    match what {
        [] => String::new(),
        what => format!(
            "\n  not seen, as this host does not tell it (`appshot doctor`: bpf(2), BTF): {}",
            what.join("; ")
        ),
    }
}

/// Ends like the snapshot would: with "refused" where there is a finding.
pub fn check(store: &Store, args: &cli::Check) -> Result<u8> {
    let report = jobs::check(store, &args.target, cli::policies(args.policies))?;
    out::show(args.output.format, &report, findings)?;
    match report.refusals.is_empty() {
        true => Ok(0),
        false => Ok(Kind::Refused.exit_code()),
    }
}

fn findings(report: &CheckReport) -> String {
    let mut text = match report.refusals.len() {
        0 => "can be frozen".to_owned(),
        many => format!("would be refused for {}", out::count(many, "reason", "reasons")),
    };
    text += &format!(
        ": {}, {}\n",
        out::count(report.processes, "process", "processes"),
        out::count(report.threads, "thread", "threads")
    );
    for refusal in &report.refusals {
        text += &format!("  refused  {refusal}\n");
    }
    for need in &report.depends {
        text += &format!("  needs    {need}\n");
    }
    text + &unseen(&report.unseen)
}
