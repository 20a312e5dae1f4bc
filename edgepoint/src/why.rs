//! Why an app is awake or asleep, and has as many instances as it has: the very values that
//! were decided by, kept for who asks.

use crate::status::State;
use libsnap::store::now_unix_ms;
use serde::Serialize;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Something that has to hold before an app sleeps, or before it has no more instances.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Condition {
    pub name: &'static str,
    pub holds: bool,
    pub value: f64,
    pub limit: f64,
    pub unit: &'static str,
    /// Since when it holds, or does not.
    pub since_unix_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Condition {
    fn new(name: &'static str, unit: &'static str, (value, limit): (f64, f64), holds: bool) -> Condition {
        Condition {
            name,
            holds,
            value,
            limit,
            unit,
            since_unix_ms: now_unix_ms().unwrap_or_default(),
            detail: None,
        }
    }

    /// It holds where there is no more than that.
    pub fn at_most(name: &'static str, unit: &'static str, value: f64, limit: f64) -> Condition {
        Condition::new(name, unit, (value, limit), value <= limit)
    }

    /// There is none of it.
    pub fn none(name: &'static str, unit: &'static str, count: usize) -> Condition {
        Condition::at_most(name, unit, number(count), 0.0)
    }

    /// It holds where there is no less than that.
    pub fn at_least(name: &'static str, unit: &'static str, value: f64, limit: f64) -> Condition {
        Condition::new(name, unit, (value, limit), value >= limit)
    }

    #[must_use]
    pub fn detail(mut self, detail: Option<String>) -> Condition {
        self.detail = detail;
        self
    }
}

/// Counts of an app are far below what a double tells exactly.
#[allow(clippy::cast_precision_loss)]
pub fn number(count: usize) -> f64 {
    count as f64
}

/// How many instances there are, and should be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scaled {
    pub count: usize,
    /// More are made where there are fewer, and some end where there are more.
    pub least: usize,
    pub most: usize,
    pub min: usize,
    pub max: usize,
    /// What they have to carry, and what those there are may; only what the manifest bounds.
    pub carried: Vec<Condition>,
}

/// Something that would wake an app that sleeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Waker {
    pub cause: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_unix_ms: Option<u64>,
    pub detail: String,
}

/// Of one app; its agent writes it, and who asks reads it.
#[derive(Debug, Default)]
pub struct Why(Mutex<Kept>);

#[derive(Clone, Debug, Default)]
struct Kept {
    conditions: Vec<Condition>,
    scaled: Option<Scaled>,
    wakers: Vec<Waker>,
}

/// What is told.
#[derive(Clone, Debug, Serialize)]
pub struct Told {
    pub app: String,
    pub state: State,
    pub since_unix_ms: u64,
    pub why: Option<String>,
    /// All have to hold before it sleeps. Of an app that does not run: as they were last.
    pub conditions: Vec<Condition>,
    /// Where it may have several.
    pub instances: Option<Scaled>,
    /// What would wake it, as long as it sleeps.
    pub wakers: Vec<Waker>,
}

impl Why {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a condition; whether it holds.
    pub fn note(&self, mut condition: Condition) -> bool {
        let (mut kept, holds) = (self.lock(), condition.holds);
        match kept.conditions.iter_mut().find(|known| known.name == condition.name) {
            Some(known) => {
                if known.holds == holds {
                    condition.since_unix_ms = known.since_unix_ms;
                }
                *known = condition;
            }
            None => kept.conditions.push(condition),
        }
        holds
    }

    /// It runs from now on: nothing is known yet.
    pub fn begin(&self) {
        *self.lock() = Kept::default();
    }

    pub fn scaled(&self, mut scaled: Scaled) {
        let mut kept = self.lock();
        for new in &mut scaled.carried {
            let known = kept.scaled.iter().flat_map(|scaled| &scaled.carried);
            let mut same = known.filter(|known| (known.name, known.holds) == (new.name, new.holds));
            if let Some(known) = same.next() {
                new.since_unix_ms = known.since_unix_ms;
            }
        }
        kept.scaled = Some(scaled);
    }

    /// What would wake it; nothing where it does not sleep.
    pub fn wakers(&self, wakers: Vec<Waker>) {
        self.lock().wakers = wakers;
    }

    pub fn tell(&self, app: &str, (state, since_unix_ms): (State, u64), why: Option<String>) -> Told {
        let kept = self.lock().clone();
        Told {
            app: app.to_owned(),
            state,
            since_unix_ms,
            why,
            conditions: kept.conditions,
            instances: kept.scaled,
            wakers: kept.wakers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_when_it_holds() {
        let why = Why::default();
        let told = || why.tell("web", (State::Running, 0), None).conditions;
        let noted = |value: f64, since: u64| {
            let condition = Condition::at_most("work", "%", value, 2.0);
            why.note(Condition {
                since_unix_ms: since,
                ..condition
            })
        };
        assert!(!noted(3.0, 10));
        assert!(!noted(4.0, 20));
        assert_eq!((told()[0].since_unix_ms, told()[0].value), (10, 4.0));
        assert!(noted(2.0, 30));
        assert!(noted(0.0, 40));
        assert_eq!((told().len(), told()[0].since_unix_ms), (1, 30));
        assert!(
            !Condition::at_most("work", "%", f64::NAN, 2.0).holds,
            "what is not known does not hold"
        );
        why.begin();
        assert!(told().is_empty());
    }
}
