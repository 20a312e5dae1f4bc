//! `--leave-running` under load: snapshots of a server that is asked without pause.
//! No request fails, the server is what it was, and what the clients feel is told:
//!
//! ```text
//! cargo build --workspace
//! cargo test -p appshot-tests --test load -- --nocapture --test-threads=1
//! ```
//!
//! `APPSHOT_SNAPSHOTS` (default 5) of each; the README's figures are of 20.

use anyhow::{Context, Result, ensure};
use appshot_tests::app::Place;
use appshot_tests::clients::{Ask, http_connection, redis_connection};
use appshot_tests::installed::Installed;
use appshot_tests::judge::{Changes, Fingerprint, judge_untouched};
use appshot_tests::load::{Latencies, Load};
use appshot_tests::scenario::{self, Manner, Server, settle};
use appshot_tests::servers::{self, Postgres};
use appshot_tests::verdict::{PATIENCE, need_root, note, on_own_thread, poll, skip, switched_on};
use libsnap::target::SnapshotReport;
use std::path::Path;
use std::process::Child;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// One at a time: times are taken.
static ALONE: Mutex<()> = Mutex::new(());
/// As many as a small site has at once.
const CONNECTIONS: usize = 4;
/// Between two snapshots, and as long a round without any.
const PAUSE: Duration = Duration::from_millis(200);

fn snapshots() -> u32 {
    let told = std::env::var("APPSHOT_SNAPSHOTS").ok();
    told.and_then(|n| n.parse().ok()).unwrap_or(5)
}

fn trial(test: &'static str, body: fn(&Place) -> Result<()>) {
    on_own_thread(test, move || {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        need_root()?;
        if switched_on("APPSHOT_TEST_NO_SNAPSHOT") {
            return skip("snapshots, which APPSHOT_TEST_NO_SNAPSHOT turns off");
        }
        body(&Place::new(test)?)
    });
}

/// A load that can be ended; answers the times.
type Running<'a> = Box<dyn FnOnce() -> Result<Latencies> + 'a>;

/// The same load twice: alone, then with snapshots taken meanwhile.
fn under_load(
    test: &str,
    place: &Place,
    server: &Server<'_>,
    may: Changes,
    start: &dyn Fn() -> Result<Running<'static>>,
) -> Result<()> {
    let mut installed = Installed::new(place, false)?;
    scenario::drive_alive(place, server, &mut installed, |installed| {
        let alone = start()?;
        std::thread::sleep(PAUSE * snapshots());
        let alone = alone()?;
        settle(server)?;
        let before = Fingerprint::take(installed.top());
        let load = start()?;
        let taken = (0..snapshots()).map(|_| {
            std::thread::sleep(PAUSE);
            installed.snapshot_running()
        });
        let taken: Result<Vec<SnapshotReport>> = taken.collect();
        let served = load();
        let (taken, served) = (taken?, served?);
        settle(server)?;
        let after = Fingerprint::take(installed.top());
        judge_untouched(&before, &after, may)?;
        (server.use_it)().context("use after all snapshots")?;
        let still = Latencies::new(taken.iter().map(|report| report.frozen_micros).collect());
        let millis = |share: f64| still.within(share) as f64 / 1000.0;
        let size = taken.iter().map(|report| report.memory_bytes).max().unwrap_or(0) >> 20;
        note(test, &format!("alone: {alone}"));
        note(test, &format!("with {} snapshots of {size} MiB: {served}", taken.len()));
        note(
            test,
            &format!(
                "stood still: median {:.1} ms, longest {:.1} ms",
                millis(0.5),
                millis(1.0)
            ),
        );
        Ok(())
    })
}

fn connections(connect: impl Fn() -> Result<Ask>) -> Result<Running<'static>> {
    let load = Load::start((0..CONNECTIONS).map(|_| connect()).collect::<Result<_>>()?);
    Ok(Box::new(move || load.finish()))
}

#[test]
fn redis() {
    trial("redis", |place| {
        // Memory of its own clients.
        let may = Changes {
            maps: true,
            ..Changes::NONE
        };
        servers::redis_server(place, &|place, server| {
            let port = server.port.context("no port")?;
            under_load("redis", place, server, may, &|| connections(|| redis_connection(port)))
        })
    });
}

#[test]
fn nginx() {
    trial("nginx", |place| {
        servers::nginx(place, &|place, server| {
            let port = server.port.context("no port")?;
            under_load("nginx", place, server, Changes::NONE, &|| {
                connections(|| http_connection(port, "/index.html"))
            })
        })
    });
}

/// pgbench after pgbench, over the connections that it opens.
fn benches(postgres: &Postgres, dir: &Path) -> Result<Running<'static>> {
    let mut command = postgres.tool("pgbench");
    let dir = dir.join("times");
    let script = "for run in $(seq 1 1000); do [ -e \"$0/stop\" ] && exit 0; \
                  pgbench -n -c 4 -j 2 -t 100 -l --log-prefix=\"$0/times-$run\" || exit 1; done";
    let program = Path::new(command.get_program())
        .parent()
        .context("no directory")?
        .display()
        .to_string();
    let path = format!("{program}:/usr/bin:/bin");
    let mut shell = std::process::Command::new("/bin/bash");
    let _fresh = std::fs::remove_dir_all(&dir);
    std::fs::create_dir(&dir)?;
    let user = (postgres.uid(), postgres.gid());
    std::os::unix::fs::chown(&dir, Some(user.0), Some(user.1))?;
    use std::os::unix::process::CommandExt;
    shell
        .args(["-c", script])
        .arg(&dir)
        .uid(user.0)
        .gid(user.1)
        .current_dir("/")
        .env("PATH", path);
    shell.envs(
        command
            .env("LC_ALL", "C.UTF-8")
            .get_envs()
            .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned()))),
    );
    let log = std::fs::File::create(dir.join("log"))?;
    let mut child = shell.stdout(log.try_clone()?).stderr(log).spawn()?;
    poll("pgbench to begin", PATIENCE, || {
        Ok((std::fs::read_dir(&dir)?.count() > 1).then_some(()))
    })?;
    Ok(Box::new(move || {
        std::fs::write(dir.join("stop"), "")?;
        finished(&mut child, &dir)
    }))
}

fn finished(child: &mut Child, dir: &Path) -> Result<Latencies> {
    let status = child.wait()?;
    let log = std::fs::read_to_string(dir.join("log"))?;
    ensure!(status.success(), "pgbench: {status}: {log}");
    let failed = log
        .lines()
        .filter(|line| line.starts_with("number of failed transactions:"));
    let failed: Vec<&str> = failed.filter(|line| !line.contains(": 0 ")).collect();
    ensure!(failed.is_empty(), "{failed:?}");
    let mut times = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("times-"))
        {
            // client, transaction, microseconds, ...
            let text = std::fs::read_to_string(path)?;
            times.extend(
                text.lines()
                    .filter_map(|line| line.split(' ').nth(2)?.parse::<u64>().ok()),
            );
        }
    }
    ensure!(!times.is_empty(), "not one transaction: {log}");
    Ok(Latencies::new(times))
}

#[test]
fn postgresql() {
    trial("postgresql", |place| {
        // A process a connection, and caches.
        servers::with_postgresql(place, &|place, server, postgres| {
            under_load("postgresql", place, server, Changes::ALL, &|| {
                benches(postgres, place.dir())
            })
        })
    });
}
