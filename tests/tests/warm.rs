//! A running `restored` with husks in waiting and appshots in memory.

use anyhow::{Context, Result, ensure};
use appshot_tests::app::Place;
use appshot_tests::installed::{Daemon, Registry, spares};
use appshot_tests::programs;
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, poll};
use libsnap::error::{Error, Kind};
use libsnap::target::Instance;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Puts a program to sleep under this name; answers its appshot.
fn asleep(registry: &Registry, place: &Place, name: &str, program: &str) -> Result<PathBuf> {
    let file = |what: &str| place.path(&format!("{name}-{what}"));
    let [program, ready, go] = [programs::build(program)?, file("ready"), file("go")].map(|p| p.display().to_string());
    registry.appshot(&["-q", "run", "-d", "--name", name, "--", &program, &ready, &go])?;
    poll("ready", PATIENCE, || Ok(Path::new(&ready).exists().then_some(())))?;
    registry.appshot(&["-q", "snapshot", "--replace", name])?;
    fs::remove_file(&ready)?;
    Ok(registry.data.join(format!("appshots/{name}.appshot")))
}

fn restore(daemon: &Daemon, appshot: &str, name: &str) -> Result<Instance, Error> {
    daemon
        .client
        .post("/v1/instances", &json!({ "appshot": appshot, "name": name }))
}

/// Its exit code, once that is written down.
fn exit_code(daemon: &Daemon, name: &str) -> Result<i64> {
    poll("its end", PATIENCE, || {
        let view: Value = daemon.client.get(&format!("/v1/instances/{name}?wait=exited"))?;
        Ok(view["exit"].as_i64())
    })
}

/// Processes, threads, pipes, sockets, timers, sessions: three instances of each, all
/// asked for at the same time, more than husks wait.
#[test]
fn many_at_once() {
    const PROGRAMS: [&str; 6] = [
        "pipes",
        "credentials_thread",
        "sessions",
        "zombies",
        "unix_pairs",
        "posix_timers",
    ];
    in_place("many_at_once", |place| {
        let registry = Registry::new(place)?;
        let app = |number: usize| format!("{}-{number}", place.unique());
        for (number, program) in PROGRAMS.iter().enumerate() {
            asleep(&registry, place, &app(number), program)?;
        }
        let daemon = registry.daemon("restored", "")?;
        let all: Vec<(usize, String)> = (0..PROGRAMS.len())
            .flat_map(|number| (0..3).map(move |copy| (number, copy)))
            .map(|(number, copy)| (number, format!("{}-{copy}", app(number))))
            .collect();
        for round in 0..2 {
            let answers: Vec<Result<Instance, Error>> = std::thread::scope(|scope| {
                let asked = all.iter().map(|(number, name)| {
                    let (daemon, app) = (&daemon, app(*number));
                    scope.spawn(move || restore(daemon, &app, name))
                });
                let asked: Vec<_> = asked.collect();
                asked.into_iter().map(|asked| asked.join().expect("no panic")).collect()
            });
            for ((number, name), answer) in all.iter().zip(&answers) {
                let answer = answer.as_ref().map_err(Clone::clone);
                answer.with_context(|| format!("round {round}: {} as {name}", PROGRAMS[*number]))?;
                fs::write(place.path(&format!("{}-go", app(*number))), "")?;
            }
            for (number, name) in &all {
                let code = exit_code(&daemon, name)?;
                ensure!(
                    code == 0,
                    "round {round}: {} as {name} ended with {code}",
                    PROGRAMS[*number]
                );
            }
            (0..PROGRAMS.len()).try_for_each(|number| fs::remove_file(place.path(&format!("{}-go", app(number)))))?;
        }
        daemon.stop()
    });
}

/// Of an app with a user of its own, restored as itself: one that waits, clones off a
/// template, and one made when it is asked for.
#[test]
fn as_itself() {
    in_place("as_itself", |place| {
        let registry = Registry::new(place)?;
        let name = place.unique();
        let file = |what: &str| place.path(what).display().to_string();
        let program = programs::build("private_file")?.display().to_string();
        let run = ["-q", "run", "-d", "--user", "4711:4711", "--name", name, "--"];
        registry.appshot(&[&run[..], &[&program, &file("ready"), &file("go")]].concat())?;
        poll("ready", PATIENCE, || Ok(place.path("ready").exists().then_some(())))?;
        registry.appshot(&["-q", "snapshot", name])?;
        let daemon = registry.daemon("restored", "")?;
        let prepare = json!({ "appshot": name, "instance": true, "as_itself": true });
        let _: Value = daemon.client.post("/v1/prepare", &prepare)?;
        poll("an instance to wait", PATIENCE, || Ok(waits(&daemon)?.then_some(())))?;
        let ask = |name: &str, own: &str, as_itself: bool| -> Result<bool> {
            let ask = json!({ "appshot": name, "name": own, "as_itself": as_itself });
            let instance: Instance = daemon.client.post("/v1/instances", &ask)?;
            Ok(instance.phases.iter().all(|phase| phase.name != "memory"))
        };
        let [first, second] = [1, 2].map(|number| format!("{name}.{number}"));
        ensure!(
            !ask(name, &first, false)?,
            "what waits has other rights than were asked for"
        );
        ensure!(ask(name, &second, true)?, "what waits was not used");
        let clones = json!({ "appshot": name, "count": 3, "as_itself": true });
        let clones: Vec<Instance> = daemon.client.post("/v1/clones", &clones)?;
        fs::write(place.path("go"), "")?;
        for name in [first, second]
            .into_iter()
            .chain(clones.into_iter().map(|clone| clone.name))
        {
            let code = exit_code(&daemon, &name)?;
            ensure!(code == 0, "{name} ended with {code}");
        }
        daemon.stop()
    });
}

/// An instance that waits for its first request is what that gets; one of an appshot that
/// was replaced meanwhile, or is gone, is not.
#[test]
fn parked() {
    in_place("parked", |place| {
        let registry = Registry::new(place)?;
        let name = place.unique();
        let mut daemon = registry.daemon("restored", "")?;
        let park = |daemon: &Daemon| -> Result<()> {
            let _: Value = daemon
                .client
                .post("/v1/prepare", &json!({ "appshot": name, "instance": true }))?;
            poll("an instance to wait", PATIENCE, || Ok(waits(daemon)?.then_some(())))
        };
        let passes = |daemon: &Daemon, was_ready: bool, what: &str| -> Result<()> {
            let restored = restore(daemon, name, name)?;
            let made_now = restored.phases.iter().any(|phase| phase.name == "memory");
            ensure!(made_now != was_ready, "{what}: {:?}", restored.phases);
            fs::write(place.path(&format!("{name}-go")), "")?;
            let code = exit_code(daemon, name)?;
            ensure!(code == 0, "{what} ended with {code}");
            Ok(fs::remove_file(place.path(&format!("{name}-go")))?)
        };
        asleep(&registry, place, name, "pipes")?;
        let unknown: Result<Value, Error> = daemon
            .client
            .post("/v1/prepare", &json!({ "appshot": "nobody", "instance": true }));
        ensure!(unknown.is_err_and(|error| error.kind == Kind::NotFound));
        park(&daemon)?;
        passes(&daemon, true, "parked")?;
        // Asked for once, it is not made again for long.
        passes(&daemon, false, "after that")?;
        // Another appshot of that name.
        park(&daemon)?;
        asleep(&registry, place, name, "eventfd")?;
        passes(&daemon, false, "replaced")?;
        // One that waits goes with the daemon.
        daemon = {
            park(&daemon)?;
            let pid = daemon.pid();
            daemon.stop()?;
            ensure!(spares(pid).is_empty(), "{:?}", spares(pid));
            registry.daemon("restored", "")?
        };
        passes(&daemon, false, "begun again")?;
        daemon.stop()
    });
}

/// It has 40 MB and needs 8 of them.
const NEEDING: &str = r#"
import sys, time
data = [bytes([i % 251]) * 4096 for i in range(10000)]
open(sys.argv[1], "w").close()
while True:
    time.sleep(0.02)
    assert all(block[9] == i % 251 for i, block in enumerate(data[:2000]))
"#;

/// What an app needed first it is likely to need again after its next sleep: the instance
/// that waits has it, though its appshot is another one.
#[test]
fn what_was_needed_before() {
    in_place("what_was_needed_before", |place| {
        let registry = Registry::new(place)?;
        let name = place.unique();
        let ready = place.path("ready").display().to_string();
        let run = ["-q", "run", "-d", "--name", name, "--", "/usr/bin/python3", "-c"];
        registry.appshot(&[&run[..], &[NEEDING, &ready]].concat())?;
        poll("ready", PATIENCE, || Ok(Path::new(&ready).exists().then_some(())))?;
        registry.appshot(&["-q", "snapshot", name])?;
        let daemon = registry.daemon("restored", "")?;
        restore(&daemon, name, name)?;
        let file = registry.data.join(format!("appshots/.{name}.appshot.working-set"));
        let needed = poll("a working set", PATIENCE, || Ok(file.metadata().ok()))?.len();
        registry.appshot(&["-q", "snapshot", "--replace", name])?;
        let _: Value = daemon
            .client
            .post("/v1/prepare", &json!({ "appshot": name, "instance": true }))?;
        poll("an instance to wait", PATIENCE, || Ok(waits(&daemon)?.then_some(())))?;
        let groups = spares(daemon.pid());
        let all = groups
            .iter()
            .flat_map(|group| libsnap::cgroup::processes(group).unwrap_or_default());
        let anonymous = all.filter_map(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
            line.trim().trim_end_matches(" kB").parse::<u64>().ok()
        });
        let most = anonymous.max().context("nobody waits")? << 10;
        ensure!(
            most > needed && needed > 8 << 20,
            "{most} bytes, and {needed} were needed"
        );
        let instance = restore(&daemon, name, name)?;
        ensure!(
            instance.phases.iter().all(|phase| phase.name != "memory"),
            "{:?}",
            instance.phases
        );
        daemon.stop()
    });
}

/// Whether an instance waits.
fn waits(daemon: &Daemon) -> Result<bool> {
    let all: Vec<Value> = daemon.client.get("/v1/prepare")?;
    Ok(all.iter().any(|row| row["ready"] == 1 && row["parked"] == true))
}

/// What a clone says of itself each time it is asked to, by a file.
const TELLING: &str = r#"
import os, random, socket, sys, time
data = [bytes([i % 251]) * (4000 + i % 97) for i in range(8000)]
ready, told = sys.argv[1], sys.argv[2]
open(ready, "w").close()
own = "/run/appshot-instance/"
while True:
    time.sleep(0.02)
    name = open(own + "name").read().strip()
    if os.path.exists(told + "-ask-" + name):
        whole = all(block == bytes([i % 251]) * (4000 + i % 97) for i, block in enumerate(data))
        words = [open(own + what).read().strip() for what in ("id", "generation", "vars/colour")]
        with open(told + "-tmp-" + name, "w") as file:
            file.write(" ".join(words + [socket.gethostname(), str(whole)]))
        os.rename(told + "-tmp-" + name, told + "-" + name)
        data[7] = data[7][:-1] + b"x"  # nobody else's
        data[7] = bytes([7]) * (4000 + 7)
"#;

/// Clones of one appshot: each is whole and another one, and together they take little
/// more memory than they touch; they go on when the daemon stops.
#[test]
fn clones() {
    in_place("clones", |place| {
        let registry = Registry::new(place)?;
        let name = place.unique();
        let [ready, told] = ["ready", "told"].map(|what| place.path(what).display().to_string());
        let words = [
            "-q",
            "run",
            "-d",
            "--name",
            name,
            "--",
            "/usr/bin/python3",
            "-c",
            TELLING,
            &ready,
            &told,
        ];
        registry.appshot(&words)?;
        poll("ready", PATIENCE, || Ok(Path::new(&ready).exists().then_some(())))?;
        registry.appshot(&["-q", "snapshot", name])?;
        let alone = registry.appshot(&["clone", name]);
        ensure!(alone.is_err(), "without the daemon: {alone:?}");
        let daemon = registry.daemon("restored", "")?;
        let ask = json!({ "appshot": name, "count": 6, "vars": { "colour": "blue" } });
        let clones: Vec<Instance> = daemon.client.post("/v1/clones", &ask)?;
        let names: Vec<String> = (1..=6).map(|number| format!("{name}-{number}")).collect();
        ensure!(clones.iter().map(|clone| &clone.name).eq(&names), "{clones:?}");
        // Untouched, they have a fraction of the 32 MB.
        for clone in &clones {
            let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", clone.root))?;
            let anonymous = rollup.lines().find_map(|line| line.strip_prefix("Pss_Anon:"));
            let kilobytes = anonymous.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
            ensure!(
                kilobytes.is_some_and(|kilobytes| kilobytes < 16_000),
                "{}: {rollup}",
                clone.name
            );
        }
        let asked = |name: &String| -> Result<String> {
            let (ask, answer) = (format!("{told}-ask-{name}"), format!("{told}-{name}"));
            let _ = fs::remove_file(&answer);
            fs::write(&ask, "")?;
            let words = poll("an answer", PATIENCE, || Ok(fs::read_to_string(&answer).ok()))?;
            fs::remove_file(&ask)?;
            Ok(words)
        };
        let mut seen = std::collections::BTreeSet::new();
        for name in &names {
            let words = asked(name)?;
            let [id, generation, colour, host, whole] = words.split(' ').collect::<Vec<_>>()[..] else {
                anyhow::bail!("{name}: {words}");
            };
            ensure!(
                (colour, whole) == ("blue", "True") && name.starts_with(host),
                "{name}: {words}"
            );
            ensure!(
                seen.insert(id.to_owned()) && seen.insert(generation.to_owned()),
                "twice: {words}"
            );
        }
        let more: Vec<Instance> = daemon
            .client
            .post("/v1/clones", &json!({ "appshot": name, "vars": { "colour": "red" } }))?;
        ensure!(more[0].name == format!("{name}-7"), "{more:?}");
        daemon.stop()?;
        for name in names.iter().chain([&more[0].name]) {
            let words = asked(name)?;
            ensure!(words.ends_with(" True"), "after the daemon: {name}: {words}");
            registry.appshot(&["kill", "-s", "KILL", "--wait", name])?;
        }
        Ok(())
    });
}

/// An appshot in memory is not the one that has taken its place on disk, nor one that was
/// damaged or removed there since.
#[test]
fn a_replaced_appshot_is_noticed() {
    in_place("a_replaced_appshot_is_noticed", |place| {
        let registry = Registry::new(place)?;
        let (name, instance) = (place.unique(), format!("{}-copy", place.unique()));
        let daemon = registry.daemon("restored", "")?;
        let mut paths = Vec::new();
        for program in ["pipes", "eventfd"] {
            paths.push(asleep(&registry, place, name, program)?);
            for _ in 0..2 {
                let up = restore(&daemon, name, &instance)?;
                let comm = fs::read_to_string(format!("/proc/{}/comm", up.root))?;
                ensure!(comm.trim() == program, "{program} was asked for, {comm} runs");
                daemon.client.delete::<Value>(&format!("/v1/instances/{instance}"))?;
            }
        }
        ensure!(paths[0] == paths[1], "one took the other's place");
        let core = File::options().read(true).write(true).open(paths[0].join("2.core"))?;
        let mut byte = [0];
        core.read_exact_at(&mut byte, 5000)?;
        core.write_all_at(&[byte[0] ^ 1], 5000)?;
        let damaged = restore(&daemon, name, &instance).expect_err("damage");
        ensure!(damaged.to_string().contains("2.core"), "{damaged}");
        core.write_all_at(&byte, 5000)?;
        restore(&daemon, name, &instance)?;
        daemon.client.delete::<Value>(&format!("/v1/instances/{instance}"))?;
        fs::rename(&paths[0], place.path("elsewhere"))?;
        let gone = restore(&daemon, name, &instance).expect_err("nothing there");
        ensure!(gone.kind == Kind::NotFound, "{gone}");
        daemon.stop()
    });
}

/// What an app has mapped or open may be changed while its appshot is in memory.
#[test]
fn a_changed_file_is_noticed() {
    in_place("a_changed_file_is_noticed", |place| {
        let registry = Registry::new(place)?;
        let (name, instance) = (place.unique(), format!("{}-copy", place.unique()));
        // A program of its own, to change it.
        let built = programs::build("eventfd")?;
        let program = place.path("program");
        fs::copy(built, &program)?;
        let [program, ready, go] = [program, place.path("ready"), place.path("go")].map(|p| p.display().to_string());
        registry.appshot(&["-q", "run", "-d", "--name", name, "--", &program, &ready, &go])?;
        poll("ready", PATIENCE, || Ok(Path::new(&ready).exists().then_some(())))?;
        registry.appshot(&["-q", "snapshot", name])?;
        let daemon = registry.daemon("restored", "")?;
        restore(&daemon, name, &instance)?;
        daemon.client.delete::<Value>(&format!("/v1/instances/{instance}"))?;
        let mut text = fs::read(&program)?;
        text.push(0);
        fs::remove_file(&program)?;
        fs::write(&program, text)?;
        let refused = restore(&daemon, name, &instance).expect_err("a changed program");
        ensure!(
            refused.kind == Kind::Refused && refused.to_string().contains(&program),
            "{refused}"
        );
        daemon.stop()
    });
}
