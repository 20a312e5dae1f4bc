//! Ours, as a node uses it: one request to a `restored` that runs already. The
//! time counts from the moment when the request is sent.

use super::{After, Back, Call, Engine, Taken};
use crate::clock::{millis_between, now_ns};
use crate::proc;
use anyhow::{Context, Result, bail, ensure};
use libsnap::target::Instance;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(90);
/// Until a new daemon has its husks.
const HUSKS: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct Daemon {
    binary: PathBuf,
    scratch: PathBuf,
    /// Takes the snapshots.
    call: Call,
    /// Started with the first request.
    running: Mutex<Option<Child>>,
    /// A connection to it that has had its answer, as those keep who ask it often.
    kept: Mutex<Option<BufReader<UnixStream>>>,
}

impl Daemon {
    pub fn new(scratch: &Path) -> Self {
        let beside = std::env::current_exe().unwrap_or_default();
        Daemon {
            binary: beside.with_file_name("restored"),
            scratch: scratch.to_owned(),
            call: Call::new(scratch),
            running: Mutex::new(None),
            kept: Mutex::new(None),
        }
    }

    fn socket(&self) -> PathBuf {
        self.scratch.join("restored.sock")
    }

    fn kept(&self) -> MutexGuard<'_, Option<BufReader<UnixStream>>> {
        self.kept.lock().expect("no panic holds it")
    }

    /// A connection to the daemon, which is started where it does not run.
    fn connect(&self) -> Result<BufReader<UnixStream>> {
        let mut running = self.running.lock().expect("no panic holds it");
        // After a failed round everything was killed, and reaped: an error.
        let alive = running
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)));
        let kept = self.kept().take();
        if !alive {
            *running = Some(self.start()?);
        } else if let Some(kept) = kept {
            return Ok(kept);
        }
        let stream = UnixStream::connect(self.socket()).context("cannot reach restored")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(BufReader::new(stream))
    }

    fn start(&self) -> Result<Child> {
        let log = std::fs::File::create(self.scratch.join("restored.log"))?;
        let mut child = Command::new(&self.binary)
            .arg("--data-dir")
            .arg(self.scratch.join("data"))
            .arg("--socket")
            .arg(self.socket())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while UnixStream::connect(self.socket()).is_err() {
            if let Some(status) = child.try_wait()? {
                bail!("restored ended at start: {status}: {}", self.last_words());
            }
            ensure!(Instant::now() < deadline, "restored does not listen");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(child)
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.scratch.join("restored.log")).unwrap_or_default();
        log.lines().next_back().unwrap_or_default().to_owned()
    }

    /// One request, on a connection that is open before the clock starts.
    fn ask(&self, method: &str, path: &str, body: &str) -> Result<(u64, String)> {
        let mut stream = self.connect()?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let begin_ns = now_ns();
        stream.get_mut().write_all(request.as_bytes())?;
        let told = answer(&mut stream)?;
        *self.kept() = Some(stream);
        Ok((begin_ns, told))
    }
}

impl Daemon {
    /// So many clones, all at once; and when the request was sent.
    pub fn clones(&self, source: &Path, n: usize) -> Result<(u64, Vec<Instance>)> {
        self.clone(source, n, false)
    }

    /// One that is reverted in place.
    pub fn revertible(&self, source: &Path) -> Result<Vec<Instance>> {
        Ok(self.clone(source, 1, true)?.1)
    }

    fn clone(&self, source: &Path, n: usize, revertible: bool) -> Result<(u64, Vec<Instance>)> {
        let name = format!("bench-{}", now_ns());
        let body = serde_json::json!({ "appshot": source, "count": n, "name": name, "revertible": revertible });
        let (begin_ns, told) = self.ask("POST", "/v1/clones", &body.to_string())?;
        Ok((begin_ns, serde_json::from_str(&told).context("the clones")?))
    }

    /// What the daemon says of the revert of an instance.
    pub fn revert(&self, name: &str) -> Result<(u64, serde_json::Value)> {
        let (begin_ns, told) = self.ask("POST", &format!("/v1/instances/{name}/revert"), "{}")?;
        Ok((begin_ns, serde_json::from_str(&told).context("the report")?))
    }

    pub fn remove(&self, instance: &Instance) -> Result<()> {
        let tree = proc::tree(instance.child().0);
        self.ask("DELETE", &format!("/v1/instances/{}", instance.name), "")?;
        proc::wait_gone(&tree, Duration::from_secs(10))
    }
}

/// The body of a good answer.
fn answer(stream: &mut BufReader<UnixStream>) -> Result<String> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        ensure!(stream.read_line(&mut line)? > 0, "restored hung up");
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_ascii_lowercase()),
        }
    }
    let length = head.iter().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.context("an answer without a length")?.parse()?];
    stream.read_exact(&mut body)?;
    let body = String::from_utf8(body)?;
    let good = head.first().and_then(|status| status.split(' ').nth(1)) == Some("200");
    ensure!(good, "restored: {body}");
    Ok(body)
}

impl Engine for Daemon {
    fn name(&self) -> &'static str {
        "restored"
    }

    fn about(&self) -> String {
        "`POST /v1/instances` to a running `restored`, from the request's first byte to the answer".to_owned()
    }

    fn missing(&self) -> Option<String> {
        let fix = || "restored (cargo build --release -p restored)".to_owned();
        (!self.binary.is_file()).then(fix)
    }

    fn snapshot(&self, root: i32, dest: &Path, after: After) -> Result<Taken> {
        self.call.snapshot(root, dest, after)
    }

    fn restore(&self, source: &Path) -> Result<Back> {
        let name = format!("bench-{}", now_ns());
        let body = serde_json::json!({ "appshot": source, "name": name }).to_string();
        let (begin_ns, told) = self.ask("POST", "/v1/instances", &body)?;
        let millis = millis_between(begin_ns, now_ns());
        let instance: Instance = serde_json::from_str(&told).context("the restored instance")?;
        Ok(Back {
            name,
            begin_ns,
            millis,
            root: instance.child().0,
            cgroup: instance.cgroup,
            phases: instance.phases,
        })
    }

    /// Another daemon, which has seen no appshot, runs and has its husks.
    fn cool(&self) -> Result<()> {
        self.stop();
        let connected = self.connect()?;
        *self.kept() = Some(connected);
        std::thread::sleep(HUSKS);
        Ok(())
    }

    fn end(&self, back: &Back) -> Result<()> {
        let tree = proc::tree(back.root);
        self.ask("DELETE", &format!("/v1/instances/{}", back.name), "")?;
        proc::wait_gone(&tree, Duration::from_secs(10))
    }
}

impl Daemon {
    /// It is asked to end: killed, it would leave what it keeps ready.
    fn stop(&self) {
        let Some(mut child) = self.running.lock().expect("no panic holds it").take() else {
            return;
        };
        let pid = i32::try_from(child.id()).map(Pid::from_raw);
        let asked = pid.is_ok_and(|pid| kill(pid, Signal::SIGTERM).is_ok());
        let deadline = Instant::now() + Duration::from_secs(5);
        while asked && Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}
