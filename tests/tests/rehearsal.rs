//! `snapshot --verify` and `rehearse`: on real servers, on appshots that do not come back as
//! they were, and with a worker that is killed. `apps ::verify` has the small programs.

use anyhow::{Context, Result, ensure};
use appshot_tests::app::{App, Place};
use appshot_tests::applications;
use appshot_tests::forge::{Forger, Record};
use appshot_tests::installed::Registry;
use appshot_tests::judge::{Changes, Fingerprint, judge_untouched};
use appshot_tests::scenario::{self, Manner, Server};
use appshot_tests::servers;
use appshot_tests::trial::{in_place, verified};
use appshot_tests::verdict::{PATIENCE, need_root, note, on_own_thread, poll, skip, switched_on};
use libsnap::target::{RunOptions, SnapshotOptions, SnapshotReport};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Mutex, PoisonError};

/// One at a time: they are heavy.
static ALONE: Mutex<()> = Mutex::new(());

macro_rules! scenario {
    ($name:ident, $weight:ident) => {
        #[test]
        fn $name() {
            of_a_server(stringify!($name), servers::$name);
        }
    };
}
appshot_tests::each_scenario!(scenario);

macro_rules! application {
    ($name:ident, $state:ident) => {
        #[test]
        #[ignore = "a long run: in one life by the suite applications"]
        fn $name() {
            of_a_server(stringify!($name), applications::$name);
        }
    };
}
appshot_tests::each_application!(application);

fn of_a_server(test: &'static str, set_up: fn(&Place, scenario::Drive<'_>) -> Result<()>) {
    on_own_thread(test, move || {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        need_root()?;
        if switched_on("APPSHOT_TEST_NO_SNAPSHOT") {
            return skip("snapshots, which APPSHOT_TEST_NO_SNAPSHOT turns off");
        }
        set_up(&Place::new(test)?, &rehearsed)
    });
}

fn rehearsed(place: &Place, server: &Server<'_>) -> Result<()> {
    let mut manner = Rehearsed {
        place,
        app: None,
        number: 0,
    };
    scenario::drive(place, server, &mut manner, |_| Ok(()))
}

/// Each snapshot is rehearsed: once beside the app that runs on, once beside the one that is
/// about to end.
struct Rehearsed<'a> {
    place: &'a Place,
    app: Option<App>,
    number: usize,
}

impl Rehearsed<'_> {
    fn app(&self) -> Result<&App> {
        self.app.as_ref().context("the app does not run")
    }

    fn shot(&self) -> PathBuf {
        self.place.path(&format!("appshot-{}", self.number))
    }

    fn take(&self, shot: &Path, leave_running: bool) -> Result<()> {
        let options = SnapshotOptions {
            leave_running,
            verify: true,
            ..SnapshotOptions::default()
        };
        let report = self.app()?.snapshot(shot, &options)?;
        let rehearsal = report.rehearsal.context("there was no rehearsal")?;
        let took = verified(rehearsal, shot)?.micros;
        note("rehearsal", &format!("{} ms of {}", took / 1000, shot.display()));
        Ok(())
    }
}

impl Manner for Rehearsed<'_> {
    fn start(&mut self, options: &RunOptions) -> Result<()> {
        self.app = Some(self.place.run_with(options.clone())?);
        Ok(())
    }

    fn top(&self) -> i32 {
        self.app.as_ref().map_or(0, App::top)
    }

    fn exited(&mut self) -> Result<Option<i32>> {
        self.app.as_mut().context("the app does not run")?.try_exit()
    }

    fn freeze(&mut self) -> Result<()> {
        let beside = self.place.path("beside");
        self.take(&beside, true).context("while it runs on")?;
        std::fs::remove_dir_all(beside)?;
        self.number += 1;
        self.take(&self.shot(), false).context("while it waits for its end")?;
        self.app.take().context("the app does not run")?.wait_gone()
    }

    fn restore(&mut self) -> Result<()> {
        self.app = Some(self.place.restore(&self.shot())?);
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.app.take().map_or(Ok(()), App::end)
    }
}

/// A registry with an app called `it`, of this command.
fn with_app(place: &Place, command: &[&str]) -> Result<Registry> {
    let registry = Registry::new(place)?;
    registry.appshot(&[&["-q", "run", "-d", "--name", "it", "--"], command].concat())?;
    Ok(registry)
}

fn told(registry: &Registry, words: &[&str]) -> Result<(Option<i32>, String)> {
    let Output { status, stderr, .. } = registry.command("appshot").args(words).output()?;
    Ok((status.code(), String::from_utf8(stderr)?))
}

/// What the store tells of this appshot's rehearsal.
fn mark(registry: &Registry, name: &str) -> Result<Value> {
    let all: Value = serde_json::from_str(&registry.appshot(&["store", "ls", "-o", "json"])?)?;
    let mut all = all.as_array().into_iter().flatten();
    let stored = all
        .find(|stored| stored["name"] == name)
        .context("it is not in the store")?;
    Ok(stored["rehearsed"].clone())
}

fn runs(registry: &Registry) -> Result<bool> {
    let all: Value = serde_json::from_str(&registry.appshot(&["ps", "-o", "json"])?)?;
    Ok(all
        .as_array()
        .into_iter()
        .flatten()
        .any(|app| app["name"] == "it" && app["state"] == "running"))
}

/// Groups of rehearsals of this machine.
fn groups() -> Vec<PathBuf> {
    let parent = libsnap::cgroup::of("any").unwrap_or_default();
    let entries = parent.parent().and_then(|dir| dir.read_dir().ok());
    let entries = entries.into_iter().flatten().flatten();
    let rehearsals = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("rehearsal-"));
    rehearsals.map(|entry| entry.path()).collect()
}

#[test]
fn the_commands_tell_and_keep_it() {
    in_place("the_commands_tell_and_keep_it", |place| {
        let registry = with_app(place, &["sleep", "1000"])?;
        let report = registry.appshot(&["snapshot", "it", "--verify", "--leave-running", "-o", "json"])?;
        let report: SnapshotReport = serde_json::from_str(&report)?;
        let rehearsal = report.rehearsal.context("no rehearsal")?;
        ensure!(rehearsal.verified && report.phases.iter().any(|phase| phase.name == "rehearse"));
        ensure!(mark(&registry, "it")?["verified"] == true);
        // Another one that takes its place is another.
        registry.appshot(&["-q", "snapshot", "it", "--replace", "--leave-running"])?;
        ensure!(
            mark(&registry, "it")? == Value::Null,
            "what is told of it is of the one before"
        );
        registry.appshot(&["-q", "rehearse", "it"])?;
        ensure!(mark(&registry, "it")?["verified"] == true);
        registry.appshot(&["-q", "snapshot", "it", "--verify", "--replace"])?;
        ensure!(!runs(&registry)? && mark(&registry, "it")?["verified"] == true);
        // The mark is no part of it, and goes with it.
        registry.appshot(&["-q", "inspect", "it", "--verify"])?;
        registry.appshot(&["-q", "rm", "it", "--appshot"])?;
        let left = registry.data.join("appshots").read_dir()?.count();
        ensure!(left == 0, "{left} files are left of it");
        Ok(())
    });
}

/// A signal that nobody can block is blocked in the forged record: restored it is not.
#[test]
fn what_comes_back_otherwise_is_not_verified() {
    in_place("what_comes_back_otherwise_is_not_verified", |place| {
        const SIGKILL: u64 = 1 << 8;
        let registry = with_app(place, &["sleep", "1000"])?;
        registry.appshot(&["-q", "snapshot", "it"])?;
        let stored = registry.data.join("appshots/it.appshot");
        let forged = registry.data.join("appshots/forged.appshot");
        let forger = Forger::copy(&stored, &forged)?;
        forger.edit(Record::Thread, |thread| {
            let mask = thread["sigmask"].as_u64().unwrap_or_default();
            thread["sigmask"] = (mask | SIGKILL).into();
        })?;
        forger.seal()?;
        registry.appshot(&["-q", "rehearse", "it"])?;
        let (code, error) = told(&registry, &["rehearse", "forged"])?;
        ensure!(code == Some(7), "exit code {code:?}: {error}");
        for part in [
            "not verified",
            "because  it came back otherwise",
            "sigmask",
            "it was kept",
        ] {
            ensure!(error.contains(part), "{part:?} is not told: {error}");
        }
        let mark = mark(&registry, "forged")?;
        ensure!(
            mark["verified"] == false && mark["because"].to_string().contains("sigmask"),
            "{mark}"
        );
        ensure!(registry.appshot(&["store", "ls"])?.contains("NOT verified"));
        ensure!(registry.appshot(&["inspect", "forged"])?.contains("NOT verified"));
        ensure!(registry.appshot(&["inspect", "it"])?.contains("rehearsed  verified"));
        ensure!(groups().is_empty(), "{:?}", groups());
        Ok(())
    });
}

/// What cannot be rehearsed does not end the app: it goes on untouched, with the appshot there.
#[test]
fn an_app_outlives_a_rehearsal_that_fails() {
    in_place("an_app_outlives_a_rehearsal_that_fails", |place| {
        // Nothing can be mounted over the root directory.
        let lock = PathBuf::from(format!("/{}.lock", place.unique()));
        let program = format!(
            "import fcntl, time; f = open({lock:?}, 'w'); fcntl.flock(f, fcntl.LOCK_EX)\n\
             open({:?}, 'w')\nwhile True: time.sleep(60)",
            place.path("ready")
        );
        let registry = with_app(place, &["/usr/bin/python3", "-c", &program])?;
        let tried = (|| {
            poll("it to be ready", PATIENCE, || {
                Ok(place.path("ready").exists().then_some(()))
            })?;
            let store = libsnap::store::Store::open(&registry.run, &registry.data)?;
            let top = store.get("it")?.root.0;
            let before = Fingerprint::take(top);
            let (code, error) = told(&registry, &["snapshot", "it", "--verify"])?;
            ensure!(code == Some(7), "exit code {code:?}: {error}");
            ensure!(
                error.contains("root directory") && error.contains("running as before"),
                "{error}"
            );
            judge_untouched(&before, &Fingerprint::take(top), Changes::NONE)?;
            ensure!(runs(&registry)?, "the app has ended");
            ensure!(mark(&registry, "it")?["verified"] == false);
            registry.appshot(&["-q", "kill", "it", "-s", "KILL"])?;
            poll("its end", PATIENCE, || Ok((!runs(&registry)?).then_some(())))
        })();
        std::fs::remove_file(&lock)?;
        tried
    });
}

/// Wherever its worker is killed: the app runs on, or sleeps in an appshot, and nothing of the
/// rehearsal is left.
#[test]
fn a_killed_worker_leaves_nothing_of_a_rehearsal() {
    in_place("a_killed_worker_leaves_nothing_of_a_rehearsal", |place| {
        let registry = with_app(place, &["sleep", "1000"])?;
        let (mut killed, mut rehearsing, mut moment) = (0, 0, 10);
        // Moments before the rehearsal are other trials'.
        loop {
            let mut command = registry.command("appshot");
            command.env("APPSHOT_DIE_AT", format!("--worker:{moment}"));
            let output = command.args(["snapshot", "it", "--verify", "--replace"]).output()?;
            // An empty group is what is left until the next command.
            rehearsing += usize::from(!groups().is_empty());
            let gone = || Ok(groups().iter().all(|group| !is_populated(group)).then_some(()));
            poll("what was rehearsed to be gone", PATIENCE, gone)?;
            if output.status.success() {
                break;
            }
            killed += 1;
            ensure!(runs(&registry)? || !registry.appshot(&["ps"])?.contains("running"));
            if !runs(&registry)? {
                break;
            }
            moment += 7;
        }
        registry.appshot(&["store", "gc"])?;
        ensure!(groups().is_empty(), "{:?}", groups());
        note(
            "rehearsal",
            &format!("{killed} workers were killed, {rehearsing} of them in a rehearsal"),
        );
        ensure!(
            rehearsing > 3,
            "only {rehearsing} of {killed} were killed in a rehearsal"
        );
        Ok(())
    });
}

fn is_populated(group: &Path) -> bool {
    std::fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|pids| !pids.is_empty())
}
