//! What a provider pays: rate cards (TOML).
//!
//! ```toml
//! version = 1
//! id = "standard-2026"
//! valid_from = "2026-01-01T00:00:00Z"   # a whole hour; until the next card's
//! currency = "EUR"
//! decimals = 6                          # each row is rounded to, half to even
//!
//! [prices]                              # strings: no binary fractions near money
//! core_second = "0.000024"
//! memory_gib_second = "0.0000025"
//! storage_gib_second = "0.00000004"
//! restore = "0.00001"
//! request = "0.0000002"
//! sent_gib = "0.02"
//!
//! [minimum]                             # what a row with less is billed for
//! [free]                                # of each provider and month
//! core_second = "1000"
//! ```

use crate::bill::Meter;
use crate::books::{HOUR_MS, Hour};
use jiff::Timestamp;
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
    prices: BTreeMap<Meter, Amount>,
    #[serde(default)]
    minimum: BTreeMap<Meter, Amount>,
    #[serde(default)]
    free: BTreeMap<Meter, Amount>,
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
                .fix("the README shows one (\"The bill\")")
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
        match Meter::ALL.iter().find(|meter| !self.prices.contains_key(meter)) {
            Some(missing) => Err(format!("prices: {} is missing; it may be \"0\"", missing.name())),
            None => Ok(()),
        }
    }

    pub fn price(&self, meter: Meter) -> Decimal {
        self.prices.get(&meter).map(|amount| amount.0).unwrap_or_default()
    }

    pub fn minimum(&self, meter: Meter) -> Decimal {
        self.minimum.get(&meter).map(|amount| amount.0).unwrap_or_default()
    }

    pub fn free(&self, meter: Meter) -> Decimal {
        self.free.get(&meter).map(|amount| amount.0).unwrap_or_default()
    }
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
        self.0.insert(card.valid_from, card);
        Ok(())
    }

    /// The one of an hour.
    pub fn at(&self, hour: Hour) -> Option<&Card> {
        Some(self.0.range(..=hour).next_back()?.1)
    }
}

#[cfg(test)]
mod tests;
