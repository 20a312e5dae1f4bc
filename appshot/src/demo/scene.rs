//! Where the demo plays: a registry in a temporary directory, one app in it,
//! and nothing left of both afterwards.

use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::ids::HostPid;
use libsnap::proc::Fields;
use libsnap::store::{App, Store, start_time};
use libsnap::target::{Hooks, RestoreOptions, RunOptions, SnapshotOptions, SnapshotReport};
use nix::sys::signalfd::SignalFd;
use nodekit::jobs::{Job, Place, Snapshot};
use nodekit::start::Start;
use nodekit::{detach, ending, local, out, process, signals, worker};
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a server may take to come up, or a supervisor to end.
const PATIENCE: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub struct Scene {
    dir: Option<TempDir>,
    store: Store,
    /// Cgroups are the whole machine's, whatever the registry: this is free.
    name: String,
    /// Ctrl-C and the like, taken between two steps.
    signals: SignalFd,
    app: Option<App>,
    /// The app's processes just before the snapshot.
    known: Vec<Process>,
    /// Host PIDs with start times of the processes that were frozen.
    frozen: Vec<(HostPid, u64)>,
    port: u16,
}

/// A process as its app sees it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    pid: i32,
    parent: i32,
    descriptors: Vec<i32>,
}

impl Process {
    fn read(pid: HostPid) -> Option<Process> {
        let inside = |pid: HostPid| Some(Fields::status(pid).ok()?.innermost("NSpid"));
        Some(Process {
            pid: inside(pid)?,
            parent: inside(HostPid(libsnap::proc::stat(pid).ok()?.ppid))?,
            descriptors: libsnap::proc::numbered(&format!("/proc/{pid}/fd")).ok()?,
        })
    }
}

impl Scene {
    pub fn open() -> Result<Scene> {
        let dir = tempfile::Builder::new().prefix("appshot-demo-").tempdir();
        let dir = dir.or_fail(|| "cannot make a temporary directory")?;
        let store = Store::open(&dir.path().join("run"), &dir.path().join("data"))?;
        Ok(Scene {
            dir: Some(dir),
            store,
            name: format!("demo-{}", std::process::id()),
            signals: signals::block()?,
            app: None,
            known: Vec::new(),
            frozen: Vec::new(),
            port: 0,
        })
    }

    pub fn dir(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new("/"), TempDir::path)
    }

    /// As `appshot run -d` does.
    pub fn start(&mut self, command: Vec<String>, port: u16) -> Result<()> {
        self.interrupted()?;
        self.port = port;
        let options = RunOptions {
            name: self.name.clone(),
            command,
            cwd: Some(self.dir().to_owned()),
            ..RunOptions::default()
        };
        let start = Start::run(self.store.clone(), options);
        self.app = Some(detach::spawn(start)?.app);
        Ok(())
    }

    /// As `appshot snapshot` does: the app ends when its appshot is sealed.
    pub fn snapshot(&mut self) -> Result<String> {
        self.interrupted()?;
        let known = |pid: HostPid| Some((pid, start_time(pid)?));
        self.frozen = self.members()?.into_iter().filter_map(known).collect();
        let job = Job::Snapshot(Snapshot {
            store: self.store.clone(),
            target: self.name.clone(),
            place: Place::Store {
                tag: None,
                replace: false,
            },
            options: SnapshotOptions::default(),
            hooks: Hooks::default(),
            cause: None,
        });
        let report: SnapshotReport = worker::in_worker(&job, &mut |_| {})?;
        self.supervisor_ended()?;
        Ok(format!(
            "{}, {}; {} on disk; stood still {}",
            out::count(report.processes, "process", "processes"),
            out::count(report.threads, "thread", "threads"),
            out::bytes(report.disk_bytes),
            out::millis(report.frozen_micros),
        ))
    }

    /// As `appshot restore -d` does.
    pub fn restore(&mut self) -> Result<String> {
        self.interrupted()?;
        let start = Start::restore(self.store.clone(), &self.name, RestoreOptions::default())?;
        let started = detach::spawn(start)?;
        self.app = Some(started.app);
        let took = out::millis(started.instance.total_micros);
        Ok(format!("{}; of the time, {took} in the engine", self.told_pids()?))
    }

    fn app(&self) -> Result<&App> {
        self.app
            .as_ref()
            .ok_or_else(|| Error::failed("the server is not there"))
    }

    fn members(&self) -> Result<Vec<HostPid>> {
        libsnap::freeze::members(&self.app()?.target()?)
    }

    /// Its processes, by PID.
    pub fn processes(&self) -> Result<Vec<Process>> {
        let mut processes: Vec<Process> = self.members()?.into_iter().filter_map(Process::read).collect();
        processes.sort_unstable();
        Ok(processes)
    }

    pub fn remember(&mut self) -> Result<()> {
        self.known = self.processes()?;
        Ok(())
    }

    pub fn remembered(&self) -> &[Process] {
        &self.known
    }

    pub fn told_pids(&self) -> Result<String> {
        let numbers: Vec<String> = self
            .processes()?
            .iter()
            .map(|process| process.pid.to_string())
            .collect();
        let word = if numbers.len() == 1 { "PID" } else { "PIDs" };
        Ok(format!("{word} {} inside", numbers.join(" ")))
    }

    /// Waits until `condition` holds.
    pub fn until(&self, what: &str, condition: impl Fn(&Scene) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self)? {
            self.interrupted()?;
            if Instant::now() > deadline {
                return Err(Error::failed(format!("waited in vain until {what}")).because(self.log()));
            }
            std::thread::sleep(INTERVAL);
        }
        Ok(())
    }

    /// The last that the server said.
    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.store.log_path(&self.name)).unwrap_or_default();
        log.lines().last().unwrap_or("it says nothing").to_owned()
    }

    pub fn ensure_gone(&self) -> Result<()> {
        let alive = |&&(pid, started): &&(HostPid, u64)| start_time(pid) == Some(started);
        match self.frozen.iter().find(alive) {
            Some((pid, _)) => Err(Error::failed(format!("process {pid} of the app is still there"))),
            None => Ok(()),
        }
    }

    pub fn ensure_refused(&self) -> Result<()> {
        local::ensure_refused(self.port)
    }

    /// An error once Ctrl-C was pressed.
    pub fn interrupted(&self) -> Result<()> {
        match self.signals.read_signal() {
            Ok(Some(signal)) => {
                Err(Error::new(Kind::Failed, "the demo was stopped")
                    .because(format!("signal {} came", signal.ssi_signo)))
            }
            _ => Ok(()),
        }
    }

    /// The supervisor of an app that has ended writes that down, then ends too.
    fn supervisor_ended(&self) -> Result<()> {
        let supervisor = self.app.as_ref().and_then(|app| app.supervisor);
        if let Some(Ok(supervisor)) = supervisor.map(process::open) {
            process::wait(&supervisor, Some(PATIENCE))?;
        }
        Ok(())
    }

    /// Ends the app and removes every file.
    pub fn clear(&mut self) -> Result<()> {
        let ended = self.end();
        let removed = self.dir.take().map_or(Ok(()), TempDir::close);
        ended.and(removed.or_fail(|| "cannot remove the demo's directory"))
    }

    fn end(&mut self) -> Result<()> {
        // The record also knows an app whose start was answered with an error.
        let Some(app) = self.store.find(&self.name)? else {
            return Ok(());
        };
        if app.alive() {
            ending::kill_all(&self.store, &app)?;
        }
        self.app = Some(app);
        self.supervisor_ended()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if self.dir.is_some() {
            let _ = self.clear();
        }
    }
}
