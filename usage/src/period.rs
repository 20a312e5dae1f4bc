//! Periods that are billed: months and days of a time zone. Rows are whole hours of UTC.

use crate::books::{HOUR_MS, Hour};
use jiff::civil::Date;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, ToSpan};
use libsnap::error::{Error, Kind, OrFail, Result};
use std::ops::Range;
use std::str::FromStr;

/// A month, and the part of it that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Period {
    /// Without time zone: first day, and the day after the last.
    days: Range<Date>,
    month: Range<Hour>,
    wanted: Range<Hour>,
}

fn hour_at(date: Date, zone: &TimeZone) -> Result<Hour, String> {
    let start = date.to_zoned(zone.clone()).map_err(|error| error.to_string())?;
    let ms = u64::try_from(start.timestamp().as_millisecond()).map_err(|_| "it lies before 1970".to_owned())?;
    match ms % HOUR_MS {
        0 => Ok(ms / HOUR_MS),
        _ => Err(format!("{start} is not at a whole hour of UTC, as rows are")),
    }
}

/// A zone by its name in the IANA database that comes with this program: the same on every
/// machine.
pub fn zone(name: &str) -> Result<TimeZone, String> {
    let unknown = |_| format!("there is no time zone {name:?}, such as Europe/Berlin");
    TimeZoneDatabase::bundled().get(name).map_err(unknown)
}

impl FromStr for Period {
    type Err = String;

    /// `2026-11`, or a day of it: `2026-11-29`. In UTC, as yet.
    fn from_str(text: &str) -> Result<Period, String> {
        let wrong = || format!("{text:?} is no month such as 2026-11, and no day such as 2026-11-29");
        let is_month = text.len() == 7;
        let day = if is_month {
            format!("{text}-01")
        } else {
            text.to_owned()
        };
        if day.len() != 10 {
            return Err(wrong());
        }
        let day: Date = day.parse().map_err(|_| wrong())?;
        let length = if is_month { 1.month() } else { 1.day() };
        let after = day.checked_add(length).map_err(|_| wrong())?;
        Period::of_days(day..after, &TimeZone::UTC)
    }
}

impl Period {
    fn of_days(days: Range<Date>, zone: &TimeZone) -> Result<Period, String> {
        let first = days.start.first_of_month();
        let next = first.checked_add(1.month()).map_err(|error| error.to_string())?;
        Ok(Period {
            month: hour_at(first, zone)?..hour_at(next, zone)?,
            wanted: hour_at(days.start, zone)?..hour_at(days.end, zone)?,
            days,
        })
    }

    /// The same month or day, where clocks show this time.
    pub fn in_zone(&self, zone: &TimeZone) -> Result<Period> {
        Period::of_days(self.days.clone(), zone)
            .map_err(|because| Error::new(Kind::Usage, "this period cannot be billed").because(because))
    }

    /// The month of a moment.
    pub fn of(unix_ms: u64, zone: &TimeZone) -> Result<Period> {
        let future = || "the clock stands too far in the future";
        let ms = i64::try_from(unix_ms).or_fail(future)?;
        let now = Timestamp::from_millisecond(ms).or_fail(future)?;
        let first = now.to_zoned(zone.clone()).date().first_of_month();
        let days = first..first.checked_add(1.month()).or_fail(future)?;
        Period::of_days(days, zone).map_err(|because| Error::failed("cannot tell the month").because(because))
    }

    /// Refuses one that has not begun.
    pub fn begun(self, now_unix_ms: u64) -> Result<Period> {
        match self.wanted.start * HOUR_MS > now_unix_ms {
            false => Ok(self),
            true => Err(Error::new(Kind::Usage, "there is no usage of this period")
                .because(format!("it begins at {}", instant(self.wanted.start)))),
        }
    }

    pub fn month(&self) -> &Range<Hour> {
        &self.month
    }

    pub fn wanted(&self) -> &Range<Hour> {
        &self.wanted
    }
}

/// `2026-11-29T05:00:00Z`
pub fn instant(hour: Hour) -> String {
    let second = i64::try_from(hour * 3600).ok();
    let at = second.and_then(|second| Timestamp::from_second(second).ok());
    at.map_or_else(|| format!("hour {hour}"), |at| at.to_string())
}

/// `2026-11-29T05:00:07Z`
pub fn second(unix_ms: u64) -> String {
    let second = i64::try_from(unix_ms / 1000).ok();
    let at = second.and_then(|second| Timestamp::from_second(second).ok());
    at.map_or_else(|| format!("{unix_ms} ms"), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_and_days_have_their_bounds() {
        let bounds = |text: &str| {
            let period: Period = text.parse().unwrap();
            (instant(period.wanted().start), instant(period.wanted().end))
        };
        let told = |start: &str, end: &str| (start.to_owned(), end.to_owned());
        assert_eq!(bounds("2026-12"), told("2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"));
        assert_eq!(bounds("2028-02"), told("2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"));
        assert_eq!(
            bounds("2026-03-29"),
            told("2026-03-29T00:00:00Z", "2026-03-30T00:00:00Z")
        );
        for bad in [
            "",
            "2026",
            "2026-13",
            "2026-11-31",
            "11-2026",
            "2026-11-29T00",
            "1969-12",
            "now",
        ] {
            assert!(bad.parse::<Period>().is_err(), "{bad}");
        }
        let november: Period = "2026-11".parse().unwrap();
        assert_eq!(Period::of(1_795_928_400_000, &TimeZone::UTC).unwrap(), november);
        let future: Period = "2999-01".parse().unwrap();
        assert_eq!(future.begun(0).unwrap_err().kind, Kind::Usage);
    }

    #[test]
    fn months_and_days_are_those_of_a_time_zone() {
        let berlin = zone("Europe/Berlin").unwrap();
        let hours = |text: &str| {
            let period: Period = text.parse().unwrap();
            let wanted = period.in_zone(&berlin).unwrap().wanted().clone();
            (instant(wanted.start), wanted.end - wanted.start)
        };
        assert_eq!(hours("2026-11-29"), ("2026-11-28T23:00:00Z".to_owned(), 24));
        // Summer time begins, and ends.
        assert_eq!(hours("2026-03-29"), ("2026-03-28T23:00:00Z".to_owned(), 23));
        assert_eq!(hours("2026-10-25"), ("2026-10-24T22:00:00Z".to_owned(), 25));
        assert_eq!(hours("2026-10").1, 31 * 24 + 1);
        // Days of a month are all of it.
        let days: u64 = (1..=31).map(|day| hours(&format!("2026-10-{day:02}")).1).sum();
        assert_eq!(days, hours("2026-10").1);
        // The last second of a month, there.
        let last = 1_793_487_599_000;
        assert_eq!(Period::of(last, &berlin).unwrap().days.start.month(), 10);
        assert_eq!(Period::of(last + 1000, &berlin).unwrap().days.start.month(), 11);
        assert_eq!(Period::of(last + 1000, &TimeZone::UTC).unwrap().days.start.month(), 10);
        let period: Period = "2026-11".parse().unwrap();
        let error = period.in_zone(&zone("Asia/Kolkata").unwrap()).unwrap_err().to_string();
        assert!(error.contains("whole hour"), "{error}");
        assert!(zone("Mars/Olympus").is_err());
    }
}
