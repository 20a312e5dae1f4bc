//! What apps have stored, and for how long they sleep in it.

use super::SEEN_NS;
use super::STORAGE_NS;
use super::owners::Owners;
use libsnap::error::Result;
use libsnap::store::{State as AppState, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use usage::ledger::Ledger;
use usage::record::{Account, AccountKind, Body, Counters, Moment, Source, State, Use};

/// By provider and app.
type Key = (String, String);

#[derive(Debug, Default)]
pub struct Storage {
    at_ns: u64,
    bytes: BTreeMap<Key, u64>,
    /// Appshots by name, with what a new one differs in; nothing before the first look.
    seen: Option<BTreeMap<String, u64>>,
}

impl Storage {
    pub fn look(&mut self, store: &Store, owners: &Owners, ledger: &mut Ledger, at: Moment) -> Result<()> {
        let mut bytes: BTreeMap<Key, u64> = BTreeMap::new();
        let mut seen = BTreeMap::new();
        let mut snapshots: BTreeMap<Key, u64> = BTreeMap::new();
        for entry in store.appshots()? {
            let key = key(owners, &entry.name);
            *bytes.entry(key.clone()).or_default() += entry.bytes;
            let mark = entry.path.metadata().map(|meta| meta.ino()).unwrap_or_default();
            if self
                .seen
                .as_ref()
                .is_some_and(|seen| seen.get(&entry.name) != Some(&mark))
            {
                *snapshots.entry(key).or_default() += 1;
            }
            seen.insert(entry.name, mark);
        }
        let asleep: BTreeSet<Key> = store
            .list()?
            .iter()
            .filter(|app| app.state() == AppState::Asleep)
            .map(|app| key(owners, &app.name))
            .collect();
        let passed = at.boot_ns.saturating_sub(self.at_ns);
        let is_known = self.at_ns > 0 && passed <= STORAGE_NS + SEEN_NS;
        let keys: BTreeSet<Key> = bytes.keys().chain(self.bytes.keys()).cloned().collect();
        for key in keys {
            let id = format!("store:{}:{}", key.0, key.1);
            let mut counters = ledger.books().get(&id).map(|book| book.counters);
            if counters.is_none() {
                ledger.append(at, Body::Account(Box::new(account(&id, &key, ledger.boot_id(), at))));
            }
            let counters = counters.get_or_insert_default();
            let size = |of: &BTreeMap<Key, u64>| u128::from(of.get(&key).copied().unwrap_or_default());
            match is_known {
                true => counters.stored_byte_ns += (size(&self.bytes) + size(&bytes)) * u128::from(passed) / 2,
                false => counters.unseen_ns += if self.at_ns > 0 { passed } else { 0 },
            }
            if is_known && asleep.contains(&key) {
                counters.asleep_ns += passed;
            }
            counters.snapshots += snapshots.get(&key).copied().unwrap_or_default();
            let state = if asleep.contains(&key) {
                State::Asleep
            } else {
                State::Running
            };
            let counters = *counters;
            ledger.append(at, Body::Use(Use { id, state, counters }));
        }
        (self.at_ns, self.bytes, self.seen) = (at.boot_ns, bytes, Some(seen));
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
