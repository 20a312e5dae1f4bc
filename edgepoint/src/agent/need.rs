//! What a running app is needed for, and whether it may sleep. Each condition is noted as it
//! is decided by: `appshot status --why` shows them.
//!
//! ```text
//!   requests, connections, work, holds, schedule, timers ── one does not hold ──> needed just now
//!       all hold, for as long as the idle time-out (or its schedule has dismissed it)
//!           └──> nothing else it has open, at this moment ──> it sleeps
//! ```

use super::Agent;
use super::running::Seen;
use crate::manifest::Keep;
use crate::scale::Wanted;
use crate::sockets::Sockets;
use crate::why::{Condition, Scaled, number};
use libsnap::error::{Kind, Result};
use libsnap::holds;
use libsnap::store::{App, now_unix_ms};
use std::time::Duration;

impl Agent {
    /// Why somebody needs it now, or has since it was looked at last.
    pub(super) async fn need(&mut self, seen: &mut Seen, open: usize, share: f64) -> Result<Option<String>> {
        let came = self.demand.traffic.needed_since(seen.traffic);
        seen.traffic = self.demand.traffic.seen();
        let connections = match self.manifest().idle.connections {
            Keep::Busy | Keep::Carried if open > 0 => match self.busy(&seen.app).await {
                Err(error) if error.kind == Kind::Refused => open,
                busy => busy?,
            },
            _ => open,
        };
        let mut why = None;
        if !self.why.note(Condition::none("requests", "since the last look", came)) {
            why = Some("requests came just now".to_owned());
        }
        if !self.note_connections(connections) {
            why = Some(format!("connections are open: {connections}"));
        }
        if why.is_some() {
            self.demand.needed();
        }
        if !self.why.note(Condition::at_most(
            "work",
            "% of a processor",
            share,
            self.manifest().idle.cpu,
        )) {
            why = Some(format!("it works: {share:.1} % of a processor"));
        }
        Ok(self.wants_to_be_awake(&seen.app).or(why))
    }

    /// Connections that it has accepted, or has to.
    fn note_connections(&self, count: usize) -> bool {
        let kind = self.manifest().idle.connections.name();
        self.why.note(Condition::none("connections", kind, count))
    }

    /// Those over which something is under way, and those that wait to be accepted.
    async fn busy(&self, app: &App) -> Result<usize> {
        let sockets = Sockets::aside(app).await?;
        let accepted = sockets.connections - sockets.made;
        let busy = accepted - (sockets.idle - sockets.made_idle);
        // Of those that the node counts, at the listeners that its manifest names.
        let ports: Vec<u16> = self
            .manifest()
            .listen
            .iter()
            .filter_map(|listen| Some(listen.tcp?.port()))
            .collect();
        let there = sockets.accepted_at.iter().filter(|port| ports.contains(port)).count();
        let waiting = self.demand.connections().saturating_sub(there);
        Ok((busy + waiting).max(self.demand.traffic.wanted()))
    }

    /// It holds itself awake, its owner wants it to be at this time, or it was woken for a timer.
    pub(super) fn wants_to_be_awake(&self, app: &App) -> Option<String> {
        let held = holds::of(app, self.manifest().idle.hold.0);
        let by = held.iter().take(HOLDERS_TOLD).cloned().collect::<Vec<_>>().join(", ");
        let detail = (!held.is_empty()).then(|| by.clone());
        let unheld = self
            .why
            .note(Condition::none("holds", "files", held.len()).detail(detail));
        let now = now_unix_ms().unwrap_or_default();
        let line = self.manifest().schedule.is_awake(now).map(str::to_owned);
        let spans = Condition::none("schedule", "spans", usize::from(line.is_some()));
        let unscheduled = self.why.note(spans.detail(line.clone()));
        // One that it slept for, and that is too near to sleep for again.
        let beyond = u64::try_from(self.manifest().idle.timers_beyond().as_millis()).unwrap_or(u64::MAX);
        let soon = now..=now.saturating_add(beyond);
        let timer = self.awaited.as_ref().filter(|due| soon.contains(&due.unix_ms));
        let detail = timer.map(|due| due.timer.clone());
        let due = Condition::none("timers", "due soon", usize::from(timer.is_some()));
        let untimed = self.why.note(due.detail(detail.clone()));
        match (unheld, unscheduled, untimed) {
            (false, ..) => Some(format!("it holds itself awake: {by}")),
            (_, false, _) => Some(format!("its schedule: {}", line.unwrap_or_default())),
            (.., false) => Some(format!("soon due: {}", detail.unwrap_or_default())),
            (true, true, true) => None,
        }
    }

    /// Whether nobody has needed it for long enough, and it need not be there in any case.
    pub(super) fn may_sleep(&self, seen: &mut Seen) -> bool {
        let now = now_unix_ms().unwrap_or_default();
        let due = self.manifest().schedule.sleeps(seen.scheduled_unix_ms);
        if due.is_some_and(|(at, _)| at <= now) {
            seen.dismissed = true;
        }
        seen.scheduled_unix_ms = now;
        let patience = match seen.dismissed {
            true => Duration::ZERO,
            false => self.patience(),
        };
        let quiet = seen.needed.elapsed().as_secs_f64();
        let detail = match (seen.dismissed, self.refusals) {
            (true, _) => Some("its schedule has it sleep".to_owned()),
            (_, 0) => None,
            (_, refused) => Some(format!("longer: its snapshot was refused {refused} times")),
        };
        let quiet = Condition::at_least("quiet", "s", quiet, patience.as_secs_f64()).detail(detail);
        let min = Condition::none("instances.min", "instances", self.manifest().instances.min);
        let further = Condition::none("further-instances", "instances", self.further.count());
        // Each is noted, whatever becomes of the others.
        let holds = [quiet, min, further].map(|condition| self.why.note(condition));
        holds == [true; 3]
    }

    /// What it has open at this moment and may not lose. This is looked at last: it takes a
    /// look at each of its descriptors.
    pub(super) async fn kept_awake(&self, app: &App) -> Result<Option<String>> {
        let sockets = match Sockets::aside(app).await {
            // What cannot be seen it may not lose.
            Err(error) if error.kind == Kind::Refused => return Ok(Some(error.to_string())),
            sockets => sockets?,
        };
        let (accepted, made) = self.kept(&sockets);
        let quiet = usize::try_from(self.demand.traffic.quiet_open.get()).unwrap_or(0);
        let accepted = accepted.saturating_sub(quiet);
        let kind = self.manifest().idle.made.name();
        let made_none = self.why.note(Condition::none("made-connections", kind, made));
        Ok(match (self.note_connections(accepted), made_none) {
            (false, _) => Some(format!("connections are open: {accepted}")),
            (_, false) => Some(format!("connections that it has made are open: {made}")),
            (true, true) => None,
        })
    }

    /// Connections that it may not lose: accepted ones, and those that it has made.
    pub(super) fn kept(&self, sockets: &Sockets) -> (usize, usize) {
        let idle = &self.manifest().idle;
        let of = |keep: Keep, all: usize, idle: usize| match keep {
            Keep::Open => all,
            Keep::Busy | Keep::Carried => all - idle,
        };
        let accepted = sockets.connections - sockets.made;
        (
            of(idle.connections, accepted, sockets.idle - sockets.made_idle),
            of(idle.made, sockets.made, sockets.made_idle),
        )
    }

    /// How many instances there should be, and by what.
    pub(super) fn tell_scale(&self, wanted: Wanted, share: f64, count: usize) {
        let (bounds, capacity) = (self.manifest().instances, &self.manifest().capacity);
        let all = number(count);
        let carried = [
            ("connections", "open", wanted.open, capacity.connections.map(number)),
            ("requests", "at once", wanted.requests, capacity.requests.map(f64::from)),
            ("work", "% of a processor", share, capacity.cpu),
        ];
        let carried = carried
            .into_iter()
            .filter_map(|(name, unit, value, each)| Some(Condition::at_most(name, unit, value, each? * all)));
        // However many there are, each answer is to come in time.
        let time = capacity.response_time.map(|limit| {
            let (value, limit) = (wanted.answered_ms, limit.0.as_secs_f64() * 1e3);
            Condition::at_most("response-time", "ms for 95 of 100", value, limit)
        });
        let carried = carried.chain(time);
        self.why.scaled(Scaled {
            count,
            least: wanted.least,
            most: wanted.most,
            min: bounds.min,
            max: bounds.max,
            carried: carried.collect(),
        });
    }
}

/// Names of so many holders are told.
const HOLDERS_TOLD: usize = 5;
