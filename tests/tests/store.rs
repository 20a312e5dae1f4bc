//! The store by the installed programs: what is told of it, what goes and what never
//! does, quotas, travel, and series of snapshots of a running app.

use anyhow::{Context, Result, ensure};
use appshot_tests::app::Place;
use appshot_tests::clients::{ensure_refused, free_port, redis};
use appshot_tests::installed::Registry;
use appshot_tests::judge::{Changes, Fingerprint, judge_untouched};
use appshot_tests::programs;
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, need_program, poll};
use libsnap::store::{Collected, Need, Stored};
use libsnap::target::{Instance, SnapshotReport};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::Duration;

const REFUSED: i32 = 4;

/// A registry in which apps run, each of which is ended with this.
struct Trial<'a> {
    place: &'a Place,
    registry: Registry,
}

#[track_caller]
fn trial(test: &'static str, body: fn(&Trial<'_>) -> Result<()>) {
    in_place(test, move |place| {
        let registry = Registry::new(place)?;
        body(&Trial { place, registry })
    });
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        for app in self.apps().unwrap_or_default() {
            let _ended_before = self.appshot(&["kill", "-s", "KILL", &app]);
        }
    }
}

impl Trial<'_> {
    fn appshot(&self, words: &[&str]) -> Result<String> {
        self.registry.appshot(&[&["-q"], words].concat())
    }

    fn output(&self, words: &[&str]) -> Result<Output> {
        Ok(self.registry.command("appshot").args(words).output()?)
    }

    fn apps(&self) -> Result<Vec<String>> {
        let views: Vec<Value> = serde_json::from_str(&self.appshot(&["ps", "-o", "json"])?)?;
        let running = views.iter().filter(|view| view["state"] == "running");
        Ok(running
            .filter_map(|view| view["name"].as_str().map(str::to_owned))
            .collect())
    }

    fn name(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.place.unique())
    }

    /// Starts a command as an app; answers the pid of the process above all others.
    fn run(&self, name: &str, command: &[&str]) -> Result<i32> {
        let words = ["run", "-d", "-o", "json", "--name", name, "--"];
        let instance: Instance = serde_json::from_str(&self.appshot(&[&words[..], command].concat())?)?;
        Ok(instance.child().0)
    }

    /// Starts one of the programs of tests/apps.
    fn start(&self, name: &str, program: &str) -> Result<i32> {
        let ready = self.place.path(&format!("{name}-ready"));
        let words = [programs::build(program)?, ready.clone(), self.place.path("go")].map(|p| p.display().to_string());
        let top = self.run(name, &words.each_ref().map(String::as_str))?;
        poll("ready", PATIENCE, || Ok(ready.exists().then_some(())))?;
        Ok(top)
    }

    fn keep(&self, name: &str, tag: &str) -> Result<()> {
        self.appshot(&["snapshot", "--leave-running", "--tag", tag, name])
            .map(drop)
    }

    fn kill(&self, name: &str) -> Result<()> {
        self.appshot(&["kill", "-s", "KILL", "--wait", name]).map(drop)
    }

    fn redis(&self, name: &str) -> Result<(i32, u16)> {
        let program = need_program(&["redis-server"])?.display().to_string();
        let (port, dir) = (free_port()?, self.place.dir().display().to_string());
        let number = port.to_string();
        let words = ["--save", "", "--enable-debug-command", "yes", "--bind", "127.0.0.1"];
        let top = self.run(
            name,
            &[&[&program[..], "--dir", &dir, "--port", &number], &words[..]].concat(),
        )?;
        poll("redis", PATIENCE, || Ok(redis(port, &["PING"]).ok()))?;
        Ok((top, port))
    }

    fn ls(&self) -> Result<Vec<Stored>> {
        Ok(serde_json::from_str(&self.appshot(&["store", "ls", "-o", "json"])?)?)
    }

    fn names(&self) -> Result<Vec<String>> {
        Ok(self.ls()?.into_iter().map(|stored| stored.name).collect())
    }

    fn stored(&self, name: &str) -> PathBuf {
        self.registry.data.join(format!("appshots/{name}.appshot"))
    }

    /// Everything in the directory of appshots, hidden or not, without working sets.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.registry.data.join("appshots")).into_iter();
        let names = entries
            .flatten()
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned());
        names.filter(|name| !name.contains(".working-set")).collect()
    }

    fn gc(&self, words: &[&str]) -> Result<Collected> {
        let output = self.output(&[&["store", "gc", "-o", "json"], words].concat())?;
        let error = String::from_utf8_lossy(&output.stderr);
        serde_json::from_slice(&output.stdout).with_context(|| format!("gc {words:?}: {error}"))
    }

    /// `snapshot --every`, of which each line of stdout is the report of one.
    fn series(&self, name: &str, words: &[&str]) -> Result<(Child, BufReader<impl Read + use<>>)> {
        let mut command = self.registry.command("appshot");
        command
            .args(["-q", "snapshot", name, "-o", "json", "--every", "1s"])
            .args(words);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("no stdout")?);
        Ok((child, lines))
    }

    fn all_whole(&self) -> Result<()> {
        let output = self.output(&["store", "verify"])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        Ok(())
    }
}

fn removed(collected: &Collected) -> Vec<&str> {
    collected.removed.iter().map(|gone| gone.name.as_str()).collect()
}

fn next(lines: &mut impl BufRead) -> Result<SnapshotReport> {
    let mut line = String::new();
    lines.read_line(&mut line)?;
    serde_json::from_str(&line).with_context(|| format!("{line:?}"))
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(child.id().cast_signed()), signal)?)
}

/// A byte at this place is another one now.
fn flip(file: &Path, at: u64) -> Result<()> {
    let file = File::options().read(true).write(true).open(file)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[byte[0] ^ 1], at)?)
}

#[test]
fn listed_and_verified() {
    trial("listed_and_verified", |trial| {
        let [app, copy] = ["", "-copy"].map(|suffix| trial.name(suffix));
        trial.start(&app, "pipes")?;
        trial.keep(&app, &copy)?;
        trial.appshot(&["snapshot", &app])?;
        let all = trial.ls()?;
        let [first, second] = &all[..] else {
            anyhow::bail!("{all:?}")
        };
        ensure!(
            (&first.name, &second.name) == (&copy, &app),
            "the oldest first: {all:?}"
        );
        for stored in &all {
            ensure!(
                stored.app.as_ref() == Some(&app) && stored.created_unix_ms.is_some(),
                "{all:?}"
            );
            ensure!(stored.processes.is_some_and(|count| count > 0), "{all:?}");
            ensure!(0 < stored.disk_bytes && stored.problem.is_none(), "{all:?}");
        }
        ensure!(
            first.needed_by.is_empty() && second.needed_by == [Need::Asleep(app.clone())],
            "{all:?}"
        );
        trial.all_whole()?;
        flip(&trial.stored(&copy).join("2.core"), 5000)?;
        let verify = |names: &[&str]| -> Result<(Option<i32>, Vec<Value>)> {
            let output = trial.output(&[&["store", "verify", "-o", "json"], names].concat())?;
            Ok((output.status.code(), serde_json::from_slice(&output.stdout)?))
        };
        let (code, told) = verify(&[])?;
        let damaged: Vec<_> = told.iter().filter(|one| one["whole"] == false).collect();
        ensure!(code == Some(1) && damaged.len() == 1, "{told:?}");
        ensure!(damaged[0]["name"] == copy.as_str(), "{damaged:?}");
        let parts = damaged[0]["damage"].as_array().context("no damage")?;
        ensure!(parts.len() == 1 && parts[0]["part"] == "2.core", "{parts:?}");
        ensure!(verify(&[&app])?.0 == Some(0), "the other one is whole");
        ensure!(verify(&["nobody"]).is_err(), "there is none of that name");
        Ok(())
    });
}

/// What goes by the rules, and what never does.
#[test]
fn gc() {
    trial("gc", |trial| {
        let [app, other, sleeper] = ["", "-other", "-sleeper"].map(|suffix| trial.name(suffix));
        trial.start(&sleeper, "eventfd")?;
        trial.appshot(&["snapshot", &sleeper])?;
        trial.start(&app, "pipes")?;
        let tags: Vec<String> = (0..4).map(|number| trial.name(&format!("-{number}"))).collect();
        for tag in &tags {
            trial.keep(&app, tag)?;
        }
        let before = trial.files();
        ensure!(
            removed(&trial.gc(&[])?).is_empty() && trial.files() == before,
            "without a rule"
        );
        // Needed by an instance that was restored from it, whatever the memory it has by now.
        trial.appshot(&["restore", "-d", "--name", &other, &tags[1]])?;
        let planned = trial.gc(&["--keep", "1", "--dry-run"])?;
        ensure!(
            removed(&planned) == [&tags[0], &tags[2]] && planned.freed_bytes > 0,
            "{planned:?}"
        );
        ensure!(trial.names()?.len() == 5, "a dry run");
        let done = trial.gc(&["--keep", "1"])?;
        ensure!(removed(&done) == removed(&planned), "{done:?}, planned {planned:?}");
        let why = |name: &str| {
            let kept = done.kept.iter().find(|kept| kept.name == name);
            kept.map_or("", |kept| kept.why.as_str())
        };
        ensure!(why(&tags[1]).contains(&other), "{done:?}");
        ensure!(
            why(&tags[3]).contains("newest") && why(&sleeper).contains("sleeps"),
            "{done:?}"
        );
        // Nothing but what is needed withstands these: what is deployed is, its versions too.
        let deployed = trial.registry.data.join("pinned").join(&tags[3]);
        fs::create_dir_all(deployed.parent().context("no directory")?)?;
        fs::write(&deployed, "")?;
        let version = format!("{}.v7", tags[3]);
        trial.keep(&app, &version)?;
        let done = trial.gc(&["--keep", "0"])?;
        ensure!(removed(&done).is_empty(), "{done:?}");
        fs::remove_file(&deployed)?;
        let done = trial.gc(&["--keep", "0"])?;
        ensure!(removed(&done) == [&tags[3], &version], "{done:?}");
        trial.kill(&other)?;
        let done = trial.gc(&["--keep", "0"])?;
        ensure!(
            removed(&done) == [&tags[1]] && trial.names()? == [sleeper.as_str()],
            "{done:?}"
        );
        // Pages of the one are in the other.
        let [parent, child] = ["-parent", "-child"].map(|suffix| trial.name(suffix));
        trial.keep(&app, &parent)?;
        trial.appshot(&[
            "snapshot",
            "--leave-running",
            "--parent",
            &parent,
            "--tag",
            &child,
            &app,
        ])?;
        let all = trial.ls()?;
        let found = |name: &str| all.iter().find(|stored| stored.name == name).context("gone");
        ensure!(found(&child)?.parents == [parent.as_str()], "{all:?}");
        ensure!(found(&parent)?.needed_by == [Need::Child(child.clone())], "{all:?}");
        ensure!(
            removed(&trial.gc(&["--keep", "1"])?).is_empty(),
            "the parent of the newest"
        );
        let output = trial.output(&["rm", "--appshot", &parent])?;
        ensure!(output.status.code() == Some(5), "{output:?}");
        trial.all_whole()?;
        let core = trial.stored(&parent).join("2.core");
        let middle = core.metadata()?.len() / 2;
        flip(&core, middle)?;
        let output = trial.output(&["store", "verify", &parent])?;
        ensure!(output.status.code() == Some(1), "{output:?}");
        flip(&core, middle)?;
        let done = trial.gc(&["--keep", "0"])?;
        ensure!(removed(&done) == [&child, &parent], "the child first: {done:?}");
        trial.appshot(&["restore", "-d", &sleeper])?;
        fs::write(trial.place.path("go"), "")?;
        Ok(())
    });
}

#[test]
fn gc_by_age_and_size() {
    trial("gc_by_age_and_size", |trial| {
        let app = trial.name("");
        trial.start(&app, "pipes")?;
        let tags: Vec<String> = (0..3).map(|number| trial.name(&format!("-{number}"))).collect();
        trial.keep(&app, &tags[0])?;
        std::thread::sleep(Duration::from_millis(1100));
        trial.keep(&app, &tags[1])?;
        ensure!(
            removed(&trial.gc(&["--older-than", "1h", "--keep", "0"])?).is_empty(),
            "all are young"
        );
        let done = trial.gc(&["--older-than", "1s"])?;
        ensure!(
            removed(&done) == [&tags[0]],
            "the newest stays, whatever its age: {done:?}"
        );
        trial.keep(&app, &tags[2])?;
        let sizes: Vec<u64> = trial.ls()?.iter().map(|stored| stored.disk_bytes).collect();
        let quota = (sizes.iter().sum::<u64>() - 1).to_string();
        let done = trial.gc(&["--quota", &quota])?;
        ensure!(removed(&done) == [&tags[1]] && done.excess_bytes == 0, "{done:?}");
        let output = trial.output(&["store", "gc", "--quota", "1"])?;
        ensure!(output.status.code() == Some(1), "the last one stays, and that is told");
        ensure!(trial.names()? == [tags[2].as_str()], "{:?}", trial.names());
        Ok(())
    });
}

/// Files of killed writers and removers go; what a living writer has, and what cannot be
/// read, stays.
#[test]
fn gc_of_leftovers() {
    trial("gc_of_leftovers", |trial| {
        let app = trial.name("");
        trial.start(&app, "pipes")?;
        trial.keep(&app, &app)?;
        let dir = trial.registry.data.join("appshots");
        let half = dir.join(".x.appshot.partial-1-00");
        let living = dir.join(".y.appshot.partial-1-00");
        let doomed = dir.join(".doomed-1-x.appshot");
        for left in [&half, &living, &doomed] {
            fs::create_dir(left)?;
            fs::write(left.join("2.core"), vec![1; 10_000])?;
        }
        let working_set = dir.join(".gone.appshot.working-set");
        fs::write(&working_set, "x")?;
        let unreadable = dir.join("unreadable.appshot");
        fs::create_dir(&unreadable)?;
        fs::write(unreadable.join("manifest"), "x")?;
        let lock = nix::fcntl::Flock::lock(File::open(&living)?, nix::fcntl::FlockArg::LockExclusiveNonblock);
        let lock = lock.map_err(|(_, errno)| errno)?;
        let told = trial.gc(&["--dry-run"])?;
        let mut paths: Vec<&PathBuf> = told.leftovers.iter().map(|left| &left.path).collect();
        paths.sort();
        ensure!(paths == [&doomed, &working_set, &half], "{told:?}");
        ensure!(half.exists() && doomed.exists() && working_set.exists(), "a dry run");
        let done = trial.gc(&["--keep", "0", "--quota", "0"])?;
        ensure!(
            done.leftovers == told.leftovers && done.freed_bytes >= 20_000,
            "{done:?}"
        );
        ensure!(!half.exists() && !doomed.exists() && !working_set.exists(), "{done:?}");
        ensure!(living.exists() && unreadable.exists(), "{done:?}");
        ensure!(removed(&done) == [app.as_str()], "{done:?}");
        let why = done.kept.iter().map(|kept| kept.why.as_str()).collect::<Vec<_>>();
        ensure!(why.len() == 1 && why[0].contains("cannot be read"), "{done:?}");
        drop(lock);
        Ok(())
    });
}

/// Memory that processes could share: it is no anonymous memory, so that only what was
/// written tells how much it is.
const SHARED: &str = "
import mmap, os, sys, time
memory = mmap.mmap(-1, 24 << 20)
memory.write(os.urandom(24 << 20))
open(sys.argv[1], 'w').close()
time.sleep(1e6)
";

/// A snapshot that does not fit is refused before or after it is written, and leaves
/// the app as it was and nothing on the disk.
#[test]
fn quota() {
    trial("quota", |trial| {
        let told = trial.appshot(&["store", "quota", "16M"])?;
        ensure!(told.starts_with("16.0 MiB"), "{told}");
        let [app, shared] = ["", "-shared"].map(|suffix| trial.name(suffix));
        let (top, port) = trial.redis(&app)?;
        redis(port, &["DEBUG", "POPULATE", "40000", "key", "1000"])?;
        let digest = redis(port, &["DEBUG", "DIGEST"])?;
        let ready = trial.place.path("ready");
        let python = need_program(&["python3"])?.display().to_string();
        let shared_top = trial.run(&shared, &[&python, "-c", SHARED, &ready.display().to_string()])?;
        poll("ready", PATIENCE, || Ok(ready.exists().then_some(())))?;
        for (app, top) in [(&app, top), (&shared, shared_top)] {
            let before = Fingerprint::take(top);
            for words in [&["snapshot", app][..], &["snapshot", "--leave-running", app]] {
                let output = trial.output(words)?;
                let error = String::from_utf8_lossy(&output.stderr);
                ensure!(output.status.code() == Some(REFUSED), "{words:?}: {output:?}");
                ensure!(error.contains("quota of the store, 16.0 MiB"), "{error}");
                ensure!(error.contains("to fix") && error.contains("running"), "{error}");
                judge_untouched(&before, &Fingerprint::take(top), Changes::NONE)?;
                ensure!(trial.files().is_empty(), "{:?}", trial.files());
            }
        }
        ensure!(redis(port, &["DEBUG", "DIGEST"])? == digest, "its data");
        trial.appshot(&["store", "quota", "none"])?;
        trial.keep(&app, "kept")?;
        let packed = trial.place.path("packed").display().to_string();
        trial.appshot(&["store", "export", "kept", "-o", &packed])?;
        // In the place of the other one there is room.
        let taken = trial.ls()?[0].disk_bytes;
        trial.appshot(&["store", "quota", &(taken + taken / 8).to_string()])?;
        trial.appshot(&["snapshot", "--leave-running", "--replace", "--tag", "kept", &app])?;
        let output = trial.output(&["store", "import", &packed, "--name", "again"])?;
        ensure!(output.status.code() == Some(REFUSED), "{output:?}");
        ensure!(trial.files() == ["kept.appshot"], "{:?}", trial.files());
        Ok(())
    });
}

/// There and back, through a file and through a pipe; what is damaged does not appear.
#[test]
fn travel() {
    trial("travel", |trial| {
        let app = trial.name("");
        let (_, port) = trial.redis(&app)?;
        redis(port, &["DEBUG", "POPULATE", "20000", "key", "100"])?;
        let digest = redis(port, &["DEBUG", "DIGEST"])?;
        trial.keep(&app, "kept")?;
        let file = trial.place.path("far-away");
        let path = file.display().to_string();
        trial.appshot(&["store", "export", "kept", "-o", &path])?;
        let kept = &trial.ls()?[0];
        ensure!(file.metadata()?.len() < kept.disk_bytes, "it is no smaller");
        trial.appshot(&["store", "import", &path])?;
        let mut export = trial.registry.command("appshot");
        let export = export.args(["-q", "store", "export", "kept", "--level", "1"]);
        let mut export = export.stdout(Stdio::piped()).spawn()?;
        let mut import = trial.registry.command("appshot");
        let import = import.args(["store", "import", "-", "--name", "piped"]);
        let import = import.stdin(export.stdout.take().context("no stdout")?).output()?;
        ensure!(export.wait()?.success() && import.status.success(), "{import:?}");
        let all = trial.ls()?;
        ensure!(trial.names()? == ["far-away", "kept", "piped"], "{all:?}");
        let same = |stored: &Stored| (stored.app.clone(), stored.created_unix_ms, stored.bytes);
        ensure!(all.iter().all(|stored| same(stored) == same(kept)), "{all:?}");
        // What was a hole is one again.
        let most = kept.disk_bytes + kept.disk_bytes / 8;
        ensure!(all.iter().all(|stored| stored.disk_bytes <= most), "{all:?}");
        trial.all_whole()?;
        flip(&file, file.metadata()?.len() / 2)?;
        let output = trial.output(&["store", "import", &path, "--name", "damaged"])?;
        ensure!(output.status.code() == Some(1), "{output:?}");
        ensure!(trial.files().len() == 3, "{:?}", trial.files());
        trial.kill(&app)?;
        ensure_refused(port)?;
        for name in ["far-away", "piped"] {
            let restored = trial.name(&format!("-{name}"));
            trial.appshot(&["restore", "-d", "--name", &restored, name])?;
            ensure!(redis(port, &["DEBUG", "DIGEST"])? == digest, "{name}");
            trial.kill(&restored)?;
        }
        Ok(())
    });
}

/// Appshots of a server that counts meanwhile; the newest of them stay, each is whole,
/// and what is restored goes on from where it was.
#[test]
fn every_so_often() {
    trial("every_so_often", |trial| {
        let app = trial.name("");
        let (_, port) = trial.redis(&app)?;
        let (mut child, mut lines) = trial.series(&app, &["--keep", "3", "--tcp=close", "--name", "count"])?;
        let mut counts = Vec::new();
        let mut taken = Vec::new();
        while taken.len() < 8 {
            let before: u64 = redis(port, &["INCR", "count"])?.parse()?;
            let report = next(&mut lines)?;
            taken.push(report.appshot);
            counts.push(before..=redis(port, &["INCR", "count"])?.parse()?);
        }
        signal(&child, Signal::SIGINT)?;
        let status = child.wait()?;
        ensure!(status.code() == Some(0), "Ctrl-C is how it ends: {status}");
        let mut after = Vec::new();
        while let Ok(report) = next(&mut lines) {
            after.push(report.appshot);
        }
        taken.extend(after);
        let all = trial.ls()?;
        let (older, newest) = all.split_at(all.len() - 3);
        let stored: Vec<PathBuf> = newest.iter().map(|stored| stored.path.clone()).collect();
        ensure!(stored == taken[taken.len() - 3..], "{stored:?} of {taken:?}");
        ensure!(older.len() <= 3, "there are at most twice as many: {all:?}");
        let lends = |stored: &Stored| stored.needed_by.iter().any(|need| matches!(need, Need::Child(_)));
        ensure!(older.iter().all(lends), "{all:?}");
        ensure!(trial.files().len() == all.len(), "{:?}", trial.files());
        trial.all_whole()?;
        redis(port, &["INCR", "count"])?;
        trial.kill(&app)?;
        let number = taken.iter().position(|path| *path == stored[0]).context("gone")?;
        let name = stored[0].file_stem().context("no name")?.to_string_lossy().into_owned();
        trial.appshot(&["restore", "-d", "--name", &app, &name])?;
        let found: u64 = redis(port, &["GET", "count"])?.parse()?;
        let expected = counts.get(number).context("no count")?;
        ensure!(expected.contains(&found), "{found}, not {expected:?}");
        Ok(())
    });
}

/// The command is killed at some moment of a snapshot: the app goes on as before, there
/// is no half appshot, and the next series goes on with the same names.
#[test]
fn every_killed() {
    trial("every_killed", |trial| {
        let app = trial.name("");
        let (top, port) = trial.redis(&app)?;
        redis(port, &["DEBUG", "POPULATE", "60000", "key", "1000"])?;
        let before = Fingerprint::take(top);
        for millis in [10, 40, 90, 150, 250, 400, 600] {
            let (mut child, mut lines) = trial.series(&app, &["--keep", "2", "--tcp=close"])?;
            if millis % 20 == 10 {
                next(&mut lines)?;
            }
            std::thread::sleep(Duration::from_millis(millis));
            signal(&child, Signal::SIGKILL)?;
            child.wait()?;
            // The worker undoes, or finishes what it was sealing.
            poll("the worker's end", PATIENCE, || {
                let journal = fs::read_dir(trial.registry.run.join("journal"))
                    .into_iter()
                    .flatten()
                    .flatten();
                let partial = trial.files().iter().any(|name| name.contains(".partial-"));
                Ok((journal.count() == 0 && !partial).then_some(()))
            })?;
            judge_untouched(
                &before,
                &Fingerprint::take(top),
                Changes {
                    maps: true,
                    ..Changes::NONE
                },
            )?;
            redis(port, &["INCR", "count"])?;
            // One that was being removed goes with the next command.
            trial.all_whole()?;
            let hidden: Vec<String> = trial.files().into_iter().filter(|name| name.starts_with('.')).collect();
            ensure!(hidden.is_empty(), "after {millis} ms: {hidden:?}");
        }
        let (mut child, mut lines) = trial.series(&app, &["--keep", "2", "--tcp=close"])?;
        for _ in 0..2 {
            next(&mut lines)?;
        }
        signal(&child, Signal::SIGTERM)?;
        child.wait()?;
        ensure!((2..=4).contains(&trial.names()?.len()), "{:?}", trial.names());
        Ok(())
    });
}

/// Ctrl-C in the middle of the first one, the end of the app, and requests that make no
/// sense.
#[test]
fn every_ended() {
    trial("every_ended", |trial| {
        let app = trial.name("");
        let (top, port) = trial.redis(&app)?;
        redis(port, &["DEBUG", "POPULATE", "60000", "key", "1000"])?;
        let before = Fingerprint::take(top);
        let (mut child, _lines) = trial.series(&app, &["--tcp=close"])?;
        poll("the snapshot to begin", PATIENCE, || {
            let partial = trial.files().iter().any(|name| name.contains(".partial-"));
            Ok(partial.then_some(()))
        })?;
        signal(&child, Signal::SIGINT)?;
        ensure!(child.wait()?.success(), "Ctrl-C");
        judge_untouched(
            &before,
            &Fingerprint::take(top),
            Changes {
                maps: true,
                ..Changes::NONE
            },
        )?;
        // It is finished where it was being sealed.
        let files = trial.files();
        ensure!(
            files.len() <= 1 && !files.iter().any(|name| name.starts_with('.')),
            "{files:?}"
        );
        for words in [
            &["snapshot", &app, "--every", "10ms"][..],
            &["snapshot", &app, "--every", "1s", "--keep", "0"],
            &["snapshot", &app, "--every", "1s", "--name", "Not A Name"],
        ] {
            let output = trial.output(words)?;
            ensure!(output.status.code() == Some(2), "{words:?}: {output:?}");
        }
        let nobody = trial.output(&["snapshot", "nobody", "--every", "1s"])?;
        ensure!(nobody.status.code() == Some(3), "{nobody:?}");
        let (mut child, mut lines) = trial.series(&app, &["--tcp=close"])?;
        next(&mut lines)?;
        trial.kill(&app)?;
        ensure!(child.wait()?.success(), "it ends with the app");
        Ok(())
    });
}

/// The same by snapd.
#[test]
fn series_of_snapd() {
    trial("series_of_snapd", |trial| {
        let app = trial.name("");
        trial.start(&app, "pipes")?;
        let snapd = trial.registry.daemon("snapd", "")?;
        let client = &snapd.client;
        let request = json!({ "target": app, "every_ms": 1000, "keep": 2, "name": "mine" });
        let begun: Value = client.post("/v1/series", &request)?;
        ensure!(begun["taken"] == 1 && begun["name"] == "mine", "{begun}");
        let twice = client.post::<Value>("/v1/series", &request);
        ensure!(
            twice.is_err_and(|e| e.kind == libsnap::error::Kind::Conflict),
            "a second one"
        );
        poll("the fourth", PATIENCE, || {
            let all: Vec<Value> = client.get("/v1/series")?;
            ensure!(all.len() == 1 && all[0]["problem"].is_null(), "{all:?}");
            Ok((all[0]["taken"].as_u64() >= Some(4)).then_some(()))
        })?;
        client.delete::<Value>("/v1/series/mine")?;
        poll("its end", PATIENCE, || {
            let all: Vec<Value> = client.get("/v1/series")?;
            Ok(all.is_empty().then_some(()))
        })?;
        let stored: Vec<Value> = client.get("/v1/appshots")?;
        ensure!((2..=4).contains(&stored.len()), "{stored:?}");
        ensure!(stored.iter().all(|one| one["app"] == app.as_str()), "{stored:?}");
        trial.all_whole()?;
        client.post::<Value>("/v1/series", &request)?;
        trial.kill(&app)?;
        poll("the end with the app", PATIENCE, || {
            let all: Vec<Value> = client.get("/v1/series")?;
            Ok(all.is_empty().then_some(()))
        })?;
        snapd.stop()
    });
}

/// An appshot that the store keeps packed is restored all the same, and says so.
#[test]
fn compressed() {
    trial("compressed", |trial| {
        let app = trial.name("");
        let (_, port) = trial.redis(&app)?;
        redis(port, &["DEBUG", "POPULATE", "20000", "key", "100"])?;
        let digest = redis(port, &["DEBUG", "DIGEST"])?;
        trial.appshot(&["snapshot", &app])?;
        ensure!(
            trial.appshot(&["store", "compress", "--idle-for", "1h"])?.is_empty(),
            "it is young"
        );
        let before = trial.ls()?;
        trial.appshot(&["store", "compress", "--idle-for", "0s"])?;
        let packed = trial.ls()?;
        ensure!(
            packed[0].packed_bytes.is_some() && packed[0].bytes >= before[0].bytes / 2,
            "{packed:?}"
        );
        ensure!(
            packed[0].disk_bytes < before[0].disk_bytes && packed[0].needed_by == before[0].needed_by,
            "{packed:?}"
        );
        ensure!(trial.files() == [format!("{app}.appshot")], "{:?}", trial.files());
        trial.all_whole()?;
        let twice = trial.output(&["store", "compress", &app])?;
        ensure!(twice.status.code() == Some(5), "{twice:?}");
        // What is packed travels as it is.
        let file = trial.place.path("copy");
        trial.appshot(&["store", "export", &app, "-o", &file.display().to_string()])?;
        ensure!(fs::read(&file)? == fs::read(trial.stored(&app))?, "the same bytes");
        let output = trial.output(&["restore", "-d", &app])?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && told.contains("unpacked in"), "{output:?}");
        ensure!(redis(port, &["DEBUG", "DIGEST"])? == digest, "its data");
        ensure!(trial.ls()?[0].packed_bytes.is_none(), "it is unpacked");
        let reading = trial.output(&["store", "compress", &app])?;
        ensure!(reading.status.code() == Some(5), "an instance reads it: {reading:?}");
        trial.kill(&app)?;
        // By restored, of one that is damaged: nothing comes up, and it stays what it is.
        trial.appshot(&["store", "compress", &app])?;
        let restored = trial.registry.daemon("restored", "")?;
        let length = trial.stored(&app).metadata()?.len();
        flip(&trial.stored(&app), length / 2)?;
        let request = json!({ "appshot": app });
        let damaged = restored.client.post::<Value>("/v1/instances", &request);
        ensure!(damaged.is_err_and(|e| e.to_string().contains("digest")), "damage");
        ensure!(
            trial.stored(&app).is_file() && trial.files().len() == 1,
            "{:?}",
            trial.files()
        );
        flip(&trial.stored(&app), length / 2)?;
        let up: Instance = restored.client.post("/v1/instances", &request)?;
        ensure!(up.phases.first().is_some_and(|phase| phase.name == "unpack"), "{up:?}");
        ensure!(redis(port, &["DEBUG", "DIGEST"])? == digest, "its data, by restored");
        trial.kill(&app)?;
        restored.stop()
    });
}
