use super::*;
use crate::card::{Card, Cards};
use crate::export::{Format, write as export};
use crate::record::{Account, AccountKind, Body, Counters, Record, Source, State, Use, VERSION};

const CARD: &str = r#"
version = 1
id = "day"
valid_from = "2026-01-01T00:00:00Z"
currency = "EUR"
[prices]
core_second = "0.000024"
memory_gib_second = "0.0000025"
storage_gib_second = "0"
restore = "0.001"
request = "0"
sent_gib = "0.02"
"#;

/// 2026-11-29T00:00:00Z
const MIDNIGHT: Hour = 498_864;

/// Two apps over a day: one is used by day, one by night.
fn hours() -> Hours {
    let mut hours = Hours::of(0..Hour::MAX);
    for (name, shift) in [("shop", 0), ("a<b>&\"c\"", 12)] {
        let mut counters = Counters::default();
        for hour in 0..24 {
            let from_noon = ((hour + shift) % 24u64).abs_diff(12);
            counters.cpu_ns += (12 - from_noon) * 300_000_000_000;
            counters.memory_byte_ns += u128::from(12 - from_noon) << 70;
            counters.restores = 1;
            let unix_ms = (MIDNIGHT + hour) * crate::books::HOUR_MS + 7;
            let state = State::Running;
            let body = match hour {
                0 => Body::Account(Box::new(Account {
                    id: name.to_owned(),
                    app: name.to_owned(),
                    provider: "acme".to_owned(),
                    kind: AccountKind::Restored,
                    name: name.to_owned(),
                    boot_id: "b".to_owned(),
                    began_boot_ns: 0,
                    began_unix_ms: 0,
                    source: Source::CgroupV2,
                    cause: Some("request".to_owned()),
                    state,
                    counters,
                })),
                _ => Body::Use(Use {
                    id: name.to_owned(),
                    state,
                    counters,
                }),
            };
            let record = Record {
                v: VERSION,
                seq: 0,
                boot_ns: 0,
                unix_ms,
                body,
            };
            hours.take(&record).unwrap();
        }
    }
    hours.finish().unwrap();
    hours
}

fn statement(cards: &Cards, period: &str) -> (String, String) {
    let period = period.parse().unwrap();
    let wanted = Wanted {
        node: "n",
        provider: None,
        period: &period,
        cards,
    };
    let mut page = Vec::new();
    write(&hours(), &wanted, 1_795_930_000_000, &mut page).unwrap();
    let summary = export(&hours(), &wanted, Format::Csv, &mut Vec::<u8>::new()).unwrap();
    let total = summary.cost.get("EUR").copied().unwrap_or_default().to_string();
    (String::from_utf8(page).unwrap(), total)
}

#[test]
fn it_tells_the_total_of_the_export() {
    let mut cards = Cards::default();
    cards.add(Card::parse(CARD).unwrap()).unwrap();
    let (page, total) = statement(&cards, "2026-11");
    assert!(page.contains(&format!("Total: {total} EUR")), "{total}");
    // Two charts of 24 hours and two apps, less what is nothing.
    assert!(page.matches("<rect").count() > 90);
    assert!(page.contains("a&lt;b&gt;&amp;&quot;c&quot;") && !page.contains("a<b>"));
    assert!(page.contains("Kept for all 24 hours"));
    for word in ["NaN", "inf", "http:", "https:", "<script"] {
        assert!(!page.contains(word), "{word}");
    }
    if let Some(path) = std::env::var_os("APPSHOT_STATEMENT") {
        std::fs::write(path, page).unwrap();
    }
}

#[test]
fn it_says_where_there_is_nothing() {
    let (page, _) = statement(&Cards::default(), "2026-11");
    assert!(page.contains("There is no rate card") && !page.contains("fixed capacity"));
    assert!(statement(&Cards::default(), "2026-10").0.contains("Nothing was used"));
}
