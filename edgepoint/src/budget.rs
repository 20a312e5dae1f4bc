//! The memory of a node: what runs on it stays within it.
//!
//! ```text
//!   wake, start, further instance ──> is there room? ── yes ──> charged, until it ends or sleeps
//!                                          │ no
//!                                          └──> waits; idle apps are asked to sleep, the least
//!                                               valuable first, until who waits will fit
//! ```
//!
//! An instance is charged with what it has, and until that is known with what it is likely
//! to have. One that sleeps costs nothing.

use libsnap::error::{Error, Kind, Result};
use libsnap::proc::Fields;
use libsnap::store::App;
use libsnap::units;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// What one that was never seen is taken to have.
pub const UNKNOWN_BYTES: u64 = 16 << 20;
/// Left to the machine by default: a tenth of its memory, and no less than this.
const RESERVE_MIN: u64 = 256 << 20;
/// An app that could not sleep is not asked again before this.
const UNWILLING: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Budget {
    limit: u64,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// By app and instance.
    charged: BTreeMap<(String, String), u64>,
    /// Who waits, by instance.
    wanted: HashMap<String, u64>,
    /// Apps that were asked to sleep, and what they have.
    yielding: HashMap<String, u64>,
    unwilling: HashMap<String, Instant>,
}

impl State {
    fn used(&self) -> u64 {
        self.charged.values().sum()
    }
}

/// What an instance is charged with. Dropped, it is free for others.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    key: (String, String),
}

/// What some apps have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    pub instances: u64,
    pub memory: u64,
}

impl Use {
    fn of(charged: &BTreeMap<(String, String), u64>, counts: impl Fn(&(String, String)) -> bool) -> Use {
        let counted = charged.iter().filter(|(key, _)| counts(key));
        counted.fold(Use::default(), |sum, (_, bytes)| Use {
            instances: sum.instances + 1,
            memory: sum.memory + bytes,
        })
    }
}

impl Charge {
    pub fn set(&self, bytes: u64) {
        self.budget.lock().charged.insert(self.key.clone(), bytes);
        self.budget.changed.notify_waiters();
    }

    pub fn bytes(&self) -> u64 {
        self.budget.lock().charged.get(&self.key).copied().unwrap_or(0)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut state = self.budget.lock();
        state.charged.remove(&self.key);
        state.yielding.remove(&self.key.0);
        drop(state);
        self.budget.changed.notify_waiters();
    }
}

impl Budget {
    pub fn new(limit: u64) -> Arc<Budget> {
        Arc::new(Budget {
            limit,
            state: Mutex::default(),
            changed: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    /// Charges an instance that is there, fit or not.
    pub fn charge(self: &Arc<Self>, app: &str, instance: &str, bytes: u64) -> Charge {
        let key = (app.to_owned(), instance.to_owned());
        self.lock().charged.insert(key.clone(), bytes);
        Charge {
            budget: Arc::clone(self),
            key,
        }
    }

    /// What these apps have: instances, those that are to come included, and their memory.
    pub fn of(&self, apps: &BTreeSet<String>) -> Use {
        Use::of(&self.lock().charged, |(app, _)| apps.contains(app))
    }

    /// The same without this instance.
    pub fn beside(&self, apps: &BTreeSet<String>, instance: &str) -> Use {
        Use::of(&self.lock().charged, |(app, of)| apps.contains(app) && of != instance)
    }

    /// What of that is promised: they were asked to sleep.
    pub fn promised(&self, apps: &BTreeSet<String>) -> Use {
        let state = self.lock();
        Use::of(&state.charged, |(app, _)| {
            apps.contains(app) && state.yielding.contains_key(app)
        })
    }

    /// Charges an instance that is to come where it fits; otherwise it waits from now on,
    /// until it fits or [gives up](Budget::give_up).
    pub fn take(self: &Arc<Self>, app: &str, instance: &str, bytes: u64) -> Result<Option<Charge>> {
        if bytes > self.limit {
            return Err(Error::new(
                Kind::Unavailable,
                format!("there is no room for {instance} on this node"),
            )
            .because(format!(
                "it needs {}, and all apps together may have {}",
                units::bytes(bytes),
                units::bytes(self.limit)
            ))
            .fix("start edgepointd with more --memory"));
        }
        let mut state = self.lock();
        if state.used() + bytes > self.limit {
            state.wanted.insert(instance.to_owned(), bytes);
            return Ok(None);
        }
        state.wanted.remove(instance);
        drop(state);
        Ok(Some(self.charge(app, instance, bytes)))
    }

    /// It waits no more.
    pub fn give_up(&self, instance: &str) {
        self.lock().wanted.remove(instance);
    }

    /// What is missing for all who wait, or for who has grown, and was not promised yet.
    pub fn missing(&self) -> u64 {
        let state = self.lock();
        let wanted = state.used() + state.wanted.values().sum::<u64>();
        wanted.saturating_sub(self.limit + state.yielding.values().sum::<u64>())
    }

    /// Whether anybody waits for memory.
    pub fn is_short(&self) -> bool {
        !self.lock().wanted.is_empty()
    }

    /// What an app has, where it may be asked to sleep.
    pub fn could_yield(&self, app: &str) -> Option<u64> {
        let mut state = self.lock();
        state.unwilling.retain(|_, since| since.elapsed() < UNWILLING);
        if state.yielding.contains_key(app) || state.unwilling.contains_key(app) {
            return None;
        }
        let own = state.charged.iter().filter(|((of, _), _)| of == app);
        Some(own.map(|(_, bytes)| bytes).sum())
    }

    /// It was asked to sleep.
    pub fn yields(&self, app: &str, bytes: u64) {
        self.lock().yielding.insert(app.to_owned(), bytes);
    }

    /// It does not sleep, though it was asked: just now, or it cannot.
    pub fn stays(&self, app: &str, unwilling: bool) {
        let mut state = self.lock();
        if state.yielding.remove(app).is_some() && unwilling {
            state.unwilling.insert(app.to_owned(), Instant::now());
        }
    }

    /// Until something has changed, or might have.
    pub async fn changed(&self) {
        let _ = tokio::time::timeout(Duration::from_millis(100), self.changed.notified()).await;
    }

    /// For who waits: `it needs 9.0 MiB, and 38.1 MiB of 40.0 MiB are taken`
    pub fn told(&self, bytes: u64) -> String {
        format!(
            "it needs {}, and {} of {} are taken",
            units::bytes(bytes),
            units::bytes(self.used()),
            units::bytes(self.limit)
        )
    }
}

/// What apps may have by default: what is available now, with what they have already, less
/// a tenth of the machine's memory or 256 MiB.
pub fn by_default(had: u64) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let fields = Fields::new(text);
    let bytes = |key| u64::try_from(fields.number(key).unwrap_or(0)).unwrap_or(0) * 1024;
    let reserve = (bytes("MemTotal") / 10).max(RESERVE_MIN);
    (bytes("MemAvailable") + had).saturating_sub(reserve)
}

/// What an instance has now, where that is known.
pub fn of(app: &App) -> Option<u64> {
    libsnap::cgroup::usage(app.cgroup.as_deref()?).ok()?.memory_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_fit_waits() {
        let budget = Budget::new(100);
        let first = budget.take("a", "a", 60).unwrap().unwrap();
        assert!(budget.take("b", "b", 50).unwrap().is_none());
        assert!(budget.take("c", "c", 50).unwrap().is_none());
        assert_eq!(budget.missing(), 60, "for both");
        assert_eq!(budget.could_yield("a"), Some(60));
        budget.yields("a", 60);
        assert_eq!((budget.missing(), budget.could_yield("a")), (0, None));
        budget.stays("a", true);
        assert_eq!((budget.missing(), budget.could_yield("a")), (60, None));
        drop(first);
        let second = budget.take("b", "b", 50).unwrap().unwrap();
        assert_eq!(budget.missing(), 0);
        let _third = budget.take("c", "c", 50).unwrap().unwrap();
        second.set(80);
        assert_eq!((budget.used(), budget.missing()), (130, 30), "it has grown");
        assert!(budget.take("d", "d", 10).unwrap().is_none());
        budget.give_up("d");
        assert_eq!(budget.missing(), 30);
        assert_eq!(budget.take("e", "e", 101).unwrap_err().kind, Kind::Unavailable);
    }

    #[test]
    fn there_is_a_default() {
        assert!(by_default(1 << 40) > 1 << 39);
    }
}
