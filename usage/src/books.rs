//! What each account has counted by now, as long as it is open: for the meter.

use crate::record::{Account, Body, Counters, Record, State};
use std::collections::BTreeMap;

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
}

/// Those that have not ended.
#[derive(Clone, Debug, Default)]
pub struct Books {
    accounts: BTreeMap<String, Book>,
    /// By provider and app.
    totals: BTreeMap<(String, String), Counters>,
    gaps: u64,
}

impl Books {
    pub fn take(&mut self, record: &Record) {
        self.note(&record.body);
    }

    pub fn note(&mut self, body: &Body) {
        match body {
            Body::Account(account) => {
                let book = self.accounts.entry(account.id.clone()).or_default();
                book.account.get_or_insert_with(|| (**account).clone());
                self.count(&account.id, &account.counters, account.state);
            }
            Body::Use(used) => self.count(&used.id, &used.counters, used.state),
            Body::End(end) => {
                self.count(&end.id, &end.counters, end.state);
                self.accounts.remove(&end.id);
            }
            Body::Gap(_) => self.gaps += 1,
            Body::Head(_)
            | Body::Start(_)
            | Body::Node(_)
            | Body::Checkpoint(_)
            | Body::Correction(_)
            | Body::Sealed(_)
            | Body::Snapshots(_) => {}
        }
    }

    fn count(&mut self, id: &str, counters: &Counters, state: State) {
        let book = self.accounts.entry(id.to_owned()).or_default();
        if let Some(account) = &book.account {
            let key = (account.provider.clone(), account.app.clone());
            let more = counters.since(&book.counters);
            self.totals.entry(key).or_default().add(&more);
        }
        book.counters.raise(counters);
        book.state = Some(state);
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

    /// All of them, as they began.
    pub fn began(&self) -> impl Iterator<Item = &Account> {
        self.accounts.values().filter_map(|book| book.account.as_ref())
    }

    /// All of them, as they are now.
    pub fn accounts(&self) -> Vec<Account> {
        let all = self.accounts.values().filter_map(|book| {
            let account = book.account.clone()?;
            Some(Account {
                state: book.state.unwrap_or(account.state),
                counters: book.counters,
                ..account
            })
        });
        all.collect()
    }
}
