//! `GET /metrics`: what Prometheus scrapes, in OpenMetrics.
//!
//! Counters count since this daemon began. Labels are apps and providers, nothing else.

use libsnap::error::{OrFail, Result};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use usage::books::Books;
use usage::record::{AccountKind, Counters, Node};

/// Of OpenMetrics.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the meter knows just now; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<Now>>);

#[derive(Clone, Debug, Default)]
struct Now {
    totals: BTreeMap<(String, String), Counters>,
    instances: BTreeMap<(String, String), i64>,
    node: Node,
    gaps: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    app: String,
    provider: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Part {
    part: &'static str,
}

type Seconds = Family<Of, Counter<f64, AtomicU64>>;

impl Board {
    /// What the ledger's books say now.
    pub fn show(&self, books: &Books) {
        let mut instances = BTreeMap::new();
        for account in books.began() {
            if matches!(account.kind, AccountKind::Started | AccountKind::Restored) {
                let of = (account.provider.clone(), account.app.clone());
                *instances.entry(of).or_default() += 1;
            }
        }
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        now.totals.clone_from(books.totals());
        (now.instances, now.gaps) = (instances, books.gaps());
    }

    pub fn show_node(&self, node: Node) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).node = node;
    }

    pub fn text(&self) -> Result<String> {
        let now = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut registry = Registry::with_prefix("appshot_usage");
        let mut seconds = |name: &str, help: &str, of: &dyn Fn(&Counters) -> f64| {
            let family = Seconds::default();
            for (key, counters) in &now.totals {
                family.get_or_create(&labels(key)).inc_by(of(counters));
            }
            registry.register_with_unit(name, help, Unit::Seconds, family);
        };
        seconds("cpu", "Processor time of instances", &|of| of.cpu_ns as f64 / 1e9);
        seconds("running", "Time of instances", &|of| of.running_ns as f64 / 1e9);
        seconds("starting", "Time until instances ran, from a command", &|of| {
            of.starting_ns as f64 / 1e9
        });
        seconds("restoring", "Time until instances ran, from an appshot", &|of| {
            of.restoring_ns as f64 / 1e9
        });
        seconds("snapshotting", "Time in which snapshots were taken", &|of| {
            of.snapshotting_ns as f64 / 1e9
        });
        seconds("asleep", "Time in which the app slept", &|of| of.asleep_ns as f64 / 1e9);
        seconds("memory_byte", "Memory held, times time", &|of| {
            of.memory_byte_ns as f64 / 1e9
        });
        seconds("stored_byte", "Appshots stored, times time", &|of| {
            of.stored_byte_ns as f64 / 1e9
        });
        let mut count = |name: &str, help: &str, unit: Option<Unit>, of: &dyn Fn(&Counters) -> u64| {
            let family = Family::<Of, Counter>::default();
            for (key, counters) in &now.totals {
                family.get_or_create(&labels(key)).inc_by(of(counters));
            }
            match unit {
                Some(unit) => registry.register_with_unit(name, help, unit, family),
                None => registry.register(name, help, family),
            }
        };
        count("snapshots", "Snapshots of instances", None, &|of| of.snapshots);
        count("restores", "Instances that came from an appshot", None, &|of| {
            of.restores
        });
        count("requests", "Requests served over HTTP", None, &|of| of.requests);
        let mut bytes = |name: &str, help: &str, of: &dyn Fn(&Counters) -> u64| {
            count(name, help, Some(Unit::Bytes), of);
        };
        bytes(
            "received",
            "Bytes of requests, and through networks of instances",
            &|of| of.received_bytes,
        );
        bytes("sent", "Bytes of answers, and through networks of instances", &|of| {
            of.sent_bytes
        });
        bytes("read", "Bytes read from block devices", &|of| of.read_bytes);
        bytes("written", "Bytes written to block devices", &|of| of.written_bytes);
        let instances = Family::<Of, Gauge>::default();
        for (key, number) in &now.instances {
            instances.get_or_create(&labels(key)).set(*number);
        }
        registry.register("instances", "Instances that run", instances);
        let parts = Family::<Part, Gauge<f64, AtomicU64>>::default();
        let node = now.node;
        for (part, ns) in [
            ("tenants", node.tenants_ns),
            ("platform", node.platform_ns),
            ("busy", node.busy_ns),
            ("idle", node.idle_ns),
        ] {
            parts.get_or_create(&Part { part }).set(ns as f64 / 1e9);
        }
        registry.register_with_unit(
            "node",
            "The node's processors, as looked at each minute",
            Unit::Seconds,
            parts,
        );
        let gaps = Counter::<u64>::default();
        gaps.inc_by(now.gaps);
        registry.register("gaps", "Times that something was not metered", gaps);
        let mut text = String::new();
        encode(&mut text, &registry).or_fail(|| "cannot tell the metrics")?;
        Ok(text)
    }
}

fn labels((provider, app): &(String, String)) -> Of {
    Of {
        app: app.clone(),
        provider: provider.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use usage::record::{Account, Body, Source, State, Use};

    #[test]
    fn what_is_counted_is_told() {
        let mut books = Books::default();
        let account = Account {
            id: "i".to_owned(),
            app: "web".to_owned(),
            provider: "acme".to_owned(),
            kind: AccountKind::Restored,
            name: "web".to_owned(),
            boot_id: "b".to_owned(),
            began_boot_ns: 0,
            began_unix_ms: 0,
            source: Source::Proc,
            cause: None,
            state: State::Running,
            counters: Counters {
                restores: 1,
                ..Counters::default()
            },
        };
        books.note(&Body::Account(Box::new(account)));
        for cpu_ns in [1_000_000_000, 2_500_000_000] {
            let counters = Counters {
                cpu_ns,
                restores: 1,
                sent_bytes: cpu_ns / 1000,
                ..Counters::default()
            };
            let (id, state) = ("i".to_owned(), State::Running);
            books.note(&Body::Use(Use { id, state, counters }));
        }
        let board = Board::default();
        board.show(&books);
        let text = board.text().unwrap();
        for line in [
            "appshot_usage_cpu_seconds_total{app=\"web\",provider=\"acme\"} 2.5",
            "appshot_usage_restores_total{app=\"web\",provider=\"acme\"} 1",
            "appshot_usage_sent_bytes_total{app=\"web\",provider=\"acme\"} 2500000",
            "appshot_usage_instances{app=\"web\",provider=\"acme\"} 1",
            "appshot_usage_gaps_total 0",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
