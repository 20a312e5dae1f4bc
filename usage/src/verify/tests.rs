use super::*;
use crate::ledger::Ledger;
use crate::record::{Account, AccountKind, End, Moment, Source, Use};
use std::path::PathBuf;

const SECOND: u64 = 1_000_000_000;

fn at(seconds: u64) -> Moment {
    Moment {
        boot_ns: seconds * SECOND,
        unix_ms: 1_795_930_000_000 + seconds * 1000,
    }
}

fn account(id: &str) -> Body {
    Body::Account(Box::new(Account {
        id: id.to_owned(),
        app: "web".to_owned(),
        provider: "acme".to_owned(),
        kind: AccountKind::Started,
        name: "web".to_owned(),
        boot_id: "b".to_owned(),
        began_boot_ns: 0,
        began_unix_ms: 0,
        source: Source::CgroupV2,
        cause: None,
        state: State::Running,
        counters: Counters::default(),
    }))
}

fn used(cpu_ns: u64) -> Body {
    Body::Use(Use {
        id: "a".to_owned(),
        state: State::Running,
        counters: Counters {
            cpu_ns,
            ..Counters::default()
        },
    })
}

fn end(cpu_ns: u64) -> Body {
    Body::End(End {
        id: "a".to_owned(),
        state: State::Exited,
        counters: Counters {
            cpu_ns,
            ..Counters::default()
        },
    })
}

/// Two processors: what was busy, what apps had.
fn node(busy: u64, idle: u64, tenants: u64) -> Body {
    Body::Node(Node {
        cpus: 2,
        busy_ns: busy * SECOND,
        idle_ns: idle * SECOND,
        tenants_ns: tenants * SECOND,
        ..Node::default()
    })
}

fn ledger(bodies: Vec<(u64, Body)>) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let usage = dir.path().to_owned();
    let mut ledger = Ledger::open(&usage, "b", at(0)).unwrap().0;
    for (seconds, body) in bodies {
        ledger.append(at(seconds), body);
    }
    ledger.checkpoint(at(1000));
    ledger.sync(at(1000)).unwrap();
    (dir, usage)
}

#[test]
fn a_whole_ledger_is_whole() {
    let (_dir, usage) = ledger(vec![
        (0, account("a")),
        (0, node(0, 0, 0)),
        (1, used(5)),
        (30, node(20, 39, 19)),
        (60, node(40, 79, 38)),
        (61, end(7)),
    ]);
    let report = verify(&usage).unwrap();
    assert_eq!(report.imbalances, Vec::<String>::new());
    assert_eq!((report.accounts, report.unsigned, report.checkpoints), (1, 0, 2));
    assert_eq!((report.tenants_ns, report.idle_ns), (38 * SECOND, 79 * SECOND));
}

#[test]
fn what_cannot_be_is_named() {
    let cases: Vec<(Vec<(u64, Body)>, &str)> = vec![
        (vec![(1, used(5))], "not opened"),
        (vec![(0, account("a")), (1, used(5)), (2, used(4))], "lower than before"),
        (vec![(0, account("a")), (1, end(5)), (2, used(6))], "has ended"),
        (
            vec![(0, account("a")), (1, used(5)), (2, account("a"))],
            "lower than before",
        ),
    ];
    for (bodies, told) in cases {
        let (_dir, usage) = ledger(bodies);
        let error = verify(&usage).unwrap_err().to_string();
        assert!(error.contains(told), "{told}: {error}");
    }
}

#[test]
fn the_two_sides_are_held_against_each_other() {
    for (bodies, told) in [
        // Apps had more than the node was busy for.
        (
            vec![(0, node(0, 0, 0)), (60, node(40, 79, 50))],
            "apps and platform used",
        ),
        (vec![(0, node(0, 0, 0)), (60, node(40, 9, 30))], "the node tells"),
    ] {
        let (_dir, usage) = ledger(bodies);
        let report = verify(&usage).unwrap();
        assert!(report.imbalances[0].contains(told), "{:?}", report.imbalances);
    }
}

#[test]
fn a_signature_of_somebody_else_is_told() {
    let (_dir, usage) = ledger(vec![(0, account("a"))]);
    let key = std::fs::read(usage.join("key")).unwrap();
    // Another key does not go on with it.
    std::fs::write(usage.join("key"), [7; 32]).unwrap();
    let error = Ledger::open(&usage, "b", at(2000)).unwrap_err().to_string();
    assert!(error.contains("another key"), "{error}");
    std::fs::write(usage.join("key"), key).unwrap();
    // One that was changed, with its hash and all that follow.
    let path = crate::read::segment_path(&usage, 1);
    let text = std::fs::read_to_string(&path).unwrap();
    let mut before = [0; 32];
    let mut forged = Vec::new();
    for line in text.lines() {
        let mut record = crate::record::Line::parse(line.as_bytes()).unwrap().record;
        if let Body::Account(account) = &mut record.body {
            account.provider = "other".to_owned();
        }
        let (line, hash) = crate::record::write(&record, &before).unwrap();
        forged.extend(line);
        before = hash;
    }
    std::fs::write(&path, forged).unwrap();
    let error = verify(&usage).unwrap_err().to_string();
    assert!(error.contains("signature"), "{error}");
}

/// A ledger of three segments, the first two of them packed, one compacted.
fn several() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let usage = dir.path().to_owned();
    let mut ledger = Ledger::open(&usage, "b", at(0)).unwrap().0.with_segments_of(2_500);
    ledger.append(at(0), account("a"));
    for second in 1..30 {
        ledger.append(at(second), used(second));
        if second % 3 == 0 {
            ledger.checkpoint(at(second));
            ledger.sync(at(second)).unwrap();
        }
    }
    ledger.checkpoint(at(30));
    ledger.sync(at(30)).unwrap();
    drop(ledger);
    let rules = crate::archive::Rules {
        whole_since_ms: Some(u64::MAX),
        billed_since_ms: None,
    };
    assert!(crate::archive::tidy(&usage, &rules).unwrap().compacted > 0);
    (dir, usage)
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(60))]

    /// Whichever bit of whichever segment: it is found, and its segment is named.
    #[test]
    fn any_flipped_bit_is_found_and_located(which in 0usize..1000, at in 0usize..1_000_000, bit in 0u8..8) {
        static LEDGER: std::sync::OnceLock<(tempfile::TempDir, PathBuf)> = std::sync::OnceLock::new();
        static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (_, usage) = LEDGER.get_or_init(several);
        let numbers = crate::read::segments(usage).unwrap();
        let number = numbers[which % numbers.len()];
        let plain = crate::read::segment_path(usage, number);
        let path = if plain.exists() { plain } else { crate::read::packed_path(usage, number) };
        let whole = std::fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        // The newline at the very end: then the line is as one that is being written.
        let at = at % (whole.len() - 1);
        flipped[at] ^= 1 << bit;
        std::fs::write(&path, &flipped).unwrap();
        let found = verify(usage);
        std::fs::write(&path, &whole).unwrap();
        let is_same = |bytes: &[u8]| zstd::decode_all(bytes).ok() == zstd::decode_all(&whole[..]).ok();
        let Err(error) = found else {
            // zstd has one bit that means nothing.
            proptest::prop_assert!(path.extension().is_some_and(|end| end == "zst") && is_same(&flipped));
            return Ok(());
        };
        let error = error.to_string();
        proptest::prop_assert!(
            error.contains(&format!("{number:08}.ledger")) || error.contains(&format!("{:08}.ledger", number + 1)),
            "byte {} of segment {}: {}", at, number, error
        );
        verify(usage).unwrap();
    }
}
