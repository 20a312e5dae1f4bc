//! The bare programs of `programs/floor.c`, started before the clock.

use crate::clock::now_ns;
use crate::place::Place;
use crate::workload::beat::BeatFile;
use anyhow::{Context, Result, ensure};
use nodekit::local;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);

/// Compiles them; `None` without a C compiler.
pub fn build(place: &Place) -> Option<PathBuf> {
    crate::command::compile(place.disk(), "floor", include_str!("../programs/floor.c"), &[])
}

/// One that is prepared, and waits.
#[derive(Debug)]
pub struct Husk {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
}

impl Husk {
    pub fn start(program: &Path, arguments: &[OsString]) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the bare program")?;
        let stdin = child.stdin.take().context("no stdin")?;
        let stdout = child.stdout.take().context("no stdout")?;
        let mut husk = Husk { child, stdin, stdout };
        husk.wait_ready()?;
        Ok(husk)
    }

    pub fn wait_ready(&mut self) -> Result<()> {
        let mut byte = [0];
        self.stdout.read_exact(&mut byte).context("the bare program ended")?;
        ensure!(byte == *b"r", "the bare program is not ready");
        Ok(())
    }

    /// Starts it; answers when that was.
    pub fn go(&mut self) -> Result<u64> {
        let begin_ns = now_ns();
        self.stdin.write_all(b"g")?;
        Ok(begin_ns)
    }

    /// The line that it prints.
    pub fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        while self.stdout.read_exact(&mut byte).is_ok() && byte != *b"\n" {
            line.push(byte[0]);
        }
        Ok(String::from_utf8(line)?)
    }
}

impl Drop for Husk {
    fn drop(&mut self) {
        // What it forked dies with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// When somebody answers at the port.
pub fn answered_ns(port: u16) -> Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask(port) {
            Ok(()) => return Ok(now_ns()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_micros(50)),
        }
    }
}

fn ask(port: u16) -> Result<()> {
    let mut stream = local::connect(port)?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    ensure!(answer == *b"+PONG\r\n", "not an answer");
    Ok(())
}

/// When the time was noted in the file, on CLOCK_REALTIME.
pub fn noted_ns(file: &BeatFile) -> Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(ns) = file.first_ns()? {
            return Ok(ns);
        }
        ensure!(Instant::now() < deadline, "it does not run");
        std::thread::sleep(Duration::from_micros(200));
    }
}
