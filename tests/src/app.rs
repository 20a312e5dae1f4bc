//! One app under test: its directory, its instances, its end.

use crate::judge::{Scope, tree};
use crate::verdict::{PATIENCE, poll, switched_on};
use anyhow::{Context, Result};
use libsnap::ids::HostPid;
use libsnap::restore::eager::Eager;
use libsnap::restore::kept::Kept;
use libsnap::restore::opened::Opened;
use libsnap::restore::spare::Spare;
use libsnap::restore::{self, Nursery, Template, Way};
use libsnap::target::{
    Instance, Memory, Network, PidMode, RestoreOptions, RunOptions, SnapshotOptions, SnapshotReport, Stdio, Target,
};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long a prepared instance waits: its clocks must not tell.
const WAITING: Duration = Duration::from_millis(40);

/// A temporary directory and a name that nothing else on the host bears. What
/// a trial leaves behind is found by these two marks.
#[derive(Debug)]
pub struct Place {
    dir: tempfile::TempDir,
    unique: String,
    instances: AtomicU32,
    /// Where its instances come back to, unless they are told otherwise.
    pub network: Network,
}

impl Place {
    pub fn new(test: &str) -> Result<Place> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let short: String = test.replace(['_', ':'], "-").chars().take(32).collect();
        let unique = format!("t{}-{number}-{short}", std::process::id());
        let dir = tempfile::Builder::new().prefix(&format!("{unique}.")).tempdir()?;
        // Apps that run as another user create their files here.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777))?;
        Ok(Place {
            dir,
            unique,
            instances: AtomicU32::new(0),
            network: Network::Host,
        })
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A name for an app that nothing else on the host bears.
    pub fn unique(&self) -> &str {
        &self.unique
    }

    pub fn scope(&self) -> Scope {
        Scope::new([self.unique.clone(), self.dir.path().display().to_string()])
    }

    /// What the app wrote to stdout and stderr.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn next_name(&self) -> String {
        format!("{}-{}", self.unique, self.instances.fetch_add(1, Ordering::Relaxed))
    }

    fn network_of(&self, options: &RestoreOptions) -> Network {
        match options.network {
            Network::Host => self.network,
            other => other,
        }
    }

    fn stdio(&self) -> Stdio {
        Stdio::Log(self.path("log"))
    }

    /// Starts a command as an app in this directory.
    pub fn run(&self, command: &[&str]) -> Result<App> {
        self.run_with(RunOptions {
            command: command.iter().map(|&word| word.to_owned()).collect(),
            ..RunOptions::default()
        })
    }

    pub fn run_with(&self, mut options: RunOptions) -> Result<App> {
        options.name = self.next_name();
        options.stdio = self.stdio();
        options.cwd.get_or_insert_with(|| self.dir().to_owned());
        let started = if switched_on("APPSHOT_TEST_NO_SNAPSHOT") {
            run_plainly(&options, &self.path("log"))
        } else {
            libsnap::launch::run(&options).map_err(Into::into)
        };
        Ok(App::new(
            started.with_context(|| format!("cannot start {:?}", options.command))?,
        ))
    }

    pub fn restore(&self, appshot: &Path) -> Result<App> {
        self.restore_with(appshot, RestoreOptions::default())
    }

    /// From memory, prepared a while before it is asked for in a husk that was made
    /// before, where that suits.
    pub fn restore_warm(&self, appshot: &Path) -> Result<App> {
        self.restore_warm_with(appshot, RestoreOptions::default())
    }

    pub fn restore_warm_with(&self, appshot: &Path, options: RestoreOptions) -> Result<App> {
        let kept = Kept::load(appshot, u64::MAX)?.context("too large")?;
        let from = restore::From::Memory(Arc::new(kept));
        let options = RestoreOptions {
            name: Some(self.next_name()),
            stdio: self.stdio(),
            network: self.network_of(&options),
            ..options
        };
        // By turns: built in a spare, where that suits, and prepared.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let group = libsnap::cgroup::create(&format!("{}-spare", self.next_name()))?;
        let instance = if NUMBER.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            let prepared = restore::prepare(&from, Way::of(&options), group)?;
            std::thread::sleep(WAITING);
            restore::finish(&|| false, prepared, &options)?
        } else {
            let mut spare = Some(Spare::make(group)?);
            let suits = spare
                .as_ref()
                .is_some_and(|spare| spare.suits(from.shot(), PidMode::New));
            let instance = restore::restore_from(&|| false, &from, &mut spare, &options)?;
            anyhow::ensure!(suits == spare.is_none(), "a spare is used where it suits");
            instance
        };
        Ok(App::new(instance))
    }

    /// So many clones, one after the other: forked off a template where one can be made,
    /// which must live as long as they are to share its memory. Every second one in a hurry.
    pub fn clones(&self, appshot: &Path, count: usize) -> Result<(Option<Nursery>, Vec<App>)> {
        self.clones_with(appshot, count, &RestoreOptions::default())
    }

    pub fn clones_with(
        &self,
        appshot: &Path,
        count: usize,
        options: &RestoreOptions,
    ) -> Result<(Option<Nursery>, Vec<App>)> {
        let from = restore::From::Disk(Opened::open(appshot)?);
        let options = || RestoreOptions {
            name: Some(self.next_name()),
            stdio: self.stdio(),
            memory: Memory::Shared,
            network: self.network_of(options),
            ..options.clone()
        };
        let suits = Template::suits(from.shot(), Way::of(&options()));
        let nursery = suits.then(|| restore::template(&from, Way::of(&options()))?.nursery());
        let nursery = nursery.transpose()?;
        let clone = |at: usize| -> Result<App> {
            let options = options();
            let instance = match &nursery {
                Some(nursery) => {
                    let eager = (at % 2 == 1).then(Eager::begin).flatten();
                    let group = libsnap::cgroup::create(&self.next_name())?;
                    let prepared = nursery.instance(group, eager.as_ref())?;
                    restore::finish(&|| false, prepared, &options)?
                }
                None => restore::restore_from(&|| false, &from, &mut None, &options)?,
            };
            Ok(App::new(instance))
        };
        let clones = (0..count).map(clone).collect::<Result<_>>()?;
        Ok((nursery, clones))
    }

    pub fn restore_host_pids(&self, appshot: &Path) -> Result<App> {
        self.restore_with(
            appshot,
            RestoreOptions {
                pids: PidMode::Host,
                ..RestoreOptions::default()
            },
        )
    }

    /// As if this kernel had another vdso than the app's: the kernel's own is
    /// not where the app has its own.
    pub fn restore_bridged(&self, appshot: &Path) -> Result<App> {
        let app = self.restore_with(
            appshot,
            RestoreOptions {
                force_vdso_bridge: true,
                ..RestoreOptions::default()
            },
        )?;
        let root = app.instance.root;
        let maps = std::fs::read_to_string(format!("/proc/{root}/maps"))?;
        let auxv = std::fs::read(format!("/proc/{root}/auxv"))?;
        let words = auxv.as_chunks::<16>().0;
        let apps = words.iter().find_map(|pair| {
            let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| pair[at + byte]));
            (word(0) == nix::libc::AT_SYSINFO_EHDR).then(|| word(8))
        });
        let apps = apps.context("no AT_SYSINFO_EHDR")?;
        let kernels = maps.lines().find(|line| line.ends_with("[vdso]"));
        let moved = kernels.is_some_and(|line| !line.starts_with(&format!("{apps:x}-")));
        let kept = maps.lines().any(|line| line.starts_with(&format!("{apps:x}-")));
        anyhow::ensure!(moved && kept, "two vdsos, expected one at {apps:x}: {maps}");
        Ok(app)
    }

    pub fn restore_with(&self, appshot: &Path, mut options: RestoreOptions) -> Result<App> {
        options.name = Some(self.next_name());
        options.stdio = self.stdio();
        options.network = self.network_of(&options);
        // What stands still gets all its memory at once.
        if switched_on("APPSHOT_TEST_LAZY") && !options.frozen {
            options.memory = Memory::Lazy;
        }
        Ok(App::new(libsnap::restore::restore(appshot, &options)?))
    }
}

/// A plain child instead of an app, to prove that a test's servers and clients
/// are right by themselves.
fn run_plainly(options: &RunOptions, log: &Path) -> Result<Instance> {
    let (program, arguments) = options.command.split_first().context("an empty command")?;
    let log = std::fs::File::options().create(true).append(true).open(log)?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(process::Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    command.envs(options.env.iter().filter_map(|variable| variable.split_once('=')));
    if let Some(dir) = &options.cwd {
        command.current_dir(dir);
    }
    if let Some(gid) = options.gid {
        command.gid(gid);
    }
    if let Some(uid) = options.uid {
        command.uid(uid);
    }
    Ok(Instance {
        name: options.name.clone(),
        root: HostPid(i32::try_from(command.spawn()?.id())?),
        init: None,
        cgroup: None,
        processes: 1,
        total_micros: 0,
        phases: Vec::new(),
        warnings: Vec::new(),
        network: None,
        joined: None,
        ahead: None,
        point: None,
        resumed: None,
    })
}

/// A live instance. Dropped, it is ended with everything in it.
#[derive(Debug)]
pub struct App {
    pub instance: Instance,
    exit: Option<i32>,
}

impl App {
    fn new(instance: Instance) -> App {
        App { instance, exit: None }
    }

    /// The process that stands above all others of the app.
    pub fn top(&self) -> i32 {
        self.instance.child().0
    }

    /// Its processes on the host, orphans among them.
    pub fn pids(&self) -> Vec<i32> {
        let group = self.instance.cgroup.as_deref();
        let members = group
            .and_then(|group| libsnap::cgroup::processes(group).ok())
            .unwrap_or_default();
        let mut pids: Vec<i32> = members.iter().map(|pid| pid.0).collect();
        pids.extend(tree(self.top()));
        pids
    }

    pub fn target(&self) -> Target {
        Target::App {
            name: self.instance.name.clone(),
            cgroup: self.instance.cgroup.clone(),
            root: self.instance.root,
            init: self.instance.init,
            network: self.instance.network.map(|network| network.inode),
        }
    }

    /// Takes an appshot; the app ends with it.
    pub fn freeze(&self, dest: &Path) -> Result<SnapshotReport> {
        self.snapshot(dest, &SnapshotOptions::default())
    }

    /// Takes an appshot; the app goes on.
    pub fn freeze_running(&self, dest: &Path) -> Result<SnapshotReport> {
        let options = SnapshotOptions {
            leave_running: true,
            ..SnapshotOptions::default()
        };
        self.snapshot(dest, &options)
    }

    /// With `APPSHOT_TEST_PARENT=1` another one is taken just before, as its parent.
    pub fn snapshot(&self, dest: &Path, options: &SnapshotOptions) -> Result<SnapshotReport> {
        let mut options = options.clone();
        let take = |dest: &Path, options: &SnapshotOptions| {
            libsnap::snapshot::snapshot(&self.target(), dest, options, &mut |_| {})
        };
        if options.parent.is_none() && switched_on("APPSHOT_TEST_PARENT") {
            let name = format!("{}-parent", dest.file_name().unwrap_or_default().display());
            let parent = dest.with_file_name(name);
            let former = SnapshotOptions {
                leave_running: true,
                ..options.clone()
            };
            options.parent = Some(take(&parent, &former)?.appshot);
        }
        Ok(take(dest, &options)?)
    }

    /// The app's exit code, as a shell gives it (128 + N for signal N).
    pub fn wait_exit(&mut self) -> Result<i32> {
        let what = format!("the end of {}", self.instance.name);
        let code = poll(&what, PATIENCE, || self.try_exit()).with_context(|| self.told())?;
        self.clean();
        Ok(code)
    }

    /// What its processes and their threads are at.
    fn told(&self) -> String {
        let mut told = String::from("there are");
        for task in self.pids().into_iter().flat_map(|pid| {
            let tasks = fs::read_dir(format!("/proc/{pid}/task"))
                .into_iter()
                .flatten()
                .flatten();
            tasks.map(|task| task.path())
        }) {
            let read = |name: &str| fs::read_to_string(task.join(name)).unwrap_or_default();
            let status = read("status");
            let kept = [
                "Name",
                "State",
                "Pid",
                "PPid",
                "TracerPid",
                "SigPnd",
                "ShdPnd",
                "SigBlk",
            ];
            let lines = status
                .lines()
                .filter(|line| kept.iter().any(|kept| line.starts_with(&format!("{kept}:"))));
            let status: Vec<String> = lines.map(|line| line.replace('\t', " ")).collect();
            told += &format!(
                "\n  {}; wchan {}; call {}; stack {}",
                status.join(", "),
                read("wchan"),
                read("syscall").trim(),
                read("stack").replace('\n', " ")
            );
        }
        let group = self.instance.cgroup.as_deref();
        let events = group.map(|group| fs::read_to_string(group.join("cgroup.events")).unwrap_or_default());
        told + &format!("\n  cgroup: {:?}", events.map(|events| events.replace('\n', " ")))
    }

    /// The exit code if it has ended; never waits.
    pub fn try_exit(&mut self) -> Result<Option<i32>> {
        if self.exit.is_none() {
            self.exit = match waitpid(Pid::from_raw(self.top()), Some(WaitPidFlag::WNOHANG))? {
                WaitStatus::Exited(_, code) => Some(code),
                WaitStatus::Signaled(_, signal, _) => Some(128 + signal as i32),
                _ => None,
            };
        }
        Ok(self.exit)
    }

    /// After a snapshot that ends the app: reaps it.
    pub fn wait_gone(mut self) -> Result<()> {
        self.wait_exit().context("the app did not end with its snapshot")?;
        Ok(())
    }

    /// Ends the app with everything in it.
    pub fn end(mut self) -> Result<()> {
        self.stop();
        self.wait_exit().map(drop)
    }

    fn stop(&mut self) {
        if self.exit.is_some() {
            return;
        }
        if let Some(cgroup) = &self.instance.cgroup {
            let _ = libsnap::cgroup::destroy(cgroup);
        }
        // Where there is no cgroup: parents first, so that they start no more.
        for pid in tree(self.top()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = kill(Pid::from_raw(self.top()), Signal::SIGKILL);
    }

    /// Removes the cgroup of an app that has ended.
    fn clean(&mut self) {
        if let Some(cgroup) = self.instance.cgroup.take().filter(|dir| dir.exists()) {
            let _ = libsnap::cgroup::destroy(&cgroup);
        }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        if self.exit.is_none() {
            self.stop();
            let _ = self.wait_exit();
        }
    }
}

/// The fields of a snapshot that every trial can check.
pub fn report_is_plausible(report: &SnapshotReport, dest: &Path) -> Result<()> {
    anyhow::ensure!(dest.exists(), "no appshot at {}", dest.display());
    anyhow::ensure!(report.processes >= 1, "report counts no process: {report:?}");
    anyhow::ensure!(
        report.threads >= report.processes,
        "fewer threads than processes: {report:?}"
    );
    anyhow::ensure!(report.disk_bytes > 0, "report counts no bytes: {report:?}");
    Ok(())
}
