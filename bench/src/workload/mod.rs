//! The programs that are measured. Each is one small module with the same
//! parts: what it needs, how it is started, one question it must answer, the
//! state put into it, and the check that the state is still there.

pub mod beat;
mod http;
mod nginx;
mod postgres;
mod pythons;
mod redis;

pub use nginx::Nginx;

use crate::place::Place;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

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

    /// Does it use System V memory?
    fn system_v(&self) -> bool {
        false
    }

    /// The heartbeat file, where the program beats by itself.
    fn beat(&self) -> Option<PathBuf> {
        None
    }

    /// When it ran first since [`App::forget`], in nanoseconds of
    /// CLOCK_REALTIME, where it tells.
    fn first_instruction_ns(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Has it do work that allocates and frees much.
    fn work(&self) -> Result<()> {
        bail!("it has no work to do")
    }

    /// Begins to ask it without pause, over connections that stay open.
    fn load(&self) -> Result<Load> {
        bail!("there is no load for it")
    }

    /// Requests served so far.
    fn served(&self) -> Result<u64> {
        bail!("it does not count its requests")
    }
}

/// Clients that ask until this is dropped.
#[derive(Debug)]
pub struct Load {
    clients: Vec<Child>,
}

impl Load {
    /// `redis-benchmark`, quiet.
    fn command(port: u16) -> Command {
        let mut command = Command::new("redis-benchmark");
        command.args(["-q", "-p", &port.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Does every client still ask?
    pub fn goes_on(&mut self) -> Result<()> {
        for client in &mut self.clients {
            if let Some(status) = client.try_wait()? {
                bail!("a client gave up: {status}");
            }
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for client in &mut self.clients {
            let _ = client.kill();
            let _ = client.wait();
        }
    }
}

/// Those that only the table needs: other sizes, and programs made to measure.
pub const FOR_THE_TABLE: [&str; 5] = ["redis-10mb", "redis-4gb", "spin", "fine", "block-100mb"];

/// Every workload, in the order of the report. `preload` is the heartbeat as a
/// library.
pub fn all(place: &Place, preload: Option<&Path>) -> Vec<Box<dyn Workload>> {
    let beat = beat::build(place, "beat", &[]);
    vec![
        Box::new(beat::Beat::new("trivial", "threads", 1, &beat)),
        Box::new(redis::Redis {
            name: "redis-empty",
            keys: 0,
        }),
        Box::new(redis::Redis {
            name: "redis-10mb",
            keys: 10_000,
        }),
        Box::new(redis::Redis {
            name: "redis-100mb",
            keys: 100_000,
        }),
        Box::new(redis::Redis {
            name: "redis-1gb",
            keys: 1_000_000,
        }),
        Box::new(redis::Redis {
            name: "redis-4gb",
            keys: 4_000_000,
        }),
        Box::new(nginx::Nginx),
        Box::new(http::Http::python(place)),
        Box::new(http::Http::node(place)),
        Box::new(http::Http::go(place)),
        Box::new(http::Http::java(place)),
        Box::new(postgres::Postgres {
            preload: preload.map(PathBuf::from),
        }),
        Box::new(beat::Beat::new("threads-100", "threads", 100, &beat)),
        Box::new(beat::Beat::new("threads-200", "threads", 200, &beat)),
        Box::new(beat::Beat::new("processes-100", "processes", 100, &beat)),
        Box::new(pythons::Pythons::new(place)),
        Box::new(beat::Beat::new("spin", "spin", 1, &beat)),
        Box::new(beat::Beat::new("fine", "fine", 1, &beat)),
        Box::new(beat::Beat::new("block-100mb", "threads", 1, &beat).with_memory(100)),
    ]
}

/// Names a missing program and how to get it.
pub fn missing_program(program: &str, package: &str) -> Option<String> {
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
