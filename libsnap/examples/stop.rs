//! How long a program stands still when an appshot of it is taken and it runs on: as it
//! sees that itself, and by phases.
//!
//! ```text
//! cargo run --release -p libsnap --example stop [-- RUNS [MEGABYTES [pid]]]
//! ```
//!
//! The program beats as often as the kernel lets it, and notes its longest pause. It is an
//! app in a cgroup of its own; with `pid` any process.

use libsnap::ids::HostPid;
use libsnap::snapshot::snapshot;
use libsnap::target::{RunOptions, SnapshotOptions, SnapshotReport, Stdio, Target};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

type Anything = Box<dyn std::error::Error>;

const GAP_NS: u64 = 8;
const BEATS: u64 = 24;

fn main() -> Result<(), Anything> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let runs = words.first().map_or(Ok(100), |word| word.parse())?;
    let megabytes = words.get(1).filter(|word| *word != "0");
    // As /run is on most machines; the rest of it too, to measure no disk.
    let base = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from);
    let dir = tempfile::tempdir_in(base)?;
    let (program, page) = (dir.path().join("beat"), dir.path().join("page"));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../bench/src/programs/beat.c");
    let mut build = Command::new("cc");
    build.args(["-O2", "-pthread", "-o"]).arg(&program).arg(source);
    if !build.status()?.success() {
        return Err(format!("{source} is not built").into());
    }
    let shared = File::options().read(true).write(true).create_new(true).open(&page)?;
    shared.set_len(1 << 16)?;
    let command = [
        program.to_str(),
        page.to_str(),
        Some("1"),
        Some("fine"),
        Some("0"),
        megabytes.map(String::as_str),
    ];
    let command: Vec<String> = command.into_iter().flatten().map(str::to_owned).collect();
    let mut app = match words.get(2).is_some_and(|word| word == "pid") {
        true => Running::Process(
            Command::new(&command[0])
                .args(&command[1..])
                .stdin(std::process::Stdio::null())
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()?,
        ),
        false => Running::start(command)?,
    };
    let begun = Instant::now();
    while word(&shared, BEATS)? == 0 {
        if begun.elapsed() > Duration::from_secs(30) {
            app.end()?;
            return Err("the program does not beat".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let measured = measure(&app.target()?, dir.path(), &shared, runs);
    app.end()?;
    measured
}

enum Running {
    Process(Child),
    App(Box<libsnap::target::Instance>),
}

impl Running {
    fn start(command: Vec<String>) -> Result<Running, Anything> {
        let name = format!("stop-{}", std::process::id());
        let stdio = Stdio::Null;
        let options = RunOptions {
            name,
            command,
            stdio,
            ..RunOptions::default()
        };
        Ok(Running::App(Box::new(libsnap::launch::run(&options)?)))
    }

    fn target(&self) -> Result<Target, Anything> {
        Ok(match self {
            Running::Process(child) => Target::Pid(HostPid(child.id().try_into()?)),
            Running::App(app) => Target::App {
                name: app.name.clone(),
                cgroup: app.cgroup.clone(),
                root: app.root,
                init: app.init,
                network: app.network.map(|network| network.inode),
            },
        })
    }

    fn end(&mut self) -> Result<(), Anything> {
        match self {
            Running::Process(child) => child.kill()?,
            Running::App(app) => match &app.cgroup {
                Some(group) => libsnap::cgroup::destroy(group)?,
                None => nix::sys::signal::kill(nix::unistd::Pid::from_raw(app.child().0), nix::sys::signal::SIGKILL)?,
            },
        }
        Ok(())
    }
}

fn word(shared: &File, at: u64) -> Result<u64, Anything> {
    let mut bytes = [0; 8];
    shared.read_exact_at(&mut bytes, at)?;
    Ok(u64::from_le_bytes(bytes))
}

fn measure(target: &Target, dir: &Path, shared: &File, runs: usize) -> Result<(), Anything> {
    let options = SnapshotOptions {
        leave_running: true,
        ..SnapshotOptions::default()
    };
    let (mut pauses, mut reports) = (Vec::new(), Vec::<SnapshotReport>::new());
    let dest = dir.join("appshot");
    for _ in 0..runs {
        std::thread::sleep(Duration::from_millis(20));
        shared.write_all_at(&[0; 8], GAP_NS)?;
        reports.push(snapshot(target, &dest, &options, &mut |_| {})?);
        pauses.push(word(shared, GAP_NS)? as f64 / 1e6);
        std::fs::remove_dir_all(&dest)?;
    }
    show("its longest pause", pauses);
    show(
        "frozen, as reported",
        reports.iter().map(|report| report.frozen_micros as f64 / 1e3).collect(),
    );
    let Some(first) = reports.first() else { return Ok(()) };
    for phase in &first.phases {
        let times = reports
            .iter()
            .filter_map(|report| report.phases.iter().find(|other| other.name == phase.name));
        show(
            &format!("  phase {}", phase.name),
            times.map(|phase| phase.micros as f64 / 1e3).collect(),
        );
    }
    Ok(())
}

fn show(what: &str, mut millis: Vec<f64>) {
    millis.sort_by(f64::total_cmp);
    let at = |share: f64| millis[((millis.len() as f64 - 1.0) * share).round() as usize];
    let [min, half, most, max] = [0.0, 0.5, 0.99, 1.0].map(at);
    println!(
        "{what:24} min {min:8.3}  p50 {half:8.3}  p99 {most:8.3}  max {max:8.3} ms  ({})",
        millis.len()
    );
}
