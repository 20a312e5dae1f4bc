//! A running `restored` with husks in waiting and appshots in memory.

use anyhow::{Context, Result, ensure};
use appshot_tests::app::Place;
use appshot_tests::installed::{Daemon, Registry};
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
