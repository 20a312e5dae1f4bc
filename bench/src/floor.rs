//! The floor under every figure: starting and reaping a program that does
//! nothing.

use crate::clock::{millis_between, now_ns};
use crate::stats::Summary;
use anyhow::{Context, Result};
use std::process::Command;

const RUNS: usize = 200;

/// Milliseconds of fork, exec and wait for `/bin/true`.
pub fn measure() -> Result<Summary> {
    let mut millis = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let begin_ns = now_ns();
        Command::new("/bin/true").status()?;
        millis.push(millis_between(begin_ns, now_ns()));
    }
    Summary::of(&millis).context("no runs")
}
