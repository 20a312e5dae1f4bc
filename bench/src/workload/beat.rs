//! Programs without a port: one process, 100 threads, 100 processes. They beat
//! in a shared file (`programs/beat.c`). The same source, preloaded into the
//! servers, measures how long those stand still.

use super::{App, Workload, detached, nonce};
use crate::place::Place;
use anyhow::{Context, Result, ensure};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const SOURCE: &str = include_str!("../programs/beat.c");
/// Offsets in the shared file, in words: see `struct shared`.
const NONCE: u64 = 0;
const GAP: u64 = 1;
const FIRST: u64 = 2;
const COUNT: u64 = 3;

/// Compiles the heartbeat; `None` without a C compiler.
pub fn build(place: &Place, name: &str, options: &[&str]) -> Option<PathBuf> {
    crate::command::compile(place.disk(), name, SOURCE, options)
}

/// The same source as a library to preload.
pub fn build_preloaded(place: &Place) -> Option<PathBuf> {
    build(place, "beat.so", &["-DPRELOADED", "-shared", "-fPIC"])
}

#[derive(Debug)]
pub struct Beat {
    name: &'static str,
    kind: &'static str,
    tasks: usize,
    megabytes: usize,
    program: Option<PathBuf>,
}

impl Beat {
    pub fn new(name: &'static str, kind: &'static str, tasks: usize, program: &Option<PathBuf>) -> Self {
        Beat {
            name,
            kind,
            tasks,
            megabytes: 0,
            program: program.clone(),
        }
    }

    /// The same, holding so much memory besides.
    pub fn with_memory(self, megabytes: usize) -> Self {
        Beat { megabytes, ..self }
    }
}

impl Workload for Beat {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> String {
        match self.tasks {
            1 => format!("C program that counts ({}), with {} MB", self.kind, self.megabytes),
            n => format!("C program of {n} {} that sleep and count", self.kind),
        }
    }

    fn missing(&self) -> Option<String> {
        match self.program {
            None => Some("cc (apt-get install gcc libc6-dev)".to_owned()),
            Some(_) => None,
        }
    }

    fn prepare(&self, place: &Place) -> Result<Box<dyn App>> {
        Ok(Box::new(Beating {
            program: self.program.clone().context("no heartbeat program")?,
            kind: self.kind,
            tasks: self.tasks,
            megabytes: self.megabytes,
            nonce: nonce(),
            file: BeatFile::new(place.beat_file(self.name)?)?,
            seen: Mutex::new(0),
        }))
    }
}

/// The shared file of one beating program.
#[derive(Debug)]
pub struct BeatFile {
    pub path: PathBuf,
    file: File,
}

impl BeatFile {
    pub fn new(path: PathBuf) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        Ok(BeatFile { path, file })
    }

    /// When a bare program noted that it ran; as [`App::first_instruction_ns`].
    pub fn first_ns(&self) -> Result<Option<u64>> {
        Ok(Some(self.get(FIRST)?).filter(|ns| *ns > 0))
    }

    fn get(&self, word: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, word * 8)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn clear(&self, word: u64) -> Result<()> {
        Ok(self.file.write_all_at(&[0; 8], word * 8)?)
    }

    fn beats(&self) -> Result<u64> {
        self.get(COUNT)
    }

    /// Waits for the first beats.
    pub fn wait_beating(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.beats()? < 100 {
            ensure!(Instant::now() < deadline, "the heartbeat does not begin");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Forgets the longest pause so far.
    pub fn clear_gap(&self) -> Result<()> {
        self.clear(GAP)
    }

    /// The longest pause since [`BeatFile::clear_gap`], once it beats again.
    pub fn gap_millis(&self) -> Result<f64> {
        let seen = self.beats()?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.beats()? < seen + 10 {
            ensure!(Instant::now() < deadline, "the heartbeat has stopped");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(self.get(GAP)? as f64 / 1e6)
    }
}

struct Beating {
    program: PathBuf,
    kind: &'static str,
    tasks: usize,
    megabytes: usize,
    nonce: u64,
    file: BeatFile,
    /// Beats when the original ended.
    seen: Mutex<u64>,
}

impl Beating {
    fn counts(&self) -> Result<Vec<u64>> {
        (0..self.tasks as u64).map(|slot| self.file.get(COUNT + slot)).collect()
    }

    /// Every thread or process counts on within a second.
    fn all_count(&self, before: &[u64]) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(1);
        loop {
            let now = self.counts()?;
            let stuck = before.iter().zip(&now).filter(|(b, n)| n <= b).count();
            if stuck == 0 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{stuck} of {} do not count on", self.tasks);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl App for Beating {
    fn command(&self) -> Command {
        let mut command = detached(&self.program);
        command.arg(&self.file.path).arg(self.nonce.to_string());
        command.arg(self.kind).arg(self.tasks.to_string());
        command.args((self.megabytes > 0).then(|| self.megabytes.to_string()));
        command
    }

    fn answers(&self) -> Result<()> {
        let seen = *self.seen.lock().expect("no panic holds it");
        ensure!(self.file.get(NONCE)? == self.nonce, "no beat yet");
        ensure!(self.file.beats()? > seen, "counts from an earlier state");
        Ok(())
    }

    fn fill(&self) -> Result<()> {
        self.all_count(&vec![0; self.tasks])
    }

    /// The nonce comes back only from the program's private memory. Counts of the others go
    /// back to what they were at the snapshot: those that stand there would seem ahead.
    fn forget(&self) -> Result<()> {
        (1..self.tasks as u64).try_for_each(|slot| self.file.clear(COUNT + slot))?;
        *self.seen.lock().expect("no panic holds it") = self.file.beats()?;
        self.file.clear(FIRST)?;
        self.file.clear(NONCE)
    }

    fn first_instruction_ns(&self) -> Result<Option<u64>> {
        self.file.first_ns()
    }

    fn verify(&self, tree: &[i32]) -> Result<()> {
        let tasks: usize = tree.iter().map(|pid| crate::proc::threads(*pid)).sum();
        ensure!(tasks >= self.tasks, "{tasks} tasks instead of {}", self.tasks);
        self.all_count(&self.counts()?)
    }

    fn beat(&self) -> Option<PathBuf> {
        Some(self.file.path.clone())
    }
}
