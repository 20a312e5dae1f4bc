//! What `restored` keeps for who may come: it is charged as apps are, and given up first.

use crate::budget::{Budget, Charge};
use crate::node::Node;
use nodekit::reply::on_own_thread;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// It is charged under this name, which no app has.
const SPARES: &str = ".spares";
const LOOK: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub struct Spares {
    state: Mutex<State>,
    /// Held by who asks what is in waiting.
    looking: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    charge: Option<Charge>,
    /// What `restored` has not been told of yet.
    coming: u64,
}

impl Spares {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn looking(&self) -> MutexGuard<'_, ()> {
        self.looking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn charge(&mut self, budget: &Arc<Budget>) -> &Charge {
        self.charge.get_or_insert_with(|| budget.charge(SPARES, SPARES, 0))
    }
}

/// Something that `restored` is about to be told to have in waiting.
#[derive(Debug)]
pub struct Coming {
    spares: Arc<Spares>,
    bytes: u64,
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.spares.lock().coming -= self.bytes;
    }
}

impl Node {
    /// Has `restored` give up so much of what it keeps in waiting, where it has so much.
    /// Answers what is promised.
    pub fn give_up_spares(&self, missing: u64) -> u64 {
        let Some(bytes) = self.budget.could_yield(SPARES).map(|bytes| bytes.min(missing)) else {
            return 0;
        };
        if bytes == 0 {
            return 0;
        }
        self.budget.yields(SPARES, bytes);
        let this = self.clone();
        std::thread::spawn(move || {
            let given = this
                .restored
                .post::<Value>("/v1/memory/give-up", &json!({ "bytes": bytes }));
            let failed = given.is_err();
            this.look_at_spares();
            // What is given up goes in a moment; meanwhile apps are asked for the rest.
            this.budget.stays(SPARES, failed);
        });
        bytes
    }

    /// Whether there is room for so much more in waiting: it is charged with that until it is
    /// [there](Node::is_parked). What may be given up for an app never takes an app's room.
    pub fn spare(&self, bytes: u64) -> Option<Coming> {
        let asked = self.budget.could_yield(SPARES).is_none();
        if asked || self.budget.is_short() || self.budget.used() + bytes > self.budget.limit() {
            return None;
        }
        let mut spares = self.spares.lock();
        let charge = spares.charge(&self.budget);
        charge.set(charge.bytes() + bytes);
        spares.coming += bytes;
        drop(spares);
        let spares = Arc::clone(&self.spares);
        Some(Coming { spares, bytes })
    }

    /// `restored` tells of it from now on. What it comes to beyond what there is room for is given up
    /// before it is made.
    pub fn is_parked(&self, coming: Coming) {
        drop(coming);
        self.look_at_spares();
        self.relieve();
    }

    /// Charges what `restored` keeps in waiting.
    fn look_at_spares(&self) {
        // What was asked later is newer.
        let _looking = self.spares.looking();
        let held = self.restored.get::<BTreeMap<String, u64>>("/v1/memory");
        // Where it does not run it has nothing.
        let bytes: u64 = held.map_or(0, |held| held.values().sum());
        let mut spares = self.spares.lock();
        let coming = spares.coming;
        spares.charge(&self.budget).set(bytes + coming);
    }

    /// Looks at that again and again. Within a runtime.
    pub async fn follow_spares(self) {
        loop {
            let this = self.clone();
            let looked = on_own_thread(move || {
                this.look_at_spares();
                this.relieve();
                Ok(())
            });
            // A thread that cannot be had is had the next time.
            let _ = looked.await;
            tokio::time::sleep(LOOK).await;
        }
    }
}
