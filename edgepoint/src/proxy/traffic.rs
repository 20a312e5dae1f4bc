//! What an app is asked for over HTTP, in numbers that anyone may read at any time: who
//! decides how many instances run, who meters, and Prometheus.

use super::receipt::KINDS;
use crate::metrics::seconds;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Of one app, since this daemon began. The counts only grow; clones are the same numbers.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// Requests that an instance has just now, upgraded connections among them.
    pub in_flight: Gauge,
    /// Those that wait until an instance may have them.
    pub queued: Gauge,
    /// That came, but for quiet ones.
    pub requests: Counter,
    /// Quiet ones that came.
    pub quiet: Counter,
    /// Connections to a running app for quiet ones, and those that are open.
    pub quiet_connections: Counter,
    pub quiet_open: Gauge,
    /// Connections that are kept for the next request.
    pub kept: Gauge,
    /// Turned away: the queue was full, or it took too long.
    pub turned_away: Counter,
    /// Answers that the app has given to the end, or until nobody wanted them.
    pub served: Counter,
    /// Of bodies, and of upgraded connections.
    pub bytes_in: Counter,
    pub bytes_out: Counter,
    /// Nanoseconds in which it was wanted and waited for the node's memory.
    pub waited_ns: Counter,
    /// How long answers took, where that decides about instances.
    pub answers: Answers,
    /// What is told of its answers.
    told: Arc<Answered>,
}

/// Of one app, by how it came up and by class of status, from the first such answer on.
#[derive(Debug, Default)]
struct Answered {
    seconds: [OnceLock<Histogram>; KINDS.len()],
    answers: [OnceLock<Counter>; CLASSES.len()],
}

/// So many answers are looked at, at most: the last ones.
const ANSWERS_MAX: usize = 4096;

/// When answers were given, and how long their clients had waited until they began.
#[derive(Clone, Debug, Default)]
pub struct Answers(Arc<Mutex<VecDeque<(Instant, Duration)>>>);

impl Answers {
    pub fn note(&self, took: Duration) {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() == ANSWERS_MAX {
            answers.pop_front();
        }
        answers.push_back((Instant::now(), took));
    }

    /// How many were given since then, and within what time 95 of 100 of them.
    pub fn since(&self, since: Instant) -> (usize, Duration) {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = answers.iter().rev().take_while(|(at, _)| *at >= since);
        let mut took: Vec<Duration> = recent.map(|(_, took)| *took).collect();
        drop(answers);
        if took.is_empty() {
            return (0, Duration::ZERO);
        }
        let at = (took.len() * 95).div_ceil(100) - 1;
        (took.len(), *took.select_nth_unstable(at).1)
    }
}

/// The same as told in JSON.
#[derive(Debug, Serialize)]
pub struct Told {
    pub app: String,
    pub in_flight: i64,
    pub queued: i64,
    pub requests: u64,
    pub quiet: u64,
    pub turned_away: u64,
    pub served: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub waited_ns: u64,
}

impl Traffic {
    pub fn tell(&self, app: &str) -> Told {
        Told {
            app: app.to_owned(),
            in_flight: self.in_flight.get(),
            queued: self.queued.get(),
            requests: self.requests.get(),
            quiet: self.quiet.get(),
            turned_away: self.turned_away.get(),
            served: self.served.get(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            waited_ns: self.waited_ns.get(),
        }
    }
}

/// One more as long as this lives.
#[derive(Debug)]
pub struct One(Gauge);

impl One {
    pub fn more(gauge: &Gauge) -> One {
        gauge.inc();
        One(gauge.clone())
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What was seen of an app's traffic at one moment, for who wants to know what has come since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    requests: u64,
    quiet_connections: u64,
}

impl Traffic {
    /// Requests that wait or are in flight.
    pub fn wanted(&self) -> usize {
        usize::try_from(self.in_flight.get() + self.queued.get()).unwrap_or(0)
    }

    /// Connections that nobody needs.
    pub fn unneeded(&self) -> usize {
        usize::try_from(self.quiet_open.get() + self.kept.get()).unwrap_or(0)
    }

    pub fn seen(&self) -> Seen {
        Seen {
            requests: self.requests.get(),
            quiet_connections: self.quiet_connections.get(),
        }
    }

    /// Requests that have needed the app since then, and those that do now.
    pub fn needed_since(&self, seen: Seen) -> usize {
        let came = self.requests.get().saturating_sub(seen.requests);
        usize::try_from(came)
            .unwrap_or(usize::MAX)
            .saturating_add(self.wanted())
    }

    /// Whether those who came to its sockets since then may all have been quiet.
    pub fn quiet_since(&self, seen: Seen) -> bool {
        self.quiet_connections.get() != seen.quiet_connections
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    app: String,
    provider: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct By {
    app: String,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct With {
    app: String,
    /// `2xx`
    status: &'static str,
}

/// The traffic of all apps, as it is scraped.
#[derive(Clone, Debug)]
pub struct Families {
    in_flight: Family<Of, Gauge>,
    queued: Family<Of, Gauge>,
    requests: Family<Of, Counter>,
    quiet: Family<Of, Counter>,
    turned_away: Family<Of, Counter>,
    served: Family<Of, Counter>,
    bytes_in: Family<Of, Counter>,
    bytes_out: Family<Of, Counter>,
    answers: Family<With, Counter>,
    seconds: Family<By, Histogram, fn() -> Histogram>,
}

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

impl Families {
    pub fn register(registry: &mut Registry) -> Families {
        let traffic = Families {
            in_flight: Family::default(),
            queued: Family::default(),
            requests: Family::default(),
            quiet: Family::default(),
            turned_away: Family::default(),
            served: Family::default(),
            bytes_in: Family::default(),
            bytes_out: Family::default(),
            answers: Family::default(),
            seconds: Family::new_with_constructor(seconds),
        };
        let gauges = [
            ("http_in_flight", "Requests that an app has", &traffic.in_flight),
            ("http_queued", "Requests that wait for an instance", &traffic.queued),
        ];
        for (name, help, family) in gauges {
            registry.register(name, help, family.clone());
        }
        let counters = [
            ("http_requests", "Requests that came for an app", &traffic.requests),
            ("http_quiet", "Quiet requests that came", &traffic.quiet),
            (
                "http_turned_away",
                "Requests for which there was no room in time",
                &traffic.turned_away,
            ),
            ("http_served", "Answers that an app has given", &traffic.served),
            ("http_bytes_in", "Bytes of bodies to an app", &traffic.bytes_in),
            ("http_bytes_out", "Bytes of bodies from an app", &traffic.bytes_out),
        ];
        for (name, help, family) in counters {
            registry.register(name, help, family.clone());
        }
        registry.register("http_answers", "Answers, by status", traffic.answers.clone());
        registry.register_with_unit(
            "http_first_byte",
            "From a request's head until its answer's, by how the app came up for it",
            Unit::Seconds,
            traffic.seconds.clone(),
        );
        traffic
    }

    /// The numbers of one app.
    pub fn of(&self, app: &str, provider: &str) -> Traffic {
        let of = of(app, provider);
        Traffic {
            in_flight: self.in_flight.get_or_create_owned(&of),
            queued: self.queued.get_or_create_owned(&of),
            requests: self.requests.get_or_create_owned(&of),
            quiet: self.quiet.get_or_create_owned(&of),
            quiet_connections: Counter::default(),
            quiet_open: Gauge::default(),
            kept: Gauge::default(),
            turned_away: self.turned_away.get_or_create_owned(&of),
            served: self.served.get_or_create_owned(&of),
            bytes_in: self.bytes_in.get_or_create_owned(&of),
            bytes_out: self.bytes_out.get_or_create_owned(&of),
            waited_ns: Counter::default(),
            answers: Answers::default(),
            told: Arc::default(),
        }
    }

    /// An answer of this app has begun.
    pub fn answered(&self, (app, traffic): (&str, &Traffic), status: u16, kind: &'static str, took: Duration) {
        let class = usize::from(status / 100).clamp(1, CLASSES.len()) - 1;
        let by = || By {
            app: app.to_owned(),
            kind,
        };
        let with = || With {
            app: app.to_owned(),
            status: CLASSES[class],
        };
        if let Some(at) = KINDS.iter().position(|known| *known == kind) {
            let seconds = traffic.told.seconds[at].get_or_init(|| self.seconds.get_or_create_owned(&by()));
            seconds.observe(took.as_secs_f64());
        }
        let answers = traffic.told.answers[class].get_or_init(|| self.answers.get_or_create_owned(&with()));
        answers.inc();
    }

    /// It is deployed no more.
    pub fn forget(&self, app: &str, provider: &str) {
        let of = of(app, provider);
        for family in [&self.in_flight, &self.queued] {
            family.remove(&of);
        }
        for family in [
            &self.requests,
            &self.quiet,
            &self.turned_away,
            &self.served,
            &self.bytes_in,
            &self.bytes_out,
        ] {
            family.remove(&of);
        }
        let app = app.to_owned();
        for status in CLASSES {
            self.answers.remove(&With {
                app: app.clone(),
                status,
            });
        }
        for kind in KINDS {
            self.seconds.remove(&By { app: app.clone(), kind });
        }
    }
}

fn of(app: &str, provider: &str) -> Of {
    Of {
        app: app.to_owned(),
        provider: provider.to_owned(),
    }
}
