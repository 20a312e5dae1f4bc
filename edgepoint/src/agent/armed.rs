//! An app that sleeps with an instance parked: `restored` has been asked for that already, for
//! the moment in which somebody comes, and waits for it by itself. We hear of it afterwards.
//!
//! ```text
//!   asleep ── parked ──> armed ── somebody comes: it is up ──> running
//!      │                   │
//!      └─ somebody comes ──┴─ called off: a timer, an order, its memory is wanted ──> as ever
//! ```

use super::{Agent, Next, Occasion};
use crate::budget;
use crate::status::{Cause, State};
use libsnap::error::Result;
use libsnap::target::{Instance, Network};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nodekit::traces::{self, Place};
use serde::Deserialize;
use serde_json::{Value, json};
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::time::{Duration, Instant};

type Awaited<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// How far it is.
pub(super) enum Arming {
    /// Who comes is heard here.
    Not,
    /// The same; something is parked soon, or is not.
    Parking(Awaited<bool>),
    Armed(Armed),
}

pub(super) struct Armed {
    off: EventFd,
    answer: Awaited<Result<Instance>>,
}

/// What has come of it.
pub(super) enum Came {
    Parked(bool),
    /// It is up, or is not armed any more.
    Up(Result<Box<Instance>>),
}

impl Arming {
    /// Waits for what comes next.
    pub(super) async fn next(&mut self) -> Came {
        match self {
            Arming::Not => std::future::pending().await,
            Arming::Parking(parked) => Came::Parked(parked.await),
            Arming::Armed(armed) => Came::Up((&mut armed.answer).await.map(Box::new)),
        }
    }

    pub(super) fn is_armed(&self) -> bool {
        matches!(self, Arming::Armed(_))
    }

    /// It is not to come up by itself any more. Answers the instance that has.
    pub(super) async fn call_off(self) -> Option<Instance> {
        let Arming::Armed(armed) = self else { return None };
        // Nobody else writes to it.
        let _ = armed.off.write(1);
        armed.answer.await.ok()
    }
}

#[derive(Deserialize)]
struct Parked {
    ready: bool,
}

impl Agent {
    /// What instances of it are parked for.
    pub(super) fn likeness(&self) -> Value {
        json!({
            "appshot": self.name(),
            "network": Network::from(self.manifest().network),
            "as_itself": self.manifest().has_own_user(),
        })
    }

    /// Waits for what was asked to be parked, where it may come up without being asked for.
    pub(super) fn arming(&mut self) -> Arming {
        let Some(asked) = self.parking.take().filter(|_| self.may_be_armed()) else {
            return Arming::Not;
        };
        let (restored, mut request) = (self.node.restored.clone(), self.likeness());
        request["ready"] = json!(true);
        Arming::Parking(Box::pin(async move {
            let place = Place::default();
            asked.await.is_ok() && {
                let parked = restored.post_async::<Parked>("/v1/prepare", &request, &place).await;
                parked.is_ok_and(|parked| parked.ready)
            }
        }))
    }

    /// Where it is decided at that moment whether it may wake, or what it is to know, it may not;
    /// nor where the trace of who comes is to lead through it.
    fn may_be_armed(&self) -> bool {
        let manifest = self.manifest();
        let quota = self.node.quota(&manifest.provider);
        !self.deployment.versions.untried
            && manifest.secrets.is_empty()
            && quota.instances.is_none()
            && quota.memory.is_none()
            && !traces::wanted()
    }

    /// It comes up by itself from now on.
    pub(super) async fn arm(&mut self) -> Arming {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let off = EventFd::from_value_and_flags(0, flags);
        let (Ok(mut request), Ok(off)) = (self.request(Cause::Request).await, off) else {
            // Told when somebody comes.
            return Arming::Not;
        };
        // As it is now: that may have taken long.
        if !self.may_be_armed() {
            return Arming::Not;
        }
        request["when"] = request["sockets"].clone();
        request["unless"] = json!(off.as_fd().as_raw_fd());
        let restored = self.node.restored.clone();
        let answer = async move { restored.post_async("/v1/instances", &request, &Place::default()).await };
        Arming::Armed(Armed {
            off,
            answer: Box::pin(answer),
        })
    }

    /// It has come up by itself. What it is likely to have was charged while it was parked.
    pub(super) fn came_up_armed(&mut self, instance: Instance) -> Result<Next> {
        let took = Duration::from_micros(instance.total_micros);
        let began = Instant::now().checked_sub(took).unwrap_or_else(Instant::now);
        self.demand.needed();
        let bytes = self.deployment.memory_bytes.unwrap_or(budget::UNKNOWN_BYTES);
        self.charge = Some(self.node.budget.charge(self.name(), self.name(), bytes));
        self.turn(State::Waking, None);
        self.woken(Cause::Request, began, instance)
    }

    /// The same while something else was to come next.
    pub(super) fn nevertheless(&mut self, instance: Instance, next: Result<Next>) -> Result<Next> {
        let ran = self.came_up_armed(instance)?;
        match next {
            Ok(next @ (Next::Remove | Next::Switch)) => Ok(next),
            Ok(Next::Suspended) => {
                // Once it sleeps.
                self.suspended(false)?;
                Ok(Next::Sleep(Occasion::Operator))
            }
            _ => Ok(ran),
        }
    }
}
