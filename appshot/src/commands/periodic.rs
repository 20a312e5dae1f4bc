//! `snapshot --every`: one after the other while the app runs.

use super::snapshot::told;
use crate::cli;
use libsnap::error::{OrFail, Result};
use libsnap::store::Store;
use libsnap::target::SnapshotReport;
use libsnap::units::span;
use nodekit::args::Format;
use nodekit::periodic::{End, Event, Series, Stop};
use nodekit::{interrupt, out, signals};
use std::time::Duration;

/// In front until Ctrl-C or the end of the app: both are ends as they should be.
pub fn snapshots(store: &Store, args: cli::Snapshot, every: Duration, quiet: bool) -> Result<u8> {
    let signals = signals::block()?;
    let (options, format) = (args.options(), args.output.format);
    let mut series = Series::new(store.clone(), args.target, args.prefix, every, args.keep)?;
    series.options = options;
    let stop = Stop::new()?;
    let stopper = stop.clone();
    interrupt::at_a_signal(signals, move || stopper.stop());
    let mut written = Ok(());
    let end = series.run(&stop, &mut |event| match event {
        Event::Taken(report) => {
            if let Err(error) = show(report, format, quiet) {
                stop.stop();
                written = Err(error);
            }
        }
        event => say(&series, &event, quiet),
    })?;
    written?;
    if end == End::Gone && !quiet {
        eprintln!("{} has ended", series.target);
    }
    Ok(0)
}

/// The result of each is one line.
fn show(report: &SnapshotReport, format: Format, quiet: bool) -> Result<()> {
    match format {
        Format::Json => {
            let line = serde_json::to_string(report).or_fail(|| "cannot write JSON")?;
            out::print(&format!("{line}\n"))
        }
        Format::Text => {
            out::print(&format!("{}\n", report.appshot.display()))?;
            if !quiet {
                eprintln!("{}", told(report));
            }
            Ok(())
        }
    }
}

fn say(series: &Series, event: &Event<'_>, quiet: bool) {
    match event {
        Event::Failed(error) => out::complain("appshot", error),
        _ if quiet => {}
        Event::Removed(name) => eprintln!("removed {name}"),
        Event::Needed(kept) => eprintln!("kept {}: {}", kept.name, kept.why),
        Event::Skipped { count, took } => eprintln!(
            "skipped {count}: the last one took {:.1} s, and one falls due every {}",
            took.as_secs_f64(),
            span(series.every)
        ),
        Event::PutOff { stood, next } => eprintln!(
            "the app stood still for {:.1} s: the next one is taken {:.1} s after this one, not {}, so that the \
             app runs for nine tenths of the time",
            stood.as_secs_f64(),
            next.as_secs_f64(),
            span(series.every)
        ),
        Event::Taken(_) => {}
    }
}
