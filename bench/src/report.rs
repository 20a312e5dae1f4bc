//! The figures, as a Markdown report and as JSON.

use crate::machine::Machine;
use crate::measure::Figures;
use crate::stats::{Summary, ratio};
use serde::Serialize;
use std::fmt::Write;

/// Everything that one run of the benchmark found.
#[derive(Debug, Serialize)]
pub struct Report {
    pub machine: Machine,
    pub runs: usize,
    pub floor_ms: Summary,
    pub sides: Vec<Side>,
    pub workloads: Vec<Measured>,
}

/// One side of the comparison; the peer is the last.
#[derive(Debug, Serialize)]
pub struct Side {
    pub name: &'static str,
    pub about: String,
    /// Why it was not measured.
    pub missing: Option<String>,
}

/// One workload; the rounds of each side stand in the order of the sides.
#[derive(Debug, Serialize)]
pub struct Measured {
    pub name: &'static str,
    pub about: String,
    pub missing: Option<String>,
    pub rounds: Vec<Vec<Figures>>,
}

/// One table of the report.
struct Table {
    title: &'static str,
    note: &'static str,
    value: fn(&Figures) -> Option<f64>,
    /// Only there to judge the others by: a ratio would say nothing.
    scale: bool,
}

const TABLES: &[Table] = &[
    Table {
        title: "Snapshot time (ms)",
        note: "The app is ended. Until the call or command returns: ours has then put everything on the disk, the peer has not.",
        value: |f| f.snapshot_ms,
        scale: false,
    },
    Table {
        title: "Snapshot time until it is on the disk (ms)",
        note: "The same, and then an fsync of every file.",
        value: |f| f.durable_ms,
        scale: false,
    },
    Table {
        title: "Frozen time (ms)",
        note: "Longest pause of a heartbeat every 100 us inside the app, which is left running.",
        value: |f| f.frozen_ms,
        scale: false,
    },
    Table {
        title: "Longest pause of the same heartbeat without a snapshot (ms)",
        note: "For scale: what the scheduler alone does in 300 ms.",
        value: |f| f.undisturbed_ms,
        scale: true,
    },
    Table {
        title: "Restore time (ms)",
        note: "Until the call or command returns.",
        value: |f| f.restore_ms,
        scale: false,
    },
    Table {
        title: "Time to the first reply (ms)",
        note: "From the begin of the restore to the first right answer on the app's port, or the first heartbeat.",
        value: |f| f.reply_ms,
        scale: false,
    },
    Table {
        title: "Size on disk (MB)",
        note: "Blocks in use.",
        value: |f| f.disk_mb,
        scale: false,
    },
    Table {
        title: "Memory after the restore (MB)",
        note: "Proportional set size of the tree, after it was verified.",
        value: |f| f.memory_mb,
        scale: false,
    },
    Table {
        title: "Memory of the original (MB)",
        note: "The same, before the snapshot.",
        value: |f| f.original_mb,
        scale: true,
    },
];

impl Report {
    pub fn markdown(&self) -> String {
        let mut text = self.heading();
        for table in TABLES {
            self.table(&mut text, table);
        }
        self.failures(&mut text);
        text
    }

    fn heading(&self) -> String {
        let m = &self.machine;
        let mut text = format!(
            "# Benchmark\n\n{} x {}, {:.0} GiB, Linux {}. {} rounds of each, in turn; \
             median / p90; page cache warm. A ratio above 1 says how many times better \
             ours is: median of the ratios of each round.\n\n\
             For scale: fork, exec and wait of /bin/true took {:.2} / {:.2} ms.\n\n",
            m.cpus, m.cpu, m.memory_gib, m.kernel, self.runs, self.floor_ms.median, self.floor_ms.p90,
        );
        for side in &self.sides {
            let not_run = side.missing.as_ref().map(|why| format!(" **Not run: needs {why}.**"));
            let _ = writeln!(
                text,
                "- **{}**: {}.{}",
                side.name,
                side.about,
                not_run.unwrap_or_default()
            );
        }
        text.push('\n');
        for workload in &self.workloads {
            let _ = writeln!(text, "- `{}`: {}", workload.name, workload.about);
        }
        text
    }

    fn table(&self, text: &mut String, table: &Table) {
        let (peer, ours) = self.sides.split_last().expect("there are three sides");
        let ours = if table.scale { &[] } else { ours };
        let _ = write!(text, "\n## {}\n\n{}\n\n| workload |", table.title, table.note);
        for side in &self.sides {
            let _ = write!(text, " {} |", side.name);
        }
        for side in ours {
            let _ = write!(text, " {} / {} |", peer.name, side.name);
        }
        let columns = 1 + self.sides.len() + ours.len();
        let _ = writeln!(text, "\n|{}", "---|".repeat(columns));
        for workload in &self.workloads {
            self.row(text, table, workload);
        }
    }

    fn row(&self, text: &mut String, table: &Table, workload: &Measured) {
        let _ = write!(text, "| {} |", workload.name);
        if let Some(missing) = &workload.missing {
            let _ = writeln!(text, " not run: needs {missing} |");
            return;
        }
        let values: Vec<Vec<Option<f64>>> = workload
            .rounds
            .iter()
            .map(|rounds| rounds.iter().map(table.value).collect())
            .collect();
        for values in &values {
            let _ = write!(text, " {} |", cell(values));
        }
        let (peer, ours) = values.split_last().expect("there are three sides");
        for ours in if table.scale { &[] } else { ours } {
            let ratio = ratio(ours, peer).map_or_else(|| "-".to_owned(), |r| format!("{r:.2}x"));
            let _ = write!(text, " {ratio} |");
        }
        text.push('\n');
    }

    fn failures(&self, text: &mut String) {
        let mut lines = Vec::new();
        for workload in &self.workloads {
            for (side, rounds) in self.sides.iter().zip(&workload.rounds) {
                for (round, figures) in rounds.iter().enumerate() {
                    let told = figures.failures.iter();
                    lines.extend(
                        told.map(|failure| {
                            format!("- {}, {}, round {}: {failure}", workload.name, side.name, round + 1)
                        }),
                    );
                }
            }
        }
        let _ = write!(text, "\n## Failures\n\n");
        let _ = writeln!(
            text,
            "{}",
            if lines.is_empty() {
                "None.".to_owned()
            } else {
                lines.join("\n")
            }
        );
    }
}

/// Median and p90 of the rounds that succeeded, and how many did not.
fn cell(values: &[Option<f64>]) -> String {
    if values.is_empty() {
        return "not run".to_owned();
    }
    let good: Vec<f64> = values.iter().flatten().copied().collect();
    let failed = values.len() - good.len();
    let told = Summary::of(&good).map(|s| format!("{} / {}", number(s.median), number(s.p90)));
    match (told, failed) {
        (Some(told), 0) => told,
        (Some(told), failed) => format!("{told} ({failed} of {} failed)", values.len()),
        (None, _) => "failed".to_owned(),
    }
}

/// Three digits that count.
fn number(value: f64) -> String {
    match value {
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_shown_beside_what_succeeded() {
        assert_eq!(cell(&[]), "not run");
        assert_eq!(cell(&[None]), "failed");
        assert_eq!(cell(&[Some(1.0), None]), "1.00 / 1.00 (1 of 2 failed)");
        assert_eq!(cell(&[Some(12.34), Some(12.34)]), "12.3 / 12.3");
    }
}
