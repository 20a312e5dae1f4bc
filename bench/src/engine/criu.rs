//! The peer, by its command line, as fast as it goes: quiet, and with its
//! kernel probes cached on the tmpfs at /run.

use super::{Back, Engine, Taken};
use crate::command::{find, run, version};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug)]
pub struct Criu {
    binary: Option<PathBuf>,
    scratch: PathBuf,
}

impl Criu {
    pub fn new(binary: Option<PathBuf>, scratch: &Path) -> Self {
        Criu {
            binary: binary.or_else(|| find("criu")),
            scratch: scratch.to_owned(),
        }
    }

    fn command(&self, action: &str, dir: &Path) -> Result<Command> {
        let binary = self.binary.as_ref().context("no criu binary")?;
        let mut command = Command::new(binary);
        command.args([action, "-v0", "-D"]).arg(dir);
        Ok(command)
    }
}

impl Engine for Criu {
    fn name(&self) -> &'static str {
        "criu"
    }

    fn about(&self) -> String {
        let told = self
            .binary
            .as_ref()
            .map(|binary| version(binary, "--version"));
        format!(
            "`criu dump` and `criu restore -d` from start to exit; {}",
            told.unwrap_or_default()
        )
    }

    fn missing(&self) -> Option<String> {
        let fix = || "a criu binary (--criu PATH)".to_owned();
        self.binary.is_none().then(fix)
    }

    fn snapshot(&self, root: i32, dest: &Path, leave_running: bool) -> Result<Taken> {
        std::fs::create_dir(dest)?;
        let mut command = self.command("dump", dest)?;
        command.args(["-t", &root.to_string()]);
        command.args(leave_running.then_some("--leave-running"));
        let done = run(&mut command, &self.scratch)?;
        Ok(Taken {
            millis: done.millis,
            told_frozen_millis: None,
        })
    }

    fn restore(&self, source: &Path) -> Result<Back> {
        let pidfile = self.scratch.join("criu.pid");
        let _ = std::fs::remove_file(&pidfile);
        let mut command = self.command("restore", source)?;
        command.arg("-d").arg("--pidfile").arg(&pidfile);
        let done = run(&mut command, &self.scratch)?;
        let root = std::fs::read_to_string(&pidfile)?.trim().parse()?;
        Ok(Back {
            begin_ns: done.begin_ns,
            millis: done.millis,
            root,
            cgroup: None,
        })
    }
}
