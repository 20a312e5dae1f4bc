//! What `perfd` tells, held against what `/proc` tells of the same processes:
//! of an app that runs, one that is asleep, one that was restored.

use anyhow::{Context, Result, ensure};
use appshot_tests::verdict::{PATIENCE, need_root, on_own_thread, poll};
use libsnap::ids::HostPid;
use libsnap::store::{App, Store};
use libsnap::target::{Hooks, RestoreOptions, RunOptions, SnapshotOptions, Stdio};
use nodekit::jobs::{Job, Place, Snapshot};
use nodekit::start::Start;
use nodekit::{ending, supervise};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const HELD_BYTES: u64 = 16 << 20;

/// Holds memory, burns time, then only waits.
const SCRIPT: &str = "x=$(head -c 16777216 /dev/zero | tr '\\0' a); i=0
while [ $i -lt 400000 ]; do i=$((i+1)); done
: >ready; sleep 1000";

/// What perfd may count beyond the processes that are left: init, and those
/// that made the string and have ended.
const OTHERS_NS: u64 = 500_000_000;
const OTHERS_BYTES: u64 = 8 << 20;

fn perfd(dir: &Path) -> Result<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_perfd"))
        .args(["-o", "json"])
        .env("APPSHOT_RUN_DIR", dir.join("run"))
        .env("APPSHOT_DATA_DIR", dir.join("data"))
        .output()?;
    let all: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(all.as_array().is_some_and(|apps| apps.len() == 1), "one app: {all}");
    Ok(all[0].clone())
}

/// CPU time and proportional memory of the processes in the app's cgroup.
fn truth(app: &App) -> Result<(u64, u64)> {
    let cgroup = app.cgroup.as_deref().context("no cgroup")?;
    let (mut cpu_ns, mut bytes) = (0, 0);
    for pid in libsnap::cgroup::processes(cgroup)? {
        cpu_ns += number(pid, "schedstat", "")?;
        bytes += number(pid, "smaps_rollup", "Pss:")? * 1024;
    }
    Ok((cpu_ns, bytes))
}

/// The number that follows `key` in a file of `/proc/PID`.
fn number(pid: HostPid, file: &str, key: &str) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.with_context(|| format!("no {key} in {file}"))?.parse()?)
}

fn agree(told: &Value, app: &App) -> Result<u64> {
    let (cpu_ns, bytes) = truth(app)?;
    let told_cpu = told["cpu_ns"].as_u64().context("no CPU time")?;
    let told_bytes = told["memory_bytes"].as_u64().context("no memory")?;
    // The cgroup counts in microseconds.
    ensure!(
        (cpu_ns.saturating_sub(10_000)..cpu_ns + OTHERS_NS).contains(&told_cpu),
        "{told_cpu} ns told, {cpu_ns} ns in /proc"
    );
    ensure!(
        bytes >= HELD_BYTES && told_bytes.abs_diff(bytes) < OTHERS_BYTES,
        "{told_bytes} told, {bytes} in /proc"
    );
    Ok(told_cpu)
}

#[test]
fn it_tells_what_proc_tells() {
    on_own_thread("it_tells_what_proc_tells", || {
        need_root()?;
        let dir = tempfile::tempdir()?;
        let store = Store::open(&dir.path().join("run"), &dir.path().join("data"))?;
        let app = run(&store, dir.path())?;
        let lived = trial(&store, dir.path(), &app);
        // A failed trial leaves an app behind; after a good one there is none.
        if let Some(app) = store.find("metered")?.filter(App::alive) {
            ending::kill_all(&store, &app)?;
        }
        lived
    });
}

fn run(store: &Store, dir: &Path) -> Result<App> {
    let options = RunOptions {
        name: "metered".to_owned(),
        command: ["sh", "-c", SCRIPT].map(str::to_owned).to_vec(),
        cwd: Some(dir.to_owned()),
        stdio: Stdio::Log(store.log_path("metered")),
        ..RunOptions::default()
    };
    let mut start = Start::run(store.clone(), options);
    Ok(start.go()?.app)
}

fn trial(store: &Store, dir: &Path, app: &App) -> Result<()> {
    poll("the app is ready", PATIENCE, || {
        let processes = libsnap::cgroup::processes(app.cgroup.as_deref().context("no cgroup")?)?;
        // Init, the shell, and the sleep that it has become a parent of.
        Ok((dir.join("ready").exists() && processes.len() == 3).then_some(()))
    })?;
    let running = perfd(dir)?;
    ensure!(running["state"] == "running", "{running}");
    let before = agree(&running, app)?;

    let job = Job::Snapshot(Snapshot {
        store: store.clone(),
        target: "metered".to_owned(),
        place: Place::Store {
            tag: None,
            replace: false,
        },
        options: SnapshotOptions::default(),
        hooks: Hooks::default(),
        cause: None,
    });
    job.work(&mut |_| {})?;
    supervise::reap(store, app)?;
    let asleep = perfd(dir)?;
    ensure!(asleep["state"] == "asleep", "{asleep}");
    ensure!(
        asleep["cpu_ns"].is_null() && asleep["memory_bytes"].is_null(),
        "{asleep}"
    );

    let options = RestoreOptions::default();
    let mut again = Start::restore(store.clone(), "metered", options)?.logged();
    let app = again.go()?.app;
    let restored = perfd(dir)?;
    ensure!(restored["state"] == "running", "{restored}");
    let since = agree(&restored, &app)?;
    ensure!(since < before, "counted anew: {since} ns after {before} ns");
    ending::kill_all(store, &app)?;
    supervise::reap(store, &app)?;
    ensure!(perfd(dir)?["state"] == "exited");
    Ok(())
}
