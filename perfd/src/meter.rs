//! One reading of every app's cgroup.

use libsnap::cgroup;
use libsnap::error::Result;
use libsnap::store::{State, Store, View};
use nodekit::out;
use serde::{Deserialize, Serialize};

/// What one app uses. A value that cannot be read is absent, not zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meter {
    pub app: String,
    pub state: State,
    /// CPU time since this instance began.
    pub cpu_ns: Option<u64>,
    pub memory_bytes: Option<u64>,
}

pub fn read(store: &Store) -> Result<Vec<Meter>> {
    Ok(store.views()?.iter().map(meter).collect())
}

/// An app without processes uses neither: its cgroup is gone, or about to go.
fn meter(view: &View) -> Meter {
    let cgroup = view.cgroup.as_deref().filter(|_| view.alive());
    let usage = cgroup.and_then(|cgroup| cgroup::usage(cgroup).ok());
    Meter {
        app: view.name.clone(),
        state: view.state,
        cpu_ns: usage.map(|usage| usage.cpu_ns),
        memory_bytes: usage.and_then(|usage| usage.memory_bytes),
    }
}

pub fn text(meters: &[Meter]) -> String {
    let rows: Vec<Vec<String>> = meters.iter().map(row).collect();
    out::table(&["APP", "STATE", "CPU", "MEMORY"], &rows)
}

fn row(meter: &Meter) -> Vec<String> {
    let unknown = || "-".to_owned();
    vec![
        meter.app.clone(),
        meter.state.to_string(),
        meter.cpu_ns.map_or_else(unknown, seconds),
        meter.memory_bytes.map_or_else(unknown, out::bytes),
    ]
}

/// `1.25 s`
fn seconds(ns: u64) -> String {
    let hundredths = ns / 10_000_000;
    format!("{}.{:02} s", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_is_not_zero() {
        let meter = Meter {
            app: "web".to_owned(),
            state: State::Running,
            cpu_ns: Some(1_250_000_000),
            memory_bytes: None,
        };
        assert_eq!(row(&meter), ["web", "running", "1.25 s", "-"]);
    }
}
