//! A node of ours in a directory, with one app that is deployed on it.

use crate::workload::App;
use anyhow::{Context, Result, ensure};
use nodekit::client::Client;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DAEMONS: [&str; 3] = ["snapd", "restored", "edgepointd"];
const PATIENCE: Duration = Duration::from_secs(120);
const APP: &str = "bench";

/// Its daemons.
#[derive(Debug)]
pub struct Node {
    dir: PathBuf,
    daemons: Vec<Child>,
}

impl Node {
    /// Starts the daemons, each with its own of `more` arguments.
    pub fn new(dir: &Path, more: &[(&str, &[&str])]) -> Result<Node> {
        let mut node = Node {
            dir: dir.to_owned(),
            daemons: Vec::new(),
        };
        for name in DAEMONS {
            let binary = std::env::current_exe()?.with_file_name(name);
            let log = std::fs::File::create(dir.join(format!("{name}.log")))?;
            let mut command = Command::new(&binary);
            command.arg("--run-dir").arg(dir.join("run"));
            command.arg("--data-dir").arg(dir.join("data"));
            for (_, arguments) in more.iter().filter(|(daemon, _)| *daemon == name) {
                command.args(*arguments);
            }
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            let child = command.spawn();
            node.daemons
                .push(child.with_context(|| format!("cannot start {}", binary.display()))?);
            until(name, || Ok(node.client(name).answers()))?;
        }
        Ok(node)
    }

    fn client(&self, daemon: &str) -> Client {
        Client::new(self.dir.join(format!("run/{daemon}.sock")))
    }

    /// Deploys it, with `more` in its manifest, and waits for its first answer.
    pub fn deploy(&self, app: &dyn App, more: &str) -> Result<()> {
        let manifest = manifest(app)? + more;
        let _: Value = self
            .client("edgepointd")
            .post("/v1/apps", &json!({ "manifest": manifest }))?;
        self.reach("running")?;
        until("an answer", || Ok(app.answers().is_ok()))
    }

    pub fn reach(&self, state: &str) -> Result<()> {
        let path = format!("/v1/apps/{APP}?wait={state}");
        let status: Value = self.client("edgepointd").get(&path)?;
        let log = std::fs::read_to_string(self.dir.join(format!("data/logs/{APP}.log"))).unwrap_or_default();
        ensure!(status["state"] == state, "it is not {state}: {status}: {log}");
        Ok(())
    }

    /// Waits until an instance of the app waits for who comes.
    pub fn is_parked(&self) -> Result<()> {
        until("a parked instance", || {
            let waiting: Vec<Value> = self.client("restored").get("/v1/prepare")?;
            Ok(waiting.iter().any(|row| row["parked"] == true && row["ready"] == 1))
        })
    }

    pub fn end(mut self) -> Result<()> {
        let _: Value = self.client("edgepointd").delete(&format!("/v1/apps/{APP}"))?;
        for mut daemon in self.daemons.drain(..).rev() {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(daemon.id())?);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
            daemon.wait()?;
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

pub fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !done()? {
        ensure!(Instant::now() < deadline, "{what} does not come");
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// What a provider would write of it.
fn manifest(app: &dyn App) -> Result<String> {
    let command = app.command();
    let text = |word: &std::ffi::OsStr| word.to_str().map(str::to_owned).context("it is not UTF-8");
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let mut words: Vec<String> = words.map(text).collect::<Result<_>>()?;
    // A deployed app has a session of its own, and setsid(1) would fork to have one.
    words.retain(|word| word != "setsid");
    let set = command.get_envs().filter_map(|(key, value)| Some((key, value?)));
    let set: Vec<String> = set
        .map(|(key, value)| Ok(format!("{} = {:?}", text(key)?, text(value)?)))
        .collect::<Result<_>>()?;
    let directory = command.get_current_dir().unwrap_or(Path::new("/"));
    let port = app.port().context("it has no port")?;
    Ok(format!(
        "app = {APP:?}\n[start]\ncommand = {words:?}\nenv = {{ {} }}\ndirectory = {:?}\n\
         [[listen]]\ntcp = \"127.0.0.1:{port}\"\n[idle]\ntimeout = \"1s\"\ncpu = 50.0\n",
        set.join(", "),
        text(directory.as_os_str())?
    ))
}
