//! Corrections: a row of the bill was wrong.
//!
//! The row stays as it is. What is written down is by how much it should have counted more
//! or less, and what that comes to at the place of the row: as if it had been rated with
//! the other count, and all rows after it as they were. It is billed in the month in which
//! it is written.

use crate::bill::{Bill, Quality, Wanted, amount, rows};
use crate::card::Cards;
use crate::hours::Hours;
use crate::period::Period;
use crate::record::Correction;
use libsnap::error::{Error, Kind, OrFail, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How much a reason may tell.
const REASON_BYTES_MAX: usize = 500;

/// What is to be corrected.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Id of the row, or the first eight digits of it or more.
    pub event: String,
    /// What it should have counted.
    pub count: u128,
    pub reason: String,
    /// Of the row; this month without it.
    pub period: Option<String>,
}

impl Asked {
    /// The correction, by the ledger and the rate cards below `usage`.
    pub fn plan(&self, usage: &Path, now_unix_ms: u64) -> Result<Correction> {
        let wrong = |because: String| Error::new(Kind::Usage, "cannot read the period").because(because);
        let period: Option<Period> = self.period.as_deref().map(str::parse).transpose().map_err(wrong)?;
        let bill = Bill::open(usage, Cards::of(usage)?, period.as_ref(), now_unix_ms)?;
        correct(&bill.hours, &bill.wanted(None), &self.event, self.count, &self.reason)
    }
}

/// The correction by which the row with this id, or its first digits, counts so much.
pub fn correct(hours: &Hours, wanted: &Wanted<'_>, event: &str, count: u128, reason: &str) -> Result<Correction> {
    let refused = |because: String| Error::new(Kind::Usage, format!("cannot correct {event}")).because(because);
    if reason.trim().is_empty() || reason.len() > REASON_BYTES_MAX || reason.chars().any(char::is_control) {
        return Err(refused("the reason is empty, long or not one line".to_owned()));
    }
    let mut found = None;
    rows(hours, wanted, &mut |row| {
        if event.len() < 8 || !row.event_id.starts_with(event) {
            return Ok(());
        }
        if found.is_some() {
            return Err(refused("several rows begin so".to_owned()).fix("give more of its digits"));
        }
        if row.quality != Quality::Measured {
            return Err(refused(format!("the row is a {}", row.quality.name())).fix("correct one that was measured"));
        }
        let stands = row.count + hours.corrected(&row.event_id);
        let stands = u128::try_from(stands).or_fail(|| "its corrections are more than it")?;
        let more = i128::try_from(count)
            .ok()
            .and_then(|count| Some(count - i128::try_from(stands).ok()?));
        let more = more.ok_or_else(|| refused(format!("{count} is too much to be billed")))?;
        if more == 0 {
            return Err(refused(format!("it counts {count} as it stands")));
        }
        // What was not charged is not given back.
        let card = wanted.cards.at(row.hour).filter(|_| row.charged);
        let cost = |count| card.map_or(Ok(row.cost), |card| Ok(amount(card, row.meter, count, row.before)?.0));
        found = Some(Correction {
            event: row.event_id.clone(),
            of: row.whose.clone(),
            meter: row.meter,
            hour: row.hour,
            count: more,
            cost: cost(count)? - cost(stands)?,
            currency: row.currency.to_owned(),
            card: row.card.to_owned(),
            reason: reason.to_owned(),
        });
        Ok(())
    })?;
    found.ok_or_else(|| {
        Error::new(Kind::NotFound, format!("no row has the id {event}"))
            .fix("`appshot usage export` has the ids of a month (x_EventId, 8 digits or more); name another one with --period")
    })
}
