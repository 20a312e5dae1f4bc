use super::*;
use crate::books::HOUR_MS;
use crate::card::Card;
use crate::correct::correct;
use crate::export::{Format, Summary, columns, write};
use crate::record::{Account, Body, Counters, Gap, Record, State, Use, VERSION};
use std::collections::BTreeMap;

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

/// All records, and more.
fn hours(more: &[Record]) -> Hours {
    let mut hours = Hours::of(0..Hour::MAX);
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
    ]
    .iter()
    .chain(more)
    {
        hours.take(record).unwrap();
    }
    hours.finish().unwrap();
    hours
}

fn cards(card: &str) -> Cards {
    let mut cards = Cards::default();
    cards.add(Card::parse(card).unwrap()).unwrap();
    cards
}

fn export(period: &str, provider: Option<&str>, format: Format) -> (String, Summary) {
    export_of(&hours(&[]), CARD, period, provider, format)
}

fn export_of(hours: &Hours, card: &str, period: &str, provider: Option<&str>, format: Format) -> (String, Summary) {
    let cards = cards(card);
    let wanted = Wanted {
        node: "n",
        provider,
        period: &period.parse::<Period>().unwrap().in_zone(&cards.zone()).unwrap(),
        cards: &cards,
    };
    let mut out = Vec::new();
    let summary = write(hours, &wanted, format, &mut out).unwrap();
    (String::from_utf8(out).unwrap(), summary)
}

#[test]
fn rows_are_rated_by_the_card() {
    let (text, summary) = export("2026-11", Some("acme"), Format::Csv);
    let mut csv = csv::Reader::from_reader(text.as_bytes());
    assert!(csv.headers().unwrap().iter().eq(columns()));
    let column = |name: &str| columns().position(|column| column == name).unwrap();
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
    let error = rows(&hours(&[]), &wanted, &mut |_| Ok(())).unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
    assert!(error.to_string().contains("acme"), "{error}");
}

/// Of each row: what it is, its meter, count, cost.
fn told(text: &str) -> Vec<String> {
    let mut csv = csv::Reader::from_reader(text.as_bytes());
    let column = |name: &str| columns().position(|column| column == name).unwrap();
    let of = |row: csv::StringRecord| {
        let fields = ["x_Quality", "SkuId", "ConsumedQuantity", "BilledCost"];
        fields.map(|name| row[column(name)].to_owned()).join(" ")
    };
    csv.records().map(|row| of(row.unwrap())).collect()
}

#[test]
fn tiers_go_on_through_the_month() {
    let card = CARD.replace("core_second = \"0.01\"\n", "")
        + "[[tiers.core_second]]\nup_to = \"8\"\nprice = \"1\"\n[[tiers.core_second]]\nprice = \"0.1\"\n";
    let hours = hours(&[]);
    let (text, summary) = export_of(&hours, &card, "2026-11", Some("acme"), Format::Csv);
    let of: Vec<String> = told(&text).into_iter().filter(|row| row.contains("core")).collect();
    // 1 is free; 1 of 10, too, and 8 at the first price, 1 at the second; 5; 1, billed as 3.
    let expected = [
        "measured core_second 1000000000 0.0000",
        "measured core_second 10000000000 8.1000",
        "measured core_second 5000000000 0.5000",
        "measured core_second 1000000000 0.3000",
    ];
    assert_eq!(of, expected);
    let days = ["2026-11-28", "2026-11-29"].map(|day| export_of(&hours, &card, day, Some("acme"), Format::Csv).1);
    assert_eq!(
        days.iter().filter_map(|day| day.cost.get("EUR")).sum::<Decimal>(),
        summary.cost["EUR"]
    );
}

const GUARANTEE: &str = "[[guarantee]]\nprovider = \"acme\"\napp = \"web\"\ncores = \"0.001\"\nprice = \"0.05\"\n";

#[test]
fn what_is_kept_ready_is_paid_and_credited() {
    let card = CARD.replace("valid_from = \"2026-01-01", "valid_from = \"2026-11-29") + GUARANTEE;
    let mut waited = used(HOUR + 1, "b", 5);
    if let Body::Use(used) = &mut waited.body {
        used.counters.waited_ns = 1_800_000_000_000;
    }
    let hours = hours(&[waited]);
    let (text, summary) = export_of(&hours, &card, "2026-11", Some("acme"), Format::Csv);
    let told = told(&text);
    // Also in the hours of the day in which nothing was used; 3.6 core-seconds each.
    assert_eq!(told[0], "reserved reserved_core_second 3600000000 0.1800");
    assert_eq!(told.iter().filter(|row| row.starts_with("reserved")).count(), 8);
    let rest: Vec<&String> = told.iter().filter(|row| !row.starts_with("reserved")).collect();
    let expected = [
        "measured core_second 1000000000 0.0000",
        "measured restore 1 0.5000",
        "measured restore 1 0",
        // 3.6 of 10 are kept, 2 free.
        "measured core_second 10000000000 0.0440",
        "measured core_second 5000000000 0.0500",
        "credit reserved_core_second -1800000000 -0.0900",
        "measured core_second 1000000000 0.0000",
        "gap memory_gib_second 0 0",
    ];
    assert_eq!(rest, expected);
    assert_eq!(summary.cost["EUR"], "1.944".parse().unwrap());
    // Whoever is guaranteed something is known, also without any use.
    let card = card.replace("acme", "new");
    let (text, _) = export_of(&hours, &card, "2026-11", Some("new"), Format::Csv);
    assert_eq!(self::told(&text).len(), 8);
}

#[test]
fn months_are_those_of_the_cards_zone() {
    let card = CARD.replace("decimals = 4", "decimals = 4\ntime_zone = \"Pacific/Kiritimati\"");
    let hours = hours(&[]);
    // 14 hours ahead: the day is the 29th from 10:00 UTC of the 28th until 10:00 of the 29th.
    let rows = |period: &str| export_of(&hours, &card, period, None, Format::Csv).1.rows;
    assert_eq!((rows("2026-11-29"), rows("2026-11-30"), rows("2026-11")), (9, 0, 9));
    let card = card.replace("Pacific/Kiritimati", "America/Los_Angeles");
    let rows = |period: &str| export_of(&hours, &card, period, None, Format::Csv).1.rows;
    assert_eq!((rows("2026-11-28"), rows("2026-11-29")), (9, 0));
}

fn correction(hours: &Hours, period: &str, event: &str, count: u128) -> Result<Record> {
    let (cards, period) = (cards(CARD), period.parse().unwrap());
    let wanted = Wanted {
        node: "n",
        provider: None,
        period: &period,
        cards: &cards,
    };
    let correction = correct(hours, &wanted, event, count, "counted twice")?;
    Ok(record(HOUR + 72, Body::Correction(Box::new(correction))))
}

#[test]
fn corrections_are_rows_of_their_own() {
    let (text, before) = export("2026-11", None, Format::Json);
    let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let row = rows
        .iter()
        .find(|row| row["ConsumedQuantity"] == "10000000000")
        .unwrap();
    let id = row["x_EventId"].as_str().unwrap();
    // 10 s, one free, were billed; it should have been 4.
    let first = correction(&hours(&[]), "2026-11", &id[..12], 4_000_000_000).unwrap();
    let corrected = hours(std::slice::from_ref(&first));
    // December: the closed month stays as it was.
    assert_eq!(
        export_of(&corrected, CARD, "2026-11", None, Format::Json),
        (text, before)
    );
    let (text, _) = export_of(&corrected, CARD, "2026-12", None, Format::Json);
    let row: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!(
        (&row["BilledCost"], &row["ConsumedQuantity"]),
        (&"-0.0600".into(), &"-6000000000".into())
    );
    assert_eq!(
        (&row["x_CorrectsEventId"], &row["ChargeClass"]),
        (&id.into(), &"Correction".into())
    );
    assert_eq!(row["ChargePeriodStart"], "2026-11-29T06:00:00Z");
    // A second one goes on from the first; both together are what one would have been.
    let second = correction(&corrected, "2026-11", id, 11_000_000_000).unwrap();
    let (_, both) = export_of(&hours(&[first, second]), CARD, "2026-12", None, Format::Csv);
    assert_eq!(
        (both.cost["EUR"].to_string(), both.corrections),
        ("0.0100".to_owned(), 2)
    );
    // Of what was not charged nothing is given back.
    let free = rows
        .iter()
        .find(|row| row["SkuId"] == "restore" && row["BilledCost"] == "0")
        .unwrap();
    let record = correction(&hours(&[]), "2026-11", free["x_EventId"].as_str().unwrap(), 0).unwrap();
    let Body::Correction(correction) = record.body else {
        panic!()
    };
    assert_eq!(correction.cost, Decimal::ZERO);
}

#[test]
fn corrections_of_nothing_are_refused() {
    let (text, _) = export("2026-11", None, Format::Json);
    let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let id = |index: usize| rows[index]["x_EventId"].as_str().unwrap();
    let cases: &[(&str, u128, &str)] = &[
        ("00000000", 5, "no row"),
        ("", 5, "no row"),
        (id(0), 1_000_000_000, "as it stands"),
        (id(0), u128::MAX, "too much"),
        (id(rows.len() - 1), 5, "is a gap"),
    ];
    for (id, count, told) in cases {
        let error = correction(&hours(&[]), "2026-11", id, *count).unwrap_err().to_string();
        assert!(error.contains(told), "{told}: {error}");
    }
}

/// Bills of the same use are the same, in whatever order it was told.
#[test]
fn no_order_of_accounts_matters() {
    let accounts = ["a", "b", "c", "d", "e"];
    let tell = |order: &[usize]| {
        let mut hours = Hours::of(0..Hour::MAX);
        for index in order {
            let id = accounts[*index];
            hours
                .take(&account(id, if *index < 3 { "acme" } else { "other" }, None))
                .unwrap();
            for hour in [2, 0, 1] {
                hours
                    .take(&used(HOUR + hour, id, (hour + 1) * (*index as u64 + 1) * 3))
                    .unwrap();
            }
        }
        hours.finish().unwrap();
        export_of(&hours, &(CARD.to_owned() + GUARANTEE), "2026-11", None, Format::Csv)
    };
    let first = tell(&[0, 1, 2, 3, 4]);
    for order in [[4, 3, 2, 1, 0], [2, 0, 4, 1, 3]] {
        assert_eq!(tell(&order), first);
    }
    let mut sums: BTreeMap<&str, Decimal> = BTreeMap::new();
    for provider in ["acme", "other"] {
        let mut hours = Hours::of(0..Hour::MAX);
        for (index, id) in accounts.iter().enumerate() {
            hours
                .take(&account(id, if index < 3 { "acme" } else { "other" }, None))
                .unwrap();
            hours.take(&used(HOUR, id, index as u64 + 1)).unwrap();
        }
        hours.finish().unwrap();
        let part = export_of(&hours, CARD, "2026-11", Some(provider), Format::Csv).1;
        let all = export_of(&hours, CARD, "2026-11", None, Format::Csv).1;
        *sums.entry("parts").or_default() += part.cost["EUR"];
        sums.insert("all", all.cost["EUR"]);
    }
    assert_eq!(sums["parts"], sums["all"]);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(8))]

    /// Whatever was used, in whatever hours, by clocks that jump: parts of the bill by day and
    /// provider are all of it, and all of it is what was counted.
    #[test]
    fn any_split_of_any_use_adds_up(
        steps in proptest::collection::vec((0usize..4, 0u64..96, 0u64..50, 0u64..1 << 40), 1..60),
    ) {
        let ids = ["a1", "b1", "c1", "d1"];
        let mut all = Hours::of(0..Hour::MAX);
        let mut counters = [Counters::default(); 4];
        for (index, id) in ids.iter().enumerate() {
            all.take(&account(id, if index < 2 { "acme" } else { "other" }, None)).unwrap();
        }
        for (index, hour, seconds, bytes) in steps {
            let now = &mut counters[index];
            now.cpu_ns += seconds * 1_000_000_007;
            now.memory_byte_ns += u128::from(bytes) << 30;
            now.requests += seconds;
            let (id, state) = (ids[index].to_owned(), State::Running);
            let body = Body::Use(Use { id, state, counters: *now });
            // Days of this month, not in order.
            all.take(&record(HOUR - 96 + hour, body)).unwrap();
        }
        all.finish().unwrap();
        let card = CARD.replace("request = \"0\"\n", "")
            + "[[tiers.request]]\nup_to = \"60\"\nprice = \"0.1\"\n[[tiers.request]]\nprice = \"0.03\"\n"
            + GUARANTEE;
        let of = |period: &str, provider: Option<&str>| export_of(&all, &card, period, provider, Format::Csv).1;
        let whole = of("2026-11", None);
        let sum = |parts: &[Summary]| {
            let cost = parts.iter().filter_map(|part| part.cost.get("EUR")).sum::<Decimal>();
            let cpu = parts.iter().filter_map(|part| part.counts.get("core_second")).sum::<i128>();
            (cost, cpu, parts.iter().map(|part| part.rows).sum::<u64>())
        };
        let days: Vec<Summary> = (1..=30).map(|day| of(&format!("2026-11-{day:02}"), None)).collect();
        let providers = ["acme", "other"].map(|provider| of("2026-11", Some(provider)));
        proptest::prop_assert_eq!(sum(&days), sum(std::slice::from_ref(&whole)));
        proptest::prop_assert_eq!(sum(&providers), sum(std::slice::from_ref(&whole)));
    }
}
