//! What Prometheus may scrape (OpenMetrics): `GET /metrics`. Apps that sleep are there, too.

use crate::budget::Budget;
use crate::proxy::traffic::Families;
use crate::status::{Activation, State};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    app: String,
    provider: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    app: String,
    provider: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Memory {
    what: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct By {
    app: String,
    provider: String,
    cause: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Updates {
    app: String,
    provider: String,
    outcome: &'static str,
}

/// What became of a change of version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Updated,
    RolledBack,
    /// The one that served goes on.
    Failed,
    /// The new one could not be restored.
    FellBack,
}

impl Outcome {
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Updated => "updated",
            Outcome::RolledBack => "rolled-back",
            Outcome::Failed => "failed",
            Outcome::FellBack => "fell-back",
        }
    }
}

type Seconds = Family<By, Histogram, fn() -> Histogram>;

/// 0.1 ms, doubled up to 26 s.
pub fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(1e-4, 2.0, 19))
}

/// Of all apps of a node.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    state: Family<InState, Gauge>,
    instances: Family<Of, Gauge>,
    waits: Family<Of, Gauge>,
    memory: Family<Memory, Gauge>,
    up: Seconds,
    sleeps: Family<Of, Counter>,
    refused: Family<Of, Counter>,
    failures: Family<Of, Counter>,
    version: Family<Of, Gauge>,
    updates: Family<Updates, Counter>,
    pub traffic: Families,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::with_prefix("appshot");
        let state = Family::<InState, Gauge>::default();
        let (instances, waits, memory) = (Family::default(), Family::default(), Family::default());
        let up: Seconds = Family::new_with_constructor(seconds);
        let [sleeps, refused, failures] = [(); 3].map(|()| Family::<Of, Counter>::default());
        registry.register("app_state", "1 for the state that an app is in", state.clone());
        registry.register("app_instances", "Instances of an app that run", instances.clone());
        registry.register(
            "app_waits_for_memory",
            "1 while an app cannot be brought up, or grow, for want of memory on the node",
            waits.clone(),
        );
        registry.register_with_unit(
            "node_memory",
            "What all instances together may have (limit), and have with those in waiting (used)",
            Unit::Bytes,
            memory.clone(),
        );
        registry.register_with_unit(
            "activation",
            "From the decision to bring an app up until it runs",
            Unit::Seconds,
            up.clone(),
        );
        registry.register("sleeps", "Snapshots after which an app slept", sleeps.clone());
        registry.register(
            "sleeps_refused",
            "Snapshots that were refused: the app went on",
            refused.clone(),
        );
        registry.register(
            "failures",
            "Times that an app could not be brought up, or ended",
            failures.clone(),
        );
        let (version, updates) = (Family::default(), Family::<Updates, Counter>::default());
        registry.register("app_version", "Number of the version that serves", version.clone());
        registry.register("updates", "Changes of version, by what became of them", updates.clone());
        Metrics {
            version,
            updates,
            traffic: Families::register(&mut registry),
            registry,
            state,
            instances,
            waits,
            memory,
            up,
            sleeps,
            refused,
            failures,
        }
    }
}

/// Those of one app.
#[derive(Clone, Copy, Debug)]
pub struct Meter<'a> {
    pub metrics: &'a Metrics,
    pub app: &'a str,
    pub provider: &'a str,
}

impl Meter<'_> {
    fn of(self) -> Of {
        Of {
            app: self.app.to_owned(),
            provider: self.provider.to_owned(),
        }
    }

    fn in_state(self, state: State) -> InState {
        InState {
            app: self.app.to_owned(),
            provider: self.provider.to_owned(),
            state: state.name(),
        }
    }

    pub fn turn(self, from: State, to: State) {
        self.metrics.state.get_or_create(&self.in_state(from)).set(0);
        self.metrics.state.get_or_create(&self.in_state(to)).set(1);
    }

    pub fn came_up(self, activation: &Activation) {
        let by = By {
            app: self.app.to_owned(),
            provider: self.provider.to_owned(),
            cause: activation.cause.name(),
            kind: activation.kind.name(),
        };
        let seconds = activation.total_micros as f64 / 1e6;
        self.metrics.up.get_or_create(&by).observe(seconds);
    }

    pub fn slept(self) {
        self.metrics.sleeps.get_or_create(&self.of()).inc();
    }

    pub fn refused(self) {
        self.metrics.refused.get_or_create(&self.of()).inc();
    }

    pub fn failed(self) {
        self.metrics.failures.get_or_create(&self.of()).inc();
    }

    pub fn instances(self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.instances.get_or_create(&self.of()).set(count);
    }

    pub fn version(self, number: u32) {
        self.metrics.version.get_or_create(&self.of()).set(number.into());
    }

    pub fn waits(self, waits: bool) {
        self.metrics.waits.get_or_create(&self.of()).set(waits.into());
    }

    /// It is deployed no more.
    pub fn gone(self) {
        self.metrics.instances.remove(&self.of());
        self.metrics.waits.remove(&self.of());
        self.metrics.version.remove(&self.of());
        for state in State::ALL {
            self.metrics.state.remove(&self.in_state(state));
        }
    }
}

impl Metrics {
    pub fn updated(&self, app: &str, provider: &str, outcome: Outcome) {
        let labels = Updates {
            app: app.to_owned(),
            provider: provider.to_owned(),
            outcome: outcome.name(),
        };
        self.updates.get_or_create(&labels).inc();
    }

    pub fn text(&self, budget: &Budget) -> String {
        for (what, bytes) in [("limit", budget.limit()), ("used", budget.used())] {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            self.memory.get_or_create(&Memory { what }).set(bytes);
        }
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut text, &self.registry);
        text
    }
}

/// What [`Metrics::text`] is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
