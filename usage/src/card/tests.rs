use super::*;

pub const GOOD: &str = r#"
version = 1
id = "standard-2026"
valid_from = "2026-01-01T00:00:00Z"
currency = "EUR"
decimals = 6

[prices]
core_second = "0.000024"
memory_gib_second = "0.0000025"
storage_gib_second = "0.00000004"
restore = "0.00001"
request = "0.0000002"
sent_gib = "0.02"

[free]
core_second = "1.5"
"#;

const GUARANTEE: &str = r#"
[[guarantee]]
provider = "acme"
app = "web"
cores = "0.5"
price = "0.00001"
"#;

fn zoned(zone: &str) -> String {
    GOOD.replace("decimals = 6", &format!("time_zone = {zone:?}"))
}

/// Instead of the price of a restore.
fn tiers(meter: &str, tiers: &[(&str, &str)]) -> String {
    let tier = |(up_to, price): &(&str, &str)| {
        let up_to = if up_to.is_empty() {
            String::new()
        } else {
            format!("up_to = {up_to:?}\n")
        };
        format!("[[tiers.{meter}]]\n{up_to}price = {price:?}\n")
    };
    let good = if meter == "restore" {
        GOOD.replace("restore = ", "# ")
    } else {
        GOOD.to_owned()
    };
    good + &tiers.iter().map(tier).collect::<String>()
}

#[test]
fn tiers_are_paid_one_after_the_other() {
    let card = Card::parse(&tiers("restore", &[("10", "2"), ("30", "1"), ("", "0.5")])).unwrap();
    let cost = |before, count| {
        card.cost(Meter::Restores, before, count)
            .unwrap()
            .normalize()
            .to_string()
    };
    assert_eq!(card.price(Meter::Restores).to_string(), "2");
    assert_eq!(
        (cost(0, 10), cost(0, 12), cost(5, 40)),
        ("20".into(), "22".into(), "37.5".into())
    );
    // Wherever it is split.
    for split in 0..=40 {
        let parts = [
            card.cost(Meter::Restores, 5, split),
            card.cost(Meter::Restores, 5 + split, 40 - split),
        ];
        assert_eq!(
            parts
                .map(Result::unwrap)
                .iter()
                .sum::<Decimal>()
                .normalize()
                .to_string(),
            "37.5"
        );
    }
    assert_eq!(cost(u128::MAX - 3, 2), "1");
}

#[test]
fn a_card_is_read() {
    let card = Card::parse(GOOD).unwrap();
    assert_eq!(card.price(Meter::Core).to_string(), "0.000024");
    assert_eq!(card.free(Meter::Core).to_string(), "1.5");
    assert_eq!(card.minimum(Meter::Core), Decimal::ZERO);
    let mut cards = Cards::default();
    cards.add(card.clone()).unwrap();
    assert_eq!(cards.at(card.valid_from - 1), None);
    assert_eq!(cards.at(card.valid_from).unwrap().id, "standard-2026");
}

#[test]
fn bad_ones_are_refused_with_the_reason() {
    let cases = [
        ("", "does not say version"),
        ("version = \"1\"", "does not say version"),
        ("version = 1", "missing field"),
        ("[", "TOML parse error"),
        (&GOOD.replace("version = 1", "version = 2"), "version 2"),
        (&GOOD.replace("\"0.000024\"", "\"-0.000024\""), "negative"),
        (&GOOD.replace("\"0.000024\"", "0.000024"), "string"),
        (&GOOD.replace("\"0.000024\"", "\"NaN\""), "no amount"),
        (&GOOD.replace("\"0.000024\"", "\"1e400\""), "no amount"),
        (
            &GOOD.replace("\"0.000024\"", "\"18446744073709551616\""),
            "too many digits",
        ),
        (
            &GOOD.replace("\"0.000024\"", "\"0.0000000000000000000000000000001\""),
            "no amount",
        ),
        (&GOOD.replace("\"0.000024\"", "\"\""), "no amount"),
        (&GOOD.replace("sent_gib = ", "# "), "sent_gib is missing"),
        (&GOOD.replace("request = ", "reqest = "), "unknown variant"),
        (&GOOD.replace("EUR", "euro"), "no code"),
        (&GOOD.replace("standard-2026", "none"), "name of a card"),
        (&GOOD.replace("standard-2026", "a b"), "name of a card"),
        (&GOOD.replace("decimals = 6", "decimals = 99"), "more than 12"),
        (&GOOD.replace("decimals = 6", "decimals = -1"), "invalid value"),
        (&GOOD.replace("decimals = 6", "rounding = \"up\""), "unknown field"),
        (&GOOD.replace("T00:00:00Z", ""), "expected a moment"),
        (&GOOD.replace("T00:00:00Z", "T00:30:00Z"), "whole hour"),
        (&GOOD.replace("2026-01-01", "2026-02-30"), "expected a moment"),
        (&GOOD.replace("2026-01-01", "1960-01-01"), "before 1970"),
        (&format!("{GOOD}\ncore_second = \"2\"\n"), "duplicate"),
        (&zoned("Mars/Olympus"), "no time zone"),
        (&zoned("Asia/Kolkata"), "whole hour"),
        (&tiers("core_second", &[("5", "1"), ("", "2")]), "price and tiers"),
        (&tiers("restore", &[("5", "1")]), "the last has no up_to"),
        (&tiers("restore", &[("", "1"), ("", "2")]), "only the last"),
        (&tiers("restore", &[("5", "1"), ("5", "2"), ("", "3")]), "higher than"),
        (&tiers("restore", &[("0", "1"), ("", "3")]), "higher than"),
        (&tiers("restore", &[("-5", "1"), ("", "3")]), "negative"),
        (&tiers("reserved_core_second", &[("", "3")]), "[[guarantee]]"),
        (&GOOD.replace("[free]\ncore", "[free]\nreserved_core"), "[[guarantee]]"),
        (&format!("{GOOD}{GUARANTEE}{GUARANTEE}"), "has two"),
        (
            &format!("{GOOD}{}", GUARANTEE.replace("cores", "kores")),
            "unknown field",
        ),
        (&format!("{GOOD}{}", GUARANTEE.replace("0.5", "much")), "no amount"),
    ];
    for (text, told) in cases {
        let error = Card::parse(text).unwrap_err();
        assert_eq!(error.kind, Kind::Usage);
        assert!(error.to_string().contains(told), "{told}: {error}");
    }
}

#[test]
fn cards_that_overlap_are_refused() {
    let mut cards = Cards::default();
    cards.add(Card::parse(GOOD).unwrap()).unwrap();
    let other = GOOD.replace("standard-2026", "b");
    for (text, told) in [
        (GOOD.to_owned(), "two are called"),
        (other.clone(), "same hour"),
        (other.replace("2026-01", "2026-02").replace("EUR", "USD"), "is in EUR"),
        (
            zoned("Europe/Berlin")
                .replace("standard-2026", "b")
                .replace("2026-01", "2026-02"),
            "for months of UTC",
        ),
    ] {
        let error = cards.add(Card::parse(&text).unwrap()).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
    cards
        .add(Card::parse(&other.replace("2026-01", "2026-02")).unwrap())
        .unwrap();
    assert_eq!(cards.0.len(), 2);
}
