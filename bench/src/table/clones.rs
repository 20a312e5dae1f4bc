//! Rows of clones, by `appshot clone NAME -n N`, which prints the names of the
//! instances, one a line, and `appshot revert INSTANCE`.

use super::Lab;
use super::husk::{self, Husk};
use super::memory::host_bytes;
use super::row::{Column, Row};
use crate::clock::{millis_between, now_ns};
use crate::command::run;
use crate::engine::{After, Engine, FrontEnd};
use crate::stats::quantile;
use crate::workload::App;
use crate::{files, measure, net, proc};
use anyhow::{Context, Result, ensure};
use libsnap::store::View;
use nix::sched::{CloneFlags, setns};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The app that is cloned.
const WORKLOAD: &str = "redis-100mb";
const MEGABYTES: usize = 100;
const CLONES: usize = 100;
/// What a clone writes before it is reverted: keys of a kilobyte.
const DIRTY_KEYS: usize = 1000;

/// A template to clone from, and the clones that exist.
struct Cloner<'a> {
    front_end: FrontEnd,
    scratch: &'a Path,
    appshot: PathBuf,
    app: Box<dyn App>,
    port: u16,
}

impl<'a> Cloner<'a> {
    /// `None` where the command has no clones yet: the row says so.
    fn new(lab: &Lab<'_>, command: &str, scratch: &'a Path, row: &mut Row) -> Result<Option<Self>> {
        let front_end = FrontEnd::new(scratch);
        let mut help = front_end.plain(command);
        if run(help.arg("--help"), scratch).is_err() {
            row.missing(Column::Ours, format!("not built: `appshot {command}`"));
            return Ok(None);
        }
        let app = lab.workload(WORKLOAD)?.prepare(lab.place)?;
        let root = measure::start(&*app, &front_end, None)?;
        let tree = proc::tree(root);
        let appshot = scratch.join("template");
        front_end.snapshot(root, &appshot, After::End)?;
        proc::wait_gone(&tree, Duration::from_secs(10))?;
        files::warm_cache(&appshot)?;
        let port = app.port().context("it has no port")?;
        Ok(Some(Cloner {
            front_end,
            scratch,
            appshot,
            app,
            port,
        }))
    }

    /// Makes `n` clones; answers when the command began, and their names.
    fn clones(&self, n: usize) -> Result<(u64, Vec<String>)> {
        self.clones_with(n, &[])
    }

    fn clones_with(&self, n: usize, words: &[&str]) -> Result<(u64, Vec<String>)> {
        let mut command = self.front_end.plain("clone");
        command.arg(&self.appshot).args(["-n", &n.to_string()]).args(words);
        let done = run(&mut command, self.scratch)?;
        let names: Vec<String> = done.stdout.lines().map(str::to_owned).collect();
        ensure!(names.len() == n, "{} clones instead of {n}", names.len());
        Ok((done.begin_ns, names))
    }

    /// Host PIDs of a clone.
    fn tree(&self, name: &str) -> Result<Vec<i32>> {
        let mut command = self.front_end.plain("ps");
        let done = run(command.args(["--format", "json"]), self.scratch)?;
        let views: Vec<View> = serde_json::from_str(&done.stdout).context("the list of apps")?;
        let view = views.into_iter().find(|view| view.name == name);
        let root = view
            .and_then(|view| view.root)
            .with_context(|| format!("no app {name}"))?;
        Ok(proc::tree(root.0))
    }

    /// Does something in the network namespace of a clone.
    fn inside<T: Send>(&self, name: &str, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let tree = self.tree(name)?;
        let pid = tree.first().context("no process")?;
        let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
        let act = || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            act()
        };
        std::thread::scope(|scope| scope.spawn(act).join().expect("it does not panic"))
    }

    /// Every clone answers right, and is another one.
    fn verify(&self, names: &[String]) -> Result<()> {
        names
            .iter()
            .try_for_each(|name| self.inside(name, || self.app.verify(&[])))
    }

    fn end(&self, names: &[String]) -> Result<()> {
        for name in names {
            run(self.front_end.plain("kill").args(["--wait", name]), self.scratch)?;
            run(self.front_end.plain("rm").arg(name), self.scratch)?;
        }
        Ok(())
    }
}

/// From the request for one more clone, where 99 run, to its first answer.
pub fn reply(lab: &Lab<'_>, row: &mut Row) -> Result<()> {
    let scratch = lab.scratch()?;
    if let Some(cloner) = Cloner::new(lab, "clone", scratch.path(), row)? {
        let (_, others) = cloner.clones(CLONES - 1)?;
        for _ in 0..lab.runs {
            let one = || -> Result<(f64, Vec<String>)> {
                let (begin_ns, names) = cloner.clones(1)?;
                let answered_ns = cloner.inside(&names[0], || husk::answered_ns(cloner.port))?;
                cloner.verify(&names)?;
                Ok((millis_between(begin_ns, answered_ns), names))
            };
            match one() {
                Ok((millis, names)) => {
                    row.push(Column::Ours, Ok(millis));
                    cloner.end(&names)?;
                }
                Err(error) => row.push(Column::Ours, Err(error)),
            }
        }
        cloner.verify(&others)?;
        cloner.end(&others)?;
    }
    floor(lab, row)
}

/// The floor: a process with as much memory, in huge pages, forks.
fn floor(lab: &Lab<'_>, row: &mut Row) -> Result<()> {
    let program = lab.bare.as_deref().context("needs cc, for the bare program")?;
    let port = net::free_port()?;
    let arguments: [OsString; 3] = ["fork".into(), port.to_string().into(), MEGABYTES.to_string().into()];
    let mut husk = Husk::start(program, &arguments)?;
    for _ in 0..lab.runs {
        let begin_ns = husk.go()?;
        let answered = husk::answered_ns(port);
        row.push(Column::Floor, answered.map(|ns| millis_between(begin_ns, ns)));
        husk.go()?;
        husk.wait_ready()?;
    }
    Ok(())
}

/// Until so many clones are up.
pub fn up(lab: &Lab<'_>, n: usize, row: &mut Row) -> Result<()> {
    let scratch = lab.scratch()?;
    let Some(cloner) = Cloner::new(lab, "clone", scratch.path(), row)? else {
        return Ok(());
    };
    for _ in 0..lab.runs {
        let (begin_ns, names) = cloner.clones(n)?;
        row.push(Column::Ours, Ok(millis_between(begin_ns, now_ns())));
        cloner.verify(&names)?;
        cloner.end(&names)?;
    }
    Ok(())
}

/// Memory of the host for each clone, but for what the clone wrote.
pub fn memory(lab: &Lab<'_>, n: usize, row: &mut Row) -> Result<()> {
    let scratch = lab.scratch()?;
    let Some(cloner) = Cloner::new(lab, "clone", scratch.path(), row)? else {
        return Ok(());
    };
    // The template is there before the first clone is counted.
    let (_, first) = cloner.clones(1)?;
    for _ in 0..lab.runs {
        let before = host_bytes()?;
        let (_, names) = cloner.clones(n)?;
        cloner.verify(&names)?;
        let added = host_bytes()?.saturating_sub(before);
        let mut wrote = 0;
        for name in &names {
            wrote += proc::private_bytes(&cloner.tree(name)?);
        }
        let each = |bytes: u64| bytes as f64 / 1024.0 / n as f64;
        row.push(Column::Ours, Ok(each(added.saturating_sub(wrote))));
        row.note(format!(
            "{:.0} KB more a clone, of which it wrote {:.0}",
            each(added),
            each(wrote)
        ));
        cloner.end(&names)?;
    }
    cloner.end(&first)
}

/// What the engine says that it took, after the clone wrote a megabyte; the whole
/// command where it says nothing.
pub fn revert(lab: &Lab<'_>, row: &mut Row) -> Result<()> {
    let scratch = lab.scratch()?;
    if let Some(cloner) = Cloner::new(lab, "revert", scratch.path(), row)? {
        let (_, names) = cloner.clones_with(1, &["--revertible"])?;
        let mut command_ms = Vec::new();
        for _ in 0..lab.runs {
            cloner.inside(&names[0], || dirty(cloner.port))?;
            let mut command = cloner.front_end.plain("revert");
            let done = run(command.args(["--format", "json", &names[0]]), scratch.path())?;
            // All keys are as before, none is new.
            cloner.verify(&names)?;
            let told: serde_json::Value = serde_json::from_str(&done.stdout).unwrap_or_default();
            let engine_ms = told["total_micros"].as_f64().map(|micros| micros / 1e3);
            row.push(Column::Ours, Ok(engine_ms.unwrap_or(done.millis)));
            command_ms.push(done.millis);
        }
        cloner.end(&names)?;
        if let Some(median) = quantile(&command_ms, 0.5) {
            row.note(format!("the command, with its own start: {median:.1} ms"));
        }
    }
    revert_floor(lab, row)
}

fn dirty(port: u16) -> Result<()> {
    let mut redis = net::Redis::connect(port)?;
    for key in 0..DIRTY_KEYS {
        redis.ask(&format!("SET dirty:{key} {}", "x".repeat(1024)))?;
    }
    Ok(())
}

/// The floor: a megabyte is copied back into another process, page by page.
fn revert_floor(lab: &Lab<'_>, row: &mut Row) -> Result<()> {
    let program = lab.bare.as_deref().context("needs cc, for the bare program")?;
    let mut husk = Husk::start(program, &["revert".into(), "1024".into()])?;
    for _ in 0..lab.runs {
        husk.go()?;
        let ns: u64 = husk.line()?.parse()?;
        row.push(Column::Floor, Ok(ns as f64 / 1e6));
    }
    Ok(())
}
