use super::*;
use crate::record::{Account, AccountKind, Counters, Source, State};
use std::fs;

const NOW: Moment = Moment {
    boot_ns: 1_000,
    unix_ms: 1_795_000_000_000,
};

fn open(dir: &Path) -> (Ledger, Found) {
    Ledger::open(dir, "boot", NOW).unwrap()
}

fn account(id: &str) -> Body {
    Body::Account(Box::new(Account {
        id: id.to_owned(),
        app: "web".to_owned(),
        provider: "acme".to_owned(),
        kind: AccountKind::Restored,
        name: "web".to_owned(),
        boot_id: "boot".to_owned(),
        began_boot_ns: 0,
        began_unix_ms: 0,
        source: Source::CgroupV2,
        cause: None,
        state: State::Running,
        counters: Counters::default(),
    }))
}

fn used(id: &str, cpu_ns: u64) -> Body {
    Body::Use(Use {
        id: id.to_owned(),
        state: State::Running,
        counters: Counters {
            cpu_ns,
            ..Counters::default()
        },
    })
}

fn fill(ledger: &mut Ledger, uses: u64) {
    ledger.append(NOW, account("a"));
    for number in 1..=uses {
        ledger.append(NOW, used("a", number));
        ledger.sync(NOW).unwrap();
    }
}

fn records(dir: &Path) -> Result<read::Reached> {
    read::read(dir, 1, &mut |_| Ok(()))
}

#[test]
fn it_goes_on_where_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (mut ledger, found) = open(dir.path());
    assert_eq!(found, Found::default());
    fill(&mut ledger, 3);
    let node = ledger.node().to_owned();
    assert_eq!(Ledger::open(dir.path(), "boot", NOW).unwrap_err().kind, Kind::Conflict);
    drop(ledger);
    let (mut ledger, found) = open(dir.path());
    assert_eq!((ledger.node(), found.cut_bytes), (&node[..], 0));
    assert_eq!(ledger.books().get("a").unwrap().counters.cpu_ns, 3);
    ledger.append(NOW, used("a", 9));
    ledger.checkpoint(NOW);
    ledger.sync(NOW).unwrap();
    // Head, its checkpoint, the account, three uses, and these two.
    assert_eq!(records(dir.path()).unwrap().records, 8);
}

#[test]
fn segments_follow_one_another_and_carry_what_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = open(dir.path()).0.with_segments_of(2000);
    fill(&mut ledger, 40);
    drop(ledger);
    let numbers = segments(dir.path()).unwrap();
    assert!(numbers.len() > 3, "{numbers:?}");
    records(dir.path()).unwrap();
    // The last one alone is enough to go on.
    let (ledger, _) = open(dir.path());
    assert_eq!(ledger.books().get("a").unwrap().counters.cpu_ns, 40);
    // All that are complete are packed; one of which only the end is missing, too.
    let last = *numbers.last().unwrap();
    for number in &numbers {
        assert_eq!(segment_path(dir.path(), *number).exists(), *number == last);
    }
    let packed = read::packed_path(dir.path(), 2);
    let text = zstd::decode_all(fs::File::open(&packed).unwrap()).unwrap();
    fs::write(segment_path(dir.path(), 2), text).unwrap();
    drop(ledger);
    drop(open(dir.path()));
    assert!(!segment_path(dir.path(), 2).exists());
    assert_eq!(segments(dir.path()).unwrap(), numbers);
    // A changed byte is seen there as well.
    let whole = fs::read(&packed).unwrap();
    for at in (0..whole.len()).step_by(17) {
        let mut changed = whole.clone();
        changed[at] ^= 4;
        fs::write(&packed, &changed).unwrap();
        let error = records(dir.path()).unwrap_err().to_string();
        assert!(error.contains("00000002"), "byte {at}: {error}");
    }
    fs::write(&packed, &whole).unwrap();
    records(dir.path()).unwrap();
    // One that is missing is told, and so is one that another follows.
    let second = packed;
    let aside = dir.path().join("aside");
    fs::rename(&second, &aside).unwrap();
    assert!(records(dir.path()).unwrap_err().to_string().contains("missing"));
    fs::copy(read::packed_path(dir.path(), 3), &second).unwrap();
    assert!(records(dir.path()).is_err());
}

#[test]
fn a_torn_end_is_cut_and_damage_is_not() {
    let dir = tempfile::tempdir().unwrap();
    fill(&mut open(dir.path()).0, 5);
    let path = segment_path(dir.path(), 1);
    let whole = fs::read(&path).unwrap();
    let last = whole[..whole.len() - 1]
        .iter()
        .rposition(|byte| *byte == b'\n')
        .unwrap()
        + 1;
    for length in last + 1..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let (ledger, found) = open(dir.path());
        assert_eq!(found.cut_bytes, (length - last) as u64);
        assert_eq!(ledger.books().get("a").unwrap().counters.cpu_ns, 4);
        assert_eq!(fs::metadata(&path).unwrap().len(), last as u64);
    }
    // A bit anywhere else is no torn end, and is located.
    let lines: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').collect();
    for at in (0..whole.len() - 1).step_by(7) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        fs::write(&path, &flipped).unwrap();
        let line = lines.iter().filter(|end| **end < at).count() + 1;
        let error = records(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("line {line} ")),
            "byte {at} of line {line}: {error}"
        );
        assert!(Ledger::open(dir.path(), "boot", NOW).is_err());
    }
}

#[test]
fn bad_ledgers_are_refused_with_the_reason() {
    type Case = (&'static str, fn(&Path), &'static str);
    let cases: &[Case] = &[
        (
            "foreign file",
            |dir| fs::write(dir.join("ledger/x.ledger"), "").unwrap(),
            "no segment",
        ),
        (
            "other number",
            |dir| fs::rename(segment_path(dir, 1), segment_path(dir, 2)).unwrap(),
            "head of segment 1",
        ),
        ("empty", |dir| fs::write(segment_path(dir, 1), "").unwrap(), "no head"),
        (
            "text",
            |dir| fs::write(segment_path(dir, 1), "hello\n").unwrap(),
            "too short",
        ),
        (
            "zeroes",
            |dir| fs::write(segment_path(dir, 1), [0; 4096]).unwrap(),
            "cut off",
        ),
        (
            "a long line",
            |dir| fs::write(segment_path(dir, 1), "x".repeat(1 << 20)).unwrap(),
            "too long",
        ),
        ("no head", |dir| drop_line(dir, 0), "does not begin with its head"),
        ("one missing", |dir| drop_line(dir, 3), "does not follow"),
        ("two exchanged", exchange, "does not follow"),
        ("one twice", double, "does not follow"),
        (
            "another node's",
            |dir| fs::write(dir.join("node"), "other-node").unwrap(),
            "another node's",
        ),
        ("bad name", |dir| fs::write(dir.join("node"), "a b").unwrap(), "no name"),
        ("short key", |dir| fs::write(dir.join("key"), "x").unwrap(), "32 bytes"),
        ("newer", newer, "version 2"),
        (
            "unknown body",
            |dir| forge(dir, |text| text.replace("\"use\"", "\"abuse\"")),
            "unknown variant",
        ),
        (
            "2^64",
            |dir| {
                forge(dir, |text| {
                    text.replace("\"cpu_ns\":5", "\"cpu_ns\":18446744073709551616")
                })
            },
            "floating point",
        ),
        (
            "negative",
            |dir| forge(dir, |text| text.replace("\"cpu_ns\":5", "\"cpu_ns\":-1")),
            "invalid value",
        ),
        (
            "not a number",
            |dir| forge(dir, |text| text.replace("\"cpu_ns\":5", "\"cpu_ns\":NaN")),
            "expected",
        ),
    ];
    for (name, spoil, told) in cases {
        let dir = tempfile::tempdir().unwrap();
        fill(&mut open(dir.path()).0, 5);
        spoil(dir.path());
        let error = Ledger::open(dir.path(), "boot", NOW).unwrap_err().to_string();
        assert!(error.contains(told), "{name}: {error}");
    }
}

fn lines(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(segment_path(dir, 1)).unwrap();
    text.lines().map(|line| format!("{line}\n")).collect()
}

fn write(dir: &Path, lines: &[String]) {
    fs::write(segment_path(dir, 1), lines.concat()).unwrap();
}

fn drop_line(dir: &Path, index: usize) {
    let mut all = lines(dir);
    all.remove(index);
    write(dir, &all);
}

fn exchange(dir: &Path) {
    let mut all = lines(dir);
    all.swap(3, 4);
    write(dir, &all);
}

fn double(dir: &Path) {
    let mut all = lines(dir);
    all.insert(3, all[3].clone());
    write(dir, &all);
}

/// The last line changed; no hash is needed to see what is wrong with it.
fn forge(dir: &Path, change: fn(String) -> String) {
    let mut all = lines(dir);
    let last = all.pop().unwrap();
    all.push(change(last));
    write(dir, &all);
}

fn newer(dir: &Path) {
    forge(dir, |text| text.replace("\"v\":1", "\"v\":2"));
}

#[test]
fn what_cannot_be_written_waits() {
    let dir = tempfile::tempdir().unwrap();
    let (mut ledger, _) = open(dir.path());
    fill(&mut ledger, 2);
    // What a full disk answers.
    let good = std::mem::replace(
        &mut ledger.file,
        OpenOptions::new().write(true).open("/dev/full").unwrap(),
    );
    for cpu in 3..6 {
        ledger.append(NOW, used("a", cpu));
        let error = ledger.sync(NOW).unwrap_err();
        assert!(error.state.is_some(), "{error}");
    }
    let end = End {
        id: "a".to_owned(),
        state: State::Exited,
        counters: Counters {
            cpu_ns: 7,
            ..Counters::default()
        },
    };
    ledger.append(NOW, Body::End(end));
    ledger.sync(NOW).unwrap_err();
    ledger.file = good;
    ledger.sync(NOW).unwrap();
    drop(ledger);
    let (mut seen, mut gaps) = (Vec::new(), 0);
    read::read(dir.path(), 1, &mut |entry| {
        match &entry.record.body {
            Body::Use(used) => seen.push(used.counters.cpu_ns),
            Body::End(end) => seen.push(end.counters.cpu_ns),
            Body::Gap(_) => gaps += 1,
            _ => {}
        }
        Ok(())
    })
    .unwrap();
    assert_eq!((&seen[..], gaps), (&[1, 2, 7][..], 1));
}
