//! The table of what is to be reached: every row measures ours, the peer and the
//! floor in turn, and is written down as soon as it is done.
//!
//! ```text
//! mod      the rows, and their running
//! row      one row: figures of each side, targets
//! restore  frozen  steady  clones  memory     one kind of row each
//! husk     the floor: bare programs that do the same steps
//! render   Markdown       picture   SVG
//! ```

mod clones;
mod frozen;
mod husk;
mod memory;
mod picture;
mod render;
mod restore;
mod row;
mod steady;
mod wake;

use crate::engine::Criu;
use crate::machine::Machine;
use crate::place::Place;
use crate::workload::{self, Workload};
use crate::{measure, proc};
use anyhow::{Context, Result, ensure};
use restore::{Bare, Plan, Until};
use row::{Column, Row, Target};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use tempfile::TempDir;

/// Rounds of a row whose app has a gigabyte or more.
const RUNS_BIG: usize = 10;

/// What a run of the table is asked for.
#[derive(Debug)]
pub struct Request<'a> {
    pub criu: Option<PathBuf>,
    /// By default 50, and 10 for gigabytes.
    pub runs: Option<usize>,
    pub only: &'a [String],
    /// Rows that stand there already and are not measured now stay.
    pub json: Option<&'a Path>,
    pub markdown: Option<&'a Path>,
    pub pictures: Option<&'a Path>,
}

/// Where rows are measured.
pub struct Lab<'a> {
    pub place: &'a Place,
    pub runs: usize,
    /// The heartbeat to preload, if it could be compiled.
    pub preload: Option<&'a Path>,
    /// The bare programs.
    pub bare: Option<PathBuf>,
    criu: Option<PathBuf>,
    workloads: &'a [Box<dyn Workload>],
}

impl Lab<'_> {
    pub fn workload(&self, name: &str) -> Result<&dyn Workload> {
        let found = self.workloads.iter().find(|workload| workload.name() == name);
        let workload = found.with_context(|| format!("no workload {name}"))?;
        match workload.missing() {
            Some(missing) => anyhow::bail!("needs {missing}"),
            None => Ok(&**workload),
        }
    }

    pub fn criu(&self, scratch: &Path) -> Criu {
        Criu::new(self.criu.clone(), scratch)
    }

    /// A directory of one row, gone with it.
    pub fn scratch(&self) -> Result<TempDir> {
        Ok(TempDir::with_prefix_in("row-", self.place.disk())?)
    }

    pub fn interrupted(&self) -> bool {
        measure::INTERRUPTED.load(Ordering::SeqCst)
    }

    /// Prepares a side; where that fails, the row tells why.
    pub fn side<T>(&self, row: &mut Row, column: Column, prepare: impl FnOnce() -> Result<T>) -> Option<T> {
        prepare()
            .map_err(|error| row.missing(column, format!("{error:#}")))
            .ok()
    }
}

/// How a row is measured.
#[derive(Clone, Copy, Debug)]
enum How {
    Restore(Plan),
    /// Frozen time of a workload, with or without clients that ask.
    Frozen {
        workload: &'static str,
        load: bool,
    },
    Throughput,
    Steady(&'static str),
    Image(&'static str),
    Verify,
    CloneReply,
    ClonesUp(usize),
    CloneMemory(usize),
    /// Memory of so many copies of 100 MB.
    Copies(usize),
    Revert,
    /// An app that sleeps on a node; whether an instance of it is parked.
    Wake(&'static str, bool),
}

/// A row that can be measured.
#[derive(Debug)]
struct Spec {
    id: &'static str,
    work: &'static str,
    unit: &'static str,
    big: bool,
    how: How,
    targets: Vec<Target>,
}

fn spec(id: &'static str, work: &'static str, unit: &'static str, how: How, targets: &[Target]) -> Spec {
    Spec {
        id,
        work,
        unit,
        big: id.contains("gb") || id.starts_with("clones"),
        how,
        targets: targets.to_vec(),
    }
}

fn restore(workload: &'static str, until: Until, bare: Bare) -> How {
    How::Restore(Plan {
        workload,
        until,
        bare,
        cold: false,
    })
}

fn cold(workload: &'static str) -> How {
    How::Restore(Plan {
        workload,
        until: Until::Reply,
        bare: Bare::Read,
        cold: true,
    })
}

fn specs() -> Vec<Spec> {
    use Column::{Floor, Original, Peer, PeerLazy};
    use Target::{Above, AtMostTimes, MedianAtLeast, MedianAtMost, P99AtMost, Times, TimesOf100Mb};
    let reply = |workload| restore(workload, Until::Reply, Bare::Reply);
    let tasks = |workload, kind, n| restore(workload, Until::Return, Bare::Tasks(kind, n));
    let server = |above| [Times(Peer, 8.0), Above(Original, above)];
    let clone_kb = [MedianAtMost(300.0)];
    vec![
        spec(
            "trivial",
            "restore a trivial process: request sent -> its first instruction",
            "ms",
            restore("spin", Until::FirstInstruction, Bare::First),
            &[MedianAtMost(0.5), P99AtMost(2.0), Times(Peer, 10.0)],
        ),
        spec(
            "redis-empty",
            "restore redis, empty -> first reply",
            "ms",
            reply("redis-empty"),
            &[],
        ),
        spec(
            "redis-10mb",
            "restore redis 10 MB -> first reply",
            "ms",
            reply("redis-10mb"),
            &[],
        ),
        spec(
            "redis-100mb",
            "restore redis 100 MB -> first reply",
            "ms",
            reply("redis-100mb"),
            &[],
        ),
        spec(
            "redis-1gb",
            "restore redis 1 GB -> first reply, page cache warm",
            "ms",
            reply("redis-1gb"),
            &[MedianAtMost(4.0), Times(Peer, 100.0), Times(PeerLazy, 5.0)],
        ),
        spec(
            "redis-4gb",
            "restore redis 4 GB -> first reply",
            "ms",
            reply("redis-4gb"),
            &[TimesOf100Mb(1.5)],
        ),
        spec(
            "cold-1gb",
            "restore redis 1 GB, caches dropped -> first reply; floor: reading its working set",
            "ms",
            cold("redis-1gb"),
            &[AtMostTimes(Floor, 2.0)],
        ),
        spec(
            "cold-4gb",
            "restore redis 4 GB, caches dropped -> first reply; floor: the same",
            "ms",
            cold("redis-4gb"),
            &[AtMostTimes(Floor, 2.0)],
        ),
        spec(
            "python",
            "restore python http.server -> first reply",
            "ms",
            reply("python"),
            &server(1.5),
        ),
        spec("node", "restore node -> first reply", "ms", reply("node"), &server(1.5)),
        spec(
            "nginx",
            "restore nginx -> first reply",
            "ms",
            reply("nginx"),
            &server(1.5),
        ),
        spec("go", "restore go -> first reply", "ms", reply("go"), &server(1.5)),
        spec("java", "restore java -> first reply", "ms", reply("java"), &server(5.0)),
        spec(
            "postgres",
            "restore postgres -> first reply",
            "ms",
            reply("postgres"),
            &server(5.0),
        ),
        spec(
            "threads-200",
            "restore 200 threads",
            "ms",
            tasks("threads-200", "threads", 200),
            &[Times(Peer, 10.0)],
        ),
        spec(
            "processes-100",
            "restore 100 processes",
            "ms",
            tasks("processes-100", "processes", 100),
            &[Times(Peer, 10.0)],
        ),
        spec(
            "pythons-64",
            "restore 64 forked Pythons",
            "ms",
            tasks("pythons-64", "processes", 65),
            &[Times(Peer, 10.0)],
        ),
        spec(
            "pythons-64-image",
            "64 forked Pythons: image; floor: their unique non-zero memory",
            "MB",
            How::Image("pythons-64"),
            &[AtMostTimes(Floor, 1.2)],
        ),
        spec(
            "clone-100th",
            "clone of a warm 100 MB redis -> first reply, the 100th of 100",
            "ms",
            How::CloneReply,
            &[MedianAtMost(1.0), P99AtMost(3.0)],
        ),
        spec(
            "clones-100-memory",
            "100 such clones: host memory per clone beyond what it wrote",
            "KB",
            How::CloneMemory(100),
            &clone_kb,
        ),
        spec(
            "clones-1000-memory",
            "1,000 such clones: the same",
            "KB",
            How::CloneMemory(1000),
            &clone_kb,
        ),
        spec(
            "clones-1000-up",
            "1,000 such clones up",
            "ms",
            How::ClonesUp(1000),
            &[MedianAtMost(2000.0)],
        ),
        spec(
            "frozen-1gb",
            "frozen time of a 1 GB redis under redis-benchmark, leave-running",
            "ms",
            How::Frozen {
                workload: "redis-1gb",
                load: true,
            },
            &[MedianAtMost(2.0), Times(Peer, 100.0)],
        ),
        spec(
            "throughput-1gb",
            "its throughput during the whole snapshot, of normal",
            "%",
            How::Throughput,
            &[MedianAtLeast(70.0)],
        ),
        spec(
            "frozen-trivial",
            "frozen time of a trivial process",
            "ms",
            How::Frozen {
                workload: "fine",
                load: false,
            },
            &[MedianAtMost(0.5)],
        ),
        spec(
            "steady-redis",
            "steady speed after restore, of the original: redis-benchmark, jemalloc",
            "%",
            How::Steady("redis-100mb"),
            &[MedianAtLeast(97.0)],
        ),
        spec(
            "steady-go",
            "the same, allocating in Go",
            "%",
            How::Steady("go"),
            &[MedianAtLeast(97.0)],
        ),
        spec(
            "steady-java",
            "the same, allocating in the JVM",
            "%",
            How::Steady("java"),
            &[MedianAtLeast(97.0)],
        ),
        spec(
            "steady-node",
            "the same, allocating in V8",
            "%",
            How::Steady("node"),
            &[MedianAtLeast(97.0)],
        ),
        spec(
            "revert",
            "revert of a clone that dirtied 1 MB",
            "ms",
            How::Revert,
            &[MedianAtMost(0.5)],
        ),
        spec(
            "wake-python",
            "python http.server asleep on a node, parked: a client comes -> its first answer",
            "ms",
            How::Wake("python", true),
            &[MedianAtMost(5.0)],
        ),
        spec(
            "wake-node",
            "node asleep on a node, parked: a client comes -> its first answer",
            "ms",
            How::Wake("node", true),
            &[MedianAtMost(5.0)],
        ),
        spec(
            "wake-nginx",
            "nginx asleep on a node, parked: a client comes -> its first answer",
            "ms",
            How::Wake("nginx", true),
            &[MedianAtMost(5.0)],
        ),
        spec(
            "wake-java",
            "java asleep on a node, parked: a client comes -> its first answer",
            "ms",
            How::Wake("java", true),
            &[MedianAtMost(10.0)],
        ),
        spec(
            "wake-redis-1gb",
            "redis 1 GB asleep on a node, parked: a client comes -> its first answer",
            "ms",
            How::Wake("redis-1gb", true),
            &[MedianAtMost(10.0)],
        ),
        spec(
            "wake-python-unparked",
            "python http.server asleep on a node, not parked: a client comes -> its first answer",
            "ms",
            How::Wake("python", false),
            &[],
        ),
        spec(
            "wake-redis-1gb-unparked",
            "redis 1 GB asleep on a node, not parked: a client comes -> its first answer",
            "ms",
            How::Wake("redis-1gb", false),
            &[],
        ),
        spec(
            "verify",
            "overhead of verification per 100 MB",
            "ms",
            How::Verify,
            &[MedianAtMost(5.0)],
        ),
        spec(
            "copies-1",
            "memory of 1 copy of a 100 MB process",
            "MB",
            How::Copies(1),
            &[],
        ),
        spec("copies-2", "memory of 2 copies", "MB", How::Copies(2), &[]),
        spec("copies-5", "memory of 5 copies", "MB", How::Copies(5), &[]),
        spec("copies-10", "memory of 10 copies", "MB", How::Copies(10), &[]),
    ]
}

/// All that is known: what a file of figures holds.
#[derive(Debug, Deserialize, Serialize)]
pub struct Table {
    pub machine: Machine,
    pub peer: String,
    pub rows: Vec<Row>,
}

impl Table {
    /// Puts a row in its place, instead of what was there.
    fn put(&mut self, row: Row) {
        self.rows.retain(|old| old.id != row.id);
        self.rows.push(row);
        let order: Vec<&str> = specs().iter().map(|spec| spec.id).collect();
        self.rows.sort_by_key(|row| order.iter().position(|id| *id == row.id));
    }
}

/// Measures what is asked for.
pub fn run(request: &Request<'_>, place: &Place) -> Result<()> {
    let specs = chosen(request.only)?;
    let preload = workload::beat::build_preloaded(place);
    let workloads = workload::all(place, preload.as_deref());
    let mut lab = Lab {
        place,
        runs: 0,
        preload: preload.as_deref(),
        bare: husk::build(place),
        criu: request.criu.clone(),
        workloads: &workloads,
    };
    let mut table = begun(request, &lab)?;
    for spec in specs {
        let runs = if spec.big { RUNS_BIG } else { 50 };
        lab.runs = request.runs.unwrap_or(runs);
        eprintln!("{}: {} rounds", spec.id, lab.runs);
        let row = measured(&lab, &spec);
        if lab.interrupted() {
            break;
        }
        table.put(row);
        write(request, &table)?;
    }
    if request.markdown.is_none() {
        print!("{}", render::markdown(&table));
    }
    Ok(())
}

fn chosen(only: &[String]) -> Result<Vec<Spec>> {
    let mut specs = specs();
    let ids: Vec<&str> = specs.iter().map(|spec| spec.id).collect();
    for id in only {
        ensure!(ids.contains(&id.as_str()), "no row {id}; there are {ids:?}");
    }
    specs.retain(|spec| only.is_empty() || only.iter().any(|id| id == spec.id));
    Ok(specs)
}

/// The table so far: of an earlier run, where its file is named again.
fn begun(request: &Request<'_>, lab: &Lab<'_>) -> Result<Table> {
    let rows = match request.json {
        Some(path) if path.exists() => {
            let text = std::fs::read_to_string(path)?;
            let table: Table = serde_json::from_str(&text)
                .with_context(|| format!("{} holds no table of an earlier run", path.display()))?;
            table.rows
        }
        _ => Vec::new(),
    };
    Ok(Table {
        machine: Machine::read(),
        peer: crate::engine::Engine::about(&lab.criu(lab.place.disk())),
        rows,
    })
}

fn write(request: &Request<'_>, table: &Table) -> Result<()> {
    if let Some(path) = request.json {
        replace(path, &serde_json::to_string_pretty(table)?)?;
    }
    if let Some(path) = request.markdown {
        replace(path, &render::markdown(table))?;
    }
    match request.pictures {
        Some(dir) => picture::draw(table, dir),
        None => Ok(()),
    }
}

/// The old file or the new one, whenever this is interrupted.
fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text).with_context(|| format!("cannot write {}", new.display()))?;
    Ok(std::fs::rename(new, path)?)
}

fn measured(lab: &Lab<'_>, spec: &Spec) -> Row {
    let mut row = Row {
        id: spec.id.to_owned(),
        work: spec.work.to_owned(),
        unit: spec.unit.to_owned(),
        targets: spec.targets.clone(),
        series: std::collections::BTreeMap::new(),
        size_mb: None,
        notes: Vec::new(),
    };
    let result = match spec.how {
        How::Restore(plan) => restore::measure(lab, &plan, &mut row),
        How::Frozen { workload, load } => frozen::measure(lab, workload, load, frozen::What::Pause, &mut row),
        How::Throughput => frozen::measure(lab, "redis-1gb", true, frozen::What::Throughput, &mut row),
        How::Steady(workload) => steady::measure(lab, workload, &mut row),
        How::Image(workload) => memory::image(lab, workload, &mut row),
        How::Verify => memory::verify(lab, &mut row),
        How::Copies(n) => memory::copies(lab, n, &mut row),
        How::CloneReply => clones::reply(lab, &mut row),
        How::ClonesUp(n) => clones::up(lab, n, &mut row),
        How::CloneMemory(n) => clones::memory(lab, n, &mut row),
        How::Revert => clones::revert(lab, &mut row),
        How::Wake(workload, parked) => wake::measure(lab, workload, parked, &mut row),
    };
    if let Err(error) = result {
        row.missing(Column::Ours, format!("{error:#}"));
    }
    if let Err(error) = proc::kill_all_below_me() {
        eprintln!("bench: something is left behind: {error:#}");
    }
    row
}
