//! SIGKILL and Ctrl-C of whoever takes a snapshot or restores, at every moment.
//! The judge sees that the app runs as before and that nothing is left.
//!
//! In a debug build `APPSHOT_DIE_AT=LIFE:N` ends the worker (`--worker`), its
//! guard (`--guard`), a supervisor (`--supervise`), `restore` itself or a daemon by
//! its name at its Nth moment: before each ptrace request, change of a cgroup, kill and step. So N
//! counts up until the program gets through: by `APPSHOT_STRIDE`, 5 by default;
//! with 1 no moment is left out, which takes some minutes.

use anyhow::{Context, Result, bail, ensure};
use appshot_tests::app::Place;
use appshot_tests::installed::{self, Daemon, spares};
use appshot_tests::judge::{Changes, Fingerprint, HostState, judge_nothing_left, judge_untouched, tree};
use appshot_tests::programs;
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, note, poll, skip};
use libsnap::error::Error;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A registry of its own with one app, which is called as the place is.
struct Registry<'a> {
    place: &'a Place,
    name: &'a str,
    files: installed::Registry,
}

#[track_caller]
fn trial(test: &'static str, trial: fn(&Registry<'_>) -> Result<()>) {
    in_place(test, move |place| {
        let files = installed::Registry::new(place)?;
        files.show_log(place)?;
        let name = place.unique();
        let registry = Registry { place, name, files };
        let result = trial(&registry);
        registry.end();
        result
    });
}

impl Registry<'_> {
    fn appshot(&self, args: &[&str], die_at: &str) -> Command {
        let mut command = self.files.command("appshot");
        command.env("APPSHOT_DIE_AT", die_at).env("RUST_LOG", "warn");
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// A snapshot after which the app goes on, with these deaths.
    fn snapshot(&self, die_at: &str) -> Result<Output> {
        let _ = fs::remove_dir_all(self.stored("kept"));
        let args = ["snapshot", "--leave-running", "--tag", "kept", self.name];
        Ok(self.appshot(&args, die_at).output()?)
    }

    /// The next command of any kind.
    fn any_command(&self) -> Result<()> {
        succeeds(&self.appshot(&["ps"], "").output()?).map(drop)
    }

    fn stored(&self, name: &str) -> PathBuf {
        self.files.data.join(format!("appshots/{name}.appshot"))
    }

    fn start(&self, program: &str) -> Result<()> {
        self.start_by(&[], program)
    }

    /// Starts the program by a command that comes first.
    fn start_by(&self, first: &[&str], program: &str) -> Result<()> {
        let _ = fs::remove_file(self.place.path("ready"));
        let _ = fs::remove_file(self.place.path("go"));
        let program = programs::build(program)?;
        let mut command = self.appshot(&["run", "-d", "--name", self.name, "--"], "");
        succeeds(
            &command
                .args(first)
                .arg(program)
                .arg(self.place.path("ready"))
                .arg(self.place.path("go"))
                .output()?,
        )?;
        poll("ready", PATIENCE, || {
            Ok(self.place.path("ready").exists().then_some(()))
        })
    }

    /// A number in the app's record.
    fn recorded(&self, field: &str) -> Result<i32> {
        let record = fs::read_to_string(self.files.run.join(format!("apps/{}.json", self.name)))?;
        let (_, rest) = record.split_once(&format!("\"{field}\": ")).context(field.to_owned())?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().with_context(|| format!("{field} of {record}"))
    }

    /// A text in the app's record.
    fn text(&self, field: &str) -> Result<String> {
        let record = fs::read_to_string(self.files.run.join(format!("apps/{}.json", self.name)))?;
        let (_, rest) = record
            .split_once(&format!("\"{field}\": \""))
            .context(field.to_owned())?;
        Ok(rest.split('"').next().unwrap_or_default().to_owned())
    }

    /// The process above all others of the app.
    fn top(&self) -> Result<i32> {
        self.recorded("init")
    }

    fn runs(&self) -> bool {
        let alive = |pid: i32| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        self.top().is_ok_and(alive)
    }

    /// Says go; the app has to find itself intact.
    fn passes(&self) -> Result<()> {
        fs::write(self.place.path("go"), "")?;
        poll("the app's end", PATIENCE, || Ok(self.recorded("exit").ok())).and_then(|code| {
            ensure!(code == 0, "exit code {code}");
            Ok(())
        })
    }

    /// Journals, but those of husks that a living daemon has in waiting; locks of dead
    /// owners' directories, half-written appshots.
    fn nothing_pending(&self) -> Result<()> {
        let names = |dir: PathBuf, ours: fn(&str) -> bool| {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .filter(|name| ours(name))
                .collect::<Vec<_>>()
        };
        let mut journals = names(self.files.run.join("journal"), |_| true);
        journals.retain(|name| !waits(&self.files.run.join("journal").join(name)));
        ensure!(journals.is_empty(), "journals left: {journals:?}");
        // A sealed successor (`.next`) is whole, and taken over by the next one who
        // holds the name.
        let hidden = names(self.files.data.join("appshots"), |name| {
            name.starts_with('.') && !name.ends_with(".next") && !name.contains(".working-set")
        });
        ensure!(hidden.is_empty(), "half appshots left: {hidden:?}");
        Ok(())
    }

    /// A snapshot that ends the app, whose files for ready and go are gone then.
    fn put_to_sleep(&self) -> Result<()> {
        succeeds(&self.appshot(&["snapshot", self.name], "").output()?)?;
        poll("the app's end", PATIENCE, || Ok(self.recorded("exit").ok()))?;
        Ok(fs::remove_file(self.place.path("ready"))?)
    }

    fn end(&self) {
        let _ = self.appshot(&["kill", self.name], "").output();
        let _ = self.any_command();
    }
}

fn told(output: &Output) -> String {
    format!(
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn succeeds(output: &Output) -> Result<String> {
    ensure!(output.status.success(), "{}", told(output));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// More moments than any of these trials has.
const ENOUGH: usize = 5000;

/// From one moment to the next that is tried.
fn stride() -> usize {
    let given = std::env::var("APPSHOT_STRIDE").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(5).max(1)
}

/// The requester undoes before it answers, whatever its worker was at.
#[test]
fn worker() {
    trial("worker", |registry| killed_worker(registry, "steadfast"));
}

/// No socket stays in repair mode, which the next snapshot would refuse.
#[test]
fn worker_that_reads_connections() {
    trial("worker_that_reads_connections", |registry| {
        killed_worker(registry, "tcp_inside")
    });
}

/// What a thread may do by its keys is given back to it, even where it may hardly do anything.
#[test]
fn worker_of_one_with_protection_keys() {
    trial("worker_of_one_with_protection_keys", |registry| {
        let cpu = std::fs::read_to_string("/proc/cpuinfo")?;
        if !cpu.split_ascii_whitespace().any(|flag| flag == "pku") {
            return skip("a processor with protection keys (pku)");
        }
        killed_worker(registry, "pkeys")
    });
}

fn killed_worker(registry: &Registry<'_>, program: &str) -> Result<()> {
    registry.start(program)?;
    let before = Fingerprint::take(registry.top()?);
    for moment in (1..ENOUGH).step_by(stride()) {
        let taken = registry.snapshot(&format!("--worker:{moment}"))?;
        let untouched = || -> Result<()> {
            judge_untouched(&before, &Fingerprint::take(registry.top()?), Changes::NONE)?;
            registry.nothing_pending()
        };
        untouched().with_context(|| format!("moment {moment}: {}", told(&taken)))?;
        if taken.status.success() {
            note(program, &format!("killed at {} moments", moment / stride()));
            return registry.passes();
        }
    }
    bail!("the snapshot has more than {ENOUGH} moments")
}

/// The requester stands still, as if it were not there: the guard undoes alone.
#[test]
fn worker_with_guard_alone() {
    trial("worker_with_guard_alone", |registry| {
        registry.start("steadfast")?;
        let before = Fingerprint::take(registry.top()?);
        let mut times = Vec::new();
        for moment in (1..ENOUGH).step_by(stride()) {
            let mut requester = Requester::start(registry, &format!("--worker:{moment}"))?;
            let Some(worker) = requester.stopped_worker()? else {
                continue;
            };
            let ended = poll("the worker's end", PATIENCE, || Ok(ends_how(worker)))?;
            let since = Instant::now();
            if ended == Ended::Killed {
                poll("the guard", PATIENCE, || Ok(registry.nothing_pending().ok()))
                    .with_context(|| format!("moment {moment}"))?;
                times.push(since.elapsed());
                judge_untouched(&before, &Fingerprint::take(registry.top()?), Changes::NONE)
                    .with_context(|| format!("moment {moment}"))?;
            }
            requester.signal(Signal::SIGKILL)?;
            requester.finish()?;
            if ended == Ended::Itself {
                times.sort();
                let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
                let told = format!("in order again after {median:?}, {longest:?} at most");
                note("worker_with_guard_alone", &told);
                ensure!(median < Duration::from_secs(1), "{told}");
                return registry.passes();
            }
        }
        bail!("the snapshot has more than {ENOUGH} moments")
    });
}

/// `appshot snapshot` in the background.
struct Requester(Child);

impl Requester {
    fn start(registry: &Registry, die_at: &str) -> Result<Requester> {
        let _ = fs::remove_dir_all(registry.stored("kept"));
        let args = ["snapshot", "--leave-running", "--tag", "kept", registry.name];
        Ok(Requester(registry.appshot(&args, die_at).spawn()?))
    }

    fn pid(&self) -> Result<i32> {
        Ok(i32::try_from(self.0.id())?)
    }

    /// Its worker, once it has its job and its guard; `None` when the requester
    /// has ended before that was seen.
    fn worker(&mut self) -> Result<Option<i32>> {
        let own = self.pid()?;
        poll("a worker", PATIENCE, || {
            let family = tree(own);
            let guarded = family.iter().any(|pid| is_life(*pid, "--guard"));
            let worker = family.into_iter().find(|pid| guarded && is_life(*pid, "--worker"));
            Ok(match (worker, self.0.try_wait()?) {
                (None, None) => None,
                (worker, _) => Some(worker),
            })
        })
    }

    /// Its worker, while it stands still itself; `None` when it was quicker.
    fn stopped_worker(&mut self) -> Result<Option<i32>> {
        let worker = self.worker()?;
        if worker.is_some() {
            self.signal(Signal::SIGSTOP)?;
        }
        Ok(worker.filter(|pid| fs::exists(format!("/proc/{pid}")).unwrap_or(false)))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid()?), signal)?)
    }

    fn finish(self) -> Result<Output> {
        Ok(self.0.wait_with_output()?)
    }
}

fn is_life(pid: i32, life: &str) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end() == life.replacen("--", "appshot-", 1)
}

#[derive(Debug, PartialEq)]
enum Ended {
    Killed,
    Itself,
}

/// How a process has ended whose parent does not ask: field 52 of its stat.
fn ends_how(pid: i32) -> Option<Ended> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_whitespace().collect();
    (fields.first() == Some(&"Z")).then_some(())?;
    let status: i32 = fields.get(49)?.parse().ok()?;
    Some(if status & 0x7f == 9 {
        Ended::Killed
    } else {
        Ended::Itself
    })
}

/// Nobody is left who knows of it, and rescuers are killed too, at each of their
/// moments: the next command brings the app back.
#[test]
fn everyone() {
    trial("everyone", |registry| {
        registry.start("steadfast")?;
        let before = Fingerprint::take(registry.top()?);
        let mut rescuers = 0;
        for worker in [30, 100, 170, 240] {
            for guard in (1..ENOUGH).step_by(2 * stride()) {
                // Whoever asked dies too, as soon as it begins to undo.
                let die_at = format!("snapshot:1,--worker:{worker},--guard:{guard}");
                let requester = Requester::start(registry, &die_at)?;
                if requester.finish()?.status.success() {
                    break;
                }
                poll("the guard's end", PATIENCE, || {
                    Ok(registry.lives("--guard")?.is_empty().then_some(()))
                })?;
                let survived = registry.nothing_pending().is_ok();
                registry.any_command()?;
                let untouched = judge_untouched(&before, &Fingerprint::take(registry.top()?), Changes::NONE);
                untouched
                    .and(registry.nothing_pending())
                    .with_context(|| format!("app's exit: {:?}", registry.recorded("exit").ok()))
                    .with_context(|| format!("worker at {worker}, guard at {guard}"))?;
                if survived {
                    break;
                }
                rescuers += 1;
            }
        }
        note("everyone", &format!("{rescuers} rescuers killed"));
        ensure!(rescuers > 10, "only {rescuers} rescuers were killed");
        registry.passes()
    });
}

/// The guard is killed while it undoes, and the requester waits for its turn: that one
/// has the journal before all threads are let go, and no call may end with EINTR.
#[test]
fn guard_before_requester() {
    trial("guard_before_requester", |registry| {
        registry.start("steadfast")?;
        let before = Fingerprint::take(registry.top()?);
        for guard in 1..60 {
            let taken = registry.snapshot(&format!("--worker:240,--guard:{guard}"))?;
            judge_untouched(&before, &Fingerprint::take(registry.top()?), Changes::NONE)
                .and(registry.nothing_pending())
                .with_context(|| format!("guard at {guard}: {}", told(&taken)))?;
        }
        registry.passes()
    });
}

impl Registry<'_> {
    /// Hidden lives of this registry, by the run directory that they are told.
    fn lives(&self, life: &str) -> Result<Vec<i32>> {
        let mark = self.files.run.display().to_string();
        let pids = tree(1).into_iter().filter(|pid| is_life(*pid, life));
        let environment = |pid: &i32| fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        Ok(pids
            .filter(|pid| String::from_utf8_lossy(&environment(pid)).contains(&mark))
            .collect())
    }
}

/// A snapshot that ends the app: it goes on as it was, or it has ended and its
/// appshot is whole. Never a half of it.
#[test]
fn halting_worker() {
    trial("halting_worker", |registry| {
        registry.start("steadfast")?;
        let mut before = Fingerprint::take(registry.top()?);
        let (mut ended, mut moment, mut last) = (0, 1u32, None);
        while last.is_none_or(|last| moment < last) {
            let args = ["snapshot", "--replace", registry.name];
            let taken = registry.appshot(&args, &format!("--worker:{moment}")).output()?;
            let context = || format!("moment {moment}: {}", told(&taken));
            registry.nothing_pending().with_context(context)?;
            // Whole or gone, and which of them is soon to be seen.
            let judged = || judge_untouched(&before, &Fingerprint::take(registry.top()?), Changes::NONE);
            let gone = poll("the app or its end", PATIENCE, || {
                let ended = registry.recorded("exit").is_ok();
                Ok((ended || !taken.status.success() && judged().is_ok()).then_some(ended))
            })
            .with_context(|| format!("{}: {:?}", context(), judged()))?;
            if gone {
                ended += 1;
                let restored = registry
                    .appshot(&["restore", "-d", "--memory", "eager", registry.name], "")
                    .output()?;
                succeeds(&restored).with_context(context)?;
                before = Fingerprint::take(registry.top()?);
            }
            if taken.status.success() && last.is_none() {
                // The last ones singly: there the app is killed, process by process.
                last = Some(moment);
                moment = moment.saturating_sub(22);
            }
            moment += if last.is_some() { 1 } else { 10 };
        }
        ensure!(ended > 1, "the app was never killed half-way");
        note("halting_worker", &format!("{ended} times ended"));
        registry.passes()
    });
}

/// Kills at random moments, under load: processes come and go, threads sit in
/// calls that a stop could break off. (CRIU left injected mappings in 34 of 60.)
#[test]
fn sixty_at_random() {
    trial("sixty_at_random", |registry| {
        registry.start("steadfast_forks")?;
        let took = Instant::now();
        succeeds(&registry.snapshot("")?)?;
        let took = took.elapsed();
        let before = Fingerprint::take(registry.top()?);
        let (mut killed, mut seed) = (0, 88_172_645_463_325_252u64);
        while killed < 60 {
            // xorshift: the same moments each time, as far as the machine goes along.
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let mut requester = Requester::start(registry, "")?;
            let Some(worker) = requester.worker()? else {
                requester.finish()?;
                continue;
            };
            std::thread::sleep(took.mul_f64((seed % 1000) as f64 / 1000.0));
            let _ = kill(Pid::from_raw(worker), Signal::SIGKILL);
            let taken = requester.finish()?;
            killed += usize::from(!taken.status.success());
            let context = || format!("after {killed} kills: {}", told(&taken));
            let now = Fingerprint::take(registry.top()?);
            judge_untouched(&before, &now, Changes::ALL).with_context(context)?;
            no_foreign_mapping(registry.top()?).with_context(context)?;
            registry.nothing_pending().with_context(context)?;
        }
        registry.passes()
    });
}

/// No program of ours maps executable memory without a file.
fn no_foreign_mapping(top: i32) -> Result<()> {
    for pid in tree(top).into_iter().filter(|pid| *pid != top) {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let foreign = maps
            .lines()
            .find(|line| line.contains(" r-xp 00000000 00:00 0") && !line.contains('['));
        ensure!(foreign.is_none(), "process {pid} has {foreign:?}");
    }
    Ok(())
}

/// Ctrl-C at moments spread over a snapshot, as the terminal gives it: to the
/// command alone. It undoes, or it was done already.
#[test]
fn interrupted_snapshot() {
    trial("interrupted_snapshot", |registry| {
        registry.start("steadfast")?;
        let took = Instant::now();
        succeeds(&registry.snapshot("")?)?;
        let took = took.elapsed();
        let before = Fingerprint::take(registry.top()?);
        for step in 0..40 {
            let requester = Requester::start(registry, "")?;
            std::thread::sleep(took.mul_f64(f64::from(step) / 40.0));
            requester.signal(Signal::SIGINT)?;
            let taken = requester.finish()?;
            let context = || format!("step {step}: {}", told(&taken));
            judge_untouched(&before, &Fingerprint::take(registry.top()?), Changes::NONE).with_context(context)?;
            // A command that was ended before it had a worker leaves that one alone.
            poll("the worker's end", PATIENCE, || Ok(registry.nothing_pending().ok())).with_context(context)?;
        }
        registry.passes()
    });
}

/// The answer to a request that is made in the background.
fn asked(daemon: &Daemon, path: &'static str, body: &Value) -> JoinHandle<Result<Value, Error>> {
    let (client, body) = (daemon.client.clone(), body.clone());
    std::thread::spawn(move || client.post(path, &body))
}

/// The worker of a daemon, the daemon itself, and both.
#[test]
fn snapd() {
    trial("snapd", |registry| {
        registry.start("steadfast")?;
        let before = Fingerprint::take(registry.top()?);
        let judged = |what: &str| {
            poll("the app to be in order", PATIENCE, || {
                let busy = !registry.lives("--guard")?.is_empty() || !registry.lives("--worker")?.is_empty();
                Ok((!busy && registry.nothing_pending().is_ok()).then_some(()))
            })
            .and_then(|()| judge_untouched(&before, &Fingerprint::take(registry.top()?), Changes::NONE))
            .with_context(|| what.to_owned())
        };
        let body = json!({ "target": registry.name, "leave_running": true, "tag": "kept", "replace": true });
        for moment in (10..300).step_by(30) {
            let daemon = registry.files.daemon("snapd", &format!("--worker:{moment}"))?;
            let answer = daemon.client.post::<Value>("/v1/snapshots", &body);
            judged(&format!("worker at {moment}: {answer:?}"))?;
            let mut daemon = registry.files.daemon("snapd", &format!("--worker:{moment}"))?;
            let asking = asked(&daemon, "/v1/snapshots", &body);
            std::thread::sleep(Duration::from_millis(moment / 4));
            daemon.child.kill()?;
            daemon.child.wait()?;
            let _died = asking.join();
            judged(&format!("daemon, and worker at {moment}"))?;
        }
        registry.passes()
    });
}

/// The restorer, or the supervisor of a detached app, killed at every moment: no
/// process stays, and the next command removes the cgroup.
fn restore_killed(registry: &Registry, life: &str, args: &[&str]) -> Result<()> {
    registry.start("steadfast")?;
    registry.put_to_sleep()?;
    let whole = HostState::take(&registry.place.scope());
    for moment in (1..ENOUGH).step_by(stride()) {
        let mut command = registry.appshot(args, &format!("{life}:{moment}"));
        let child = command.spawn()?;
        let up = poll("the restore's end", PATIENCE, || {
            // The record of the last instance tells an end.
            let up = registry.recorded("exit").is_err() && registry.runs();
            let zombie = ends_how(i32::try_from(child.id())?).is_some();
            Ok((up || zombie).then_some(up))
        })?;
        if up {
            let result = registry.passes();
            child.wait_with_output()?;
            note(life, &format!("killed at {} moments", moment / stride()));
            // It may have been killed as the app's supervisor, once the app had
            // ended: then the cgroup is for the next of that name to take over.
            fs::remove_file(registry.place.path("go"))?;
            succeeds(&registry.appshot(&["restore", "-d", registry.name], "").output()?)?;
            return result;
        }
        let told = told(&child.wait_with_output()?);
        let processes = || HostState::take(&registry.place.scope()).processes;
        poll("the processes' end", PATIENCE, || {
            Ok(processes().is_subset(&whole.processes).then_some(()))
        })
        .with_context(|| format!("moment {moment}: {told}: {:?}", processes()))?;
        registry.any_command()?;
        judge_nothing_left(&registry.place.scope(), &whole)
            .and(registry.nothing_pending())
            .with_context(|| format!("moment {moment}: {told}"))?;
    }
    bail!("the restore has more than {ENOUGH} moments")
}

#[test]
fn attached_restore() {
    trial("attached_restore", |registry| {
        restore_killed(registry, "restore", &["restore", registry.name])
    });
}

#[test]
fn detached_restore() {
    trial("detached_restore", |registry| {
        restore_killed(registry, "--supervise", &["restore", "-d", registry.name])
    });
}

/// An app that sleeps, and what there is besides.
struct Asleep<'a> {
    registry: &'a Registry<'a>,
    /// As many as it has when it runs.
    processes: usize,
    host: HostState,
    files: BTreeSet<PathBuf>,
}

/// Those of the registry, but for a daemon's socket.
fn files(registry: &Registry<'_>) -> BTreeSet<PathBuf> {
    let mut files = registry.files.files();
    files.retain(|path| !path.to_string_lossy().contains(".sock"));
    files
}

/// Whether this is the journal of a husk in waiting whose daemon lives.
fn waits(path: &Path) -> bool {
    let of_spare = || fs::read_to_string(path).is_ok_and(|text| text.starts_with("{\"spare\""));
    let owner = || path.file_name()?.to_str()?.split('-').next();
    path.parent().is_some_and(|dir| dir.ends_with("journal"))
        && of_spare()
        && owner().is_some_and(|pid| Path::new("/proc").join(pid).exists())
}

/// Until it has as many as it keeps ready at least, or has ended.
fn until_filled(daemon: &mut Daemon) -> Result<()> {
    let pid = daemon.pid();
    poll("husks in waiting", PATIENCE, || {
        let ready = |group: &PathBuf| libsnap::cgroup::processes(group).is_ok_and(|all| all.len() == 2);
        let ready = spares(pid).iter().filter(|group| ready(group)).count() >= 2;
        Ok((ready || daemon.child.try_wait()?.is_some()).then_some(()))
    })
}

/// Says in words what its exit code tells: where its parent is killed, nobody hears it.
const TELLING: &str = "trap 'echo interrupted; exit 7' INT; \"$@\" & wait $! && echo passed";

impl Asleep<'_> {
    fn new<'a>(registry: &'a Registry<'a>) -> Result<Asleep<'a>> {
        registry.start_by(&["/bin/sh", "-c", TELLING, "sh"], "steadfast")?;
        let processes = tree(registry.top()?).len();
        registry.put_to_sleep()?;
        Ok(Asleep {
            registry,
            processes,
            host: HostState::take(&registry.place.scope()),
            files: files(registry),
        })
    }

    fn restore(&self, daemon: &Daemon) -> Result<Value, Error> {
        daemon
            .client
            .post("/v1/instances", &json!({ "appshot": self.registry.name }))
    }

    /// How long the command takes for it, with a process of its own.
    fn restore_takes(&self) -> Result<Duration> {
        let since = Instant::now();
        let words = ["restore", "-d", self.registry.name];
        succeeds(&self.registry.appshot(&words, "").output()?)?;
        let took = since.elapsed();
        succeeds(&self.registry.appshot(&["kill", self.registry.name], "").output()?)?;
        self.judge(None).map(|()| took)
    }

    fn instance(&self, question: &str) -> String {
        format!("/v1/instances/{}{question}", self.registry.name)
    }

    /// It sleeps, and nothing is there but this daemon.
    fn judge(&self, daemon: Option<&Daemon>) -> Result<()> {
        let mut host = self.host.clone();
        host.children.extend(daemon.map(Daemon::pid));
        judge_nothing_left(&self.registry.place.scope(), &host)?;
        let files = files(self.registry);
        let other: Vec<_> = files.symmetric_difference(&self.files).collect();
        ensure!(other.is_empty(), "files that were not there, or are no more: {other:?}");
        self.registry.nothing_pending()
    }

    /// It can still be restored.
    fn judge_restorable(&self, daemon: &Daemon) -> Result<()> {
        self.restore(daemon)?;
        self.judge_ends(daemon)
    }

    /// It is whole, and is ended.
    fn judge_ends(&self, daemon: &Daemon) -> Result<()> {
        let processes = tree(self.registry.top()?).len();
        ensure!(
            processes == self.processes,
            "{processes} processes of {}",
            self.processes
        );
        daemon.client.delete::<Value>(&self.instance(""))?;
        self.judge(Some(daemon))
    }

    /// It runs without a parent of ours, is known, and passes.
    fn judge_orphan(&self, daemon: &Daemon) -> Result<()> {
        let listed: Value = daemon.client.get("/v1/instances")?;
        ensure!(listed[0]["state"] == "running", "listed is {listed}");
        let words = ["ps", "--output", "json"];
        let listed = succeeds(&self.registry.appshot(&words, "").output()?)?;
        ensure!(listed.contains("\"running\""), "ps lists {listed}");
        self.go()?;
        daemon.client.get::<Value>(&self.instance("?wait=exited"))?;
        self.judge_passed(daemon)
    }

    fn go(&self) -> Result<()> {
        Ok(fs::write(self.registry.place.path("go"), "")?)
    }

    fn judge_passed(&self, daemon: &Daemon) -> Result<()> {
        poll("the app to say that it has passed", PATIENCE, || {
            Ok(self.registry.place.log().ends_with("passed\n").then_some(()))
        })?;
        fs::remove_file(self.registry.place.path("go"))?;
        self.judge(Some(daemon))
    }
}

/// `restored`, killed at every moment of a restore: nothing stays, and the next one
/// restores. Killed once it has answered, its app goes on, and the next one knows it.
#[test]
fn restored() {
    trial("restored", |registry| {
        let app = Asleep::new(registry)?;
        let mut moments = (1..ENOUGH).step_by(stride());
        let through = moments
            .find_map(|moment| killed_in_between(&app, moment).transpose())
            .context("no end of moments")??;
        note("restored", &format!("killed at {} moments", through / stride()));
        let last = through.saturating_sub(stride()) + 1..=through;
        last.into_iter().try_for_each(|moment| killed_at_the_end(&app, moment))
    });
}

/// `restored`, killed in the middle of a restore; the moment, where it came through.
fn killed_in_between(app: &Asleep<'_>, moment: usize) -> Result<Option<usize>> {
    let answer = dying(app, moment, |daemon| app.restore(daemon))?;
    let next = app.registry.files.daemon("restored", "")?;
    let judged = match &answer {
        Ok(_) => app.judge_orphan(&next),
        Err(_) => app.judge(Some(&next)).and_then(|()| app.judge_restorable(&next)),
    };
    judged.with_context(|| format!("moment {moment}: {answer:?}"))?;
    Ok(answer.is_ok().then_some(moment))
}

/// Asks a `restored` that is killed at this moment: while it starts, while it makes its
/// husks, or while it restores. Nothing stays of those that were not used.
fn dying(
    app: &Asleep<'_>,
    moment: usize,
    ask: impl FnOnce(&Daemon) -> Result<Value, Error>,
) -> Result<Result<Value, Error>> {
    let Ok(mut daemon) = app.registry.files.daemon("restored", &format!("restored:{moment}")) else {
        return Ok(Err(Error::failed("restored has ended")));
    };
    until_filled(&mut daemon)?;
    Ok(ask(&daemon))
}

/// `restored`, killed with husks in waiting, or told to stop: they are gone, and what it
/// had restored in one is not.
#[test]
fn husks_in_waiting() {
    trial("husks_in_waiting", |registry| {
        let app = Asleep::new(registry)?;
        for killed in [false, true] {
            let mut daemon = registry.files.daemon("restored", "")?;
            until_filled(&mut daemon)?;
            let before = spares(daemon.pid());
            app.restore(&daemon)?;
            let record = fs::read_to_string(registry.files.run.join(format!("apps/{}.json", registry.name)))?;
            let used = |group: &PathBuf| record.contains(&group.display().to_string());
            ensure!(before.iter().any(used), "restored in a husk that waited: {record}");
            until_filled(&mut daemon)?;
            let (pid, all) = (daemon.pid(), spares(daemon.pid()));
            ensure!(all.len() > 2, "husks are made again: {all:?}");
            match killed {
                true => drop(daemon),
                false => daemon.stop()?,
            }
            let next = registry.files.daemon("restored", "")?;
            let left = spares(pid);
            ensure!(
                left.len() == 1 && left.iter().all(used),
                "killed: {killed}: {left:?} left"
            );
            app.judge_ends(&next).with_context(|| format!("killed: {killed}"))?;
            ensure!(spares(pid).is_empty(), "its cgroup goes with the app");
        }
        Ok(())
    });
}

/// `restored`, killed perhaps while it writes down that its app has ended.
fn killed_at_the_end(app: &Asleep<'_>, moment: usize) -> Result<()> {
    let Ok(mut daemon) = app.registry.files.daemon("restored", &format!("restored:{moment}")) else {
        return Ok(());
    };
    until_filled(&mut daemon)?;
    let answer = app.restore(&daemon);
    if answer.is_ok() {
        app.go()?;
        let group = app.registry.text("cgroup")?;
        poll("the app's end, or the daemon's", PATIENCE, || {
            Ok((daemon.child.try_wait()?.is_some() || !Path::new(&group).exists()).then_some(()))
        })?;
    }
    drop(daemon);
    let next = app.registry.files.daemon("restored", "")?;
    let judged = match &answer {
        Ok(_) => app.judge_passed(&next),
        Err(_) => app.judge(Some(&next)),
    };
    judged.with_context(|| format!("moment {moment}: {answer:?}"))
}

/// Ctrl-C at moments spread over a restore in the foreground, and after it: it is
/// undone at once, or the app runs and gets the signal.
#[test]
fn interrupted_restore() {
    trial("interrupted_restore", |registry| {
        let app = Asleep::new(registry)?;
        let took = app.restore_takes()?;
        let (mut undone, mut passed_on) = (0, 0);
        for step in 0..40 {
            let mut command = registry.appshot(&["restore", registry.name], "");
            let child = command.process_group(0).spawn()?;
            std::thread::sleep(took.mul_f64((f64::from(step) / 20.0).powi(2)));
            killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT)?;
            let since = Instant::now();
            let pid = child.id().cast_signed();
            poll("the command's end", PATIENCE, || Ok(ends_how(pid)))?;
            let output = child.wait_with_output()?;
            let context = || format!("step {step}, after {:?}: {}", since.elapsed(), told(&output));
            match (output.status.code(), output.status.signal()) {
                // Before it could take signals, or after.
                (_, Some(2)) | (Some(130), _) => undone += 1,
                (Some(7), _) if output.stdout == b"interrupted\n" => passed_on += 1,
                _ => bail!("{}", context()),
            }
            ensure!(since.elapsed() < Duration::from_secs(1), "{}", context());
            app.judge(None).with_context(context)?;
        }
        note(
            "interrupted_restore",
            &format!("{undone} undone, {passed_on} passed on to the app"),
        );
        ensure!(undone > 0 && passed_on > 0, "{took:?} is no measure");
        succeeds(&registry.appshot(&["restore", "-d", registry.name], "").output()?)?;
        registry.passes()
    });
}

/// SIGTERM of a daemon while it works on a request: it finishes, and the client gets
/// its answer. The app that it has restored goes on.
#[test]
fn stopped_restored() {
    trial("stopped_restored", |registry| {
        let app = Asleep::new(registry)?;
        let took = app.restore_takes()?;
        for step in 0..20 {
            let daemon = registry.files.daemon("restored", "")?;
            let asking = asked(&daemon, "/v1/instances", &json!({ "appshot": registry.name }));
            poll("a restore", PATIENCE, || {
                Ok((registry.nothing_pending().is_err() || asking.is_finished()).then_some(()))
            })?;
            std::thread::sleep(took.mul_f64(f64::from(step) / 20.0));
            daemon.stop()?;
            let answer = asking.join().expect("asking does not panic");
            answer.with_context(|| format!("step {step}"))?;
            let next = registry.files.daemon("restored", "")?;
            app.judge_ends(&next).with_context(|| format!("step {step}"))?;
        }
        Ok(())
    });
}

/// The same of a snapshot; where its worker is told to end too, it undoes.
#[test]
fn stopped_snapd() {
    trial("stopped_snapd", |registry| {
        registry.start("steadfast")?;
        let took = Instant::now();
        succeeds(&registry.snapshot("")?)?;
        let took = took.elapsed();
        let before = Fingerprint::take(registry.top()?);
        let body = json!({ "target": registry.name, "leave_running": true, "tag": "kept", "replace": true });
        for step in 0..20 {
            let daemon = registry.files.daemon("snapd", "")?;
            let asking = asked(&daemon, "/v1/snapshots", &body);
            let worker = poll("a worker", PATIENCE, || {
                let worker = registry.lives("--worker")?.first().copied();
                Ok((worker.is_some() || asking.is_finished()).then_some(worker))
            })?;
            std::thread::sleep(took.mul_f64(f64::from(step) / 20.0));
            let both = step % 2 == 1;
            if let Some(worker) = worker.filter(|_| both) {
                let _ = kill(Pid::from_raw(worker), Signal::SIGTERM);
            }
            daemon.stop()?;
            let answer = asking.join().expect("asking does not panic");
            let context = || format!("step {step}: {answer:?}");
            let given_up = answer.as_ref().is_err_and(|error| error.what.contains("was given up"));
            ensure!(answer.is_ok() || both && given_up, "{}", context());
            judge_untouched(&before, &Fingerprint::take(registry.top()?), Changes::NONE).with_context(context)?;
            registry.nothing_pending().with_context(context)?;
        }
        registry.passes()
    });
}

/// The process that owes an app its memory, killed at moments spread over the first
/// second and the filling: the app is whole, or gone at once, and never sees a wrong byte.
#[test]
fn pager() {
    trial("pager", |registry| {
        registry.start_by(&["/bin/sh", "-c", TELLING, "sh"], "lazy_watch")?;
        registry.put_to_sleep()?;
        let whole = HostState::take(&registry.place.scope());
        let (mut ended, mut whole_ones, mut longest) = (0, 0, Duration::ZERO);
        for step in 0..24u32 {
            let words = ["restore", "-d", registry.name];
            succeeds(&registry.appshot(&words, "").output()?)?;
            let init = registry.top()?;
            std::thread::sleep(Duration::from_millis(u64::from(3 * step * step)));
            kill(Pid::from_raw(registry.recorded("supervisor")?), Signal::SIGKILL)?;
            let since = Instant::now();
            let processes = || HostState::take(&registry.place.scope()).processes;
            let gone = poll("the app to be whole or gone", PATIENCE, || {
                let gone = processes().is_subset(&whole.processes);
                let holds = fs::read_dir(format!("/proc/{init}/fd")).is_ok_and(|fds| fds.count() > 0);
                if !gone && !holds {
                    // Or it is just ending, and has closed them.
                    std::thread::sleep(Duration::from_millis(20));
                    return Ok(Some(processes().is_subset(&whole.processes)));
                }
                Ok(gone.then_some(gone))
            })?;
            longest = longest.max(since.elapsed());
            let context = || format!("step {step}, after {:?}: {}", since.elapsed(), registry.place.log());
            if gone || !registry.runs() {
                ended += 1;
            } else {
                whole_ones += 1;
                fs::write(registry.place.path("go"), "")?;
            }
            poll("the app's end", PATIENCE, || {
                Ok(processes().is_subset(&whole.processes).then_some(()))
            })
            .with_context(context)?;
            if !gone && registry.place.path("go").exists() {
                ensure!(registry.place.log().ends_with("passed\n"), "{}", context());
                fs::remove_file(registry.place.path("go"))?;
            }
            ensure!(!registry.place.path("wrong").exists(), "a wrong byte: {}", context());
            registry.any_command()?;
            registry.nothing_pending().with_context(context)?;
        }
        let told = format!("{ended} ended, {whole_ones} whole, after {longest:?} at most");
        note("pager", &told);
        ensure!(ended > 3 && whole_ones > 0, "{told}");
        ensure!(longest < Duration::from_secs(5), "{told}");
        // Its cgroup is for the next of that name, as after any supervisor's end.
        succeeds(&registry.appshot(&["restore", "-d", registry.name], "").output()?)?;
        succeeds(&registry.appshot(&["kill", "--wait", registry.name], "").output()?)?;
        judge_nothing_left(&registry.place.scope(), &whole)
    });
}
