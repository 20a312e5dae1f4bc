//! The programs that were built, on a registry of their own: `appshot` alone, or
//! with `snapd` and `restored`.

use crate::app::Place;
use crate::judge::{HostState, is_prepared};
use crate::ledger::{self, Ledger};
use crate::scenario::{Manner, Moment, Server};
use crate::verdict::{PATIENCE, note, poll, skip};
use anyhow::{Context, Result, ensure};
use libsnap::store::{Store, View};
use libsnap::target::{Instance, RunOptions, SnapshotReport};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nodekit::client::Client;
use nodekit::ending;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long what ends by itself may take.
const REST: Duration = Duration::from_secs(2);

/// A daemon of ours, which is killed when this is dropped.
#[derive(Debug)]
pub struct Daemon {
    name: &'static str,
    pub child: Child,
    pub client: Client,
}

impl Daemon {
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Told to stop, it ends well.
    pub fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{} ended with {status}", self.name);
        Ok(())
    }
}

/// What a `restored` has in waiting: the cgroups.
pub fn spares(daemon: i32) -> BTreeSet<PathBuf> {
    let mine = format!(".spare-{daemon}-");
    let group = libsnap::cgroup::of(&mine).unwrap_or_default();
    let all = group
        .parent()
        .map(fs::read_dir)
        .into_iter()
        .flatten()
        .flatten()
        .flatten();
    let mine = all.filter(|entry| entry.file_name().to_string_lossy().starts_with(&mine));
    mine.map(|entry| entry.path()).collect()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A registry with the programs that work on it.
#[derive(Debug)]
pub struct Registry {
    pub run: PathBuf,
    pub data: PathBuf,
    programs: PathBuf,
}

/// A trial that failed leaves none of its apps.
impl Drop for Registry {
    fn drop(&mut self) {
        let apps = Store::open(&self.run, &self.data).and_then(|store| Ok((store.list()?, store)));
        if let Ok((apps, store)) = apps {
            for app in apps.iter().filter(|app| app.alive()) {
                let _ = ending::kill_all(&store, app);
            }
        }
    }
}

/// Where programs are built, beside the trial that runs.
pub fn programs() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let programs = exe.parent().and_then(Path::parent).context("no target directory")?;
    Ok(programs.to_owned())
}

impl Registry {
    pub fn new(place: &Place) -> Result<Registry> {
        let programs = programs()?;
        if !["appshot", "snapd", "restored"]
            .iter()
            .all(|name| programs.join(name).is_file())
        {
            return skip("the programs, built by `cargo build --workspace`");
        }
        Ok(Registry {
            run: place.path("registry/run"),
            data: place.path("registry/data"),
            programs,
        })
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command
            .env("APPSHOT_RUN_DIR", &self.run)
            .env("APPSHOT_DATA_DIR", &self.data);
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    /// The log of the app that is called as the place is where a place has it.
    pub fn show_log(&self, place: &Place) -> Result<()> {
        let log = self.data.join(format!("logs/{}.log", place.unique()));
        Ok(symlink(log, place.path("log"))?)
    }

    /// The program started by another, which comes first with these words.
    pub fn command_under(&self, first: &Path, words: &[&str], program: &str) -> Command {
        let mut command = self.command(program);
        let inner = command.get_program().to_owned();
        let mut outer = Command::new(first);
        outer.args(words).arg(inner).current_dir("/").stdin(Stdio::null());
        outer.envs(
            command
                .env("PATH", "/usr/bin:/bin")
                .get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        );
        outer
    }

    /// What `appshot` answered with these words.
    pub fn appshot(&self, words: &[&str]) -> Result<String> {
        let mut command = self.command("appshot");
        let output = command.args(words).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "appshot {words:?}: {error}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// One that answers; it dies at the moment that is named.
    pub fn daemon(&self, name: &'static str, die_at: &str) -> Result<Daemon> {
        self.daemon_with(name, &[], die_at)
    }

    /// The same with these arguments.
    pub fn daemon_with(&self, name: &'static str, arguments: &[&str], die_at: &str) -> Result<Daemon> {
        let mut command = self.command(name);
        command.args(arguments).env("APPSHOT_DIE_AT", die_at);
        self.begin(name, command)
    }

    /// A daemon by this command, once it answers.
    pub fn begin(&self, name: &'static str, mut command: Command) -> Result<Daemon> {
        let serve: &[&str] = if name == "perfd" { &["--serve"] } else { &[] };
        let child = command
            .args(serve)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let client = Client::new(self.run.join(format!("{name}.sock")));
        let mut daemon = Daemon { name, child, client };
        poll(&format!("{name} to answer"), PATIENCE, || {
            ensure!(daemon.child.try_wait()?.is_none(), "{name} has ended");
            Ok(daemon.client.answers().then_some(()))
        })?;
        Ok(daemon)
    }

    /// Paths below both directories, which are the same at the same point of
    /// every cycle, but for the parts of an appshot, of which a script has as many
    /// as children just now, the notes on waits and on queues, the journals of husks in waiting, and
    /// working sets, which come a second after a restore.
    pub fn files(&self) -> BTreeSet<PathBuf> {
        fn list(dir: &Path, all: &mut BTreeSet<PathBuf>) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if !dir.ends_with("appshots") {
                    list(&entry.path(), all);
                }
                let name = entry.file_name();
                let comes_and_goes = ["timed", "looked"].map(|notes| dir.ends_with(notes) || name == notes);
                if !comes_and_goes.contains(&true)
                    && !dir.ends_with("journal")
                    && !name.to_string_lossy().contains(".working-set")
                {
                    all.insert(entry.path());
                }
            }
        }
        let mut all = BTreeSet::new();
        list(&self.run, &mut all);
        list(&self.data, &mut all);
        all
    }

    /// Processes that were started with this registry in their environment, dead
    /// children of ours included, but for what stands prepared in a daemon.
    fn processes(&self) -> Vec<i32> {
        let mark = self.run.as_os_str().as_encoded_bytes().to_vec();
        ledger::pids()
            .into_iter()
            .filter(|pid| {
                let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environment.windows(mark.len()).any(|window| window == mark) && !is_prepared(*pid)
            })
            .collect()
    }
}

/// One app by the programs. Counts in a [`Ledger`].
#[derive(Debug)]
pub struct Installed<'a> {
    place: &'a Place,
    registry: Registry,
    daemons: Vec<Daemon>,
    instance: Option<Instance>,
    before: Ledger,
    after: Ledger,
    ledgers: Vec<Ledger>,
    /// Those that were there after the first cycle.
    files: BTreeSet<PathBuf>,
    since: Instant,
}

impl<'a> Installed<'a> {
    pub fn new(place: &'a Place, daemons: bool) -> Result<Installed<'a>> {
        let registry = Registry::new(place)?;
        let names: &[&'static str] = if daemons { &["snapd", "restored"] } else { &[] };
        registry.show_log(place)?;
        let daemons = names
            .iter()
            .map(|name| registry.daemon(name, ""))
            .collect::<Result<_>>()?;
        Ok(Installed {
            place,
            registry,
            daemons,
            instance: None,
            before: Ledger::default(),
            after: Ledger::default(),
            ledgers: Vec::new(),
            files: BTreeSet::new(),
            since: Instant::now(),
        })
    }

    fn name(&self) -> &str {
        self.place.unique()
    }

    fn client(&self, name: &str) -> Option<&Client> {
        self.daemons
            .iter()
            .find(|daemon| daemon.name == name)
            .map(|daemon| &daemon.client)
    }

    fn view(&self) -> Result<View> {
        let views: Vec<View> = serde_json::from_str(&self.registry.appshot(&["ps", "-o", "json"])?)?;
        let own = views.into_iter().find(|view| view.name == self.name());
        own.context("the app is not listed")
    }

    /// An appshot beside the app, which goes on; its clients' connections are closed
    /// in the appshot only.
    pub fn snapshot_running(&self) -> Result<SnapshotReport> {
        let tag = format!("{}-copy", self.name());
        let words = [
            "-q",
            "snapshot",
            "--leave-running",
            "--tcp=close",
            "--replace",
            "--format",
            "json",
            "--tag",
            &tag,
            self.name(),
        ];
        Ok(serde_json::from_str(&self.registry.appshot(&words)?)?)
    }

    fn count(&self) -> Ledger {
        let top = self.top();
        let app = crate::judge::tree(top);
        let mut ledger = Ledger::of_app(&app);
        let daemons: Vec<i32> = self.daemons.iter().map(Daemon::pid).collect();
        let ours = self.registry.processes();
        // In a daemon, or about to.
        let waits = |pid: i32| {
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            daemons
                .iter()
                .any(|daemon| groups.contains(&format!("/.spare-{daemon}-")))
        };
        let others = ours
            .iter()
            .filter(|pid| !app.contains(pid) && !daemons.contains(pid) && !waits(**pid))
            .count();
        ledger.set("processes beside the app", others as u64);
        ledger.set("dead children of the daemons", ledger::dead_below(&daemons) as u64);
        ledger.set("files", self.registry.files().len() as u64);
        // Of threads that are gone: these go with the next snapshot or restore.
        let notes = fs::read_dir(self.registry.run.join("timed"))
            .into_iter()
            .flatten()
            .flatten();
        let notes = notes
            .filter(|note| !Path::new("/proc").join(note.file_name()).exists())
            .count();
        ledger.set("notes", notes as u64);
        let host = HostState::take(&self.place.scope());
        // Its own it has under its name, or under that of the husk that it became.
        let others = host.cgroups.iter().filter(|group| !group.ends_with(self.name()));
        ledger.set("cgroups", others.count() as u64);
        ledger.set("mounts", host.mounts.len() as u64);
        for daemon in &self.daemons {
            ledger.of_daemon(daemon.name, daemon.pid());
        }
        ledger
    }

    /// Says what was counted; an error where something grew.
    pub fn judge(&self, server: &Server<'_>, test: &str) -> Result<()> {
        let (Some(first), Some(last)) = (self.ledgers.first(), self.ledgers.last()) else {
            return Ok(());
        };
        let cycles = self.ledgers.len();
        let seconds = self.since.elapsed().as_secs_f64();
        note(
            test,
            &format!("{cycles} cycles in {seconds:.0} s: {}", last.told_since(first)),
        );
        let mut first = first.clone();
        if server.grows || !server.steady {
            first.forgive_the_app();
            first.allow_the_engine(cycles as u64 / 3);
        }
        if !server.steady {
            first.forgive_the_engine();
        }
        let new: Vec<_> = self.registry.files().difference(&self.files).cloned().collect();
        last.judge_since(&first).with_context(|| format!("new files: {new:?}"))
    }
}

impl Manner for Installed<'_> {
    fn start(&mut self, options: &RunOptions) -> Result<()> {
        let mut words: Vec<String> = ["run", "-d", "--format", "json", "--name", self.name()]
            .map(str::to_owned)
            .into();
        let dir = options.cwd.clone().unwrap_or_else(|| self.place.dir().to_owned());
        words.extend(["--cwd".to_owned(), dir.display().to_string()]);
        if let Some(uid) = options.uid {
            let gid = options.gid.unwrap_or(uid);
            words.extend(["--user".to_owned(), format!("{uid}:{gid}")]);
        }
        words.push("--".to_owned());
        words.extend(options.command.iter().cloned());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.instance = Some(serde_json::from_str(&self.registry.appshot(&words)?)?);
        Ok(())
    }

    fn top(&self) -> i32 {
        self.instance.as_ref().map_or(0, |instance| instance.child().0)
    }

    fn exited(&mut self) -> Result<Option<i32>> {
        if Path::new(&format!("/proc/{}", self.top())).exists() {
            return Ok(None);
        }
        // The supervisor writes it down a moment later.
        Ok(self.view()?.exit)
    }

    fn freeze(&mut self) -> Result<()> {
        let top = self.top();
        match self.client("snapd") {
            Some(snapd) => {
                let request = json!({ "target": self.name(), "replace": true });
                snapd.post::<Value>("/v1/snapshots", &request)?;
            }
            None => drop(self.registry.appshot(&["-q", "snapshot", "--replace", self.name()])?),
        }
        poll("the end of the app", PATIENCE, || {
            Ok((!Path::new(&format!("/proc/{top}")).exists()).then_some(()))
        })?;
        poll("the end of its supervisor", PATIENCE, || {
            let daemons = self.daemons.len();
            Ok((self.registry.processes().len() <= daemons).then_some(()))
        })
    }

    fn restore(&mut self) -> Result<()> {
        let instance = match self.client("restored") {
            Some(restored) => restored.post("/v1/instances", &json!({ "appshot": self.name() }))?,
            None => {
                let words = ["-q", "restore", "-d", "--format", "json", self.name()];
                serde_json::from_str(&self.registry.appshot(&words)?)?
            }
        };
        self.instance = Some(instance);
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        if self.instance.take().is_some() {
            let _ended_before = self.registry.appshot(&["kill", "-s", "KILL", self.name()]);
            poll("the end of the app", PATIENCE, || {
                let daemons = self.daemons.len();
                Ok((self.registry.processes().len() <= daemons).then_some(()))
            })?;
        }
        self.daemons.clear();
        Ok(())
    }

    fn asleep(&self) -> HostState {
        let daemons = self.daemons.iter().map(Daemon::pid);
        HostState {
            children: daemons.collect(),
            ..HostState::default()
        }
    }

    fn look(&mut self, _: &Server<'_>, moment: Moment) -> Result<()> {
        match moment {
            Moment::BeforeFreeze => self.before = Ledger::of_app(&crate::judge::tree(self.top())),
            Moment::AfterRestore => self.after = Ledger::of_app(&crate::judge::tree(self.top())),
            Moment::CycleEnd => {
                // What ends by itself has a moment to do so.
                let first = self.ledgers.first().cloned();
                let deadline = Instant::now() + REST;
                let mut counted = loop {
                    let now = self.count();
                    let rested = first.as_ref().is_none_or(|first| now.at_rest_since(first));
                    if Instant::now() > deadline || rested && now.get("dead children of the daemons") == 0 {
                        break now;
                    }
                    std::thread::sleep(REST / 100);
                };
                if first.is_none() {
                    self.files = self.registry.files();
                }
                counted.add_engine(self.ledgers.last(), &self.before, &self.after);
                self.ledgers.push(counted);
            }
        }
        Ok(())
    }
}
