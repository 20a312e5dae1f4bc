//! An app that is detached, through the command line: where its output goes,
//! and that one command can follow the other at once.

use anyhow::{Context, Result, ensure};
use appshot_tests::verdict::{PATIENCE, need_root, on_own_thread, poll};
use std::path::Path;
use std::process::Command;

/// Counts into its output.
const TICKS: &str = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.05; done";

fn appshot(dir: &Path, words: &[&str]) -> Result<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_appshot"))
        .args(words)
        .env("APPSHOT_RUN_DIR", dir.join("run"))
        .env("APPSHOT_DATA_DIR", dir.join("data"))
        .output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words:?}: {told}");
    Ok(String::from_utf8(output.stdout)?)
}

fn number(line: &str) -> Result<u64> {
    Ok(line.trim().strip_prefix("tick ").context("no tick")?.parse()?)
}

/// The log is the instance's own: the first one's may be gone, and the second
/// goes on counting in another.
#[test]
fn each_instance_has_its_own_log() {
    on_own_thread("each_instance_has_its_own_log", || {
        need_root()?;
        let dir = tempfile::tempdir()?;
        let dir = dir.path();
        let (first, second) = ("ticks-first", "ticks-second");
        let log = |name: &str| {
            poll("a tick", PATIENCE, || {
                let text = appshot(dir, &["logs", name])?;
                Ok(text.ends_with('\n').then_some(text))
            })
        };
        appshot(dir, &["run", "--name", first, "-d", "--", "sh", "-c", TICKS])?;
        log(first)?;
        appshot(dir, &["snapshot", first, "--tag", second])?;
        let before = log(first)?;
        appshot(dir, &["rm", first, "--appshot"])?;
        appshot(dir, &["restore", second, "-d"])?;
        let after = log(second);
        appshot(dir, &["kill", "--wait", second])?;
        appshot(dir, &["rm", second, "--appshot"])?;
        let (before, after) = (before.lines().last(), after?);
        let after = after.lines().next();
        ensure!(
            number(before.context("empty")?)? + 1 == number(after.context("empty")?)?,
            "{before:?} {after:?}"
        );
        Ok(())
    });
}
