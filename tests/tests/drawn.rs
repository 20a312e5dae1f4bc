//! Lives that are drawn by chance: processes with threads, descriptors, mappings, timers and
//! signals in every combination (`tests/drawn/life.c`), each frozen while it runs and restored.
//!
//! ```text
//!   plan ──> life ──> ready ──freeze──> go: tells all it sees, and what comes out of it ─┐
//!                                │                                                      ├─ equal
//!                                └─ restored, standing still ─freeze─> as it was, record │
//!                                     by record ─ restored ──> go: tells the same ──────┘
//! ```
//!
//! What was never ended is the model of what was restored: nobody has to know how each of
//! these objects behaves. A check beforehand says whether a snapshot succeeds, and is right.
//!
//! `APPSHOT_LIVES=10000` draws so many (200), `APPSHOT_SEED=N` others. One that fails is made
//! as small as it goes on failing, and stands in `tests/drawn/kept` from then on, where all
//! are tried again by each run. `APPSHOT_LIFE=FILE` tries one plan alone.

use anyhow::{Context, Result, bail, ensure};
use appshot_tests::app::{App, Place};
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, note, poll, skip};
use appshot_tests::{judge, programs};
use libsnap::error::Kind;
use libsnap::image::{Appshot, compare};
use libsnap::target::{Memory, Network, RestoreOptions, RunOptions, SnapshotOptions};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// What a process can do, and how often it does.
const WORDS: &[(u32, &[&str])] = &[
    (4, &["fork", "map", "fill", "write"]),
    (
        2,
        &[
            "advise", "protect", "move", "unmap", "pipe", "pair", "memfd", "file", "thread", "watch", "dup", "send",
            "mask",
        ],
    ),
    (
        1,
        &[
            "eventfd",
            "timerfd",
            "signalfd",
            "epoll",
            "open",
            "inotify",
            "pidfd",
            "unix",
            "inet",
            "connection",
            "connect",
            "accept",
            "pty",
            "close",
            "flags",
            "seek",
            "pipe_size",
            "read",
            "pass",
            "lock",
            "resize",
            "option",
            "shutdown",
            "map_file",
            "mlock",
            "name_memory",
            "shm",
            "grow",
            "end",
            "reap",
            "stopped",
            "session",
            "group",
            "prctl",
            "schedule",
            "limit",
            "directory",
            "action",
            "itimer",
            "timer",
            "owner",
            "send_datagram",
            "take_out",
            "credentials",
            "filter",
            "thread_setting",
            "stack",
            "ipc",
        ],
    ),
];

#[derive(Clone, Debug)]
struct Step {
    word: &'static str,
    who: u16,
    numbers: [u16; 3],
}

/// How what was frozen comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Plain,
    Lazy,
    Warm,
    Clone,
}

const WAYS: &[(Way, &str)] = &[
    (Way::Plain, "plain"),
    (Way::Lazy, "lazy"),
    (Way::Warm, "warm"),
    (Way::Clone, "clone"),
];

#[derive(Clone, Debug)]
struct Life {
    way: Way,
    steps: Vec<Step>,
}

/// A file of `tests/drawn/kept`.
impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = WAYS.iter().find(|(way, _)| *way == self.way);
        writeln!(f, "{}", named.map_or("", |(_, name)| name))?;
        for Step {
            word,
            who,
            numbers: [a, b, c],
        } in &self.steps
        {
            writeln!(f, "{word} {who} {a} {b} {c}")?;
        }
        Ok(())
    }
}

impl Life {
    fn read(file: &Path) -> Result<Life> {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let way = WAYS.iter().find(|(_, name)| *name == first);
        let (way, _) = *way.with_context(|| format!("{}: a way to restore it, got {first:?}", file.display()))?;
        let steps = lines.map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let all = WORDS.iter().flat_map(|(_, words)| words.iter());
            let word = all.into_iter().find(|word| Some(*word) == words.first());
            let numbers: Vec<u16> = words
                .iter()
                .skip(1)
                .map(|word| word.parse())
                .collect::<Result<_, _>>()?;
            let [who, numbers @ ..] = <[u16; 4]>::try_from(numbers).map_err(|_| anyhow::anyhow!("four numbers"))?;
            let word = *word.context("a word that is known")?;
            Ok(Step { word, who, numbers })
        });
        let steps: Result<_> = steps.collect();
        Ok(Life {
            way,
            steps: steps.with_context(|| file.display().to_string())?,
        })
    }

    fn plan(&self) -> String {
        let text = self.to_string();
        text.split_once('\n')
            .map(|(_, steps)| steps.to_owned())
            .unwrap_or_default()
    }
}

fn lives() -> impl Strategy<Value = Life> {
    let often = WORDS.iter().flat_map(|(times, words)| words.repeat(*times as usize));
    let words: Vec<&'static str> = often.collect();
    let step = (select(words), 0..12_u16, [0..4000_u16, 0..4000, 0..4000]);
    let step = step.prop_map(|(word, who, numbers)| Step { word, who, numbers });
    let ways: Vec<Way> = WAYS.iter().map(|(way, _)| *way).collect();
    (select(ways), vec(step, 1..70)).prop_map(|(way, steps)| Life { way, steps })
}

/// How long the steps of a plan may take, hundreds at most.
const SOON: Duration = Duration::from_secs(20);

/// Whether it was restored, or refused as foretold.
fn live(life: &Life, place: &Place) -> Result<bool> {
    fs::write(place.path("plan"), life.plan())?;
    let program = programs::build_file(&kept_dir().with_file_name("life.c"))?
        .display()
        .to_string();
    let file = |name: &str| place.path(name).display().to_string();
    let mut first = place.run_with(RunOptions {
        command: vec![program, file("ready"), file("go")],
        network: Network::Own,
        ..RunOptions::default()
    })?;
    let ready = place.path("ready");
    poll("ready", SOON, || match first.try_exit()? {
        Some(code) => bail!("it ended before it was ready, with {code}: {}", place.log()),
        None => Ok(ready.exists().then_some(())),
    })?;
    let before = fs::read_to_string(place.path("before"))?;

    let foreseen = libsnap::snapshot::check(&first.target(), &SnapshotOptions::default())?.refusals;
    let shot = place.path("appshot-0");
    let refused = match first.freeze_running(&shot) {
        Ok(_) => {
            ensure!(foreseen.is_empty(), "taken, though it was to be refused: {foreseen:?}");
            false
        }
        Err(error) => {
            let cause = error.downcast_ref::<libsnap::error::Error>();
            let refused = cause.filter(|cause| cause.kind == Kind::Refused);
            let Some(refused) = refused.map(|cause| cause.refusals.clone()) else {
                return Err(error.context("snapshot"));
            };
            ensure!(refused == foreseen, "refused: {refused:?}; foreseen: {foreseen:?}");
            true
        }
    };
    let model = told(first, place).context("what was frozen while it ran")?;
    ensure_equal(
        &before,
        &model[..before.len().min(model.len())],
        "what was frozen while it ran, and before",
    )?;
    if refused {
        return Ok(false);
    }

    let frozen = RestoreOptions {
        frozen: true,
        network: Network::Own,
        ..RestoreOptions::default()
    };
    let still = place.restore_with(&shot, frozen).context("restore, to stand still")?;
    let group = still.instance.cgroup.clone().context("a cgroup")?;
    poll("it to stand still", PATIENCE, || {
        Ok(libsnap::cgroup::is_still(&group).then_some(()))
    })?;
    let again = place.path("appshot-1");
    still.freeze(&again).context("snapshot of what was restored")?;
    still.wait_gone()?;
    let found = compare::differences(&Appshot::open(&shot)?, &Appshot::open(&again)?)?;
    let listed: Vec<String> = found.iter().map(ToString::to_string).collect();
    ensure!(listed.is_empty(), "it is not the same:\n{}", listed.join("\n"));

    let own = |memory| RestoreOptions {
        memory,
        network: Network::Own,
        ..RestoreOptions::default()
    };
    let (kept, second) = match life.way {
        Way::Plain => (None, place.restore_with(&again, own(Memory::Eager))?),
        Way::Lazy => (None, place.restore_with(&again, own(Memory::Lazy))?),
        Way::Warm => (None, place.restore_warm_with(&again, own(Memory::Eager))?),
        Way::Clone => {
            let (kept, mut clones) = place.clones_with(&again, 1, &own(Memory::Shared))?;
            (kept, clones.pop().context("a clone")?)
        }
    };
    let restored = told(second, place).context("what was restored")?;
    drop(kept);
    ensure_equal(&model, &restored, "what was never ended, and what was restored")?;
    Ok(true)
}

/// What it tells when it goes on.
fn told(mut app: App, place: &Place) -> Result<String> {
    fs::write(place.path("go"), "")?;
    let code = app.wait_exit().with_context(|| place.log())?;
    ensure!(code == 0, "exit code {code}: {}", place.log());
    fs::remove_file(place.path("go"))?;
    let told = place.path("told");
    let text = fs::read_to_string(&told)?;
    fs::remove_file(told)?;
    Ok(text)
}

fn ensure_equal(one: &str, other: &str, whose: &str) -> Result<()> {
    let same = one
        .lines()
        .zip(other.lines())
        .take_while(|(one, other)| one == other)
        .count();
    let from = |text: &str| {
        text.lines()
            .skip(same.saturating_sub(2))
            .take(6)
            .collect::<Vec<_>>()
            .join("\n    ")
    };
    if one == other {
        return Ok(());
    }
    // Whoever tries one plan alone wants to see all of it.
    if let Some(file) = std::env::var_os("APPSHOT_LIFE") {
        fs::write(Path::new(&file).with_extension("one"), one)?;
        fs::write(Path::new(&file).with_extension("other"), other)?;
    }
    bail!(
        "{whose}: not the same from line {same} on:\n    {}\n  and\n    {}",
        from(one),
        from(other)
    )
}

fn kept_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("drawn/kept")
}

fn number(variable: &str, otherwise: u32) -> u32 {
    let given = std::env::var(variable).ok().and_then(|value| value.parse().ok());
    given.unwrap_or(otherwise)
}

/// In a place of its own, which is left as it was.
fn live_apart(life: &Life) -> Result<bool> {
    let place = Place::new("drawn")?;
    let before = judge::HostState::take(&place.scope());
    let restored = live(life, &place);
    let left = judge::judge_nothing_left(&place.scope(), &before);
    restored.and_then(|restored| left.map(|()| restored))
}

/// Draws until one fails; that one, as small as it fails, and why.
fn draw(cases: u32, seed: u64, counted: &[AtomicU32; 2]) -> Option<(Life, String)> {
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 1_000,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let outcome = runner.run(&lives(), |life| match live_apart(&life) {
        Ok(restored) => {
            counted[usize::from(restored)].fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        Err(error) => Err(TestCaseError::fail(format!("{error:#}"))),
    });
    match outcome {
        Err(TestError::Fail(why, life)) => Some((life, why.to_string())),
        _ => None,
    }
}

#[test]
fn lives_come_back_equal() {
    in_place("drawn::lives_come_back_equal", |_| {
        if !libsnap::cgroup::is_v2() {
            return skip("cgroup v2, to hold still what was restored");
        }
        let (cases, seed) = (number("APPSHOT_LIVES", 200), number("APPSHOT_SEED", 1));
        let beside = u32::try_from(std::thread::available_parallelism()?.get())?;
        let counted = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
        let threads: Vec<_> = (0..beside)
            .map(|at| {
                let counted = Arc::clone(&counted);
                let seed = u64::from(seed) << 32 | u64::from(at);
                std::thread::spawn(move || draw(cases.div_ceil(beside), seed, &counted))
            })
            .collect();
        let mut failed = Vec::new();
        for thread in threads {
            let Ok(found) = thread.join() else {
                bail!("a thread has panicked")
            };
            let Some((life, why)) = found else { continue };
            let text = life.to_string();
            let name = format!("{}.plan", &blake3::hash(text.as_bytes()).to_hex()[..12]);
            fs::write(kept_dir().join(&name), &text)?;
            failed.push(format!("tests/drawn/kept/{name}:\n{text}{why}"));
        }
        let [refused, restored] = [0, 1].map(|at: usize| counted[at].load(Ordering::Relaxed));
        note(
            "drawn",
            &format!("{restored} were restored, {refused} refused as foretold"),
        );
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        Ok(())
    });
}

/// Those that have failed once.
#[test]
fn lives_that_were_kept() {
    in_place("drawn::lives_that_were_kept", |_| {
        if !libsnap::cgroup::is_v2() {
            return skip("cgroup v2, to hold still what was restored");
        }
        let files = match std::env::var_os("APPSHOT_LIFE") {
            Some(file) => vec![PathBuf::from(file)],
            None => fs::read_dir(kept_dir())?
                .map(|entry| Ok(entry?.path()))
                .collect::<Result<_>>()?,
        };
        for file in files {
            live_apart(&Life::read(&file)?).with_context(|| file.display().to_string())?;
        }
        Ok(())
    });
}
