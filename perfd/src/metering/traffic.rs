//! Requests and bytes of apps, as the node's HTTP entry counts them.
//!
//! `edgepointd` counts from its own begin. What it had counted before the meter began is not
//! taken in; where its counts are lower than before, it has begun
//! anew.

use super::owners::Owners;
use libsnap::store::Store;
use nodekit::client::Client;
use serde::Deserialize;
use std::collections::BTreeMap;
use usage::ledger::Ledger;
use usage::record::{Account, AccountKind, Body, Counters, Moment, Source, State, Use};

/// What is of interest of `GET /v1/traffic`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Told {
    app: String,
    /// Answers that were given to the end.
    served: u64,
    bytes_in: u64,
    bytes_out: u64,
    /// Absent where the daemon is older.
    #[serde(default)]
    waited_ns: u64,
}

#[derive(Debug, Default)]
pub struct Traffic {
    /// By app, as it was told last; nothing before the first answer.
    last: Option<BTreeMap<String, Told>>,
}

impl Traffic {
    pub fn look(&mut self, store: &Store, owners: &Owners, ledger: &mut Ledger, at: Moment) {
        let socket = store.run_dir().join("edgepointd.sock");
        if !socket.exists() {
            // Who comes later begins with nothing.
            self.last.get_or_insert_default();
            return;
        }
        let told: Vec<Told> = match Client::new(socket).get("/v1/traffic") {
            Ok(told) => told,
            Err(error) => return tracing::debug!(%error, "no traffic is told"),
        };
        self.take(told, |told, more| {
            let provider = owners.provider(&told.app);
            let id = format!("traffic:{provider}:{}", told.app);
            let mut counters = ledger.books().get(&id).map(|book| book.counters);
            if counters.is_none() {
                let account = account(&id, &told.app, provider, ledger.boot_id(), at);
                ledger.append(at, Body::Account(Box::new(account)));
            }
            let counters = counters.get_or_insert_default();
            counters.requests += more.requests;
            counters.received_bytes += more.received_bytes;
            counters.sent_bytes += more.sent_bytes;
            counters.waited_ns += more.waited_ns;
            let (counters, state) = (*counters, State::Running);
            ledger.append(at, Body::Use(Use { id, state, counters }));
        });
    }

    /// Tells what each app has had since the last time, where that is something.
    fn take(&mut self, told: Vec<Told>, mut each: impl FnMut(&Told, Counters)) {
        let told: BTreeMap<String, Told> = told.into_iter().map(|told| (told.app.clone(), told)).collect();
        for now in told.values().filter(|_| self.last.is_some()) {
            let before = self.last.as_ref().and_then(|last| last.get(&now.app));
            let more = since(before, now);
            if more != Counters::default() {
                each(now, more);
            }
        }
        self.last = Some(told);
    }
}

fn since(before: Option<&Told>, now: &Told) -> Counters {
    let is_same = |before: &&Told| {
        now.served >= before.served
            && now.bytes_in >= before.bytes_in
            && now.bytes_out >= before.bytes_out
            && now.waited_ns >= before.waited_ns
    };
    let before = before.filter(is_same);
    let from = |of: fn(&Told) -> u64| of(now) - before.map_or(0, of);
    Counters {
        requests: from(|told| told.served),
        received_bytes: from(|told| told.bytes_in),
        sent_bytes: from(|told| told.bytes_out),
        waited_ns: from(|told| told.waited_ns),
        ..Counters::default()
    }
}

fn account(id: &str, app: &str, provider: &str, boot_id: &str, at: Moment) -> Account {
    Account {
        id: id.to_owned(),
        app: app.to_owned(),
        provider: provider.to_owned(),
        kind: AccountKind::Traffic,
        name: app.to_owned(),
        boot_id: boot_id.to_owned(),
        began_boot_ns: at.boot_ns,
        began_unix_ms: at.unix_ms,
        source: Source::Dispatcher,
        cause: None,
        state: State::Running,
        counters: Counters::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_counts() {
        let mut traffic = Traffic::default();
        let mut take = |app: &str, served, bytes_out| {
            let mut told = Vec::new();
            let now = Told {
                app: app.to_owned(),
                served,
                bytes_in: 0,
                bytes_out,
                waited_ns: 0,
            };
            traffic.take(vec![now], |_, more| told.push((more.requests, more.sent_bytes)));
            told
        };
        assert_eq!(take("web", 10, 100), [], "from before");
        assert_eq!(take("web", 12, 150), [(2, 50)]);
        assert_eq!(take("web", 12, 150), []);
        assert_eq!(take("web", 1, 10), [(1, 10)], "it began anew");
        assert_eq!(take("other", 3, 0), [(3, 0)], "one that is new");
    }
}
