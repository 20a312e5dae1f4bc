//! What each account has counted: the ledger, read into memory.
//!
//! Of an account and an hour only the highest counters are kept. What was used in an hour
//! is what they are higher by than all before: no order of the records, and none that is
//! read twice, changes that, and what is lost in between shows up later, once.

use crate::read::{Reached, no_ledger, read};
use crate::record::{Account, Body, Counters, Record, State};
use libsnap::error::Result;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Hours since the Unix epoch.
pub type Hour = u64;

pub const HOUR_MS: u64 = 3_600_000;

pub fn hour_of(unix_ms: u64) -> Hour {
    unix_ms / HOUR_MS
}

/// One account.
#[derive(Clone, Debug, Default)]
pub struct Book {
    /// Absent as long as only its use was read.
    pub account: Option<Account>,
    pub counters: Counters,
    pub state: Option<State>,
    pub ended: bool,
    /// By hour, the highest; most accounts have one.
    hours: Vec<(Hour, Counters)>,
    /// Gaps by hour: how many, and the first reason.
    pub gaps: BTreeMap<Hour, (u64, String)>,
}

impl Book {
    /// What was used in each hour, by hour; hours without anything are left out.
    pub fn uses(&self) -> impl Iterator<Item = (Hour, Counters)> {
        let mut before = Counters::default();
        self.hours.iter().filter_map(move |(hour, counters)| {
            let mut now = before;
            now.raise(counters);
            let used = now.since(&before);
            before = now;
            (used != Counters::default()).then_some((*hour, used))
        })
    }

    pub fn total(&self) -> Counters {
        let mut total = Counters::default();
        self.hours.iter().for_each(|(_, counters)| total.raise(counters));
        total
    }

    fn raise(&mut self, hour: Hour, counters: &Counters) {
        let place = self.hours.binary_search_by_key(&hour, |(hour, _)| *hour);
        match place {
            Ok(index) => self.hours[index].1.raise(counters),
            Err(index) => {
                if self.hours.is_empty() {
                    self.hours.reserve_exact(1);
                }
                self.hours.insert(index, (hour, *counters));
            }
        }
    }
}

#[derive(Clone, Debug)]
pub struct Books {
    accounts: BTreeMap<String, Book>,
    by_hour: bool,
    /// Hours that are of interest; what was before is kept as one, what comes after is not.
    hours: Range<Hour>,
    /// By provider and app.
    totals: BTreeMap<(String, String), Counters>,
    gaps: u64,
}

impl Books {
    /// For the bill.
    pub fn by_hour() -> Books {
        Books {
            accounts: BTreeMap::new(),
            by_hour: true,
            hours: 0..Hour::MAX,
            totals: BTreeMap::new(),
            gaps: 0,
        }
    }

    /// All of the ledger below `usage`, for a bill of these hours. Takes memory for the
    /// accounts and hours that are in them.
    pub fn read(usage: &Path, hours: &Range<Hour>) -> Result<(Books, Reached)> {
        let mut books = Books::by_hour();
        books.hours = hours.clone();
        let reached = read(usage, 1, &mut |entry| {
            books.take(&entry.record);
            Ok(())
        })?;
        match reached.records {
            0 => Err(no_ledger(usage)),
            _ => Ok((books, reached)),
        }
    }

    /// For the meter: only what is now, and only of what has not ended.
    pub fn open() -> Books {
        Books {
            by_hour: false,
            ..Books::by_hour()
        }
    }

    pub fn take(&mut self, record: &Record) {
        self.note(record.unix_ms, &record.body);
    }

    pub fn note(&mut self, unix_ms: u64, body: &Body) {
        self.gaps += u64::from(matches!(body, Body::Gap(_)));
        match body {
            Body::Account(account) => {
                let book = self.accounts.entry(account.id.clone()).or_default();
                book.account.get_or_insert_with(|| (**account).clone());
                self.count(unix_ms, &account.id, &account.counters, account.state);
            }
            Body::Use(used) => {
                self.count(unix_ms, &used.id, &used.counters, used.state);
            }
            Body::End(end) if self.by_hour => {
                let start = self.hours.start;
                let book = self.count(unix_ms, &end.id, &end.counters, end.state);
                book.ended = true;
                // It is of no interest any more.
                if book.hours.last().is_none_or(|(hour, _)| *hour < start) {
                    self.accounts.remove(&end.id);
                }
            }
            Body::End(end) => {
                self.count(unix_ms, &end.id, &end.counters, end.state);
                self.accounts.remove(&end.id);
            }
            Body::Gap(gap) if self.by_hour => {
                if let Some(id) = gap.id.as_ref().filter(|_| self.hours.contains(&hour_of(unix_ms))) {
                    let gaps = &mut self.accounts.entry(id.clone()).or_default().gaps;
                    let seen = gaps.entry(hour_of(unix_ms)).or_insert_with(|| (0, gap.reason.clone()));
                    seen.0 += 1;
                }
            }
            Body::Gap(_) | Body::Head(_) | Body::Start(_) | Body::Node(_) | Body::Checkpoint(_) => {}
        }
    }

    fn count(&mut self, unix_ms: u64, id: &str, counters: &Counters, state: State) -> &mut Book {
        let by_hour = self.by_hour;
        let hour = hour_of(unix_ms).max(self.hours.start.saturating_sub(1));
        let is_over = hour >= self.hours.end;
        let book = self.accounts.entry(id.to_owned()).or_default();
        if let Some(account) = book.account.as_ref().filter(|_| !by_hour) {
            let key = (account.provider.clone(), account.app.clone());
            let more = counters.since(&book.counters);
            self.totals.entry(key).or_default().add(&more);
        }
        book.counters.raise(counters);
        book.state = Some(state);
        if by_hour && !is_over {
            book.raise(hour, counters);
        }
        book
    }

    /// By provider and app, what was counted since [`Books::begin`]. Sums of peaks have no
    /// meaning.
    pub fn totals(&self) -> &BTreeMap<(String, String), Counters> {
        &self.totals
    }

    /// Begins to count for [`Books::totals`] and [`Books::gaps`].
    pub fn begin(&mut self) {
        self.totals.clear();
        self.gaps = 0;
    }

    /// How many gaps were told since then.
    pub fn gaps(&self) -> u64 {
        self.gaps
    }

    pub fn get(&self, id: &str) -> Option<&Book> {
        self.accounts.get(id)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Book)> {
        self.accounts.iter()
    }

    /// All that have not ended, as they are now.
    pub fn accounts(&self) -> Vec<Account> {
        let open = self.accounts.values().filter(|book| !book.ended);
        open.filter_map(|book| {
            let account = book.account.clone()?;
            Some(Account {
                state: book.state.unwrap_or(account.state),
                counters: book.counters,
                ..account
            })
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Use, VERSION};
    use proptest::prelude::*;

    fn used(hour: u64, cpu_ns: u64) -> Record {
        Record {
            v: VERSION,
            seq: 0,
            boot_ns: 0,
            unix_ms: hour * HOUR_MS + 5,
            body: Body::Use(Use {
                id: "a".to_owned(),
                state: State::Running,
                counters: Counters {
                    cpu_ns,
                    ..Counters::default()
                },
            }),
        }
    }

    fn of(records: &[Record]) -> Vec<(Hour, u64)> {
        let mut books = Books::by_hour();
        records.iter().for_each(|record| books.take(record));
        let book = books.get("a").unwrap();
        book.uses().map(|(hour, used)| (hour, used.cpu_ns)).collect()
    }

    #[test]
    fn an_hour_is_what_it_is_higher_by() {
        let records = [used(1, 10), used(1, 30), used(3, 30), used(4, 31)];
        assert_eq!(of(&records), [(1, 30), (4, 1)]);
    }

    #[test]
    fn what_falls_is_never_counted() {
        assert_eq!(of(&[used(1, 10), used(2, 4), used(3, 12)]), [(1, 10), (3, 2)]);
        // The clock was set back: the sum stays.
        assert_eq!(of(&[used(5, 10), used(2, 14), used(6, 15)]), [(2, 14), (6, 1)]);
    }

    #[test]
    fn a_bill_of_some_hours_is_a_part_of_all() {
        let records: Vec<Record> = (1..9).map(|hour| used(hour, hour * 10)).collect();
        let mut books = Books::by_hour();
        books.hours = 4..6;
        records.iter().for_each(|record| books.take(record));
        let book = books.get("a").unwrap();
        let told: Vec<(Hour, u64)> = book.uses().map(|(hour, used)| (hour, used.cpu_ns)).collect();
        assert_eq!(told, [(3, 30), (4, 10), (5, 10)]);
        assert_eq!(book.hours.len(), 3);
    }

    proptest! {
        #[test]
        fn neither_order_nor_doubles_matter(
            mut records in proptest::collection::vec((0u64..5, 0u64..1000), 1..40),
            seed in any::<u64>(),
        ) {
            let all: Vec<Record> = records.iter().map(|(hour, cpu)| used(*hour, *cpu)).collect();
            let before = of(&all);
            let highest = records.iter().map(|(_, cpu)| *cpu).max().unwrap_or_default();
            prop_assert_eq!(before.iter().map(|(_, cpu)| cpu).sum::<u64>(), highest);
            records.extend_from_within(..records.len() / 2);
            let mut state = seed | 1;
            for index in (1..records.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                records.swap(index, usize::try_from(state >> 33).unwrap() % (index + 1));
            }
            let all: Vec<Record> = records.iter().map(|(hour, cpu)| used(*hour, *cpu)).collect();
            prop_assert_eq!(of(&all), before);
        }
    }
}
