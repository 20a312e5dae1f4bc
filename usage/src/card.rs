//! What a provider pays: rate cards (TOML).
//!
//! ```toml
//! version = 1
//! id = "standard-2026"
//! valid_from = "2026-01-01T00:00:00Z"   # a whole hour; until the next card's
//! currency = "EUR"
//! decimals = 6                          # each row is rounded to, half to even
//! time_zone = "Europe/Berlin"           # whose months and days are billed; UTC without it
//!
//! [prices]                              # strings: no binary fractions near money
//! core_second = "0.000024"
//! memory_gib_second = "0.0000025"
//! storage_gib_second = "0.00000004"
//! restore = "0.00001"
//! sent_gib = "0.02"
//!
//! [[tiers.request]]                     # instead of one price: of each provider and month
//! up_to = "1000000"
//! price = "0.0000002"
//! [[tiers.request]]                     # what is beyond
//! price = "0.0000001"
//!
//! [minimum]                             # what a row with less is billed for
//! [free]                                # of each provider and month, before the tiers
//! core_second = "1000"
//!
//! [[guarantee]]                         # processors that are kept ready for an app
//! provider = "acme"
//! app = "web"
//! cores = "0.5"
//! price = "0.00001"                     # of each core-second that is kept, used or not
//! ```
//!
//! What an app uses of the processors that are kept for it costs nothing more. For as long
//! as it was wanted and waited for the node's memory, its guarantee is credited.

use crate::books::{HOUR_MS, Hour};
use crate::meter::Meter;
use crate::money;
use crate::period;
use crate::record::Whose;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use libsnap::error::{Error, Kind, OrFail, Result};
use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const VERSION: u32 = 1;
const BYTES_MAX: u64 = 1 << 20;
const DECIMALS_MAX: u32 = 12;
/// Digits behind the point of a price.
const SCALE_MAX: u32 = 18;
const AMOUNT_MAX: u64 = 1_000_000_000_000;

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    version: u32,
    pub id: String,
    #[serde(deserialize_with = "whole_hour")]
    valid_from: Hour,
    pub currency: String,
    #[serde(default = "micros")]
    pub decimals: u32,
    #[serde(default = "utc")]
    time_zone: String,
    prices: BTreeMap<Meter, Amount>,
    #[serde(default)]
    tiers: BTreeMap<Meter, Vec<Tier>>,
    #[serde(default)]
    minimum: BTreeMap<Meter, Amount>,
    #[serde(default)]
    free: BTreeMap<Meter, Amount>,
    #[serde(default)]
    guarantee: Vec<Guarantee>,
}

/// A price up to so much.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tier {
    up_to: Option<Amount>,
    price: Amount,
}

/// Processors that are kept ready for an app.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guarantee {
    pub provider: String,
    pub app: String,
    cores: Amount,
    price: Amount,
}

impl Guarantee {
    pub fn is_of(&self, whose: &Whose) -> bool {
        (&self.provider, &self.app) == (&whose.provider, &whose.app)
    }

    /// How many core-nanoseconds it is in so many nanoseconds.
    pub fn reserved(&self, ns: u128) -> u128 {
        money::count(self.cores.0, ns)
    }

    pub fn price(&self) -> Decimal {
        self.price.0
    }
}

fn utc() -> String {
    "UTC".to_owned()
}

fn micros() -> u32 {
    6
}

fn whole_hour<'de, D: Deserializer<'de>>(from: D) -> Result<Hour, D::Error> {
    let wrong = |because: &str| serde::de::Error::custom(format!("valid_from: {because}"));
    let text = String::deserialize(from)?;
    let at: Timestamp = text
        .parse()
        .map_err(|_| wrong("expected a moment such as 2026-01-01T00:00:00Z"))?;
    let ms = u64::try_from(at.as_millisecond()).map_err(|_| wrong("it lies before 1970"))?;
    match ms % HOUR_MS == 0 {
        true => Ok(ms / HOUR_MS),
        false => Err(wrong("it must be a whole hour, as rows are")),
    }
}

/// A decimal of zero or more.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
struct Amount(Decimal);

impl TryFrom<String> for Amount {
    type Error = String;

    fn try_from(text: String) -> Result<Amount, String> {
        let wrong = |because: &str| format!("{text:?} is no amount: {because}");
        let decimal = Decimal::from_str_exact(&text).map_err(|error| wrong(&error.to_string()))?;
        if decimal.is_sign_negative() {
            return Err(wrong("it is negative"));
        }
        if decimal.scale() > SCALE_MAX || decimal > Decimal::from(AMOUNT_MAX) {
            return Err(wrong("it has too many digits"));
        }
        Ok(Amount(decimal))
    }
}

impl Card {
    pub fn parse(text: &str) -> Result<Card> {
        let wrong = |because: &dyn std::fmt::Display| {
            Error::new(Kind::Usage, "this is no rate card")
                .because(because.to_string().trim_end())
                .fix("docs/bill.md shows one")
        };
        let table: toml::Table = text.parse().map_err(|error| wrong(&error))?;
        match table.get("version").map(toml::Value::as_integer) {
            Some(Some(version)) if version == i64::from(VERSION) => {}
            Some(Some(version)) => {
                return Err(wrong(&format!(
                    "it is of version {version}; this program knows {VERSION}"
                )));
            }
            _ => return Err(wrong(&"it does not say version = 1")),
        }
        let card: Card = toml::from_str(text).map_err(|error| wrong(&error))?;
        card.sensible().map_err(|because| wrong(&because))?;
        Ok(card)
    }

    fn sensible(&self) -> Result<(), String> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if self.id.is_empty() || self.id == NONE || self.id.len() > 64 || !self.id.chars().all(is_plain) {
            return Err(format!("id: {:?} cannot be the name of a card", self.id));
        }
        if self.currency.len() != 3 || !self.currency.bytes().all(|byte| byte.is_ascii_uppercase()) {
            return Err(format!("currency: {:?} is no code such as EUR", self.currency));
        }
        if self.decimals > DECIMALS_MAX {
            return Err(format!("decimals: {} are more than {DECIMALS_MAX}", self.decimals));
        }
        let zone = period::zone(&self.time_zone).map_err(|error| format!("time_zone: {error}"))?;
        period::Period::of(self.valid_from * HOUR_MS, &zone)
            .map_err(|error| format!("time_zone: {}", error.because.unwrap_or(error.what)))?;
        for meter in Meter::ALL {
            let name = meter.name();
            match (self.prices.contains_key(&meter), self.tiers.get(&meter)) {
                (true, Some(_)) => return Err(format!("{name} has a price and tiers: one of them is enough")),
                (true, None) => {}
                (false, Some(tiers)) => ascending(tiers).map_err(|because| format!("tiers: {name}: {because}"))?,
                (false, None) => return Err(format!("prices: {name} is missing; it may be \"0\"")),
            }
        }
        let of_guarantee = [&self.prices, &self.minimum, &self.free].map(|of| of.contains_key(&Meter::Reserved));
        if of_guarantee.contains(&true) || self.tiers.contains_key(&Meter::Reserved) {
            return Err(format!("{} has its price in [[guarantee]]", Meter::Reserved.name()));
        }
        let mut apps: Vec<(&String, &String)> = self.guarantee.iter().map(|of| (&of.provider, &of.app)).collect();
        apps.sort_unstable();
        match apps.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("guarantee: {} of {} has two", pair[0].1, pair[0].0)),
            None => Ok(()),
        }
    }

    /// What is paid first of so many units.
    pub fn price(&self, meter: Meter) -> Decimal {
        let first = self.tiers.get(&meter).and_then(|tiers| tiers.first());
        let first = first.map(|tier| &tier.price).or(self.prices.get(&meter));
        first.map(|amount| amount.0).unwrap_or_default()
    }

    /// What so many cost, where `before` of them were billed in the month: by tiers.
    pub fn cost(&self, meter: Meter, before: u128, count: u128) -> Result<Decimal> {
        let per_unit = meter.per_unit();
        let Some(tiers) = self.tiers.get(&meter) else {
            return money::cost(&[(count, self.price(meter))], per_unit, self.decimals);
        };
        let (mut from, end, mut parts) = (before, before.saturating_add(count), Vec::new());
        for tier in tiers {
            let until = tier.up_to.map_or(u128::MAX, |units| money::count(units.0, per_unit));
            let part = end.min(until).saturating_sub(from);
            parts.push((part, tier.price.0));
            from += part;
        }
        money::cost(&parts, per_unit, self.decimals)
    }

    pub fn guarantees(&self) -> &[Guarantee] {
        &self.guarantee
    }

    pub fn minimum(&self, meter: Meter) -> Decimal {
        self.minimum.get(&meter).map(|amount| amount.0).unwrap_or_default()
    }

    pub fn free(&self, meter: Meter) -> Decimal {
        self.free.get(&meter).map(|amount| amount.0).unwrap_or_default()
    }
}

fn ascending(tiers: &[Tier]) -> Result<(), &'static str> {
    let Some((last, others)) = tiers.split_last() else {
        return Err("there is none");
    };
    if last.up_to.is_some() {
        return Err("the last has no up_to: it is what is beyond");
    }
    let mut before = Decimal::ZERO;
    for tier in others {
        match &tier.up_to {
            None => return Err("only the last has no up_to"),
            Some(up_to) if up_to.0 <= before => return Err("each up_to is higher than the one before"),
            Some(up_to) => before = up_to.0,
        }
    }
    Ok(())
}

/// Id of no card at all.
pub const NONE: &str = "none";
/// Currency of what costs nothing.
pub const NO_CURRENCY: &str = "XXX";

/// All cards there are; each from its hour on until the next one's.
#[derive(Clone, Debug, Default)]
pub struct Cards(BTreeMap<Hour, Card>);

impl Cards {
    /// Those in `usage/rates`.
    pub fn of(usage: &Path) -> Result<Cards> {
        let dir = usage.join("rates");
        let mut paths = Vec::new();
        if dir.exists() {
            for stem in libsnap::store::stems(&dir, ".toml")? {
                paths.push(dir.join(format!("{stem}.toml")));
            }
        }
        Cards::read(&paths)
    }

    pub fn read(paths: &[PathBuf]) -> Result<Cards> {
        let mut cards = Cards::default();
        for path in paths {
            let what = || format!("cannot read the rate card {}", path.display());
            let length = path.metadata().or_fail(what)?.len();
            if length > BYTES_MAX {
                return Err(Error::new(Kind::Usage, what()).because(format!("it is {length} bytes long")));
            }
            let text = std::fs::read_to_string(path).or_fail(what)?;
            let card = Card::parse(&text).map_err(|error| Error {
                what: format!("{}: {}", what(), error.what),
                ..error
            })?;
            cards.add(card)?;
        }
        Ok(cards)
    }

    pub fn add(&mut self, card: Card) -> Result<()> {
        let overlap = |because: String| {
            Error::new(Kind::Usage, "the rate cards do not fit together")
                .because(because)
                .fix("take one of them away, or change it")
        };
        if let Some(other) = self.0.values().find(|other| other.id == card.id) {
            return Err(overlap(format!("two are called {}", other.id)));
        }
        if let Some(other) = self.0.get(&card.valid_from) {
            return Err(overlap(format!("{} and {} begin at the same hour", other.id, card.id)));
        }
        if let Some(other) = self.0.values().find(|other| other.currency != card.currency) {
            return Err(overlap(format!(
                "{} is in {}, {} in {}",
                other.id, other.currency, card.id, card.currency
            )));
        }
        if let Some(other) = self.0.values().find(|other| other.time_zone != card.time_zone) {
            return Err(overlap(format!(
                "{} is for months of {}, {} of {}",
                other.id, other.time_zone, card.id, card.time_zone
            )));
        }
        self.0.insert(card.valid_from, card);
        Ok(())
    }

    /// Whose months and days are billed.
    pub fn zone(&self) -> TimeZone {
        let named = self
            .0
            .values()
            .next()
            .and_then(|card| period::zone(&card.time_zone).ok());
        named.unwrap_or(TimeZone::UTC)
    }

    /// All of them, by the hour from which on they are valid.
    pub fn iter(&self) -> impl Iterator<Item = &Card> {
        self.0.values()
    }

    /// The one of an hour.
    pub fn at(&self, hour: Hour) -> Option<&Card> {
        Some(self.0.range(..=hour).next_back()?.1)
    }
}

#[cfg(test)]
mod tests;
