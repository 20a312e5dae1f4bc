//! Whether the bill is right: loads that know what they used, a meter that is killed, and
//! a bill that another program computes again.

use anyhow::{Context, Result, ensure};
use appshot_tests::app::Place;
use appshot_tests::clients::{free_port, http_get};
use appshot_tests::installed::{Daemon, Registry};
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, need_program, poll, skip};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const CARD: &str = r#"
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
/// and what a restore does in it.
const INIT_NS: u64 = 15_000_000;

/// What a load says it used.
#[derive(Clone, Copy, Debug)]
struct Used {
    cpu_ns: u64,
    bytes: u64,
    byte_ns: u128,
    lived_ns: u64,
    /// Until all of its memory was there.
    touched_ns: u64,
}

/// A registry in which loads run.
struct Loads {
    registry: Registry,
    dir: PathBuf,
    load: PathBuf,
    name: String,
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
    fn new(place: &Place) -> Result<Loads> {
        let registry = Registry::new(place)?;
        let load = place.path("load");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("usage/load.c");
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
        })
    }

    fn perfd(&self) -> Result<Daemon> {
        self.registry.daemon("perfd", "")
    }

    fn start(&self, name: &str, mib: u64, burn_ms: u64) -> Result<()> {
        let (load, dir) = (self.load.display().to_string(), self.dir.display().to_string());
        let (mib, burn_ms) = (mib.to_string(), burn_ms.to_string());
        self.registry
            .appshot(&["run", "--name", name, "-d", "--", &load, &dir, &mib, &burn_ms])?;
        self.burnt(name, 1)
    }

    /// Waits until it has burnt so often.
    fn burnt(&self, name: &str, times: u32) -> Result<()> {
        let mark = self.dir.join(format!("{name}.burnt-{times}"));
        poll(&format!("{name} to burn"), PATIENCE, || Ok(mark.exists().then_some(())))
    }

    fn burn(&self, name: &str, times: u32) -> Result<()> {
        self.registry.appshot(&["kill", "-s", "USR1", name])?;
        self.burnt(name, times)
    }

    /// Has it end and tell.
    fn end(&self, name: &str) -> Result<Used> {
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

    fn usage_dir(&self) -> PathBuf {
        self.registry.data.join("usage")
    }

    /// Until everything that has ended stands in the ledger.
    fn settled(&self) -> Result<()> {
        let readings = self.registry.run.join("usage");
        poll("the last readings to be taken", PATIENCE, || {
            Ok((readings.read_dir()?.count() == 0).then_some(()))
        })
    }

    /// The last counters of each instance, by its begin.
    fn counted(&self) -> Result<Vec<Counted>> {
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

    fn records(&self) -> Result<Vec<Value>> {
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

    fn verify(&self) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.registry.appshot(&["usage", "verify", "-o", "json"])?,
        )?)
    }

    /// Another program computes the bill again, and FOCUS tools read it.
    fn recompute(&self) -> Result<()> {
        let (card, export) = (self.dir.join("card.toml"), self.dir.join("bill.csv"));
        std::fs::write(&card, CARD)?;
        let (card, export) = (card.display().to_string(), export.display().to_string());
        let period = month()?;
        self.registry
            .appshot(&["usage", "export", "--rates", &card, "--period", &period, "-o", &export])?;
        let again = Command::new(need_program(&["python3"])?)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("usage/recompute.py"))
            .arg(self.usage_dir())
            .args([&card, &export, &period])
            .output()?;
        ensure!(
            again.status.success(),
            "computed again: {}",
            String::from_utf8_lossy(&again.stderr)
        );
        let json = self.registry.appshot(&[
            "usage", "export", "--rates", &card, "--period", &period, "--format", "json",
        ])?;
        let rows = String::from_utf8(again.stdout)?;
        let rows: usize = rows.split_whitespace().nth(1).context("no count")?.parse()?;
        ensure!(
            json.lines().count() == rows,
            "JSON has {} rows, CSV {rows}",
            json.lines().count()
        );
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Counted {
    name: String,
    first: usize,
    counters: Value,
    ended: bool,
}

impl Counted {
    fn get(&self, counter: &str) -> u128 {
        let number = &self.counters[counter];
        // Those of memory may exceed 64 bits: as text.
        number.to_string().parse().unwrap_or_default()
    }

    /// What was billed of processor time is what the kernel told the load.
    fn cpu_is(&self, used: Used) -> Result<()> {
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

/// Where we are in the calendar; a trial that runs over its end fails.
fn month() -> Result<String> {
    let output = Command::new("date").args(["-u", "+%Y-%m"]).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[test]
fn processor_time_is_what_was_used() {
    in_place("processor_time_is_what_was_used", |place| {
        let loads = Loads::new(place)?;
        let _restored = loads.registry.daemon("restored", "")?;
        let perfd = loads.perfd()?;
        let name = &loads.name;
        loads.start(name, 1, 2000)?;
        loads.registry.appshot(&["snapshot", name])?;
        // The first one could not tell: it has ended in its snapshot.
        loads.registry.appshot(&["restore", name, "-d"])?;
        loads.burn(name, 2)?;
        let second = loads.end(name)?;
        loads.registry.appshot(&["clone", name, "-n", "3"])?;
        let clones: Vec<String> = (1..=3).map(|number| format!("{name}-{number}")).collect();
        for clone in &clones {
            loads.burn(clone, 2)?;
        }
        let used: Vec<Used> = clones.iter().map(|clone| loads.end(clone)).collect::<Result<_>>()?;
        loads.settled()?;
        perfd.stop()?;

        let counted = loads.counted()?;
        ensure!(counted.len() == 5, "{counted:?}");
        ensure!(counted.iter().all(|counted| counted.ended), "{counted:?}");
        let first = counted[0].get("cpu_ns");
        ensure!(
            (2_000_000_000..2_000_000_000 + 2 * u128::from(INIT_NS)).contains(&first),
            "{first}"
        );
        counted[1].cpu_is(second)?;
        for (clone, used) in clones.iter().zip(used) {
            let of = counted
                .iter()
                .find(|counted| counted.name == *clone)
                .context("no clone")?;
            of.cpu_is(used)?;
            ensure!(of.get("restores") == 1, "{of:?}");
        }
        loads.verify()?;
        loads.recompute()
    });
}

#[test]
fn memory_is_held_times_time() {
    in_place("memory_is_held_times_time", |place| {
        let loads = Loads::new(place)?;
        let perfd = loads.perfd()?;
        let name = &loads.name;
        loads.start(name, 200, 1)?;
        std::thread::sleep(Duration::from_secs(20));
        let used = loads.end(name)?;
        loads.settled()?;
        perfd.stop()?;
        let counted = loads.counted()?;
        let (told, held) = (counted[0].get("memory_byte_ns"), used.byte_ns);
        // The program's own pages, some 700 KiB, come on top. Looks are farther apart than it
        // takes until memory is there.
        let own = (1 << 20) * u128::from(used.lived_ns);
        let apart = held / 200 + u128::from(used.bytes) * u128::from(used.touched_ns) / 4;
        ensure!(
            (held - apart..=held + own + apart).contains(&told),
            "{told} counted, {held} held: {used:?}"
        );
        ensure!(counted[0].get("unseen_ns") == 0, "{counted:?}");
        Ok(())
    });
}

#[test]
fn nothing_is_lost_while_nobody_meters() {
    in_place("nothing_is_lost_while_nobody_meters", |place| {
        let loads = Loads::new(place)?;
        let name = &loads.name;
        let perfd = loads.perfd()?;
        loads.start(name, 1, 300)?;
        perfd.stop()?;
        // One goes on, others come and go.
        loads.burn(name, 2)?;
        let other = format!("{name}-b");
        loads.start(&other, 1, 300)?;
        let others = loads.end(&other)?;
        let perfd = loads.perfd()?;
        let own = loads.end(name)?;
        loads.settled()?;
        perfd.stop()?;
        let counted = loads.counted()?;
        ensure!(counted.len() == 2, "{counted:?}");
        counted[0].cpu_is(own)?;
        counted[1].cpu_is(others)?;
        // What could not be seen is told.
        ensure!(
            counted.iter().all(|counted| counted.get("unseen_ns") > 100_000_000),
            "{counted:?}"
        );
        let report = loads.verify()?;
        ensure!(report["gaps"].as_u64() >= Some(2), "{report}");
        loads.recompute()
    });
}

/// As after a loss of power: nothing of the run directory is there, and the last record
/// is torn.
#[test]
fn after_a_crash_of_the_machine_little_is_lost() {
    in_place("after_a_crash_of_the_machine_little_is_lost", |place| {
        let loads = Loads::new(place)?;
        let name = &loads.name;
        let mut perfd = loads.perfd()?;
        loads.start(name, 100, 1000)?;
        loads.burn(name, 2)?;
        std::thread::sleep(Duration::from_millis(700));
        perfd.child.kill()?;
        perfd.child.wait()?;
        // What it used is known to us, and to nobody else.
        let used = loads.end(name)?;
        std::fs::remove_dir_all(&loads.registry.run)?;
        let segment = loads.usage_dir().join("ledger/00000001.ledger");
        let whole = std::fs::read(&segment)?;
        std::fs::write(&segment, &whole[..whole.len() - 40])?;

        let perfd = loads.perfd()?;
        poll("the account to be closed", PATIENCE, || {
            let counted = loads.counted()?;
            Ok(counted.iter().all(|counted| counted.ended).then_some(()))
        })?;
        perfd.stop()?;
        let counted = loads.counted()?;
        ensure!(counted.len() == 1, "{counted:?}");
        let second = 1_000_000_000;
        let cpu = counted[0].get("cpu_ns");
        // The last record that was whole may be two seconds old by now.
        ensure!(
            cpu <= u128::from(used.cpu_ns + INIT_NS) && cpu + 2 * second >= used.cpu_ns.into(),
            "{cpu} ns counted, {} ns used",
            used.cpu_ns
        );
        let (memory, held) = (counted[0].get("memory_byte_ns"), used.byte_ns);
        ensure!(
            memory <= held + (1 << 20) * u128::from(used.lived_ns),
            "{memory}, {held}"
        );
        ensure!(memory + 3 * second * u128::from(used.bytes) >= held, "{memory}, {held}");
        let report = loads.verify()?;
        ensure!(
            report["gaps"].as_u64() >= Some(2),
            "the cut and the loss are told: {report}"
        );
        loads.recompute()
    });
}

const KILLS: usize = 50;

#[test]
fn killed_at_any_time_it_counts_once() {
    in_place("killed_at_any_time_it_counts_once", |place| {
        let loads = Loads::new(place)?;
        let name = &loads.name;
        let mut perfd = loads.perfd()?;
        loads.start(name, 100, 50)?;
        let mut used = BTreeMap::new();
        let mut seed = u64::from(std::process::id());
        let began = Instant::now();
        for round in 0..KILLS {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Something that comes and goes, and a load that goes on.
            let brief = format!("{name}-{round}");
            loads.start(&brief, 1, 20)?;
            if round % 5 == 4 {
                loads.burn(name, u32::try_from(round / 5)? + 2)?;
            }
            std::thread::sleep(Duration::from_millis((seed >> 33) % 120));
            // Killed before, at or after the end of that.
            if seed >> 63 == 1 {
                used.insert(brief.clone(), loads.end(&brief)?);
            }
            perfd.child.kill()?;
            perfd.child.wait()?;
            if !used.contains_key(&brief) {
                used.insert(brief.clone(), loads.end(&brief)?);
            }
            perfd = loads.perfd()?;
        }
        let lasted = began.elapsed();
        used.insert(name.clone(), loads.end(name)?);
        loads.settled()?;
        perfd.stop()?;
        let report = loads.verify()?;
        let counted = loads.counted()?;
        ensure!(
            counted.len() == used.len(),
            "{} counted, {} were there",
            counted.len(),
            used.len()
        );
        for of in &counted {
            let own = used[&of.name];
            of.cpu_is(own).with_context(|| format!("{report}"))?;
            // Never more than was held, never less than was seen of it.
            let (told, held) = (of.get("memory_byte_ns"), own.byte_ns);
            let unseen = of.get("unseen_ns") * u128::from(own.bytes + (1 << 20));
            let base = (2 << 20) * u128::from(own.lived_ns);
            ensure!(told <= held + base, "{}: {told} counted, {held} held", of.name);
            // A begin that is found a quarter of a second later is half counted.
            let begins = 150_000_000 * u128::from(own.bytes);
            ensure!(
                told + unseen + begins >= held,
                "{}: {told} counted, {held} held, {} ns unseen in {lasted:?}",
                of.name,
                of.get("unseen_ns")
            );
        }
        loads.recompute()
    });
}

#[test]
fn the_bill_of_a_node_is_read_by_others() {
    in_place("the_bill_of_a_node_is_read_by_others", |place| {
        let toolkit = focus_toolkit()?;
        let loads = Loads::new(place)?;
        let python = need_program(&["python3"])?;
        let perfd = loads.perfd()?;
        let registry = &loads.registry;
        let _snapd = registry.daemon("snapd", "")?;
        let _restored = registry.daemon("restored", "")?;
        let edgepointd = registry.daemon("edgepointd", "")?;
        let (name, port) = (&loads.name, free_port()?);
        let manifest = format!(
            "app = {name:?}\nprovider = \"acme\"\n[start]\ncommand = [{:?}, \"-m\", \"http.server\", \"{port}\", \
             \"--directory\", {:?}]\n[[listen]]\ntcp = \"0.0.0.0:{port}\"\n[idle]\ntimeout = \"1s\"\ncpu = 50.0\n",
            python.display().to_string(),
            loads.dir.display().to_string(),
        );
        let _: Value = edgepointd.client.post("/v1/apps", &json!({ "manifest": manifest }))?;
        let wait = |state: &str| -> Result<Value> {
            let path = format!("/v1/apps/{name}?wait={state}&timeout=60");
            Ok(edgepointd.client.get(&path)?)
        };
        for _ in 0..2 {
            wait("asleep")?;
            http_get(port, "/")?;
        }
        let other = format!("{name}-other");
        loads.start(&other, 20, 1000)?;
        loads.end(&other)?;
        let _: Value = edgepointd.client.delete(&format!("/v1/apps/{name}"))?;
        loads.settled()?;

        let period = month()?;
        let told = perfd
            .client
            .text(&format!("/v1/usage/export?provider=acme&period={period}"))?;
        let export = loads.dir.join("acme.csv");
        std::fs::write(&export, &told)?;
        ensure!(told.lines().count() > 6, "{told}");
        ensure!(!told.contains(&other), "of another provider: {told}");
        let unknown = perfd.client.text("/v1/usage/export?provider=acne");
        ensure!(
            unknown.is_err_and(|error| error.to_string().contains("acme")),
            "no such provider"
        );
        let valid = Command::new(toolkit)
            .args(["validate", "--dataset", "cost-and-usage"])
            .arg(&export)
            .output()?;
        ensure!(
            valid.status.success(),
            "{}{}",
            String::from_utf8_lossy(&valid.stdout),
            String::from_utf8_lossy(&valid.stderr)
        );
        perfd.stop()?;
        let causes: Vec<Value> = loads
            .records()?
            .iter()
            .map(|record| record["body"]["account"]["cause"].clone())
            .filter(|cause| !cause.is_null())
            .collect();
        ensure!(causes == ["deploy", "request", "request"], "{causes:?}");
        let accounts = loads.counted()?;
        let restores: u128 = accounts.iter().map(|counted| counted.get("restores")).sum();
        ensure!(restores == 2, "{accounts:?}");
        let shown: Value = serde_json::from_str(&registry.appshot(&["usage", "show", "-o", "json"])?)?;
        ensure!(shown[0]["provider"] == "acme" && shown[0]["instances"] == 3, "{shown}");
        ensure!(shown[0]["currency"].is_null() && shown[0]["cost"] == "0", "{shown}");
        loads.verify()?;
        loads.recompute()
    });
}

/// From the package focus-data-toolkit, in the path or where `tests/setup.sh` puts it.
fn focus_toolkit() -> Result<PathBuf> {
    let installed = Path::new("/opt/appshot-tests/bin/focus-toolkit");
    match need_program(&["focus-toolkit"]) {
        Err(_) if installed.is_file() => Ok(installed.to_owned()),
        Err(_) => skip("focus-toolkit (`pip install focus-data-toolkit`)"),
        found => found,
    }
}
