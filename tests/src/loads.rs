//! Loads that know what they used (`tests/usage/load.c`), and the bill that is made of it.

use crate::app::Place;
use crate::installed::{Daemon, Registry};
use crate::verdict::{PATIENCE, need_program, poll, skip};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Where `load.c` and what reads bills stand.
pub fn source_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("usage")
}

pub const CARD: &str = r#"
version = 1
id = "trial"
valid_from = "2026-01-01T00:00:00Z"
currency = "EUR"
decimals = 9
[prices]
core_second = "0.000024"
memory_gib_second = "0.0000025"
storage_gib_second = "0.00000004"
restore = "0.00001"
request = "0.0000002"
sent_gib = "0.02"
[free]
core_second = "0.5"
[minimum]
restore = "2"
"#;

/// Of an instance besides the load's own process: its init, which makes its namespaces,
/// and what a restore and snapshots of it do in it: more by a debug build.
pub const INIT_NS: u64 = if cfg!(debug_assertions) { 30_000_000 } else { 15_000_000 };

/// What a load says it used.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    pub cpu_ns: u64,
    pub bytes: u64,
    pub byte_ns: u128,
    pub lived_ns: u64,
    /// Until all of its memory was there.
    pub touched_ns: u64,
}

/// A registry in which loads run.
#[derive(Debug)]
pub struct Loads {
    pub registry: Registry,
    pub dir: PathBuf,
    load: PathBuf,
    pub name: String,
    /// What is used now is of it, by UTC.
    pub month: String,
}

/// Whatever happens, no load stays.
impl Drop for Loads {
    fn drop(&mut self) {
        let Ok(all) = self.registry.appshot(&["ps", "-o", "json"]) else {
            return;
        };
        let all: Vec<Value> = serde_json::from_str(&all).unwrap_or_default();
        for app in all.iter().filter_map(|app| app["name"].as_str()) {
            let _ = self.registry.appshot(&["kill", "-s", "KILL", "--wait", app]);
        }
    }
}

impl Loads {
    pub fn new(place: &Place) -> Result<Loads> {
        let registry = Registry::new(place)?;
        let load = place.path("load");
        let source = source_dir().join("load.c");
        let built = Command::new(need_program(&["cc"])?)
            .args(["-O1", "-Wall", "-Werror", "-o"])
            .args([&load, &source])
            .status()?;
        ensure!(built.success(), "the load cannot be built");
        Ok(Loads {
            registry,
            dir: place.dir().to_owned(),
            load,
            name: place.unique().to_owned(),
            month: month()?,
        })
    }

    pub fn perfd(&self) -> Result<Daemon> {
        self.registry.daemon("perfd", "")
    }

    pub fn start(&self, name: &str, mib: u64, burn_ms: u64) -> Result<()> {
        let (load, dir) = (self.load.display().to_string(), self.dir.display().to_string());
        let (mib, burn_ms) = (mib.to_string(), burn_ms.to_string());
        self.registry
            .appshot(&["run", "--name", name, "-d", "--", &load, &dir, &mib, &burn_ms])?;
        self.burnt(name, 1)
    }

    /// Waits until it has burnt so often.
    pub fn burnt(&self, name: &str, times: u32) -> Result<()> {
        let mark = self.dir.join(format!("{name}.burnt-{times}"));
        poll(&format!("{name} to burn"), PATIENCE, || Ok(mark.exists().then_some(())))
    }

    pub fn burn(&self, name: &str, times: u32) -> Result<()> {
        self.registry.appshot(&["kill", "-s", "USR1", name])?;
        self.burnt(name, times)
    }

    /// Has it end and tell.
    pub fn end(&self, name: &str) -> Result<Used> {
        self.registry.appshot(&["kill", "-s", "TERM", "--wait", name])?;
        let path = self.dir.join(format!("{name}.used"));
        let text = std::fs::read_to_string(&path).with_context(|| format!("{name} told nothing"))?;
        std::fs::remove_file(path)?;
        let numbers: Vec<u128> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [cpu_ns, bytes, byte_ns, lived_ns, touched_ns] = numbers[..] else {
            anyhow::bail!("{name} told {text:?}");
        };
        Ok(Used {
            cpu_ns: cpu_ns.try_into()?,
            bytes: bytes.try_into()?,
            byte_ns,
            lived_ns: lived_ns.try_into()?,
            touched_ns: touched_ns.try_into()?,
        })
    }

    pub fn usage_dir(&self) -> PathBuf {
        self.registry.data.join("usage")
    }

    /// Until everything that has ended stands in the ledger.
    pub fn settled(&self) -> Result<()> {
        let readings = self.registry.run.join("usage");
        poll("the last readings to be taken", PATIENCE, || {
            Ok((readings.read_dir()?.count() == 0).then_some(()))
        })
    }

    /// The last counters of each instance, by its begin.
    pub fn counted(&self) -> Result<Vec<Counted>> {
        let mut all: BTreeMap<String, Counted> = BTreeMap::new();
        for (number, record) in self.records()?.into_iter().enumerate() {
            for kind in ["account", "use", "end"] {
                let body = &record["body"][kind];
                let Some(id) = body["id"].as_str().filter(|id| !id.contains(':')) else {
                    continue;
                };
                let counted = all.entry(id.to_owned()).or_insert_with(|| Counted {
                    first: number,
                    ..Counted::default()
                });
                if kind == "account" {
                    counted.name = body["name"].as_str().unwrap_or_default().to_owned();
                }
                counted.ended = kind == "end";
                counted.counters = body["counters"].clone();
            }
        }
        let mut all: Vec<Counted> = all.into_values().collect();
        all.sort_by_key(|counted| counted.first);
        Ok(all)
    }

    pub fn records(&self) -> Result<Vec<Value>> {
        let mut records = Vec::new();
        let mut paths: Vec<PathBuf> = self
            .usage_dir()
            .join("ledger")
            .read_dir()?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        paths.sort();
        for path in paths
            .iter()
            .filter(|path| path.extension().is_some_and(|end| end == "ledger"))
        {
            for line in std::fs::read_to_string(path)?.lines() {
                records.push(serde_json::from_str(line)?);
            }
        }
        Ok(records)
    }

    pub fn verify(&self) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.registry.appshot(&["usage", "verify", "-o", "json"])?,
        )?)
    }

    /// Another program computes the bill again.
    pub fn recompute(&self) -> Result<()> {
        self.recompute_of(CARD, &self.month).map(drop)
    }

    /// The same of another card and month. Answers the export as rows.
    pub fn recompute_of(&self, card_text: &str, period: &str) -> Result<Vec<Value>> {
        let (card, export) = (self.dir.join("card.toml"), self.dir.join("bill.csv"));
        std::fs::write(&card, card_text)?;
        let (card, export) = (card.display().to_string(), export.display().to_string());
        self.registry
            .appshot(&["usage", "export", "--rates", &card, "--period", period, "-o", &export])?;
        let again = Command::new(need_program(&["python3"])?)
            .arg(source_dir().join("recompute.py"))
            .arg(self.usage_dir())
            .args([&card, &export, period])
            .output()?;
        ensure!(
            again.status.success(),
            "computed again: {}",
            String::from_utf8_lossy(&again.stderr)
        );
        let json = self.registry.appshot(&[
            "usage", "export", "--rates", &card, "--period", period, "--format", "json",
        ])?;
        let rows = String::from_utf8(again.stdout)?;
        let rows: usize = rows.split_whitespace().nth(1).context("no count")?.parse()?;
        ensure!(
            json.lines().count() == rows,
            "JSON has {} rows, CSV {rows}",
            json.lines().count()
        );
        Ok(json.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }
}

#[derive(Debug, Default)]
pub struct Counted {
    pub name: String,
    first: usize,
    pub counters: Value,
    pub ended: bool,
}

impl Counted {
    pub fn get(&self, counter: &str) -> u128 {
        let number = &self.counters[counter];
        // Those of memory may exceed 64 bits: as text.
        number.to_string().parse().unwrap_or_default()
    }

    /// What was billed of processor time is what the kernel told the load.
    pub fn cpu_is(&self, used: Used) -> Result<()> {
        let told = self.get("cpu_ns");
        let (least, most) = (
            used.cpu_ns - used.cpu_ns / 1000,
            used.cpu_ns + used.cpu_ns / 1000 + INIT_NS,
        );
        ensure!(
            (u128::from(least)..=u128::from(most)).contains(&told),
            "{}: {told} ns counted, {} ns used",
            self.name,
            used.cpu_ns
        );
        Ok(())
    }
}

/// Where we are in the calendar of UTC. A trial is over before its month is: in the last
/// minutes of one, this waits for the next.
fn month() -> Result<String> {
    let month = |when: &str| -> Result<String> {
        let output = Command::new("date").args(["-u", "-d", when, "+%Y-%m"]).output()?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let within = Duration::from_secs(300);
    poll("a month that does not end now", within + PATIENCE, || {
        let now = month("now")?;
        if month("now + 300 seconds")? == now {
            return Ok(Some(now));
        }
        std::thread::sleep(Duration::from_secs(1));
        Ok(None)
    })
}

/// From the package focus-data-toolkit, in the path or where `tests/setup.sh` puts it.
pub fn focus_toolkit() -> Result<PathBuf> {
    let installed = Path::new("/opt/appshot-tests/bin/focus-toolkit");
    match need_program(&["focus-toolkit"]) {
        Err(_) if installed.is_file() => Ok(installed.to_owned()),
        Err(_) => skip("focus-toolkit (`pip install focus-data-toolkit`)"),
        found => found,
    }
}

/// A Python with pyarrow and duckdb, from `tests/setup.sh`.
pub fn table_reader() -> Result<PathBuf> {
    let python = Path::new("/opt/appshot-tests/bin/python3");
    match Path::new("/opt/appshot-tests/tables").exists() {
        true => Ok(python.to_owned()),
        false => skip("pyarrow and duckdb (`tests/setup.sh`)"),
    }
}

/// A wall clock that is set through a file: by how many nanoseconds it differs from ours.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    pub fn new(place: &Place) -> Result<Clock> {
        let clock = Clock {
            library: place.path("clock.so"),
            file: place.path("clock.offset"),
        };
        let built = Command::new(need_program(&["cc"])?)
            .args(["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o"])
            .args([&clock.library, &source_dir().join("clock.c")])
            .status()?;
        ensure!(built.success(), "the clock cannot be built");
        clock.differ(0)?;
        Ok(clock)
    }

    pub fn differ(&self, nanoseconds: i64) -> Result<()> {
        // At once: whoever reads meanwhile reads the old one.
        let temporary = self.file.with_extension("new");
        std::fs::write(&temporary, nanoseconds.to_le_bytes())?;
        Ok(std::fs::rename(temporary, &self.file)?)
    }

    /// So many milliseconds since the epoch it is now.
    pub fn set(&self, unix_ms: u64) -> Result<()> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let nanoseconds = i128::from(unix_ms) * 1_000_000 - i128::try_from(now.as_nanos())?;
        self.differ(nanoseconds.try_into()?)
    }

    /// A daemon that believes it.
    pub fn daemon(&self, registry: &Registry, name: &'static str, arguments: &[&str]) -> Result<Daemon> {
        let mut command = self.command(registry, name);
        command.args(arguments);
        registry.begin(name, command)
    }

    /// A command that believes it.
    pub fn command(&self, registry: &Registry, name: &str) -> Command {
        let mut command = registry.command(name);
        command
            .env("LD_PRELOAD", &self.library)
            .env("APPSHOT_TEST_CLOCK", &self.file);
        command
    }
}
