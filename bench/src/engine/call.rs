//! Ours, as a daemon uses it: one library call, in a process of its own per
//! operation. The time is that of the call, without starting the process.

use super::{After, Back, Engine, Taken};
use crate::clock::{millis_between, now_ns};
use crate::command::run;
use anyhow::{Context, Result, bail};
use libsnap::ids::HostPid;
use libsnap::target::{PidMode, RestoreOptions, SnapshotOptions, Target, TcpPolicy};
use std::path::{Path, PathBuf};
use std::process::Command;

/// First argument of the process that makes one call.
const OPERATE: &str = "operate";

#[derive(Debug)]
pub struct Call {
    scratch: PathBuf,
}

impl Call {
    pub fn new(scratch: &Path) -> Self {
        Call {
            scratch: scratch.to_owned(),
        }
    }

    fn operate<T: serde::de::DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(OPERATE).args(arguments);
        let done = run(&mut command, &self.scratch)?;
        serde_json::from_str(&done.stdout).context("the operation's answer")
    }
}

impl Engine for Call {
    fn name(&self) -> &'static str {
        "appshot call"
    }

    fn about(&self) -> String {
        format!(
            "`snapshot::snapshot` and `restore::restore` of libsnap {}, the calls alone",
            env!("CARGO_PKG_VERSION")
        )
    }

    fn missing(&self) -> Option<String> {
        // A process that does not exist is told from an engine that does not.
        let nobody = Target::Pid(HostPid(i32::MAX));
        let options = SnapshotOptions::default();
        let error = libsnap::snapshot::check(&nobody, &options).err()?;
        error
            .what
            .contains("not built")
            .then(|| "the engine, which is not built yet".to_owned())
    }

    fn snapshot(&self, root: i32, dest: &Path, after: After) -> Result<Taken> {
        let (root, dest) = (root.to_string(), dest.to_string_lossy());
        self.operate(&["snapshot", &dest, &root, after.name()])
    }

    fn restore(&self, source: &Path) -> Result<Back> {
        self.operate(&["restore", &source.to_string_lossy()])
    }
}

/// The other side: makes one call and prints what it took. `None` where the
/// arguments are not for it.
pub fn operate(arguments: &[String]) -> Option<Result<()>> {
    let (first, rest) = arguments.split_first()?;
    (first == OPERATE).then(|| match rest {
        [what, dest, root, after] if what == "snapshot" => {
            let after = After::named(after).context("no such end")?;
            print_json(&snapshot(Path::new(dest), root.parse()?, after)?)
        }
        [what, source] if what == "restore" => print_json(&restore(Path::new(source))?),
        _ => bail!("not an operation: {rest:?}"),
    })
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

fn snapshot(dest: &Path, root: i32, after: After) -> Result<Taken> {
    let target = Target::Pid(HostPid(root));
    let tcp = match after {
        // Its appshot shows them closed; the running app keeps them.
        After::Serve => TcpPolicy::Close,
        After::End | After::Run => TcpPolicy::default(),
    };
    let options = SnapshotOptions {
        leave_running: after != After::End,
        tcp,
        ..SnapshotOptions::default()
    };
    let begin_ns = now_ns();
    let report = libsnap::snapshot::snapshot(&target, dest, &options, &mut |_| {})?;
    Ok(Taken {
        millis: millis_between(begin_ns, now_ns()),
        told_frozen_millis: Some(report.frozen_micros as f64 / 1e3),
        phases: report.phases,
    })
}

fn restore(source: &Path) -> Result<Back> {
    let options = RestoreOptions {
        name: Some(format!("bench-{}", std::process::id())),
        pids: PidMode::New,
        ..RestoreOptions::default()
    };
    let begin_ns = now_ns();
    let instance = libsnap::restore::restore(source, &options)?;
    Ok(Back {
        name: instance.name.clone(),
        begin_ns,
        millis: millis_between(begin_ns, now_ns()),
        root: instance.child().0,
        cgroup: instance.cgroup,
        phases: instance.phases,
    })
}
