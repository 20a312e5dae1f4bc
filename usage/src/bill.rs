//! The rows of a bill: one an hour, account and meter; what is kept ready; corrections.

use crate::books::Hour;
use crate::card::{Card, Cards, Guarantee, NO_CURRENCY, NONE};
use crate::hours::{Hours, Part};
use crate::meter::Meter;
use crate::money;
use crate::period::{Period, instant};
use crate::record::{AccountKind, Correction, Source, Whose, hex};
use libsnap::error::{Error, Kind, OrFail, Result};
use rust_decimal::Decimal;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

/// What a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    Measured,
    /// Something was not metered: the row bills nothing and says so.
    Gap,
    /// By the rate card, used or not.
    Reserved,
    /// Given back, as a guarantee was not kept.
    Credit,
    /// Of another row.
    Correction,
}

impl Quality {
    pub fn name(self) -> &'static str {
        match self {
            Quality::Measured => "measured",
            Quality::Gap => "gap",
            Quality::Reserved => "reserved",
            Quality::Credit => "credit",
            Quality::Correction => "correction",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Row<'a> {
    pub event_id: String,
    pub hour: Hour,
    pub month: Range<Hour>,
    pub whose: &'a Whose,
    pub meter: Meter,
    pub quality: Quality,
    /// Why it costs what it does, or what is missing.
    pub remark: Option<String>,
    /// Whole numbers, in [`Meter::counted_unit`]; negative ones are given back.
    pub count: i128,
    pub quantity: Decimal,
    pub price: Decimal,
    /// At this price, without what is free.
    pub list_cost: Decimal,
    pub cost: Decimal,
    pub currency: &'a str,
    pub card: &'a str,
    /// Id of the row that this one corrects.
    pub corrects: Option<&'a str>,
    /// Whether it is rated by what it counts, and what it found then.
    pub charged: bool,
    pub before: Before,
}

/// What a row finds that has a price by tiers: what is left of the guarantee of this hour and
/// of what is free in the month, and what was billed in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before {
    pub kept: u128,
    pub free: u128,
    pub billed: u128,
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

/// A ledger, and how a period of it is rated.
#[derive(Debug)]
pub struct Bill {
    pub hours: Hours,
    pub node: String,
    pub cards: Cards,
    pub period: Period,
}

impl Bill {
    /// Reads the ledger below `usage` for this period, or this month.
    pub fn open(usage: &Path, cards: Cards, period: Option<&Period>, now_unix_ms: u64) -> Result<Bill> {
        let period = match period {
            Some(period) => period.in_zone(&cards.zone())?,
            None => Period::of(now_unix_ms, &cards.zone())?,
        };
        let period = period.begun(now_unix_ms)?;
        let (hours, reached) = Hours::read(usage, period.month())?;
        Ok(Bill {
            hours,
            node: reached.node.unwrap_or_default(),
            cards,
            period,
        })
    }

    pub fn wanted<'a>(&'a self, provider: Option<&'a str>) -> Wanted<'a> {
        Wanted {
            node: &self.node,
            provider,
            period: &self.period,
            cards: &self.cards,
        }
    }
}

/// Causes for which the provider does not pay a restore.
const PLATFORM_CAUSES: [&str; 2] = ["recovery", "prefetch"];

pub const HOUR_NS: u128 = 3_600_000_000_000;

/// Tells each row of the bill, by hour and account: always the same ones in the same
/// order. Answers how many.
///
/// What is free of a month, and its tiers, are used up from its begin, so days of a month
/// add up to it.
pub fn rows(hours: &Hours, wanted: &Wanted<'_>, each: &mut dyn FnMut(&Row<'_>) -> Result<()>) -> Result<u64> {
    is_known(hours, wanted)?;
    let period = wanted.period;
    let is_of = |provider: &str| wanted.provider.is_none_or(|wanted| wanted == provider);
    let (mut month, mut count) = (Month::default(), 0);
    for hour in period.month().start..period.wanted().end.min(hours.until()) {
        let is_wanted = period.wanted().contains(&hour);
        let mut tell = |row: &Row<'_>| match is_wanted {
            true => {
                count += 1;
                each(row)
            }
            false => Ok(()),
        };
        let card = wanted.cards.at(hour);
        let page = Page {
            wanted,
            hour,
            from: instant(hour),
            card,
        };
        month.begin(card);
        let guarantees = card.map_or(&[][..], Card::guarantees);
        for guarantee in guarantees.iter().filter(|guarantee| is_of(&guarantee.provider)) {
            page.guarantee(guarantee, &mut tell)?;
        }
        for part in hours.sheet(hour)?.iter().filter(|part| is_of(&part.whose.provider)) {
            page.part(part, &mut month, &mut tell)?;
        }
    }
    Ok(count)
}

/// Refuses a provider that has neither used anything nor a guarantee.
pub(crate) fn is_known(hours: &Hours, wanted: &Wanted<'_>) -> Result<()> {
    let guaranteed = wanted
        .cards
        .iter()
        .flat_map(Card::guarantees)
        .map(|guarantee| &guarantee.provider);
    let known: Vec<&str> = hours.providers().iter().chain(guaranteed).map(String::as_str).collect();
    let Some(provider) = wanted.provider.filter(|provider| !known.contains(provider)) else {
        return Ok(());
    };
    let error = Error::new(
        Kind::NotFound,
        format!("there is no usage of a provider {provider:?} in this ledger"),
    );
    Err(match libsnap::store::closest(provider, known.into_iter()) {
        Some(near) => error.fix(format!("did you mean {near:?}?")),
        None => error.fix("`appshot usage show` lists the apps and their providers"),
    })
}

/// What was billed in this month, by provider and meter, and what is left of the guarantees of
/// this hour.
#[derive(Default)]
struct Month<'a> {
    card: Option<&'a Card>,
    used: HashMap<String, HashMap<Meter, Before>>,
    kept: Vec<(&'a Guarantee, u128)>,
}

impl<'a> Month<'a> {
    /// Begins an hour. Another card has tiers of its own.
    fn begin(&mut self, card: Option<&'a Card>) {
        if self.card.map(|card| &card.id) != card.map(|card| &card.id) {
            self.used.clear();
        }
        self.card = card;
        self.kept.clear();
        let guarantees = card.into_iter().flat_map(Card::guarantees);
        let kept = guarantees.map(|of| (of, of.reserved(HOUR_NS)));
        self.kept.extend(kept);
    }

    fn before(&mut self, card: &Card, whose: &Whose, meter: Meter) -> Before {
        if !self.used.contains_key(&whose.provider) {
            self.used.insert(whose.provider.clone(), HashMap::new());
        }
        let of = self.used.entry(whose.provider.clone()).or_default();
        let free = || money::count(card.free(meter), meter.per_unit());
        let before = of.entry(meter).or_insert_with(|| Before {
            free: free(),
            ..Before::default()
        });
        let of_app = |(of, _): &&(&Guarantee, u128)| meter == Meter::Core && of.is_of(whose);
        Before {
            kept: self.kept.iter().find(of_app).map_or(0, |(_, left)| *left),
            ..*before
        }
    }

    fn after(&mut self, whose: &Whose, meter: Meter, after: Before) {
        if let Some(before) = self.used.get_mut(&whose.provider).and_then(|of| of.get_mut(&meter)) {
            *before = after;
        }
        if meter == Meter::Core
            && let Some((_, left)) = self.kept.iter_mut().find(|(of, _)| of.is_of(whose))
        {
            *left = after.kept;
        }
    }
}

/// What a count costs at its place, why, and what it leaves to the next.
pub fn amount(card: &Card, meter: Meter, used: u128, before: Before) -> Result<(Decimal, Option<String>, Before)> {
    let unit = meter.counted_unit();
    let kept = used.min(before.kept);
    let given = (used - kept).min(before.free);
    let billed = used - kept - given;
    let least = money::count(card.minimum(meter), meter.per_unit());
    let mut remarks = Vec::new();
    if kept > 0 {
        remarks.push(format!("{kept} {unit} are of the guarantee"));
    }
    if given > 0 {
        remarks.push(format!("{given} {unit} were free"));
    }
    if billed > 0 && billed < least {
        remarks.push(format!("the least that is billed is {least} {unit}"));
    }
    let paid = if billed > 0 { billed.max(least) } else { 0 };
    let after = Before {
        kept: before.kept - kept,
        free: before.free - given,
        billed: before.billed + billed,
    };
    let remark = (!remarks.is_empty()).then(|| remarks.join("; "));
    Ok((card.cost(meter, before.billed, paid)?, remark, after))
}

/// An hour of the bill.
struct Page<'a> {
    wanted: &'a Wanted<'a>,
    hour: Hour,
    from: String,
    card: Option<&'a Card>,
}

type Tell<'a> = &'a mut dyn FnMut(&Row<'_>) -> Result<()>;

impl Page<'_> {
    fn part(&self, part: &Part, month: &mut Month<'_>, tell: Tell<'_>) -> Result<()> {
        if let Some((seq, correction)) = &part.correction {
            return tell(&self.correction(*seq, correction)?);
        }
        for meter in Meter::ALL {
            let used = meter.of(&part.used);
            if used > 0 {
                tell(&self.rate(&part.whose, meter, used, month)?)?;
            }
        }
        if part.used.waited_ns > 0 {
            self.credit(&part.whose, part.used.waited_ns.into(), tell)?;
        }
        match &part.gaps {
            Some((times, reason)) => tell(&Row {
                quality: Quality::Gap,
                remark: Some(format!("not metered, {times} times: {reason}")),
                ..self.row(&part.whose, Meter::Memory, "gap")
            }),
            None => Ok(()),
        }
    }

    fn rate<'a>(&'a self, whose: &'a Whose, meter: Meter, used: u128, month: &mut Month<'_>) -> Result<Row<'a>> {
        let mut row = self.row(whose, meter, "");
        self.count(&mut row, used)?;
        let Some(card) = self.card else {
            row.remark = Some("no rate card".to_owned());
            return Ok(row);
        };
        row.price = card.price(meter);
        row.list_cost = money::cost(&[(used, row.price)], meter.per_unit(), card.decimals)?;
        let is_ours = |cause: &String| PLATFORM_CAUSES.contains(&cause.as_str());
        if meter == Meter::Restores && whose.cause.as_ref().is_some_and(is_ours) {
            row.remark = Some("not charged: it was the platform's doing".to_owned());
            return Ok(row);
        }
        row.before = month.before(card, whose, meter);
        let (cost, remark, after) = amount(card, meter, used, row.before)?;
        month.after(whose, meter, after);
        (row.charged, row.cost, row.remark) = (true, cost, remark);
        Ok(row)
    }

    fn guarantee(&self, of: &Guarantee, tell: Tell<'_>) -> Result<()> {
        let whose = Whose {
            app: of.app.clone(),
            id: format!("guarantee:{}:{}", of.provider, of.app),
            provider: of.provider.clone(),
            name: of.app.clone(),
            kind: AccountKind::Started,
            source: Source::Card,
            cause: None,
        };
        let mut row = self.row(&whose, Meter::Reserved, "");
        self.reserved(&mut row, of, HOUR_NS)?;
        row.quality = Quality::Reserved;
        tell(&row)
    }

    /// For as long as it waited for memory, at most for all of the hour.
    fn credit(&self, whose: &Whose, waited_ns: u128, tell: Tell<'_>) -> Result<()> {
        let guarantees = self.card.map_or(&[][..], Card::guarantees);
        let Some(of) = guarantees.iter().find(|of| of.is_of(whose)) else {
            return Ok(());
        };
        let mut row = self.row(whose, Meter::Reserved, "credit");
        self.reserved(&mut row, of, waited_ns.min(HOUR_NS))?;
        (row.count, row.quantity) = (-row.count, -row.quantity);
        (row.cost, row.list_cost) = (-row.cost, -row.list_cost);
        row.quality = Quality::Credit;
        row.remark = Some("credited: it waited for memory, so its guarantee was not kept".to_owned());
        tell(&row)
    }

    fn reserved(&self, row: &mut Row<'_>, of: &Guarantee, ns: u128) -> Result<()> {
        let count = of.reserved(ns);
        self.count(row, count)?;
        row.price = of.price();
        let decimals = self.card.map_or(0, |card| card.decimals);
        row.cost = money::cost(&[(count, row.price)], row.meter.per_unit(), decimals)?;
        row.list_cost = row.cost;
        Ok(())
    }

    fn count(&self, row: &mut Row<'_>, count: u128) -> Result<()> {
        row.count = i128::try_from(count).or_fail(|| "more was counted than can be billed")?;
        row.quantity = money::quantity(row.count, row.meter.per_unit())?;
        Ok(())
    }

    /// As it was written down: what it costs was said then.
    fn correction<'a>(&'a self, seq: u64, of: &'a Correction) -> Result<Row<'a>> {
        let mut row = self.row(&of.of, of.meter, &format!("correction {seq}"));
        row.quantity = money::quantity(of.count, of.meter.per_unit())?;
        (row.hour, row.count, row.quality) = (of.hour, of.count, Quality::Correction);
        (row.cost, row.list_cost) = (of.cost, of.cost);
        (row.currency, row.card) = (&of.currency, &of.card);
        let card = self.wanted.cards.at(of.hour).filter(|card| card.id == of.card);
        row.price = card.map(|card| card.price(of.meter)).unwrap_or_default();
        row.remark = Some(format!("correction: {}", of.reason));
        row.corrects = Some(&of.event);
        Ok(row)
    }

    fn row<'a>(&'a self, whose: &'a Whose, meter: Meter, which: &str) -> Row<'a> {
        let words = [self.wanted.node, &whose.app, &whose.id, meter.name(), which];
        let mut hasher = blake3::Hasher::new();
        for word in words {
            hasher.update(word.as_bytes()).update(b"\n");
        }
        hasher.update(self.from.as_bytes());
        Row {
            event_id: hex(hasher.finalize().as_bytes()),
            hour: self.hour,
            month: self.wanted.period.month().clone(),
            whose,
            meter,
            quality: Quality::Measured,
            remark: None,
            count: 0,
            quantity: Decimal::ZERO,
            price: Decimal::ZERO,
            list_cost: Decimal::ZERO,
            cost: Decimal::ZERO,
            currency: self.card.map_or(NO_CURRENCY, |card| &card.currency),
            card: self.card.map_or(NONE, |card| &card.id),
            corrects: None,
            charged: false,
            before: Before::default(),
        }
    }
}

impl Row<'_> {
    pub fn is_of_instance(&self) -> bool {
        self.meter != Meter::Reserved && matches!(self.whose.kind, AccountKind::Started | AccountKind::Restored)
    }
}

#[cfg(test)]
mod tests;
