//! Ours, as a person uses it: the `appshot` command beside this binary, from
//! start to exit.

use super::{After, Back, Engine, Taken};
use crate::command::{run, version};
use anyhow::{Context, Result};
use libsnap::target::{Instance, SnapshotReport};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug)]
pub struct FrontEnd {
    binary: PathBuf,
    scratch: PathBuf,
}

impl FrontEnd {
    pub fn new(scratch: &Path) -> Self {
        let beside = std::env::current_exe().unwrap_or_default();
        FrontEnd {
            binary: beside.with_file_name("appshot"),
            scratch: scratch.to_owned(),
        }
    }

    /// `appshot WHAT --quiet --format json`, with its records and logs beside
    /// ours.
    fn command(&self, what: &str) -> Command {
        let mut command = self.plain(what);
        command.args(["--format", "json"]);
        command
    }

    /// `appshot WHAT --quiet`, which prints its results as text.
    pub fn plain(&self, what: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.args([what, "--quiet"]);
        command.env("APPSHOT_DATA_DIR", self.scratch.join("data"));
        command
    }
}

impl Engine for FrontEnd {
    fn name(&self) -> &'static str {
        "appshot command"
    }

    fn about(&self) -> String {
        format!(
            "`appshot snapshot` and `appshot restore -d` from start to exit; {}",
            version(&self.binary, "--version")
        )
    }

    fn missing(&self) -> Option<String> {
        let mut help = Command::new(&self.binary);
        help.arg("--help");
        let works = run(&mut help, &self.scratch).is_ok_and(|done| done.stdout.contains("snapshot"));
        let fix = || "the appshot command (cargo build --release -p appshot)".to_owned();
        (!works).then(fix)
    }

    fn snapshot(&self, root: i32, dest: &Path, after: After) -> Result<Taken> {
        let mut command = self.command("snapshot");
        command.arg("--to").arg(dest).arg(root.to_string());
        command.args((after != After::End).then_some("--leave-running"));
        command.args((after == After::Serve).then_some("--tcp=close"));
        let done = run(&mut command, &self.scratch)?;
        let report: SnapshotReport = serde_json::from_str(&done.stdout).context("the snapshot's report")?;
        Ok(Taken {
            millis: done.millis,
            told_frozen_millis: Some(report.frozen_micros as f64 / 1e3),
            phases: report.phases,
        })
    }

    fn restore(&self, source: &Path) -> Result<Back> {
        let name = format!("bench-{}", crate::clock::now_ns());
        let mut command = self.command("restore");
        command.args(["--detach", "--name", &name]).arg(source);
        let done = run(&mut command, &self.scratch)?;
        let instance: Instance = serde_json::from_str(&done.stdout).context("the restored instance")?;
        Ok(Back {
            name,
            begin_ns: done.begin_ns,
            millis: done.millis,
            root: instance.child().0,
            cgroup: instance.cgroup,
            phases: instance.phases,
        })
    }
}
