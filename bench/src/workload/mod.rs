//! The programs that are measured. Each is one small module with the same
//! parts: what it needs, how it is started, one question it must answer, the
//! state put into it, and the check that the state is still there.

pub mod beat;
mod http;
mod nginx;
mod redis;

use crate::place::Place;
use anyhow::Result;
use std::path::PathBuf;
use std::process::Command;

/// A program to measure.
pub trait Workload {
    fn name(&self) -> &'static str;

    /// One line for the report, versions included.
    fn about(&self) -> String;

    /// What is missing on this machine to run it.
    fn missing(&self) -> Option<String>;

    /// Prepares one instance, not yet running. A workload counts its own
    /// heartbeat, or needs the preloaded one where pauses are measured.
    fn prepare(&self, place: &Place) -> Result<Box<dyn App>>;

    /// Memory it fills, so that as much is warm before a restore.
    fn memory_bytes(&self) -> usize {
        64 << 20
    }
}

/// One instance of a workload.
pub trait App: Sync {
    fn command(&self) -> Command;

    /// One attempt at getting an answer.
    fn answers(&self) -> Result<()>;

    /// Puts state into it, once, after the first answer.
    fn fill(&self) -> Result<()>;

    /// Called when the original is gone, before the restore begins: from now
    /// on only the restored program may make [`App::answers`] succeed.
    fn forget(&self) -> Result<()> {
        Ok(())
    }

    /// Is everything there that [`App::fill`] put there? `tree` lists the
    /// host PIDs of the instance.
    fn verify(&self, tree: &[i32]) -> Result<()>;

    /// The port whose connections must be closed before a snapshot.
    fn port(&self) -> Option<u16> {
        None
    }

    /// The heartbeat file, where the program beats by itself.
    fn beat(&self) -> Option<PathBuf> {
        None
    }
}

/// Every workload, in the order of the report.
pub fn all(place: &Place) -> Vec<Box<dyn Workload>> {
    let beat = beat::build(place, "beat", &[]);
    vec![
        Box::new(beat::Beat::new("trivial", "threads", 1, &beat)),
        Box::new(redis::Redis {
            name: "redis-empty",
            keys: 0,
        }),
        Box::new(redis::Redis {
            name: "redis-100mb",
            keys: 100_000,
        }),
        Box::new(redis::Redis {
            name: "redis-1gb",
            keys: 1_000_000,
        }),
        Box::new(nginx::Nginx),
        Box::new(http::Http::python(place)),
        Box::new(http::Http::node(place)),
        Box::new(http::Http::java(place)),
        Box::new(beat::Beat::new("threads-100", "threads", 100, &beat)),
        Box::new(beat::Beat::new("processes-100", "processes", 100, &beat)),
    ]
}

/// Names a missing program and how to get it.
fn missing_program(program: &str, package: &str) -> Option<String> {
    crate::command::find(program)
        .is_none()
        .then(|| format!("{program} (apt-get install {package})"))
}

/// A number that no other instance has.
fn nonce() -> u64 {
    crate::clock::now_ns() ^ (u64::from(std::process::id()) << 40)
}

/// A command in a session of its own, reading and writing nothing.
fn detached(program: impl AsRef<std::ffi::OsStr>) -> Command {
    use std::process::Stdio;
    let mut command = Command::new("setsid");
    command
        .arg(program)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}
