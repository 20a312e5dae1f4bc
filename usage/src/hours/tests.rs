use super::*;
use crate::books::HOUR_MS;
use crate::record::{Account, AccountKind, End, Source, State, Use, VERSION};
use proptest::prelude::*;

fn record(hour: u64, body: Body) -> Record {
    Record {
        v: VERSION,
        seq: 0,
        boot_ns: 0,
        unix_ms: hour * HOUR_MS + 5,
        body,
    }
}

fn cpu(cpu_ns: u64) -> Counters {
    Counters {
        cpu_ns,
        ..Counters::default()
    }
}

fn used(hour: u64, cpu_ns: u64) -> Record {
    record(
        hour,
        Body::Use(Use {
            id: "a".to_owned(),
            state: State::Running,
            counters: cpu(cpu_ns),
        }),
    )
}

fn end(hour: u64, id: &str, cpu_ns: u64) -> Record {
    record(
        hour,
        Body::End(End {
            id: id.to_owned(),
            state: State::Exited,
            counters: cpu(cpu_ns),
        }),
    )
}

fn account(hour: u64, id: &str) -> Record {
    let account = Account {
        id: id.to_owned(),
        app: "web".to_owned(),
        provider: "acme".to_owned(),
        kind: AccountKind::Started,
        name: "web".to_owned(),
        boot_id: "b".to_owned(),
        began_boot_ns: 0,
        began_unix_ms: 0,
        source: Source::Proc,
        cause: None,
        state: State::Running,
        counters: Counters::default(),
    };
    record(hour, Body::Account(Box::new(account)))
}

fn told(range: Range<Hour>, records: &[Record]) -> Vec<(Hour, u64)> {
    let mut hours = Hours::of(range);
    hours.take(&account(0, "a")).unwrap();
    records.iter().for_each(|record| hours.take(record).unwrap());
    hours.finish().unwrap();
    let sheets = (0..20).flat_map(|hour| hours.sheet(hour).unwrap().into_iter().map(move |part| (hour, part)));
    sheets.map(|(hour, part)| (hour, part.used.cpu_ns)).collect()
}

fn of(records: &[Record]) -> Vec<(Hour, u64)> {
    told(0..Hour::MAX, records)
}

#[test]
fn an_hour_is_what_it_is_higher_by() {
    let records = [used(1, 10), used(1, 30), used(3, 30), used(4, 31)];
    assert_eq!(of(&records), [(1, 30), (4, 1)]);
}

#[test]
fn what_falls_is_never_counted() {
    assert_eq!(of(&[used(1, 10), used(2, 4), used(3, 12)]), [(1, 10), (3, 2)]);
    // The clock was set back: the sum stays.
    assert_eq!(of(&[used(5, 10), used(2, 14), used(6, 15)]), [(2, 14), (6, 1)]);
}

#[test]
fn a_bill_of_some_hours_is_a_part_of_all() {
    let records: Vec<Record> = (1..9).map(|hour| used(hour, hour * 10)).collect();
    assert_eq!(told(4..6, &records), [(4, 10), (5, 10)]);
}

#[test]
fn what_ends_twice_is_refused() {
    let mut hours = Hours::of(0..Hour::MAX);
    for record in [account(1, "a"), end(1, "a", 5)] {
        hours.take(&record).unwrap();
    }
    for record in [account(1, "a"), end(2, "a", 5)] {
        let error = hours.take(&record).unwrap_err().to_string();
        assert!(error.contains("has ended"), "{error}");
    }
}

#[test]
fn many_accounts_go_through_a_file() {
    let mut hours = Hours::of(0..Hour::MAX);
    hours.sheets.bytes_max = 10_000;
    let count = 3000u64;
    for number in 0..count {
        let (id, hour) = (format!("{number:032}"), number % 7);
        hours.take(&account(hour, &id)).unwrap();
        hours.take(&end(hour, &id, number)).unwrap();
    }
    hours.finish().unwrap();
    assert!(hours.sheets.file.is_some() && hours.sheets.bytes <= 10_000);
    assert_eq!(hours.total(Meter::Core).unwrap(), u128::from(count * (count - 1) / 2));
    let sheet = hours.sheet(3).unwrap();
    assert!(sheet.is_sorted_by_key(|part| part.whose.id.clone()));
}

proptest! {
    #[test]
    fn neither_order_nor_doubles_matter(
        mut records in proptest::collection::vec((0u64..5, 0u64..1000), 1..40),
        seed in any::<u64>(),
    ) {
        let all: Vec<Record> = records.iter().map(|(hour, cpu)| used(*hour, *cpu)).collect();
        let before = of(&all);
        let highest = records.iter().map(|(_, cpu)| *cpu).max().unwrap_or_default();
        prop_assert_eq!(before.iter().map(|(_, cpu)| cpu).sum::<u64>(), highest);
        records.extend_from_within(..records.len() / 2);
        let mut state = seed | 1;
        for index in (1..records.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            records.swap(index, usize::try_from(state >> 33).unwrap() % (index + 1));
        }
        let all: Vec<Record> = records.iter().map(|(hour, cpu)| used(*hour, *cpu)).collect();
        prop_assert_eq!(of(&all), before);
    }
}
