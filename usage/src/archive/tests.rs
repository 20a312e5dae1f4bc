use super::*;
use crate::bill::Wanted;
use crate::books::HOUR_MS;
use crate::card::Cards;
use crate::export::{Format, write as export};
use crate::hours::Hours;
use crate::ledger::Ledger;
use crate::period::Period;
use crate::read::segment_path;
use crate::record::{Account, AccountKind, Counters, End, Gap, Moment, Node, Source, State, Use};
use crate::verify::verify;

/// 2026-11-01T00:00:00Z
const MONTH: u64 = 493_000 + 5_192;
const MONTHS: u64 = 720;

fn at(minute: u64) -> Moment {
    Moment {
        boot_ns: minute * 60_000_000_000,
        unix_ms: MONTH * HOUR_MS + minute * 60_000,
    }
}

fn counters(number: u64) -> Counters {
    Counters {
        cpu_ns: number * 1_000_000_007,
        memory_byte_ns: u128::from(number) << 60,
        restores: 1,
        ..Counters::default()
    }
}

/// Two months: one account goes on, others come and go.
fn ledger(usage: &Path) {
    let mut ledger = Ledger::open(usage, "boot", at(0)).unwrap().0.with_segments_of(20_000);
    let open = |id: &str, minute: u64| {
        Body::Account(Box::new(Account {
            id: id.to_owned(),
            app: "web".to_owned(),
            provider: "acme".to_owned(),
            kind: AccountKind::Restored,
            name: "web".to_owned(),
            boot_id: "boot".to_owned(),
            began_boot_ns: at(minute).boot_ns,
            began_unix_ms: at(minute).unix_ms,
            source: Source::Proc,
            cause: None,
            state: State::Running,
            counters: counters(0),
        }))
    };
    ledger.append(at(0), open("on", 0));
    for number in 0..400u64 {
        let minute = number * MONTHS * 60 * 2 / 400;
        let state = State::Running;
        let use_of = |id: &str, number| {
            let (id, counters) = (id.to_owned(), counters(number));
            Body::Use(Use { id, state, counters })
        };
        ledger.append(at(minute), use_of("on", number));
        ledger.append(at(minute + 7), use_of("on", number));
        if number % 20 == 0 {
            let id = format!("brief-{number}");
            ledger.append(at(minute), open(&id, minute));
            ledger.append(at(minute + 1), use_of(&id, 1));
            let reason = "seen late".to_owned();
            let gap = Gap {
                id: Some(id.clone()),
                ns: None,
                reason,
            };
            ledger.append(at(minute + 1), Body::Gap(gap));
            let (state, counters) = (State::Exited, counters(3));
            ledger.append(at(minute + 2), Body::End(End { id, state, counters }));
        }
        ledger.append(at(minute + 8), Body::Node(Node::default()));
        ledger.checkpoint(at(minute + 8));
        if number % 40 == 39 {
            ledger.sync(at(minute + 8)).unwrap();
        }
    }
}

fn bill(usage: &Path, month: &str) -> Result<String> {
    let (period, cards): (Period, _) = (month.parse().unwrap(), Cards::default());
    let (hours, _) = Hours::read(usage, period.month())?;
    let wanted = Wanted {
        node: "n",
        provider: None,
        period: &period,
        cards: &cards,
    };
    let mut out = Vec::new();
    export(&hours, &wanted, Format::Csv, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn what_was_compacted_is_billed_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let usage = dir.path();
    ledger(usage);
    let months = ["2026-11", "2026-12"];
    let bills = months.map(|month| bill(usage, month).unwrap());
    assert!(bills.iter().all(|bill| bill.lines().count() > 200));
    let whole = verify(usage).unwrap();

    let since = |hours: u64| Some((MONTH + hours) * HOUR_MS);
    let rules = Rules {
        whole_since_ms: since(MONTHS),
        billed_since_ms: None,
    };
    let tidied = tidy(usage, &rules).unwrap();
    assert!(
        tidied.compacted > 3 && tidied.bytes_after < tidied.bytes_before,
        "{tidied:?}"
    );
    assert_eq!(tidy(usage, &rules).unwrap(), Tidied::default(), "it is done once");
    assert_eq!(months.map(|month| bill(usage, month).unwrap()), bills);
    let report = verify(usage).unwrap();
    assert_eq!((report.compacted, report.accounts), (tidied.compacted, whole.accounts));
    assert!(report.records < whole.records);

    // Of the first month nothing is left but what the second needs.
    let rules = Rules {
        billed_since_ms: since(MONTHS),
        ..rules
    };
    let removed = tidy(usage, &rules).unwrap();
    assert_eq!(removed.removed, tidied.compacted);
    let error = bill(usage, months[0]).unwrap_err();
    assert_eq!(error.kind, Kind::NotFound, "{error}");
    assert_eq!(bill(usage, months[1]).unwrap(), bills[1]);
    verify(usage).unwrap();
    // Who appends goes on.
    let ledger = Ledger::open(usage, "boot", at(0)).unwrap().0;
    assert_eq!(ledger.books().get("on").unwrap().counters, counters(399));
}

#[test]
fn the_last_segments_and_a_wrong_clock_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let usage = dir.path();
    ledger(usage);
    let count = segments(usage).unwrap().len() as u64;
    let all = Rules {
        whole_since_ms: Some(u64::MAX),
        billed_since_ms: None,
    };
    assert_eq!(tidy(usage, &all).unwrap().compacted, count - 2);
    assert!(segment_path(usage, count).exists());
    let past = Rules {
        whole_since_ms: Some(MONTH * HOUR_MS),
        billed_since_ms: Some(MONTH * HOUR_MS),
    };
    assert_eq!(tidy(usage, &past).unwrap(), Tidied::default());
}

#[test]
fn what_was_compacted_is_as_safe_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let usage = dir.path();
    ledger(usage);
    let all = Rules {
        whole_since_ms: Some(u64::MAX),
        billed_since_ms: None,
    };
    tidy(usage, &all).unwrap();
    let path = packed_path(usage, 2);
    let text = zstd::decode_all(std::fs::File::open(&path).unwrap()).unwrap();
    let put = |text: &[u8]| write_packed(&path, ".test", &mut &text[..]).unwrap();
    for at in (0..text.len()).step_by(text.len() / 97) {
        let mut flipped = text.clone();
        flipped[at] ^= 1;
        put(&flipped);
        let error = verify(usage).unwrap_err().to_string();
        assert!(error.contains("00000002.ledger"), "byte {at}: {error}");
    }
    // A line that is missing, with all hashes made anew, by somebody without the key.
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let mut hash = Hash::default();
    let mut forged = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let record = record::Line::parse(&line[..line.len() - 1]).unwrap().record;
        if let Body::Head(head) = &record.body {
            hash = unhex(&head.prev).unwrap();
        }
        if index != 2 {
            let (line, next) = record::write(&record, &hash).unwrap();
            forged.extend(line);
            hash = next;
        }
    }
    put(&forged);
    let error = verify(usage).unwrap_err().to_string();
    assert!(error.contains("signature"), "{error}");
    // Without its end.
    for left_out in [1, 2] {
        put(&lines[..lines.len() - left_out].concat());
        let error = verify(usage).unwrap_err().to_string();
        assert!(error.contains("signed") || error.contains("seal"), "{error}");
    }
    put(&text);
    verify(usage).unwrap();
}

#[test]
fn what_does_not_follow_is_not_compacted() {
    let dir = tempfile::tempdir().unwrap();
    let usage = dir.path();
    ledger(usage);
    let all = Rules {
        whole_since_ms: Some(u64::MAX),
        billed_since_ms: None,
    };
    // Somebody put another segment there; compacting it would have signed it.
    let path = packed_path(usage, 3);
    let text = zstd::decode_all(std::fs::File::open(&path).unwrap()).unwrap();
    let cut = text[..text.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    write_packed(&path, ".test", &mut &text[..cut]).unwrap();
    let error = tidy(usage, &all).unwrap_err().to_string();
    assert!(error.contains("does not follow"), "{error}");
}
