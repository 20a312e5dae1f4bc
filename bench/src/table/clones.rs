//! Rows of clones, by requests to a `restored` that runs (`POST /v1/clones`,
//! `POST /v1/instances/NAME/revert`), each in a network namespace of its own.

use super::Lab;
use super::husk::{self, Husk};
use super::memory::host_parts;
use super::row::{Column, Row};
use crate::clock::{millis_between, now_ns};
use crate::engine::{After, Daemon, Engine};
use crate::stats::quantile;
use crate::workload::App;
use crate::{files, measure, net, proc};
use anyhow::{Context, Result, ensure};
use libsnap::target::Instance;
use nix::sched::{CloneFlags, setns};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The app that is cloned.
const WORKLOAD: &str = "redis-100mb";
const MEGABYTES: usize = 100;
const CLONES: usize = 100;
/// What a clone is given before it is reverted: a megabyte. Small values would be spread
/// over three times as much of its memory.
const DIRTY_KEYS: usize = 16;
const DIRTY_BYTES: usize = 64 << 10;
/// From one clone to the next: what follows a request is done by then.
const BETWEEN: Duration = Duration::from_millis(20);

/// An appshot to clone from, and a daemon that does it.
struct Cloner {
    daemon: Daemon,
    appshot: PathBuf,
    app: Box<dyn App>,
    port: u16,
}

impl Cloner {
    /// Its template is there: one clone was made.
    fn new(lab: &Lab<'_>, scratch: &Path) -> Result<Self> {
        let daemon = Daemon::new(scratch);
        let app = lab.workload(WORKLOAD)?.prepare(lab.place)?;
        let root = measure::start(&*app, &daemon, None)?;
        let tree = proc::tree(root);
        let appshot = scratch.join("template");
        daemon.snapshot(root, &appshot, After::End)?;
        proc::wait_gone(&tree, Duration::from_secs(10))?;
        files::warm_cache(&appshot)?;
        let port = app.port().context("it has no port")?;
        let cloner = Cloner {
            daemon,
            appshot,
            app,
            port,
        };
        let (_, first) = cloner.clones(1)?;
        cloner.verify(&first)?;
        cloner.end(&first)?;
        Ok(cloner)
    }

    /// Makes `n` clones; answers when they were asked for, too.
    fn clones(&self, n: usize) -> Result<(u64, Vec<Instance>)> {
        let (begin_ns, clones) = self.daemon.clones(&self.appshot, n)?;
        ensure!(clones.len() == n, "{} clones instead of {n}", clones.len());
        Ok((begin_ns, clones))
    }

    /// Does something in the network namespace of a clone.
    fn inside<T: Send>(clone: &Instance, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = File::open(format!("/proc/{}/ns/net", clone.root))?;
        let act = || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            act()
        };
        std::thread::scope(|scope| scope.spawn(act).join().expect("it does not panic"))
    }

    /// Every clone answers right, and is another one.
    fn verify(&self, clones: &[Instance]) -> Result<()> {
        clones
            .iter()
            .try_for_each(|clone| Self::inside(clone, || self.app.verify(&[])))
    }

    fn end(&self, clones: &[Instance]) -> Result<()> {
        clones.iter().try_for_each(|clone| self.daemon.remove(clone))
    }
}

/// From the request for one more clone, where 99 run, to its first answer.
pub fn reply(lab: &Lab<'_>, row: &mut Row) -> Result<()> {
    let scratch = lab.scratch()?;
    let cloner = Cloner::new(lab, scratch.path())?;
    let (_, others) = cloner.clones(CLONES - 1)?;
    for _ in 0..lab.runs {
        std::thread::sleep(BETWEEN);
        let one = || -> Result<(f64, Vec<Instance>)> {
            let (begin_ns, clones) = cloner.clones(1)?;
            let answered_ns = Cloner::inside(&clones[0], || husk::answered_ns(cloner.port))?;
            cloner.verify(&clones)?;
            Ok((millis_between(begin_ns, answered_ns), clones))
        };
        match one() {
            Ok((millis, clones)) => {
                row.push(Column::Ours, Ok(millis));
                cloner.end(&clones)?;
            }
            Err(error) => row.push(Column::Ours, Err(error)),
        }
    }
    cloner.verify(&others)?;
    cloner.end(&others)?;
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
    let cloner = Cloner::new(lab, scratch.path())?;
    for _ in 0..lab.runs {
        let (begin_ns, clones) = cloner.clones(n)?;
        row.push(Column::Ours, Ok(millis_between(begin_ns, now_ns())));
        cloner.verify(&clones)?;
        cloner.end(&clones)?;
    }
    herd(lab, n, |begin_ns, _| {
        row.push(Column::Floor, Ok(millis_between(begin_ns, now_ns())));
        Ok(())
    })
}

/// The floor: a process with as much memory, in huge pages, makes as many children, each
/// in namespaces of its own and with as many threads.
fn herd(lab: &Lab<'_>, n: usize, mut up: impl FnMut(u64, Parts) -> Result<()>) -> Result<()> {
    let program = lab.bare.as_deref().context("needs cc, for the bare program")?;
    let arguments: [OsString; 3] = ["herd".into(), n.to_string().into(), MEGABYTES.to_string().into()];
    let mut husk = Husk::start(program, &arguments)?;
    for _ in 0..lab.runs {
        let before = host_parts()?;
        let begin_ns = husk.go()?;
        husk.wait_ready()?;
        up(begin_ns, before)?;
        husk.go()?;
        husk.wait_ready()?;
    }
    Ok(())
}

/// Memory of the host for each clone, but for what the clone wrote.
pub fn memory(lab: &Lab<'_>, n: usize, row: &mut Row) -> Result<()> {
    let scratch = lab.scratch()?;
    let cloner = Cloner::new(lab, scratch.path())?;
    // The template is there before the first clone is counted.
    let (_, first) = cloner.clones(1)?;
    for _ in 0..lab.runs {
        let before = host_parts()?;
        let (_, clones) = cloner.clones(n)?;
        cloner.verify(&clones)?;
        let (added, parts) = more(&before, n)?;
        let wrote: u64 = clones.iter().map(|clone| proc::private_bytes(&[clone.root.0])).sum();
        let each = |bytes: u64| bytes as f64 / 1024.0 / n as f64;
        row.push(Column::Ours, Ok(each(added.saturating_sub(wrote))));
        row.note(format!(
            "{:.0} KB more a clone, of which it wrote {:.0}: {parts}",
            each(added),
            each(wrote)
        ));
        cloner.end(&clones)?;
    }
    cloner.end(&first)?;
    herd(lab, n, |_, before| {
        let (added, parts) = more(&before, n)?;
        row.push(Column::Floor, Ok(added as f64 / 1024.0 / n as f64));
        row.note(format!("floor: {parts}"));
        Ok(())
    })
}

type Parts = [(&'static str, u64); 6];

/// How much more memory of the host is used now, and of what each of `n` has how much.
fn more(before: &Parts, n: usize) -> Result<(u64, String)> {
    let now = host_parts()?;
    let total = |parts: &Parts| -> u64 { parts.iter().map(|(_, bytes)| bytes).sum() };
    let told = before.iter().zip(&now).map(|((name, was), (_, is))| {
        let each = (*is as f64 - *was as f64) / 1024.0 / n as f64;
        format!("{name} {each:.0} KB")
    });
    let told: Vec<String> = told.collect();
    Ok((total(&now).saturating_sub(total(before)), told.join(", ")))
}

/// What the engine says that it took, after the clone wrote a megabyte.
pub fn revert(lab: &Lab<'_>, row: &mut Row) -> Result<()> {
    let scratch = lab.scratch()?;
    let cloner = Cloner::new(lab, scratch.path())?;
    let clones = cloner.daemon.revertible(&cloner.appshot)?;
    let (mut request_ms, mut pages) = (Vec::new(), Vec::new());
    for _ in 0..lab.runs {
        // To verify has redis write to each key's time of use.
        cloner.daemon.revert(&clones[0].name)?;
        Cloner::inside(&clones[0], || dirty(cloner.port))?;
        let (begin_ns, told) = cloner.daemon.revert(&clones[0].name)?;
        request_ms.push(millis_between(begin_ns, now_ns()));
        // All keys are as before, none is new.
        cloner.verify(&clones)?;
        let micros = told["total_micros"].as_f64().context("no total_micros")?;
        pages.push(told["dirty_pages"].as_f64().context("no dirty_pages")?);
        row.push(Column::Ours, Ok(micros / 1e3));
    }
    cloner.end(&clones)?;
    if let Some(median) = quantile(&request_ms, 0.5) {
        row.note(format!("from the request to the answer: {median:.1} ms"));
    }
    let pages = quantile(&pages, 0.5).context("no round")?;
    row.note(format!(
        "redis wrote to {pages:.0} pages, given a megabyte; the floor copies as many"
    ));
    revert_floor(lab, row, pages as u64)
}

fn dirty(port: u16) -> Result<()> {
    let mut redis = net::Redis::connect(port)?;
    for key in 0..DIRTY_KEYS {
        redis.ask(&format!("SET dirty:{key} {}", "x".repeat(DIRTY_BYTES)))?;
    }
    Ok(())
}

/// The floor: as many pages are copied back into another process, one by one.
fn revert_floor(lab: &Lab<'_>, row: &mut Row, pages: u64) -> Result<()> {
    let program = lab.bare.as_deref().context("needs cc, for the bare program")?;
    let kibibytes = (4 * pages).to_string();
    let mut husk = Husk::start(program, &["revert".into(), kibibytes.into()])?;
    for _ in 0..lab.runs {
        husk.go()?;
        let ns: u64 = husk.line()?.parse()?;
        row.push(Column::Floor, Ok(ns as f64 / 1e6));
    }
    Ok(())
}
