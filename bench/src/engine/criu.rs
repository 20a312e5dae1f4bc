//! The peer, by its command line, as fast as it goes: quiet, and with its
//! kernel probes cached on the tmpfs at /run.

use super::{After, Back, Engine, Taken};
use crate::command::{Done, find, run, version};
use anyhow::{Context, Result};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug)]
pub struct Criu {
    binary: Option<PathBuf>,
    pub scratch: PathBuf,
}

impl Criu {
    pub fn new(binary: Option<PathBuf>, scratch: &Path) -> Self {
        Criu {
            binary: binary.or_else(|| find("criu")),
            scratch: scratch.to_owned(),
        }
    }

    /// `criu ACTION -D DIR`.
    pub fn command(&self, action: &str, dir: &Path) -> Result<Command> {
        let binary = self.binary.as_ref().context("no criu binary")?;
        let mut command = Command::new(binary);
        command.args([action, "-D"]).arg(dir);
        Ok(command)
    }

    /// Runs it quietly. One that fails is run once more, to be told why.
    fn quietly(&self, mut command: Command) -> Result<Done> {
        let mut again = copy(&command);
        run(command.arg("-v0"), &self.scratch).map_err(|quiet| {
            let loud = run(again.arg("-v1"), &self.scratch).err();
            let why = loud.map_or_else(|| "the second try succeeded".to_owned(), |e| e.to_string());
            quiet.context(why)
        })
    }
}

impl Engine for Criu {
    fn name(&self) -> &'static str {
        "criu"
    }

    fn about(&self) -> String {
        let told = self.binary.as_ref().map(|binary| version(binary, "--version"));
        format!(
            "`criu dump` and `criu restore -d` from start to exit; {}",
            told.unwrap_or_default()
        )
    }

    fn missing(&self) -> Option<String> {
        let fix = || "a criu binary (--criu PATH)".to_owned();
        let found = self.binary.as_ref().is_some_and(|binary| binary.is_file());
        (!found).then(fix)
    }

    fn snapshot(&self, root: i32, dest: &Path, after: After) -> Result<Taken> {
        std::fs::create_dir(dest)?;
        let mut command = self.command("dump", dest)?;
        command.args(["-t", &root.to_string()]);
        command.args((after != After::End).then_some("--leave-running"));
        if after == After::Serve {
            // No packet filter: with the app's own sockets open nothing is lost.
            command.args(["--tcp-established", "--network-lock", "skip"]);
        }
        let done = self.quietly(command)?;
        Ok(Taken {
            millis: done.millis,
            told_frozen_millis: None,
            phases: Vec::new(),
        })
    }

    fn wants_ipc_namespace(&self) -> bool {
        true
    }

    fn restore(&self, source: &Path) -> Result<Back> {
        self.restore_with(source, &[])
    }
}

impl Criu {
    /// `criu restore -d`, with more options.
    pub fn restore_with(&self, source: &Path, options: &[&OsStr]) -> Result<Back> {
        let pidfile = self.scratch.join("criu.pid");
        let _ = std::fs::remove_file(&pidfile);
        let mut command = self.command("restore", source)?;
        command.arg("-d").arg("--pidfile").arg(&pidfile).args(options);
        let done = self.quietly(command)?;
        let root = std::fs::read_to_string(&pidfile)?.trim().parse()?;
        Ok(Back {
            name: String::new(),
            begin_ns: done.begin_ns,
            millis: done.millis,
            root,
            cgroup: None,
            phases: Vec::new(),
        })
    }
}

fn copy(command: &Command) -> Command {
    let mut copy = Command::new(command.get_program());
    copy.args(command.get_args());
    copy
}
