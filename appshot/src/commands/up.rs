//! `up`: the daemons of a node as one program in front, and what its apps do, line by line.
//!
//! `--demo` deploys the servers that this machine has, each asleep after two seconds, and
//! removes them at the end.

use crate::cli;
use crate::demo::find;
use libsnap::error::{Error, Kind, OrFail, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;
use nodekit::args::{Dirs, Format};
use nodekit::client::Client;
use nodekit::{local, out, signals};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// In the order in which they are started.
const DAEMONS: [&str; 4] = ["snapd", "restored", "perfd", "edgepointd"];
const BEGINS: Duration = Duration::from_secs(10);
const ENDS: Duration = Duration::from_secs(70);
const LOOK: Duration = Duration::from_millis(100);
/// Before one that has ended is started again.
const PAUSE: Duration = Duration::from_secs(1);

/// A daemon of ours.
struct Daemon<'a> {
    dirs: &'a Dirs,
    name: &'static str,
    arguments: Vec<String>,
    child: Child,
    ended: Option<Instant>,
}

pub fn up(dirs: &Dirs, args: &cli::Up) -> Result<u8> {
    let signals = signals::block()?;
    dirs.open()?;
    let mut daemons = Vec::new();
    for name in DAEMONS {
        if client(dirs, name).answers() {
            return Err(Error::new(Kind::Conflict, format!("cannot start {name}"))
                .because("one runs already in this run directory")
                .fix("stop it, or name other directories with --run-dir and --data-dir"));
        }
        let arguments = match name {
            "edgepointd" => {
                let http = args.http.iter().map(|at| format!("--http={at}"));
                let api = args.api.iter().map(|at| format!("--api={at}"));
                let subnet = args.subnet.iter().map(|subnet| format!("--subnet={subnet}"));
                http.chain(api).chain(subnet).collect()
            }
            _ => Vec::new(),
        };
        daemons.push(Daemon::start(dirs, name, arguments)?);
    }
    out::print(&format!(
        "the node is up: {}; their logs are in {}\n",
        DAEMONS.join(", "),
        dirs.run_dir.display()
    ))?;
    let edgepointd = client(dirs, "edgepointd");
    let mut apps = Vec::new();
    let shown = match args.demo {
        true => deploy(&edgepointd, &mut apps),
        false => Ok(()),
    };
    let shown = shown.and_then(|()| show(&edgepointd, &mut daemons, &signals));
    let mut removed = Ok(());
    for app in apps {
        let gone: Result<Value> = edgepointd.delete(&format!("/v1/apps/{app}"));
        removed = removed.and(gone.map(drop));
    }
    while let Some(daemon) = daemons.pop() {
        daemon.stop()?;
    }
    shown.and(removed).map(|()| 0)
}

fn client(dirs: &Dirs, name: &str) -> Client {
    Client::new(dirs.socket(None, name))
}

impl<'a> Daemon<'a> {
    /// Returns when it answers.
    fn start(dirs: &'a Dirs, name: &'static str, arguments: Vec<String>) -> Result<Daemon<'a>> {
        let mut daemon = Daemon {
            child: spawn(dirs, name, &arguments)?,
            dirs,
            name,
            arguments,
            ended: None,
        };
        let begin = Instant::now();
        while !client(dirs, name).answers() {
            let ended = daemon.child.try_wait().or_fail(|| format!("cannot wait for {name}"))?;
            if ended.is_some() || begin.elapsed() > BEGINS {
                return Err(Error::failed(format!("{name} does not come up"))
                    .because(last_line(&log(dirs, name)))
                    .fix(format!("see {}", log(dirs, name).display())));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(daemon)
    }

    /// Starts it again a while after it has ended.
    fn look(&mut self) -> Result<()> {
        match self.ended {
            None => {
                if let Ok(Some(status)) = self.child.try_wait() {
                    eprintln!("{} has ended ({status}): it is started again", self.name);
                    self.ended = Some(Instant::now());
                }
            }
            Some(at) if at.elapsed() > PAUSE => {
                self.child = spawn(self.dirs, self.name, &self.arguments)?;
                self.ended = None;
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Told to stop, it finishes what it is at. Apps go on.
    fn stop(mut self) -> Result<()> {
        let what = || format!("cannot stop {}", self.name);
        let pid = Pid::from_raw(i32::try_from(self.child.id()).or_fail(what)?);
        let begin = Instant::now();
        let _ = kill(pid, Signal::SIGTERM);
        while self.child.try_wait().or_fail(what)?.is_none() {
            if begin.elapsed() > ENDS {
                return Err(Error::failed(what()).because(format!("it is still at work after {ENDS:?}")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// A program beside this one, or in PATH. Ctrl-C is for us alone.
fn spawn(dirs: &Dirs, name: &str, arguments: &[String]) -> Result<Child> {
    let what = || format!("cannot start {name}");
    let own = std::env::current_exe().or_fail(what)?;
    let beside = own.parent().map(|dir| dir.join(name)).filter(|path| path.is_file());
    let file = File::options().create(true).append(true).open(log(dirs, name));
    let mut command = Command::new(beside.unwrap_or_else(|| name.into()));
    command
        .arg("--run-dir")
        .arg(&dirs.run_dir)
        .arg("--data-dir")
        .arg(&dirs.data_dir)
        .args(arguments);
    if name == "perfd" {
        command.arg("--serve");
    }
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null());
    let child = command.stderr(file.or_fail(what)?).spawn();
    child.map_err(|error| {
        Error::failed(what())
            .because(error)
            .fix("install it beside appshot, or in PATH")
    })
}

fn log(dirs: &Dirs, name: &str) -> PathBuf {
    dirs.run_dir.join(format!("{name}.log"))
}

fn last_line(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().last().unwrap_or("it says nothing").to_owned()
}

/// A line for each change, until a signal.
fn show(edgepointd: &Client, daemons: &mut [Daemon<'_>], signals: &SignalFd) -> Result<()> {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    while !signals::waiting(signals) {
        for daemon in daemons.iter_mut() {
            daemon.look()?;
        }
        // It may just be gone.
        for status in edgepointd.get::<Vec<Value>>("/v1/apps").unwrap_or_default() {
            let app = status["app"].as_str().unwrap_or_default().to_owned();
            let told = super::apps::told(&status);
            let key = format!("{told} {}", status["counts"]);
            if known.insert(app, key.clone()).as_ref() != Some(&key) {
                out::show(Format::Text, &status, |_| told + "\n")?;
            }
        }
        std::thread::sleep(LOOK);
    }
    let _ = signals.read_signal();
    Ok(())
}

/// Deploys the servers of this machine; `apps` is what there is to remove then.
fn deploy(edgepointd: &Client, apps: &mut Vec<String>) -> Result<()> {
    let node = "let n = 0; require('http').createServer((q, r) => r.end(`${++n}\\n`)).listen(PORT, '127.0.0.1')";
    let servers: [(&str, &[&str], &str); 3] = [
        (
            "python3",
            &["-m", "http.server", "PORT", "--bind", "127.0.0.1"],
            "curl http://127.0.0.1:PORT/",
        ),
        ("node", &["-e", node], "curl http://127.0.0.1:PORT/"),
        (
            "redis-server",
            &["--port", "PORT", "--bind", "127.0.0.1", "--save", ""],
            "redis-cli -p PORT incr n",
        ),
    ];
    let found = servers
        .into_iter()
        .filter_map(|(name, arguments, try_it)| Some((name, find(name)?, arguments, try_it)));
    for (name, program, arguments, try_it) in found {
        let port = local::free_port()?.to_string();
        let command: Vec<String> = std::iter::once(program)
            .chain(arguments.iter().map(|word| word.replace("PORT", &port)))
            .collect();
        let app = format!("demo-{name}");
        let manifest = format!(
            "app = {app:?}\n[start]\ncommand = {command:?}\ndirectory = \"/\"\n\
             [[listen]]\ntcp = \"127.0.0.1:{port}\"\n[idle]\ntimeout = \"2s\"\n"
        );
        let _: Value = edgepointd.post("/v1/apps", &json!({ "manifest": manifest }))?;
        apps.push(app);
        out::print(&format!("try    {}\n", try_it.replace("PORT", &port)))?;
    }
    match apps.is_empty() {
        true => Err(Error::new(Kind::Unavailable, "cannot run the demo")
            .because("this machine has none of python3, node, redis-server")
            .fix("apt-get install redis-server")),
        false => Ok(()),
    }
}
