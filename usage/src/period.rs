//! Periods that are billed, in UTC.

use crate::books::{HOUR_MS, Hour};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use libsnap::error::{Error, Kind, OrFail, Result};
use std::ops::Range;
use std::str::FromStr;

/// A month, and the part of it that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Period {
    month: Range<Hour>,
    wanted: Range<Hour>,
}

fn hour_at(date: Date) -> Result<Hour, String> {
    let start = date.to_zoned(TimeZone::UTC).map_err(|error| error.to_string())?;
    let hours = u64::try_from(start.timestamp().as_millisecond()).map(|ms| ms / HOUR_MS);
    hours.map_err(|_| "it lies before 1970".to_owned())
}

impl FromStr for Period {
    type Err = String;

    /// `2026-11`, or a day of it: `2026-11-29`.
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
        let first = day.first_of_month();
        let after = |date: Date, span: jiff::Span| date.checked_add(span).map_err(|_| wrong());
        let month = hour_at(first)?..hour_at(after(first, 1.month())?)?;
        let wanted = match is_month {
            true => month.clone(),
            false => hour_at(day)?..hour_at(after(day, 1.day())?)?,
        };
        Ok(Period { month, wanted })
    }
}

impl Period {
    /// The month of a moment.
    pub fn of(unix_ms: u64) -> Result<Period> {
        let ms = i64::try_from(unix_ms).or_fail(|| "the clock stands too far in the future")?;
        let now = Timestamp::from_millisecond(ms).or_fail(|| "the clock stands too far in the future")?;
        let day = now.to_zoned(TimeZone::UTC).date();
        let month = format!("{:04}-{:02}", day.year(), day.month());
        month
            .parse()
            .map_err(|error| Error::failed("cannot tell the month").because(error))
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
        assert_eq!(Period::of(1_795_928_400_000).unwrap(), "2026-11".parse().unwrap());
        let future: Period = "2999-01".parse().unwrap();
        assert_eq!(future.begun(0).unwrap_err().kind, Kind::Usage);
    }
}
