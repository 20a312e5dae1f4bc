//! Amounts as people write them: `1.5 MiB`, `10G`; `30s`, `7d`.

use std::time::Duration;

const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
const SPANS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// `1.5 MiB`
pub fn bytes(count: u64) -> String {
    let mut unit = 0;
    // Numbers for people: the loss of precision is the point.
    #[allow(clippy::cast_precision_loss)]
    let mut amount = count as f64;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{amount:.1} {}", UNITS[unit]),
    }
}

/// A whole number of bytes, or of units of 1024: `10G`, `512 MiB`, `4096`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let unit = unit.to_ascii_lowercase();
    let letter = unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit);
    let power = ["", "k", "m", "g", "t"].iter().position(|known| *known == letter);
    let power = power.ok_or_else(|| format!("{text:?} is no size such as 512M or 10G"))?;
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} is no size such as 512M or 10G"))?;
    number
        .checked_mul(1 << (10 * power))
        .ok_or_else(|| format!("{text:?} is more than there can be"))
}

/// The longest unit that leaves a whole number: `90s`, `7d`.
pub fn span(span: Duration) -> String {
    let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let whole = SPANS
        .iter()
        .rev()
        .find(|(_, unit)| millis >= *unit && millis % unit == 0);
    let (name, unit) = whole.unwrap_or(&SPANS[0]);
    format!("{}{name}", millis / unit)
}

/// A whole number of `ms`, `s`, `m`, `h` or `d`.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let known = SPANS.iter().find(|(name, _)| *name == unit);
    let millis = known.and_then(|(_, unit)| number.parse::<u64>().ok()?.checked_mul(*unit));
    millis
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is no time such as 30s, 5m or 7d"))
}

/// `20260131-120000`: a second since the epoch as UTC, in a form that sorts.
pub fn stamp(second: u64) -> String {
    let (days, second) = (second / 86400, second % 86400);
    // Days of a year that begins in March: the leap day is its last (H. Hinnant,
    // "chrono-compatible low-level date algorithms").
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let (month, next) = if march < 10 { (march + 3, 0) } else { (march - 9, 1) };
    let year = year + era * 400 + next;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

/// Whether a text has the form of [`stamp`].
pub fn is_stamp(text: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = text.split_once('-');
    parts.is_some_and(|(day, time)| day.len() == 8 && time.len() == 6 && digits(day) && digits(time))
}

fn split(text: &str) -> (&str, &str) {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    (number, unit.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536 * 1024), "1.5 MiB");
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("10G", 10 << 30),
            ("1 KiB", 1024),
            ("3mb", 3 << 20),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "10X", "1bb", "99999999999T"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn stamps() {
        for (second, text) in [
            (0, "19700101-000000"),
            (951_782_399, "20000228-235959"),
            (951_782_400, "20000229-000000"),
            (951_868_800, "20000301-000000"),
            (1_735_689_599, "20241231-235959"),
            (4_107_542_400, "21000301-000000"),
        ] {
            assert_eq!(stamp(second), text);
            assert!(is_stamp(text));
        }
        for text in [
            "",
            "2000022-235959",
            "20000228_235959",
            "20000228-23595",
            "2000x228-235959",
        ] {
            assert!(!is_stamp(text), "{text}");
        }
    }

    #[test]
    fn spans() {
        for (text, millis) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("90s", 90_000),
            ("7d", 604_800_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_span(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "30", "s", "1w", "-1s", "1.5h", "99999999999999999d"] {
            assert!(parse_span(text).is_err(), "{text}");
        }
        assert_eq!(span(Duration::from_secs(90)), "90s");
        assert_eq!(span(Duration::from_secs(7 * 86400)), "7d");
        assert_eq!(span(Duration::from_millis(1500)), "1500ms");
        assert_eq!(span(Duration::ZERO), "0ms");
    }
}
