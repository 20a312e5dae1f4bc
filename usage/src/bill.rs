//! The rows of a bill: one an hour, account and meter.

use crate::books::{Book, Books, Hour};
use crate::card::{Cards, NO_CURRENCY, NONE};
use crate::money;
use crate::period::Period;
use crate::record::{Account, AccountKind, Counters, hex};
use libsnap::error::{Error, Kind, Result};
use rust_decimal::Decimal;
use serde::Deserialize;
use std::collections::HashMap;

/// What has a price.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
pub enum Meter {
    #[serde(rename = "core_second")]
    Core,
    #[serde(rename = "memory_gib_second")]
    Memory,
    #[serde(rename = "storage_gib_second")]
    Storage,
    #[serde(rename = "restore")]
    Restores,
    #[serde(rename = "request")]
    Requests,
    #[serde(rename = "sent_gib")]
    Sent,
}

const SECOND: u128 = 1_000_000_000;
const GIB_SECOND: u128 = (1 << 30) * SECOND;

impl Meter {
    pub const ALL: [Meter; 6] = [
        Meter::Core,
        Meter::Memory,
        Meter::Storage,
        Meter::Restores,
        Meter::Requests,
        Meter::Sent,
    ];

    /// As rate cards call it.
    pub fn name(self) -> &'static str {
        match self {
            Meter::Core => "core_second",
            Meter::Memory => "memory_gib_second",
            Meter::Storage => "storage_gib_second",
            Meter::Restores => "restore",
            Meter::Requests => "request",
            Meter::Sent => "sent_gib",
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Meter::Core => "Core-Seconds",
            Meter::Memory | Meter::Storage => "GiB-Seconds",
            Meter::Restores => "Restores",
            Meter::Requests => "Requests",
            Meter::Sent => "GiB",
        }
    }

    /// What is counted.
    pub fn counted_unit(self) -> &'static str {
        match self {
            Meter::Core => "Core-Nanoseconds",
            Meter::Memory | Meter::Storage => "Byte-Nanoseconds",
            Meter::Restores => "Restores",
            Meter::Requests => "Requests",
            Meter::Sent => "Bytes",
        }
    }

    /// So many of them are one unit.
    pub fn per_unit(self) -> u128 {
        match self {
            Meter::Core => SECOND,
            Meter::Memory | Meter::Storage => GIB_SECOND,
            Meter::Restores | Meter::Requests => 1,
            Meter::Sent => 1 << 30,
        }
    }

    pub fn of(self, counters: &Counters) -> u128 {
        match self {
            Meter::Core => counters.cpu_ns.into(),
            Meter::Memory => counters.memory_byte_ns,
            Meter::Storage => counters.stored_byte_ns,
            Meter::Restores => counters.restores.into(),
            Meter::Requests => counters.requests.into(),
            Meter::Sent => counters.sent_bytes.into(),
        }
    }

    pub fn description(self) -> &'static str {
        match self {
            Meter::Core => "Processor time of an instance",
            Meter::Memory => "Memory held by an instance",
            Meter::Storage => "Appshots stored",
            Meter::Restores => "Restore of an instance",
            Meter::Requests => "Requests served",
            Meter::Sent => "Answers sent",
        }
    }
}

/// How sure a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    Measured,
    /// Something was not metered: the row bills nothing and says so.
    Gap,
}

impl Quality {
    pub fn name(self) -> &'static str {
        match self {
            Quality::Measured => "measured",
            Quality::Gap => "gap",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Row<'a> {
    pub event_id: String,
    pub hour: Hour,
    pub month: std::ops::Range<Hour>,
    pub account: &'a Account,
    pub meter: Meter,
    pub quality: Quality,
    /// Why it costs nothing, or what is missing.
    pub remark: Option<String>,
    /// Whole numbers, in [`Meter::counted_unit`].
    pub count: u128,
    pub quantity: Decimal,
    pub price: Decimal,
    /// Without what is free.
    pub list_cost: Decimal,
    pub cost: Decimal,
    pub currency: &'a str,
    pub card: &'a str,
}

/// What is wanted of the bill.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    pub node: &'a str,
    /// All without one.
    pub provider: Option<&'a str>,
    pub period: &'a Period,
    pub cards: &'a Cards,
}

/// What a row of the bill is made of.
struct Part<'a> {
    hour: Hour,
    book: &'a Book,
    account: &'a Account,
    used: Counters,
}

/// Tells each row of the bill, by hour and account: always the same ones in the same
/// order. Answers how many.
///
/// What is free of a month is used up from its begin, so days of a month add up to it.
pub fn rows(books: &Books, wanted: &Wanted<'_>, each: &mut dyn FnMut(&Row<'_>) -> Result<()>) -> Result<u64> {
    let mut free: HashMap<(&str, &str, Meter), u128> = HashMap::new();
    let mut count = 0;
    for part in parts(books, wanted)? {
        let is_wanted = wanted.period.wanted().contains(&part.hour);
        for meter in Meter::ALL {
            let used = meter.of(&part.used);
            if used == 0 {
                continue;
            }
            let row = rate(wanted, &part, meter, used, &mut free)?;
            if is_wanted {
                count += 1;
                each(&row)?;
            }
        }
        if let Some((times, reason)) = part.book.gaps.get(&part.hour).filter(|_| is_wanted) {
            count += 1;
            each(&gap(wanted, &part, *times, reason))?;
        }
    }
    Ok(count)
}

fn parts<'a>(books: &'a Books, wanted: &Wanted<'_>) -> Result<Vec<Part<'a>>> {
    let mut parts = Vec::new();
    let hours = wanted.period.month().start..wanted.period.wanted().end;
    let mut known: Vec<&str> = Vec::new();
    for (id, book) in books.iter() {
        let account = book.account.as_ref().ok_or_else(|| {
            Error::failed(format!("the ledger tells the use of {id}, and not whose it is"))
                .fix("`appshot usage verify` tells more")
        })?;
        known.push(&account.provider);
        if wanted.provider.is_some_and(|provider| provider != account.provider) {
            continue;
        }
        let mut of_hour: std::collections::BTreeMap<Hour, Counters> = book.uses().collect();
        for hour in book.gaps.keys() {
            of_hour.entry(*hour).or_default();
        }
        let in_time = of_hour.into_iter().filter(|(hour, _)| hours.contains(hour));
        parts.extend(in_time.map(|(hour, used)| Part {
            hour,
            book,
            account,
            used,
        }));
    }
    if let Some(provider) = wanted.provider.filter(|provider| !known.contains(provider)) {
        let error = Error::new(
            Kind::NotFound,
            format!("there is no usage of a provider {provider:?} in this month"),
        );
        return Err(match libsnap::store::closest(provider, known.into_iter()) {
            Some(near) => error.fix(format!("did you mean {near:?}?")),
            None => error.fix("`appshot usage show` lists the apps and their providers"),
        });
    }
    parts.sort_by(|a, b| (a.hour, &a.account.app, &a.account.id).cmp(&(b.hour, &b.account.app, &b.account.id)));
    Ok(parts)
}

/// Causes for which the provider does not pay a restore.
const PLATFORM_CAUSES: [&str; 2] = ["recovery", "prefetch"];

fn rate<'a>(
    wanted: &Wanted<'a>,
    part: &Part<'a>,
    meter: Meter,
    used: u128,
    free: &mut HashMap<(&'a str, &'a str, Meter), u128>,
) -> Result<Row<'a>> {
    let (mut row, per_unit) = (row(wanted, part, meter, ""), meter.per_unit());
    row.count = used;
    row.quantity = money::quantity(used, per_unit)?;
    let Some(card) = wanted.cards.at(part.hour) else {
        row.remark = Some("no rate card".to_owned());
        return Ok(row);
    };
    row.price = card.price(meter);
    row.list_cost = money::cost(used, per_unit, row.price, card.decimals)?;
    (row.currency, row.card) = (&card.currency, &card.id);
    if meter == Meter::Restores
        && part
            .account
            .cause
            .as_deref()
            .is_some_and(|cause| PLATFORM_CAUSES.contains(&cause))
    {
        row.remark = Some("not charged: it was the platform's doing".to_owned());
        return Ok(row);
    }
    let left = free
        .entry((&part.account.provider, &card.id, meter))
        .or_insert_with(|| money::count(card.free(meter), per_unit));
    let given = used.min(*left);
    *left -= given;
    let mut billed = used - given;
    if given > 0 {
        row.remark = Some(format!("{given} {} were free", meter.counted_unit()));
    }
    let least = money::count(card.minimum(meter), per_unit);
    if billed > 0 && billed < least {
        row.remark = Some(format!("the least that is billed is {least} {}", meter.counted_unit()));
        billed = least;
    }
    row.cost = money::cost(billed, per_unit, row.price, card.decimals)?;
    Ok(row)
}

fn gap<'a>(wanted: &Wanted<'a>, part: &Part<'a>, times: u64, reason: &str) -> Row<'a> {
    Row {
        quality: Quality::Gap,
        remark: Some(format!("not metered, {times} times: {reason}")),
        ..row(wanted, part, Meter::Memory, "gap")
    }
}

fn row<'a>(wanted: &Wanted<'a>, part: &Part<'a>, meter: Meter, which: &str) -> Row<'a> {
    let account = part.account;
    let words = [wanted.node, &account.app, &account.id, meter.name(), which];
    let mut hasher = blake3::Hasher::new();
    for word in words {
        hasher.update(word.as_bytes()).update(b"\n");
    }
    hasher.update(crate::period::instant(part.hour).as_bytes());
    Row {
        event_id: hex(hasher.finalize().as_bytes()),
        hour: part.hour,
        month: wanted.period.month().clone(),
        account,
        meter,
        quality: Quality::Measured,
        remark: None,
        count: 0,
        quantity: Decimal::ZERO,
        price: Decimal::ZERO,
        list_cost: Decimal::ZERO,
        cost: Decimal::ZERO,
        currency: NO_CURRENCY,
        card: NONE,
    }
}

impl Row<'_> {
    pub fn is_of_instance(&self) -> bool {
        matches!(self.account.kind, AccountKind::Started | AccountKind::Restored)
    }
}

#[cfg(test)]
mod tests;
