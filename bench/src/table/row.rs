//! A row of the table: what was measured, by whom, and what was to be reached.

use crate::stats::{Summary, quantile, ratio};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Who or what was measured.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Column {
    Ours,
    Peer,
    /// The peer's lazy-pages mode.
    PeerLazy,
    /// A bare program that does the same steps.
    Floor,
    /// The app that was never frozen.
    Original,
}

impl Column {
    pub fn name(self) -> &'static str {
        match self {
            Column::Ours => "ours",
            Column::Peer => "CRIU",
            Column::PeerLazy => "CRIU lazy",
            Column::Floor => "floor",
            Column::Original => "original",
        }
    }
}

/// What was to be reached; units are those of the row.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    MedianAtMost(f64),
    P99AtMost(f64),
    MedianAtLeast(f64),
    /// The other side's figure is so many times ours.
    Times(Column, f64),
    /// Ours is at most so many times the other's.
    AtMostTimes(Column, f64),
    /// Ours is at most so much above the other's.
    Above(Column, f64),
    /// Ours is at most so many times that of the row `redis-100mb`.
    TimesOf100Mb(f64),
}

/// The rounds of one side: in the order of all sides, so that they make pairs.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Series {
    pub values: Vec<Option<f64>>,
    /// Why a round failed, each reason once.
    pub failures: Vec<String>,
    /// Why it was not measured at all.
    pub missing: Option<String>,
}

impl Series {
    pub fn good(&self) -> Vec<f64> {
        self.values.iter().flatten().copied().collect()
    }

    pub fn summary(&self) -> Option<Summary> {
        Summary::of(&self.good())
    }

    fn median(&self) -> Option<f64> {
        quantile(&self.good(), 0.5)
    }

    fn p99(&self) -> Option<f64> {
        quantile(&self.good(), 0.99)
    }
}

/// One row.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Row {
    pub id: String,
    pub work: String,
    pub unit: String,
    pub targets: Vec<Target>,
    pub series: BTreeMap<Column, Series>,
    /// Memory of the original in MB, where a picture is drawn from it.
    pub size_mb: Option<f64>,
    /// What else was seen.
    pub notes: Vec<String>,
}

impl Row {
    pub fn side(&mut self, column: Column) -> &mut Series {
        self.series.entry(column).or_default()
    }

    /// The result of a round: its figure, or why there is none.
    pub fn push(&mut self, column: Column, result: anyhow::Result<f64>) {
        let side = self.side(column);
        match result {
            Ok(value) => side.values.push(Some(value)),
            Err(error) => {
                let reason = format!("{error:#}");
                eprintln!("  {}: {reason}", column.name());
                side.values.push(None);
                if !side.failures.contains(&reason) {
                    side.failures.push(reason);
                }
            }
        }
    }

    /// Nothing can be measured on this side, and why.
    pub fn missing(&mut self, column: Column, why: impl Into<String>) {
        self.side(column).missing = Some(why.into());
    }

    /// Does it fail again and again?
    pub fn hopeless(&self, column: Column) -> bool {
        let values = self.series.get(&column).map(|side| side.values.as_slice());
        values.is_some_and(|values| values.len() >= 3 && values.iter().all(Option::is_none))
    }

    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    pub fn median(&self, column: Column) -> Option<f64> {
        self.series.get(&column)?.median()
    }

    /// Median of `column` / ours, pair by pair.
    pub fn ratio(&self, column: Column) -> Option<f64> {
        let ours = self.series.get(&Column::Ours)?;
        ratio(&ours.values, &self.series.get(&column)?.values)
    }

    /// Whether the target is reached; `None` where it cannot be told.
    pub fn reached(&self, target: Target, all: &[Row]) -> Option<bool> {
        let ours = self.series.get(&Column::Ours)?;
        let median = ours.median()?;
        Some(match target {
            Target::MedianAtMost(limit) => median <= limit,
            Target::P99AtMost(limit) => ours.p99()? <= limit,
            Target::MedianAtLeast(limit) => median >= limit,
            Target::Times(column, times) => self.ratio(column)? >= times,
            Target::AtMostTimes(column, times) => median <= times * self.median(column)?,
            Target::Above(column, above) => median <= self.median(column)? + above,
            Target::TimesOf100Mb(times) => {
                let small = all.iter().find(|row| row.id == "redis-100mb")?;
                median <= times * small.median(Column::Ours)?
            }
        })
    }

    pub fn told(&self, target: Target) -> String {
        let unit = &self.unit;
        match target {
            Target::MedianAtMost(limit) => format!("p50 <= {limit} {unit}"),
            Target::P99AtMost(limit) => format!("p99 <= {limit} {unit}"),
            Target::MedianAtLeast(limit) => format!(">= {limit} {unit}"),
            Target::Times(column, times) => format!("{} >= {times}x", column.name()),
            Target::AtMostTimes(column, times) => format!("<= {times}x {}", column.name()),
            Target::Above(column, above) => format!("<= {} + {above} {unit}", column.name()),
            Target::TimesOf100Mb(times) => format!("<= {times}x 100 MB"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ours: &[f64], peer: &[f64]) -> Row {
        let series = |values: &[f64]| Series {
            values: values.iter().copied().map(Some).collect(),
            ..Series::default()
        };
        Row {
            id: "redis-1gb".to_owned(),
            work: String::new(),
            unit: "ms".to_owned(),
            targets: Vec::new(),
            series: BTreeMap::from([(Column::Ours, series(ours)), (Column::Peer, series(peer))]),
            size_mb: None,
            notes: Vec::new(),
        }
    }

    #[test]
    fn targets_are_held_against_the_pairs() {
        let row = row(&[1.0, 2.0, 3.0], &[10.0, 30.0, 60.0]);
        assert_eq!(row.reached(Target::MedianAtMost(2.0), &[]), Some(true));
        assert_eq!(row.reached(Target::P99AtMost(2.5), &[]), Some(false));
        assert_eq!(row.reached(Target::Times(Column::Peer, 15.0), &[]), Some(true));
        assert_eq!(row.reached(Target::Times(Column::Peer, 16.0), &[]), Some(false));
        assert_eq!(row.reached(Target::Above(Column::Peer, -27.0), &[]), Some(true));
    }

    #[test]
    fn what_was_not_measured_is_not_judged() {
        let row = row(&[2.0], &[]);
        assert_eq!(row.reached(Target::Times(Column::Peer, 1.0), &[]), None);
        assert_eq!(row.reached(Target::AtMostTimes(Column::Floor, 2.0), &[]), None);
        assert_eq!(row.reached(Target::TimesOf100Mb(1.5), &[]), None);
        let mut small = row.clone();
        small.id = "redis-100mb".to_owned();
        assert_eq!(row.reached(Target::TimesOf100Mb(1.5), &[small]), Some(true));
    }
}
