//! How a test ends: passed, failed or skipped, and how it waits.

use anyhow::{Result, bail};
use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

/// The machine lacks what the test needs. Never a pass: it is told on stderr,
/// and is a failure with `APPSHOT_REQUIRE_ALL=1` where it could be had.
#[derive(Debug)]
pub struct Skipped(pub String);

impl Skipped {
    /// Another processor cannot be installed.
    fn could_be_had(&self) -> bool {
        !self.0.starts_with("a processor with ")
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped: needs {}", self.0)
    }
}

impl std::error::Error for Skipped {}

pub fn skip<T>(needs: impl Into<String>) -> Result<T> {
    Err(Skipped(needs.into()).into())
}

/// Is this environment variable set to something else than nothing or 0?
pub fn switched_on(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|value| !value.is_empty() && value != "0")
}

/// Runs a trial on a thread of its own and turns its result into the test's.
#[track_caller]
pub fn on_own_thread(test: &str, trial: impl FnOnce() -> Result<()> + Send + 'static) {
    let thread = std::thread::Builder::new().name(test.to_owned()).spawn(trial);
    let Ok(thread) = thread else {
        panic!("{test}: cannot start a thread");
    };
    match thread.join() {
        Ok(result) => conclude(test, result),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[track_caller]
fn conclude(test: &str, result: Result<()>) {
    let Err(error) = result else { return };
    let skipped = error.downcast_ref::<Skipped>();
    if skipped.is_none_or(|skipped| skipped.could_be_had() && switched_on("APPSHOT_REQUIRE_ALL")) {
        panic!("{test}: {error:#}");
    }
    note(test, &format!("{error:#}"));
}

/// Says something that is seen also without `--nocapture`.
pub fn note(test: &str, text: &str) {
    // One write, so that lines of several tests do not mix.
    let line = format!("{test}: {text}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

pub fn need_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        skip("root")
    }
}

/// The first of these that can be executed.
pub fn need_program(names: &[&str]) -> Result<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    for name in names {
        let found = std::env::split_paths(&path)
            .map(|dir| dir.join(name))
            .find(|file| file.is_file());
        if let Some(file) = found {
            return Ok(file);
        }
    }
    skip(names.join(" or "))
}

/// Polls until the condition gives a value.
pub fn poll<T>(what: &str, patience: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        // Read before the look: the machine may be away in between.
        let is_late = Instant::now() > deadline;
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if is_late {
            bail!("waited {} s in vain for {what}", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Numbers that look like chance; the same ones from the same seed.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}
