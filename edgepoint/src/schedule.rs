//! Times at which an app is to be awake or asleep, as crontab(5) has them.
//!
//! ```toml
//! [schedule]
//! zone = "Europe/Berlin"
//! wake = ["55 7 * * 1-5"]                       # up once, then as its idle rule says
//! awake = [{ from = "0 8 * * 1-5", for = "10h" }]  # does not sleep
//! sleep = ["0 20 * * *"]                        # as soon as nobody is connected
//! ```
//!
//! Lines are read and reckoned by cronexpr, zones are those of the machine (tzdata). What was
//! missed, as nobody was there, is not made up for; who begins within a span is awake for
//! the rest of it.

use crate::manifest::Span;
use cronexpr::{Crontab, parse_crontab};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::OnceLock;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// Where the lines count: a name of the IANA database.
    pub zone: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub wake: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sleep: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub awake: Vec<Awake>,
    #[serde(skip)]
    read: Lines,
}

/// Lines as they were read when one was looked at first: that happens at each look at an app.
#[derive(Clone, Debug, Default)]
struct Lines(OnceLock<HashMap<String, Crontab>>);

/// They follow from what stands there.
impl PartialEq for Lines {
    fn eq(&self, _: &Lines) -> bool {
        true
    }
}

impl Eq for Lines {}

/// It does not sleep from then on, for so long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Awake {
    pub from: String,
    #[serde(rename = "for")]
    pub span: Span,
}

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule {
            zone: "UTC".to_owned(),
            wake: Vec::new(),
            sleep: Vec::new(),
            awake: Vec::new(),
            read: Lines::default(),
        }
    }
}

/// A line of it, and when.
pub type At = (u64, String);

impl Schedule {
    /// What is wrong, and what is to be written.
    pub fn sensible(&self) -> Result<(), (String, String)> {
        for line in self.lines() {
            if let Err(error) = self.read(line) {
                let because = format!("schedule: {line:?} in {} is no time: {error}", self.zone);
                let fix = "such as \"30 7 * * 1-5\": minute, hour, day, month, weekday; zone = \"Europe/Berlin\"";
                return Err((because, fix.to_owned()));
            }
        }
        match self.awake.iter().any(|awake| awake.span.0.is_zero()) {
            true => Err((
                "schedule.awake.for is no time at all".to_owned(),
                "such as 10h".to_owned(),
            )),
            false => Ok(()),
        }
    }

    fn lines(&self) -> impl Iterator<Item = &String> {
        let lines = self.wake.iter().chain(&self.sleep);
        lines.chain(self.awake.iter().map(|awake| &awake.from))
    }

    fn read(&self, line: &str) -> Result<Crontab, cronexpr::Error> {
        parse_crontab(&format!("{line} {}", self.zone))
    }

    /// The first moment after this one that a line names, in milliseconds since 1970.
    fn after(&self, line: &str, unix_ms: u64) -> Option<u64> {
        let from = Timestamp::from_millisecond(i64::try_from(unix_ms).ok()?).ok()?;
        let all = self
            .lines()
            .filter_map(|line| Some((line.clone(), self.read(line).ok()?)));
        let read = self.read.0.get_or_init(|| all.collect());
        let next = read.get(line)?.find_next(from).ok()?;
        u64::try_from(next.timestamp().as_millisecond()).ok()
    }

    fn first<'a>(&self, lines: impl Iterator<Item = &'a String>, unix_ms: u64) -> Option<At> {
        lines
            .filter_map(|line| Some((self.after(line, unix_ms)?, line.clone())))
            .min()
    }

    /// When it is to wake next.
    pub fn wakes(&self, after_unix_ms: u64) -> Option<At> {
        let lines = self.wake.iter().chain(self.awake.iter().map(|awake| &awake.from));
        self.first(lines, after_unix_ms)
    }

    /// When it is to sleep next.
    pub fn sleeps(&self, after_unix_ms: u64) -> Option<At> {
        self.first(self.sleep.iter(), after_unix_ms)
    }

    /// The line by which it is to be awake now.
    pub fn is_awake(&self, unix_ms: u64) -> Option<&str> {
        let now_in = |awake: &&Awake| {
            let span = u64::try_from(awake.span.0.as_millis()).unwrap_or(u64::MAX);
            let began = self.after(&awake.from, unix_ms.saturating_sub(span));
            began.is_some_and(|began| began <= unix_ms)
        };
        self.awake.iter().find(now_in).map(|awake| awake.from.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn ms(text: &str) -> u64 {
        let at: Timestamp = text.parse().unwrap();
        u64::try_from(at.as_millisecond()).unwrap()
    }

    #[test]
    fn times_of_a_zone() {
        let schedule = Schedule {
            zone: "Europe/Berlin".to_owned(),
            wake: vec!["55 7 * * 1-5".to_owned()],
            sleep: vec!["0 20 * * *".to_owned()],
            awake: vec![Awake {
                from: "0 8 * * 1-5".to_owned(),
                span: Span(Duration::from_secs(10 * 3600)),
            }],
            read: Lines::default(),
        };
        schedule.sensible().unwrap();
        // A Friday in summer; the zone is two hours ahead.
        let friday = ms("2026-07-03T05:54:59Z");
        assert_eq!(
            schedule.wakes(friday),
            Some((ms("2026-07-03T05:55:00Z"), schedule.wake[0].clone()))
        );
        assert_eq!(schedule.sleeps(friday).unwrap().0, ms("2026-07-03T18:00:00Z"));
        assert_eq!(schedule.is_awake(friday), None);
        assert_eq!(schedule.is_awake(ms("2026-07-03T06:00:00Z")), Some("0 8 * * 1-5"));
        assert_eq!(schedule.is_awake(ms("2026-07-03T15:59:59Z")), Some("0 8 * * 1-5"));
        assert_eq!(schedule.is_awake(ms("2026-07-03T16:00:00Z")), None);
        // Over the weekend; in winter it is one hour.
        assert_eq!(
            schedule.wakes(ms("2026-07-03T06:30:00Z")).unwrap().0,
            ms("2026-07-06T05:55:00Z")
        );
        assert_eq!(
            schedule.wakes(ms("2026-11-30T00:00:00Z")).unwrap().0,
            ms("2026-11-30T06:55:00Z")
        );
        assert_eq!(Schedule::default().wakes(friday), None);
    }
}
