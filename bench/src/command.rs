//! Commands that are timed from outside and must end in time.

use crate::clock::{millis_between, now_ns};
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(90);

/// A command that ended well.
#[derive(Debug)]
pub struct Done {
    pub begin_ns: u64,
    pub millis: f64,
    pub stdout: String,
}

/// Runs a command to its end. What it prints goes through files in `scratch`,
/// not pipes: a restored app may hold the other end of a pipe open for ever.
pub fn run(command: &mut Command, scratch: &Path) -> Result<Done> {
    let (out, err) = (scratch.join("stdout"), scratch.join("stderr"));
    command
        // A failure is told by its last lines, which are to be its reason.
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&out)?)
        .stderr(std::fs::File::create(&err)?);
    let name = command.get_program().to_string_lossy().into_owned();
    let begin_ns = now_ns();
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let watchdog = Watchdog::new(child.id());
    let status = child.wait()?;
    let millis = millis_between(begin_ns, now_ns());
    drop(watchdog);
    let stdout = std::fs::read_to_string(&out).unwrap_or_default();
    if !status.success() {
        let stderr = std::fs::read_to_string(&err).unwrap_or_default();
        bail!("{name}: {status}: {}", last_words(&stderr, &stdout));
    }
    Ok(Done {
        begin_ns,
        millis,
        stdout,
    })
}

fn last_words(stderr: &str, stdout: &str) -> String {
    let text = if stderr.trim().is_empty() { stdout } else { stderr };
    let lines: Vec<&str> = text.trim().lines().collect();
    lines[lines.len().saturating_sub(6)..].join(" | ")
}

/// Kills a process that takes longer than [`LIMIT`].
struct Watchdog {
    _cancel: mpsc::Sender<()>,
}

impl Watchdog {
    fn new(pid: u32) -> Self {
        let (cancel, cancelled) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            if cancelled.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
                let pid = Pid::from_raw(i32::try_from(pid).expect("pids fit"));
                let _ = kill(pid, Signal::SIGKILL);
            }
        });
        Watchdog { _cancel: cancel }
    }
}

/// The same command, started by another one. Reads and writes nothing.
pub fn below(outer: &[&str], inner: &Command) -> Command {
    let mut command = Command::new(outer[0]);
    command
        .args(&outer[1..])
        .arg(inner.get_program())
        .args(inner.get_args());
    command.env_clear().current_dir("/");
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Compiles a C program in `dir`; `None` without a C compiler.
pub fn compile(dir: &Path, name: &str, text: &str, options: &[&str]) -> Option<PathBuf> {
    let (source, binary) = (dir.join(format!("{name}.c")), dir.join(name));
    std::fs::write(&source, text).ok()?;
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-pthread"]).args(options);
    cc.arg("-o").arg(&binary).arg(&source);
    run(&mut cc, dir).ok().map(|_| binary)
}

/// Finds a program on the PATH.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// The first line that `program ARG` prints, as its version.
pub fn version(program: &Path, arg: &str) -> String {
    let printed = |output: Output| {
        let text = if output.stdout.is_empty() {
            output.stderr
        } else {
            output.stdout
        };
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines().next().unwrap_or_default().trim().to_owned()
    };
    Command::new(program)
        .arg(arg)
        .output()
        .map_or_else(|e| format!("version unknown: {e}"), printed)
}
