//! What an app has of the node's memory, and waiting for it.

use super::{Agent, Next, Order};
use crate::budget;
use crate::node::Room;
use crate::status::State;
use libsnap::error::Result;
use libsnap::store::{App, now_unix_ms};
use nodekit::reply::on_own_thread;
use nodekit::traces::{Place, Span, SpanKind};
use std::time::Instant;

/// All memory of one that was restored is there by then.
const FILLED_MS: u64 = 10_000;

impl Agent {
    /// Looks what its instances have of the node's memory. Answers what the first has.
    pub(super) async fn measure(&self) -> Option<u64> {
        let first = self.running_app().ok();
        let further = self.further.live.iter().map(|one| one.app.clone());
        let apps: Vec<App> = first.into_iter().chain(further).collect();
        let measured = on_own_thread(move || {
            let measured = apps.into_iter().filter_map(|app| Some((budget::of(&app)?, app)));
            Ok(measured.collect())
        });
        let measured: Vec<(u64, App)> = measured.await.unwrap_or_default();
        let filled_unix_ms = now_unix_ms().unwrap_or_default().saturating_sub(FILLED_MS);
        let first = measured.iter().find(|(_, app)| app.name == self.name());
        let first = first.map(|(bytes, _)| *bytes);
        for (bytes, app) in measured {
            let further = self.further.live.iter().find(|one| one.app.name == app.name);
            let charge = further.map_or(self.charge.as_ref(), |one| Some(&one.charge));
            let Some(charge) = charge else { continue };
            let filled = app.from.is_none() || app.started_unix_ms < filled_unix_ms;
            charge.set(if filled { bytes } else { bytes.max(charge.bytes()) });
        }
        self.node.relieve();
        first
    }

    /// Waits until there is room for it; what comes instead where it is told otherwise.
    pub(super) async fn room(&mut self, state: State, bytes: u64) -> Result<Option<Next>> {
        // What it had before is not in its own way.
        self.charge = None;
        let mut waits_since: Option<Instant> = None;
        let mut waits = Span::default();
        loop {
            if let Some(since) = waits_since.replace(Instant::now()) {
                // Told as it goes on: the guarantee of the app is credited by it.
                let waited_ns = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.demand.traffic.waited_ns.inc_by(waited_ns);
            }
            let why = match self.node.room(self.name(), self.name(), bytes)? {
                Room::Waits(why) => format!("waits {why}"),
                Room::There(charge) => {
                    self.charge = Some(charge);
                    self.meter().waits(false);
                    return Ok(None);
                }
            };
            self.meter().waits(true);
            if waits.place() == Place::default() {
                waits = self.span.place().begin(SpanKind::Internal, format_args!("room"));
            }
            self.turn(state, Some(why));
            let next = tokio::select! {
                () = self.node.budget.changed() => continue,
                order = self.orders.recv() => match order {
                    Some(Order::Remove) | None => Next::Remove,
                    Some(Order::Suspend) if state == State::Waking => {
                        self.suspended(true)?;
                        Next::Suspended
                    }
                    Some(Order::Scale(bounds)) => {
                        self.rescale(bounds)?;
                        continue;
                    }
                    Some(_) => continue,
                },
            };
            self.node.budget.give_up(self.name());
            self.meter().waits(false);
            return Ok(Some(next));
        }
    }
}
