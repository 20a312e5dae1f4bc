use super::*;
use crate::ledger::Ledger;
use crate::record::{AccountKind, End, Source, State, Use};

/// 2026-11-29T05:00:00Z
const START: u64 = 1_795_928_400;

fn at(second: u64) -> Moment {
    Moment {
        boot_ns: (second + 100) * 1_000_000_000,
        unix_ms: (START + second) * 1000,
    }
}

fn account(id: &str, app: &str, provider: &str) -> Body {
    Body::Account(Box::new(crate::record::Account {
        id: id.to_owned(),
        app: app.to_owned(),
        provider: provider.to_owned(),
        kind: AccountKind::Restored,
        name: id.to_owned(),
        boot_id: "b".to_owned(),
        began_boot_ns: at(0).boot_ns,
        began_unix_ms: at(0).unix_ms,
        source: Source::Proc,
        cause: None,
        state: State::Running,
        counters: Counters::default(),
    }))
}

/// Half a processor and 64 MiB, each second; one is busy in every tenth only.
fn counters(id: &str, second: u64) -> Counters {
    let tenth = second / 10 * 1_000_000_000;
    Counters {
        cpu_ns: if id == "c" { tenth } else { second * 500_000_000 },
        memory_byte_ns: u128::from(second) * (64 << 20) * 1_000_000_000,
        ..Counters::default()
    }
}

const SECONDS: u64 = 600;

fn fill(ledger: &mut Ledger, seconds: std::ops::Range<u64>) -> Vec<(u64, Vec<(Moment, Body)>)> {
    let mut told = Vec::new();
    for second in seconds {
        for (id, app, provider) in [("a", "web", "acme"), ("b", "web", "acme"), ("c", "db", "other")] {
            let (id, counters) = (id.to_owned(), counters(id, second));
            let body = match second {
                0 => account(&id, app, provider),
                SECONDS => Body::End(End {
                    id,
                    state: State::Exited,
                    counters,
                }),
                _ => Body::Use(Use {
                    id,
                    state: State::Running,
                    counters,
                }),
            };
            ledger.append(at(second), body);
        }
        let first = ledger.next_seq();
        told.push((first, ledger.sync(at(second)).unwrap()));
    }
    told
}

fn opened(usage: &Path) -> Keeper {
    let mut keeper = Keeper::open(usage).unwrap();
    keeper.catch_up().unwrap();
    keeper
}

fn top(usage: &Path, step: Step, by: By, of: Measure) -> Vec<Told> {
    let question = Question { step, by, of, since: 0 };
    Rollups::open(usage).unwrap().top(&question).unwrap()
}

fn near(told: f64, expected: f64, part: f64) {
    assert!((told - expected).abs() <= expected * part, "{told}, not {expected}");
}

#[test]
fn use_over_time_is_told_and_made_again_when_lost() {
    let dir = tempfile::tempdir().unwrap();
    let usage = dir.path();
    let mut ledger = Ledger::open(usage, "b", at(0)).unwrap().0.with_segments_of(60_000);
    fill(&mut ledger, 0..SECONDS + 1);
    let mut keeper = opened(usage);
    keeper.write().unwrap();

    // The last seconds are not complete.
    let web = &top(usage, Step::Minute, By::App, Measure::Cpu)[0];
    assert_eq!(web.name, "web");
    near(web.sum, 600.0, 0.02);
    near(web.mean, 1.0, 0.01);
    near(web.rms, 1.0, 0.01);
    near(web.p50, 1.0, 0.025);
    let db = &top(usage, Step::Minute, By::App, Measure::Cpu)[1];
    near(db.mean, 0.1, 0.02);
    near(db.max, 1.0, 0.01);
    near(db.rms, 0.1f64.sqrt(), 0.02);
    near(db.p95, 1.0, 0.025);
    assert_eq!(db.p50, 0.0);
    // Views of the same: parts are the sum.
    let sum = |by| {
        top(usage, Step::Hour, by, Measure::Cpu)
            .iter()
            .map(|told| told.sum)
            .sum::<f64>()
    };
    near(sum(By::Provider), sum(By::Node), 1e-9);
    near(sum(By::App), sum(By::Node), 1e-9);
    near(
        top(usage, Step::Hour, By::Node, Measure::Memory)[0].mean,
        3.0 * f64::from(64 << 20),
        0.01,
    );
    assert!(top(usage, Step::Hour, By::Instance, Measure::Cpu).is_empty());
    assert_eq!(top(usage, Step::Minute, By::Instance, Measure::Cpu).len(), 3);
    let question = Question {
        step: Step::Minute,
        by: By::App,
        of: Measure::Cpu,
        since: START + 120,
    };
    let minutes = Rollups::open(usage).unwrap().over_time(&question, "web").unwrap();
    assert_eq!((minutes.len(), minutes[0].at), (8, START + 120));

    // Lost, or no database at all: the same again.
    let before = top(usage, Step::Minute, By::Instance, Measure::Cpu);
    drop(keeper);
    for spoil in [
        None,
        Some("this is no database, and longer than a header of one would have to be"),
    ] {
        for end in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(usage.join(format!("{FILE}{end}")));
        }
        match spoil {
            None => std::fs::remove_file(usage.join(FILE)).unwrap(),
            Some(text) => std::fs::write(usage.join(FILE), text.repeat(100)).unwrap(),
        }
        drop(opened(usage));
        assert_eq!(top(usage, Step::Minute, By::Instance, Measure::Cpu), before);
    }
}

#[test]
fn who_is_killed_goes_on_from_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let usage = dir.path();
    let mut ledger = Ledger::open(usage, "b", at(0)).unwrap().0.with_segments_of(60_000);
    for part in 0..6 {
        let mut keeper = opened(usage);
        for (first, batch) in fill(&mut ledger, part * 100..(part + 1) * 100) {
            keeper.tell(first, &batch);
            if first % 7 == 0 {
                keeper.write().unwrap();
            }
        }
        // Dropped without writing.
    }
    drop(opened(usage));
    let web = &top(usage, Step::Minute, By::App, Measure::Cpu)[0];
    near(web.sum, 600.0, 0.02);
    near(web.max, 1.0, 0.02);
    assert!(web.seconds <= 600);
}

#[test]
fn a_clock_that_jumps_does_not_stop_them() {
    let dir = tempfile::tempdir().unwrap();
    let usage = dir.path();
    let mut ledger = Ledger::open(usage, "b", at(0)).unwrap().0;
    let mut keeper = opened(usage);
    ledger.append(at(0), account("a", "web", "acme"));
    for second in 1..300u64 {
        // A year ahead for a while, then back.
        let ahead = if (100..200).contains(&second) { 365 * 86_400 } else { 0 };
        let moment = Moment {
            boot_ns: at(second).boot_ns,
            unix_ms: at(second + ahead).unix_ms,
        };
        let (id, counters) = ("a".to_owned(), counters("a", second));
        let state = State::Running;
        ledger.append(moment, Body::Use(Use { id, state, counters }));
        let first = ledger.next_seq();
        let batch = ledger.sync(moment).unwrap();
        keeper.tell(first, &batch);
    }
    keeper.write().unwrap();
    let days = top(usage, Step::Day, By::App, Measure::Cpu);
    near(days[0].sum, 150.0, 0.05);
    // Seconds of before and after a jump may fall together.
    assert!(days[0].max <= 1.01);
}
