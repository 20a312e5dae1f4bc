//! Used instances put back to their appshot: in place where that can be, anew elsewhere.

use anyhow::{Context, Result, ensure};
use appshot_tests::app::Place;
use appshot_tests::clients::{free_port, http_get, redis};
use appshot_tests::installed::{Daemon, Registry};
use appshot_tests::programs;
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, need_program, poll};
use libsnap::error::{Error, Kind};
use libsnap::store::View;
use libsnap::target::{Instance, Manner, RevertReport};
use serde_json::json;
use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Puts a command to sleep once it is ready.
fn asleep(registry: &Registry, name: &str, command: &[&str], ready: impl Fn() -> bool) -> Result<()> {
    let words = ["-q", "run", "-d", "--name", name, "--"];
    registry.appshot(&[&words[..], command].concat())?;
    poll("ready", PATIENCE, || Ok(ready().then_some(())))?;
    registry.appshot(&["-q", "snapshot", name]).map(drop)
}

fn clone(daemon: &Daemon, appshot: &str, revertible: bool) -> Result<Instance, Error> {
    // Asked from here, by the port that it has.
    let ask = json!({ "appshot": appshot, "revertible": revertible, "network": "host" });
    let mut clones: Vec<Instance> = daemon.client.post("/v1/clones", &ask)?;
    clones.pop().ok_or_else(|| Error::failed("no clone"))
}

fn revert(daemon: &Daemon, name: &str) -> Result<RevertReport, Error> {
    daemon.client.post(&format!("/v1/instances/{name}/revert"), &json!({}))
}

fn reverted(daemon: &Daemon, name: &str, manner: Manner) -> Result<RevertReport> {
    let report = revert(daemon, name)?;
    ensure!(report.manner == manner, "{report:?}");
    Ok(report)
}

fn redis_asleep(registry: &Registry, name: &str, port: u16, keys: &str) -> Result<()> {
    let program = need_program(&["redis-server"])?.display().to_string();
    let port_text = port.to_string();
    let words = [
        &program,
        "--port",
        &port_text,
        "--save",
        "",
        "--enable-debug-command",
        "yes",
    ];
    asleep(registry, name, &words, || {
        redis(port, &["DEBUG", "POPULATE", keys, "key", "1000"]).is_ok()
    })
}

/// Keys that were written are gone, old ones right, connections closed; two hundred times,
/// each judged by the digest of all that redis holds.
#[test]
fn redis_is_put_back() {
    in_place("redis_is_put_back", |place| {
        let registry = Registry::new(place)?;
        let (name, port) = (place.unique(), free_port()?);
        redis_asleep(&registry, name, port, "5000")?;
        let daemon = registry.daemon("restored", "")?;
        let first = clone(&daemon, name, true)?;
        let state = || Ok::<_, anyhow::Error>((redis(port, &["DBSIZE"])?, redis(port, &["DEBUG", "DIGEST"])?));
        let before = state()?;
        ensure!(before.0 == "5000", "{before:?}");
        let mut generations = std::collections::BTreeSet::new();
        for round in 0..200 {
            for key in 0..20 {
                redis(port, &["SET", &format!("dirty:{key}"), &"x".repeat(1000 + round)])?;
            }
            redis(port, &["DEL", &format!("key:{round}")])?;
            redis(port, &["CONFIG", "SET", "maxmemory", "900mb"])?;
            let mut open = TcpStream::connect(("127.0.0.1", port))?;
            let report = reverted(&daemon, &first.name, Manner::InPlace).with_context(|| format!("round {round}"))?;
            ensure!(report.dirty_pages > 5 && report.dirty_pages < 3000, "{report:?}");
            open.set_read_timeout(Some(PATIENCE))?;
            // Closed, or reset where it had asked something.
            let end = open.read(&mut [0]);
            ensure!(matches!(end, Ok(0) | Err(_)), "still connected: {end:?}");
            let after = state()?;
            ensure!(after == before, "round {round}: {after:?} instead of {before:?}");
            let maxmemory = redis(port, &["CONFIG", "GET", "maxmemory"])?;
            ensure!(!maxmemory.contains("943718400"), "{maxmemory}");
            let view = format!("/proc/{}/root/run/appshot-instance/generation", first.root);
            ensure!(generations.insert(fs::read_to_string(view)?), "a generation came twice");
        }
        let root = Path::new("/proc").join(first.root.to_string());
        ensure!(root.exists(), "it is another process");
        registry.appshot(&["kill", "-s", "KILL", "--wait", &first.name])?;
        daemon.stop()
    });
}

/// Requests go on while it is reverted: each is answered right or cut off.
#[test]
fn requests_meanwhile() {
    in_place("requests_meanwhile", |place| {
        let registry = Registry::new(place)?;
        let (name, port) = (place.unique(), free_port()?);
        redis_asleep(&registry, name, port, "1000")?;
        let daemon = registry.daemon("restored", "")?;
        let first = clone(&daemon, name, true)?;
        let (over, answered) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let asking = || -> Result<()> {
                while !over.load(Ordering::Acquire) {
                    redis(port, &["INCR", "count"]).ok();
                    if let Ok(size) = redis(port, &["DBSIZE"]) {
                        ensure!(["1000", "1001"].contains(&size.as_str()), "{size} keys");
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Ok(())
            };
            let askers: Vec<_> = (0..2).map(|_| scope.spawn(asking)).collect();
            let reverts = (0..40).try_for_each(|round| {
                reverted(&daemon, &first.name, Manner::InPlace).with_context(|| format!("round {round}"))?;
                std::thread::sleep(Duration::from_millis(5));
                Ok(())
            });
            over.store(true, Ordering::Release);
            askers
                .into_iter()
                .try_for_each(|asker| asker.join().expect("no panic"))
                .and(reverts)
        })?;
        ensure!(answered.into_inner() > 20, "hardly anything was answered");
        registry.appshot(&["kill", "-s", "KILL", "--wait", &first.name])?;
        daemon.stop()
    });
}

/// A program that does to itself what it is told.
struct Told<'a> {
    place: &'a Place,
    daemon: &'a Daemon,
    name: String,
}

impl Told<'_> {
    fn does(&self, what: &str) -> Result<String> {
        let [ask, answer] = ["ask", "answer"].map(|end| self.place.path(&format!("told-{end}")));
        let partial = self.place.path("told-writing");
        fs::write(&partial, what)?;
        fs::rename(&partial, &ask)?;
        let told = poll("an answer", PATIENCE, || Ok(fs::read_to_string(&answer).ok()))?;
        fs::remove_file(&answer)?;
        Ok(told)
    }

    /// It does this, and is itself again after a revert of this manner.
    fn does_and_is_itself(&self, what: &str, manner: Manner) -> Result<()> {
        self.does(what).with_context(|| format!("to do {what}"))?;
        reverted(self.daemon, &self.name, manner).with_context(|| format!("after {what}"))?;
        let whole = self.does("v")?;
        ensure!(whole == "ok", "after {what}: {whole} is not as it was");
        Ok(())
    }
}

fn told(test: &'static str, trial: impl FnOnce(&Told<'_>) -> Result<()> + Send + 'static) {
    in_place(test, |place| {
        let registry = Registry::new(place)?;
        let name = place.unique();
        let program = programs::build("undone")?;
        let [program, ready, prefix] =
            [program, place.path("ready"), place.path("told")].map(|path| path.display().to_string());
        asleep(&registry, name, &[&program, &ready, &prefix], || {
            Path::new(&ready).exists()
        })?;
        let daemon = registry.daemon("restored", "")?;
        let first = clone(&daemon, name, true)?;
        let told = Told {
            place,
            daemon: &daemon,
            name: first.name,
        };
        trial(&told)?;
        registry.appshot(&["kill", "-s", "KILL", "--wait", &told.name])?;
        daemon.stop()
    });
}

/// Memory of every kind, mappings, descriptors.
#[test]
fn what_is_undone_in_place() {
    told("what_is_undone_in_place", |program| {
        for _ in 0..3 {
            for what in ["v", "m", "d", "z", "b", "e", "o", "n", "t", "p"] {
                program.does_and_is_itself(what, Manner::InPlace)?;
            }
        }
        // All of it at once, thrice before each revert.
        for _ in 0..3 {
            for what in ["m", "z", "d", "b", "e", "o", "n", "t"].repeat(3) {
                program.does(what)?;
            }
            program.does_and_is_itself("v", Manner::InPlace)?;
        }
        Ok(())
    });
}

/// What is not undone in place is seen, and the instance restored anew; then it can be
/// reverted in place again.
#[test]
fn what_is_seen() {
    told("what_is_seen", |program| {
        for what in ["f", "s", "c", "u", "w", "a", "h", "l", "r", "g", "q", "i", "k", "x"] {
            program.does_and_is_itself(what, Manner::Anew)?;
            program.does_and_is_itself("m", Manner::InPlace)?;
        }
        Ok(())
    });
}

/// One that nobody had made for it is restored anew the first time; what another program
/// has restored is refused, and goes on.
#[test]
fn the_first_time() {
    in_place("the_first_time", |place| {
        let registry = Registry::new(place)?;
        let (name, port) = (place.unique(), free_port()?);
        let program = need_program(&["python3"])?.display().to_string();
        let port_text = port.to_string();
        let words = [
            &program,
            "-m",
            "http.server",
            &port_text,
            "--directory",
            "/usr/share/doc",
        ];
        asleep(&registry, name, &words, || http_get(port, "/").is_ok())?;
        let daemon = registry.daemon("restored", "")?;
        let first = clone(&daemon, name, false)?;
        http_get(port, "/")?;
        reverted(&daemon, &first.name, Manner::Anew)?;
        for round in 0..10 {
            let page = http_get(port, "/").with_context(|| format!("round {round}"))?;
            ensure!(page.contains("Directory listing"), "{page}");
            reverted(&daemon, &first.name, Manner::InPlace).with_context(|| format!("round {round}"))?;
        }
        registry.appshot(&["kill", "-s", "KILL", "--wait", &first.name])?;
        let gone = revert(&daemon, &first.name).expect_err("it has ended");
        ensure!(gone.kind == Kind::Refused, "{gone}");
        registry.appshot(&["-q", "restore", name, "-d"])?;
        let other = revert(&daemon, name).expect_err("another has restored it");
        ensure!(other.kind == Kind::Refused, "{other}");
        http_get(port, "/")?;
        registry.appshot(&["kill", "-s", "KILL", "--wait", name])?;
        daemon.stop()
    });
}

/// `restored`, killed at any moment of a revert: the instance is gone, not half there.
#[test]
fn killed_in_the_middle() {
    in_place("killed_in_the_middle", |place| {
        let registry = Registry::new(place)?;
        let (name, port) = (place.unique(), free_port()?);
        redis_asleep(&registry, name, port, "1000")?;
        for round in 0..12u64 {
            let mut daemon = registry.daemon("restored", "")?;
            let first = clone(&daemon, name, true)?;
            ensure!(redis(port, &["DBSIZE"])? == "1000", "round {round}");
            let client = daemon.client.clone();
            let path = format!("/v1/instances/{}/revert", first.name);
            let asking = std::thread::spawn(move || while client.post::<RevertReport>(&path, &json!({})).is_ok() {});
            std::thread::sleep(Duration::from_micros(20_000 + 1_700 * round));
            daemon.child.kill()?;
            daemon.child.wait()?;
            asking.join().expect("no panic");
            let root = format!("/proc/{}", first.root);
            poll("its end", PATIENCE, || Ok((!Path::new(&root).exists()).then_some(())))?;
            ensure!(redis(port, &["PING"]).is_err(), "round {round}: it answers");
        }
        // The next one clears the last one's cgroup away.
        let daemon = registry.daemon("restored", "")?;
        let views: Vec<View> = daemon.client.get("/v1/instances")?;
        poll("the cgroups to go", PATIENCE, || {
            let mut groups = views.iter().filter_map(|view| view.cgroup.as_deref());
            Ok((!groups.any(Path::exists)).then_some(()))
        })?;
        daemon.stop()
    });
}
