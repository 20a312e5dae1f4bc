//! How long a restore takes as the app sees it: from the moment at which the request is
//! sent to a running `restored` until the first instruction of the restored program.
//!
//! ```text
//! cargo build --release -p appshot -p restored --example instant
//! target/release/examples/instant [RUNS [PAUSE_MS]]
//! ```
//!
//! Everything stands in a temporary directory: a `restored` of its own, the program, its
//! appshot. Each run sends one request over a new connection and ends the instance.

use nodekit::client::Client;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

type Anything = Box<dyn std::error::Error>;

const READY: u64 = 0;
const ARMED: u64 = 8;
const REALTIME_NS: u64 = 16;

fn main() -> Result<(), Anything> {
    let mut numbers = std::env::args().skip(1).filter_map(|word| word.parse::<u64>().ok());
    let runs = numbers.next().unwrap_or(200);
    let between = Duration::from_millis(numbers.next().unwrap_or(20));
    // As /run is on most machines; the rest of it too, to measure no disk.
    let base = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from);
    let dir = tempfile::tempdir_in(base)?;
    let shared = prepare(dir.path())?;
    let mut daemon = start(dir.path())?;
    let measured = measure(dir.path(), &shared, runs, between);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(daemon.id())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
    daemon.wait()?;
    measured
}

/// The programs of this build, in the directory above this one's.
fn ours(name: &str) -> Result<Command, Anything> {
    let own = std::env::current_exe()?;
    let dir = own.parent().and_then(Path::parent).ok_or("no directory")?;
    Ok(Command::new(dir.join(name)))
}

fn within(mut command: Command, dir: &Path) -> Command {
    command
        .env("APPSHOT_RUN_DIR", dir.join("run"))
        .env("APPSHOT_DATA_DIR", dir.join("data"));
    command
}

/// Starts the program, and takes it into an appshot.
fn prepare(dir: &Path) -> Result<File, Anything> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/instant.c");
    let (program, page) = (dir.join("instant"), dir.join("page"));
    run(Command::new("cc").args(["-O2", "-o"]).arg(&program).arg(source))?;
    let shared = File::options().read(true).write(true).create_new(true).open(&page)?;
    shared.set_len(4096)?;
    let mut appshot = within(ours("appshot")?, dir);
    run(appshot
        .args(["run", "-q", "-d", "--name", "instant", "--"])
        .args([&program, &page]))?;
    while word(&shared, READY)? == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    run(within(ours("appshot")?, dir).args(["snapshot", "-q", "instant"]))?;
    Ok(shared)
}

fn run(command: &mut Command) -> Result<(), Anything> {
    match command.stdout(Stdio::null()).status()? {
        status if status.success() => Ok(()),
        status => Err(format!("{command:?}: {status}").into()),
    }
}

fn start(dir: &Path) -> Result<Child, Anything> {
    let log = File::create(dir.join("log"))?;
    let daemon = within(ours("restored")?, dir).stderr(log).spawn()?;
    let client = client(dir);
    while !client.answers() {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(daemon)
}

fn client(dir: &Path) -> Client {
    Client::new(dir.join("run/restored.sock"))
}

fn word(shared: &File, at: u64) -> Result<u64, Anything> {
    let mut bytes = [0; 8];
    shared.read_exact_at(&mut bytes, at)?;
    Ok(u64::from_le_bytes(bytes))
}

fn now_ns() -> Result<u64, Anything> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?)
}

fn measure(dir: &Path, shared: &File, runs: u64, between: Duration) -> Result<(), Anything> {
    let (mut first, mut answered) = (Vec::new(), Vec::new());
    let mut phases: Vec<(String, Vec<f64>)> = Vec::new();
    for number in 0..runs {
        let name = format!("i{number}");
        shared.write_all_at(&0u64.to_le_bytes(), REALTIME_NS)?;
        shared.write_all_at(&1u64.to_le_bytes(), ARMED)?;
        let began = (now_ns()?, Instant::now());
        let answer = ask(dir, &json!({ "appshot": "instant", "name": name }))?;
        answered.push(began.1.elapsed().as_secs_f64() * 1e3);
        let at = until_written(shared)?;
        first.push((at.saturating_sub(began.0)) as f64 / 1e6);
        for (at, phase) in answer["phases"].as_array().into_iter().flatten().enumerate() {
            let name = phase["name"].as_str().unwrap_or_default().to_owned();
            if phases.len() <= at {
                phases.push((name, Vec::new()));
            }
            phases[at].1.push(phase["micros"].as_f64().unwrap_or(0.0) / 1e3);
        }
        client(dir).delete::<Value>(&format!("/v1/instances/{name}"))?;
        std::thread::sleep(between);
    }
    show("request sent -> first instruction", &mut first);
    show("request sent -> answer", &mut answered);
    for (name, mut times) in phases {
        show(&format!("  phase {name}"), &mut times);
    }
    println!("{}", last_lines(&fs::read_to_string(dir.join("log"))?));
    Ok(())
}

fn last_lines(log: &str) -> String {
    log.lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"))
        .take(5)
        .collect()
}

/// The bare exchange, so that no client of ours is measured.
fn ask(dir: &Path, body: &Value) -> Result<Value, Anything> {
    let body = body.to_string();
    let mut stream = UnixStream::connect(dir.join("run/restored.sock"))?;
    let head = "POST /v1/instances HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: ";
    stream.write_all(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    match head.starts_with("HTTP/1.1 200") {
        true => Ok(serde_json::from_str(body)?),
        false => Err(answer.into()),
    }
}

fn until_written(shared: &File) -> Result<u64, Anything> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        match word(shared, REALTIME_NS)? {
            0 => std::thread::yield_now(),
            at => return Ok(at),
        }
    }
    Err("the program does not go on".into())
}

fn show(what: &str, millis: &mut [f64]) {
    millis.sort_by(f64::total_cmp);
    let at = |share: f64| {
        millis
            .get(((millis.len() as f64 - 1.0) * share).round() as usize)
            .copied()
    };
    let [min, half, most, max] = [0.0, 0.5, 0.99, 1.0].map(|share| at(share).unwrap_or(f64::NAN));
    println!(
        "{what:40} min {min:7.3}  p50 {half:7.3}  p99 {most:7.3}  max {max:7.3} ms  ({})",
        millis.len()
    );
}
