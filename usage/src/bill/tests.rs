use super::*;
use crate::books::HOUR_MS;
use crate::card::Card;
use crate::export::{COLUMNS, Format, Summary, write};
use crate::record::{Body, Gap, Record, Source, State, Use, VERSION};

const CARD: &str = r#"
version = 1
id = "t"
valid_from = "2026-01-01T00:00:00Z"
currency = "EUR"
decimals = 4
[prices]
core_second = "0.01"
memory_gib_second = "0"
storage_gib_second = "0"
restore = "0.5"
request = "0"
sent_gib = "0.02"
[free]
core_second = "2"
[minimum]
core_second = "3"
"#;

/// 2026-11-29T05:00:00Z
const HOUR: Hour = 498_869;

fn record(hour: Hour, body: Body) -> Record {
    Record {
        v: VERSION,
        seq: 0,
        boot_ns: 0,
        unix_ms: hour * HOUR_MS + 1,
        body,
    }
}

fn account(id: &str, provider: &str, cause: Option<&str>) -> Record {
    let account = Account {
        id: id.to_owned(),
        app: "web".to_owned(),
        provider: provider.to_owned(),
        kind: AccountKind::Restored,
        name: "web.2".to_owned(),
        boot_id: "b".to_owned(),
        began_boot_ns: 0,
        began_unix_ms: 0,
        source: Source::Proc,
        cause: cause.map(str::to_owned),
        state: State::Running,
        counters: Counters {
            restores: 1,
            ..Counters::default()
        },
    };
    record(HOUR, Body::Account(Box::new(account)))
}

fn used(hour: Hour, id: &str, seconds: u64) -> Record {
    let counters = Counters {
        cpu_ns: seconds * 1_000_000_000,
        restores: 1,
        ..Counters::default()
    };
    let id = id.to_owned();
    let state = State::Running;
    record(hour, Body::Use(Use { id, state, counters }))
}

fn books() -> Books {
    let mut books = Books::by_hour();
    let gap = Gap {
        id: Some("a".to_owned()),
        ns: None,
        reason: "perfd was down".to_owned(),
    };
    for record in [
        account("a", "acme", None),
        account("b", "acme", Some("recovery")),
        account("c", "other", None),
        used(HOUR, "a", 1),
        used(HOUR + 1, "a", 11),
        used(HOUR + 2, "a", 12),
        used(HOUR + 1, "b", 5),
        used(HOUR, "c", 1),
        record(HOUR + 2, Body::Gap(gap)),
    ] {
        books.take(&record);
    }
    books
}

fn export(period: &str, provider: Option<&str>, format: Format) -> (String, Summary) {
    let mut cards = Cards::default();
    cards.add(Card::parse(CARD).unwrap()).unwrap();
    let wanted = Wanted {
        node: "n",
        provider,
        period: &period.parse().unwrap(),
        cards: &cards,
    };
    let mut out = Vec::new();
    let summary = write(&books(), &wanted, format, &mut out).unwrap();
    (String::from_utf8(out).unwrap(), summary)
}

#[test]
fn rows_are_rated_by_the_card() {
    let (text, summary) = export("2026-11", Some("acme"), Format::Csv);
    let mut csv = csv::Reader::from_reader(text.as_bytes());
    assert_eq!(csv.headers().unwrap().iter().collect::<Vec<_>>(), COLUMNS);
    let column = |name: &str| COLUMNS.iter().position(|column| *column == name).unwrap();
    let rows: Vec<csv::StringRecord> = csv.records().map(Result::unwrap).collect();
    let told: Vec<[&str; 4]> = rows
        .iter()
        .map(|row| ["SkuId", "ConsumedQuantity", "ListCost", "BilledCost"].map(|name| &row[column(name)]))
        .collect();
    let expected = [
        // 1 s of the 2 that are free.
        ["core_second", "1000000000", "0.0100", "0.0000"],
        ["restore", "1", "0.5000", "0.5000"],
        // The platform's own doing.
        ["restore", "1", "0.5000", "0"],
        // 10 s, 1 of them free; then 5; then 1, billed as 3.
        ["core_second", "10000000000", "0.1000", "0.0900"],
        ["core_second", "5000000000", "0.0500", "0.0500"],
        ["core_second", "1000000000", "0.0100", "0.0300"],
        ["memory_gib_second", "0", "0", "0"],
    ];
    assert_eq!(told, expected);
    assert_eq!(rows[6][column("x_Quality")], *"gap");
    assert_eq!((summary.rows, summary.gaps, summary.without_card), (7, 1, 0));
    assert_eq!(summary.cost["EUR"].to_string(), "0.6700");
    // Each follows the one before.
    for pair in rows.windows(2) {
        assert_eq!(pair[0][column("x_RowHash")], pair[1][column("x_PrevHash")]);
    }
    let mut ids: Vec<&str> = rows.iter().map(|row| &row[column("x_EventId")]).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), rows.len());
}

#[test]
fn any_split_adds_up_and_is_the_same_again() {
    let (whole, all) = export("2026-11", None, Format::Csv);
    assert_eq!(whole, export("2026-11", None, Format::Csv).0);
    let parts = [
        export("2026-11-28", None, Format::Csv),
        export("2026-11-29", None, Format::Csv),
    ];
    assert_eq!(parts[0].1.rows + parts[1].1.rows, all.rows);
    assert_eq!(parts[1].1.cost, all.cost);
    let providers = ["acme", "other"].map(|provider| export("2026-11", Some(provider), Format::Csv).1);
    assert_eq!(providers[0].cost["EUR"] + providers[1].cost["EUR"], all.cost["EUR"]);
    assert_eq!(export("2026-12", None, Format::Csv).1.rows, 0);
}

#[test]
fn json_has_the_same_rows() {
    let (text, summary) = export("2026-11", None, Format::Json);
    let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len() as u64, summary.rows);
    assert!(rows[0]["ChargeClass"].is_null() && rows[0]["BilledCost"].is_string());
    let (text, _) = export("2026-11", None, Format::CloudEvents);
    let event: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(event["id"], rows[0]["x_EventId"]);
    assert_eq!(event["data"]["quantity"], "1000000000");
}

#[test]
fn an_unknown_provider_is_told() {
    let period = "2026-11".parse().unwrap();
    let wanted = Wanted {
        node: "n",
        provider: Some("acne"),
        period: &period,
        cards: &Cards::default(),
    };
    let error = rows(&books(), &wanted, &mut |_| Ok(())).unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
    assert!(error.to_string().contains("acme"), "{error}");
}
