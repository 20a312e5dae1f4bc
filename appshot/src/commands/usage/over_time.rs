//! `usage top` and `usage chart`: use over time, for people.

use crate::cli;
use libsnap::error::{Error, Kind, Result};
use libsnap::store::{Store, closest, now_unix_ms};
use nodekit::out;
use usage::period::second;
use usage::rollups::{By, Measure, Question, Rollups, Told};

fn question(looked: &cli::Looked, by: By) -> Result<Question> {
    let now = now_unix_ms()? / 1000;
    Ok(Question {
        step: looked.step.into(),
        by,
        of: looked.of.into(),
        since: looked.since.map_or(0, |back| now.saturating_sub(back.as_secs())),
    })
}

pub fn top(store: &Store, args: &cli::UsageTop) -> Result<u8> {
    let question = question(&args.looked, args.by.into())?;
    let told = Rollups::open(&store.usage_dir())?.top(&question)?;
    out::show(args.output.format, &told, |told| {
        let show = |value| value_of(question.of, value);
        let row = |of: &Told| {
            let values = [of.mean, of.rms, of.p50, of.p95, of.p99, of.max].map(show);
            let mut row = vec![of.name.clone(), sum_of(question.of, of.sum)];
            row.extend(values);
            row.push(of.seconds.to_string());
            row
        };
        let rows: Vec<Vec<String>> = told.iter().map(row).collect();
        out::table(
            &["NAME", "SUM", "MEAN", "RMS", "P50", "P95", "P99", "MAX", "SECONDS"],
            &rows,
        )
    })?;
    Ok(0)
}

/// Bars of the longest.
const WIDTH: f64 = 50.0;

pub fn chart(store: &Store, args: &cli::UsageChart) -> Result<u8> {
    let by = match (&args.name, args.by) {
        (None, _) => By::Node,
        (Some(_), by) => by.into(),
    };
    let name = args.name.as_deref().unwrap_or("node");
    let question = question(&args.looked, by)?;
    let rollups = Rollups::open(&store.usage_dir())?;
    let told = rollups.over_time(&question, name)?;
    if told.is_empty() {
        let all = rollups.top(&Question { since: 0, ..question })?;
        let known = all.iter().map(|told| told.name.as_str());
        let error = Error::new(Kind::NotFound, format!("nothing is known of the use of {name:?}"));
        return Err(match closest(name, known).filter(|near| *near != name) {
            Some(near) => error.fix(format!("did you mean {near:?}?")),
            None => error.fix("`appshot usage top` lists what there is; a longer --since or --step looks farther back"),
        });
    }
    out::show(args.output.format, &told, |told| {
        let highest = told.iter().map(|of| of.mean).fold(0.0, f64::max);
        let row = |of: &Told| {
            let length = if highest > 0.0 { of.mean / highest * WIDTH } else { 0.0 };
            let bar = "#".repeat(length.round() as usize);
            vec![
                second(of.at * 1000),
                value_of(question.of, of.mean),
                value_of(question.of, of.max),
                bar,
            ]
        };
        let rows: Vec<Vec<String>> = told.iter().map(row).collect();
        out::table(&["FROM", "MEAN", "MAX", ""], &rows)
    })?;
    Ok(0)
}

fn value_of(measure: Measure, value: f64) -> String {
    match measure {
        Measure::Cpu => format!("{value:.3}"),
        Measure::Memory => out::bytes(value as u64),
        Measure::Requests => format!("{value:.2}/s"),
        Measure::Sent => format!("{}/s", out::bytes(value as u64)),
    }
}

fn sum_of(measure: Measure, value: f64) -> String {
    match measure {
        Measure::Cpu => format!("{value:.3} s"),
        Measure::Memory => format!("{:.3} GiB s", value / f64::from(1 << 30)),
        Measure::Requests => format!("{value:.0}"),
        Measure::Sent => out::bytes(value as u64),
    }
}
