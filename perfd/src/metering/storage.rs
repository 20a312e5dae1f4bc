//! What apps have stored, and for how long they sleep in it.

use super::SEEN_NS;
use super::STORAGE_NS;
use super::owners::Owners;
use libsnap::error::Result;
use libsnap::store::{App, Store};
use std::collections::{BTreeMap, BTreeSet};
use usage::ledger::Ledger;
use usage::record::{Account, AccountKind, Body, Counters, Moment, Source, State, Use};

/// What does not change is told so often.
const TELL_NS: u64 = 6 * STORAGE_NS;

/// By provider and app.
type Key = (String, String);

#[derive(Debug, Default)]
pub struct Storage {
    at_ns: u64,
    bytes: BTreeMap<Key, u64>,
    /// What was counted, and when the ledger was told.
    counted: BTreeMap<Key, (Counters, u64)>,
}

impl Storage {
    /// Tells the ledger what has changed, each minute what has not; now where `all`. `sleeping` are
    /// apps.
    pub fn look(
        &mut self,
        store: &Store,
        sleeping: &[App],
        owners: &Owners,
        ledger: &mut Ledger,
        at: Moment,
        all: bool,
    ) -> Result<()> {
        let mut bytes: BTreeMap<Key, u64> = BTreeMap::new();
        for entry in store.appshots()? {
            *bytes.entry(key(owners, &entry.name)).or_default() += entry.bytes;
        }
        let asleep: BTreeSet<Key> = sleeping.iter().map(|app| key(owners, &app.name)).collect();
        let passed = at.boot_ns.saturating_sub(self.at_ns);
        let is_known = self.at_ns > 0 && passed <= STORAGE_NS + SEEN_NS;
        let keys: BTreeSet<Key> = bytes.keys().chain(self.bytes.keys()).cloned().collect();
        for key in keys {
            let id = format!("store:{}:{}", key.0, key.1);
            let known = ledger.books().get(&id).map(|book| book.counters);
            if known.is_none() {
                ledger.append(at, Body::Account(Box::new(account(&id, &key, ledger.boot_id(), at))));
            }
            let since_told = (known.unwrap_or_default(), 0);
            let (counters, told_ns) = self.counted.entry(key.clone()).or_insert(since_told);
            let size = |of: &BTreeMap<Key, u64>| u128::from(of.get(&key).copied().unwrap_or_default());
            match is_known {
                true => counters.stored_byte_ns += (size(&self.bytes) + size(&bytes)) * u128::from(passed) / 2,
                false => counters.unseen_ns += if self.at_ns > 0 { passed } else { 0 },
            }
            if is_known && asleep.contains(&key) {
                counters.asleep_ns += passed;
            }
            let is_other = bytes.get(&key) != self.bytes.get(&key);
            if !(all || is_other || at.boot_ns.saturating_sub(*told_ns) >= TELL_NS) {
                continue;
            }
            *told_ns = at.boot_ns;
            let state = if asleep.contains(&key) {
                State::Asleep
            } else {
                State::Running
            };
            let counters = *counters;
            ledger.append(at, Body::Use(Use { id, state, counters }));
        }
        (self.at_ns, self.bytes) = (at.boot_ns, bytes);
        Ok(())
    }
}

fn key(owners: &Owners, name: &str) -> Key {
    let app = owners.app_named(name);
    (owners.provider(&app).to_owned(), app)
}

fn account(id: &str, (provider, app): &Key, boot_id: &str, at: Moment) -> Account {
    Account {
        id: id.to_owned(),
        app: app.clone(),
        provider: provider.clone(),
        kind: AccountKind::Store,
        name: app.clone(),
        boot_id: boot_id.to_owned(),
        began_boot_ns: at.boot_ns,
        began_unix_ms: at.unix_ms,
        source: Source::Files,
        cause: None,
        state: State::Asleep,
        counters: Counters::default(),
    }
}
