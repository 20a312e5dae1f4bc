//! A running app: until nobody needs it, with as many instances as are needed.

use super::versions::LEAVE_MAX;
use super::{Agent, Next, Occasion, Order};
use crate::bell::{Bell, readable};
use crate::budget;
use crate::proxy::traffic;
use crate::scale::Load;
use crate::status::{Cause, Kind, State};
use crate::versions::cannot_update;
use crate::work::Work;
use libsnap::error::{OrFail, Result};
use libsnap::store::{App, now_unix_ms};
use nodekit::process;
use std::time::{Duration, Instant};

/// How often a running app is looked at, at most.
const LOOK: Duration = Duration::from_secs(1);
/// And one that may need further instances, as long as somebody is connected.
const LOOK_BUSY: Duration = Duration::from_millis(100);
/// How often its memory is.
const MEASURE: Duration = Duration::from_secs(5);
/// An app that ran for so long has not failed just now.
const STEADY: Duration = Duration::from_secs(10);

/// What was seen of it.
pub(super) struct Seen {
    pub(super) app: App,
    work: Work,
    /// When somebody needed it last.
    pub(super) needed: Instant,
    measured: Option<Instant>,
    /// When its records were looked at, and instances that nobody needs.
    counted: Option<Instant>,
    last: Instant,
    next: Instant,
    /// It is to be suspended once its further instances are gone.
    leaving: bool,
    pub(super) traffic: traffic::Seen,
    /// Until when its schedule was looked at, and whether that has it sleep as soon as it can.
    pub(super) scheduled_unix_ms: u64,
    pub(super) dismissed: bool,
}

impl Seen {
    fn of(app: App, traffic: traffic::Seen) -> Seen {
        let now = Instant::now();
        Seen {
            work: Work::of(&app),
            app,
            needed: now,
            measured: None,
            counted: None,
            last: now,
            next: now,
            leaving: false,
            traffic,
            scheduled_unix_ms: now_unix_ms().unwrap_or_default(),
            dismissed: false,
        }
    }
}

impl Agent {
    fn scales(&self) -> bool {
        self.manifest().instances.max > 1 || self.further.count() > 0
    }

    pub(super) async fn watch(&mut self, why: Option<String>) -> Result<Next> {
        self.turn(State::Running, why);
        self.release()?;
        let Ok(app) = self.running_app() else {
            return self.ended().await;
        };
        let Ok(child) = process::open_child(&app) else {
            return self.ended().await;
        };
        let child = readable(child).or_fail(|| "cannot watch the app")?;
        if self.charge.is_none() {
            // It was there before.
            self.charge = Some(self.node.budget.charge(self.name(), self.name(), 0));
        }
        let bell = Bell::new(&self.sockets)?;
        let (mut seen, mut armed) = (Seen::of(app, self.demand.traffic.seen()), false);
        loop {
            tokio::select! {
                _ = child.readable() => return self.ended().await,
                order = self.orders.recv() => match order {
                    Some(Order::Suspend) if self.further.count() == 0 => return Ok(Next::Sleep(Occasion::Operator)),
                    Some(Order::Suspend) => {
                        self.further.hurry();
                        (seen.leaving, seen.next) = (true, Instant::now());
                    }
                    Some(Order::Resume) => seen.leaving = self.switching.is_some(),
                    Some(Order::Scale(bounds)) => {
                        self.rescale(bounds)?;
                        seen.next = Instant::now();
                    }
                    Some(Order::Yield) => if let Some(next) = self.give_way(&seen).await? {
                        return Ok(next);
                    },
                    Some(Order::Remove) | None => return Ok(Next::Remove),
                },
                Some(switch) = self.switches.recv() => {
                    self.switching = Some(switch);
                    if self.further.count() == 0 {
                        return Ok(Next::Switch);
                    }
                    self.further.hurry();
                    (seen.leaving, seen.next) = (true, Instant::now());
                }
                rung = bell.rung(), if armed => {
                    rung?;
                    armed = false;
                    if !self.demand.traffic.quiet_since(seen.traffic) {
                        seen.needed = Instant::now();
                        self.demand.needed();
                        self.because("somebody came just now".to_owned());
                    }
                    if self.scales() {
                        seen.next = seen.next.min(seen.last + LOOK_BUSY);
                    }
                }
                came = self.further.next() => match came {
                    Ok(came) => {
                        self.activation(came.span, Cause::ScaleOut, Kind::Cloned, came.began, came.instance.phases);
                        self.status.send_modify(|status| status.counts.clones += 1);
                        self.show();
                    }
                    Err(error) => {
                        tracing::warn!(app = self.name(), %error, "no further instance");
                        self.meter().failed();
                        self.status.send_modify(|status| status.counts.failures += 1);
                        self.because(error.to_string());
                        self.show();
                    }
                },
                () = tokio::time::sleep_until(seen.next.into()) => {
                    if let Some(next) = self.look(&mut seen).await? {
                        return Ok(next);
                    }
                    if !armed {
                        bell.arm(&self.sockets)?;
                        armed = true;
                    }
                }
            }
        }
    }

    async fn look(&mut self, seen: &mut Seen) -> Result<Option<Next>> {
        let idle = self.manifest().idle.clone();
        let usual = LOOK.min(idle.timeout.0 / 4);
        if self.running.elapsed() > STEADY {
            self.failures = 0;
        }
        let open = self.load().await;
        let share = seen.work.share(&seen.app, usual);
        let mut why = self.need(seen, open, share).await?;
        if why.is_some() {
            seen.needed = Instant::now();
        }
        if seen.measured.is_none_or(|at| at.elapsed() > MEASURE) {
            seen.measured = Some(Instant::now());
            self.measure().await;
        }
        if self.scales() {
            let scaled = self.scale(seen, open, share, usual).await;
            // The app goes on whatever becomes of its further instances.
            why = scaled.unwrap_or_else(|error| Some(error.to_string())).or(why);
            self.meter().waits(self.further.waits());
            self.show();
        }
        if let Some(why) = why {
            self.because(why);
        }
        let busy = self.scales() && (open > 0 || self.further.count() > 0);
        seen.last = Instant::now();
        seen.next = seen.last + if busy { LOOK_BUSY } else { usual };
        if self.further.count() > 0 {
            if let Some(late) = self.switching.take_if(|switch| switch.since.elapsed() > LEAVE_MAX) {
                seen.leaving = false;
                let because = "further instances of it have connections that stay open";
                let _ = late.reply.send(Err(cannot_update(self.name(), because)));
            }
        } else if self.switching.is_some() {
            return Ok(Some(Next::Switch));
        } else if seen.leaving {
            return Ok(Some(Next::Sleep(Occasion::Operator)));
        }
        if !self.may_sleep(seen) {
            return Ok(None);
        }
        match self.kept_awake(&seen.app).await? {
            None => Ok(Some(Next::Sleep(Occasion::Idle))),
            Some(why) => {
                seen.needed = Instant::now();
                self.because(why);
                Ok(None)
            }
        }
    }

    /// Makes further instances, or ends some. Answers what stands in the way.
    async fn scale(&mut self, seen: &mut Seen, open: usize, share: f64, usual: Duration) -> Result<Option<String>> {
        let slow = seen.counted.is_none_or(|at| at.elapsed() >= usual);
        if slow {
            seen.counted = Some(Instant::now());
            self.further.look()?;
        }
        let further = self.further.live.iter_mut();
        let share = share + further.map(|one| one.work.share(&one.app, usual)).sum::<f64>();
        let (bounds, capacity) = (self.manifest().instances, self.manifest().capacity.clone());
        let stable = self.manifest().idle.timeout.0;
        let requests = self.demand.traffic.wanted();
        let count = 1 + self.further.count();
        let answers = &self.demand.traffic.answers;
        let load = Load {
            open,
            requests,
            share,
            answers,
            count,
        };
        let mut wanted = self.scale.look(Instant::now(), load, bounds, &capacity, stable);
        wanted.most = wanted.most.min(bounds.max);
        if seen.leaving {
            (wanted.least, wanted.most) = (1, 1);
        }
        self.tell_scale(wanted, share, count);
        if wanted.least > count {
            if self.appshot().is_none() && (open > 0 || !self.copy().await) {
                return Ok(Some(
                    "there is no appshot for further instances, as connections are open".to_owned(),
                ));
            }
            let bytes = self.likely_bytes();
            return self.further.grow(wanted.least - count, bytes, &self.sockets);
        }
        self.further.give_up();
        if wanted.most < count && slow {
            // What the HTTP entry keeps would hold them for ever.
            self.node.proxy.release(self.name(), false);
            return self.further.shrink(count - wanted.most, &self.sockets).await;
        }
        if open == 0 && slow {
            self.copy().await;
        }
        Ok(None)
    }

    /// What a further instance will have: as much as the others.
    fn likely_bytes(&self) -> u64 {
        let further = self.further.live.iter().map(|one| one.charge.bytes()).max();
        let bytes = further.or(self.charge.as_ref().map(crate::budget::Charge::bytes));
        bytes.filter(|bytes| *bytes > 0).unwrap_or(budget::UNKNOWN_BYTES)
    }

    /// Others need its memory.
    async fn give_way(&mut self, seen: &Seen) -> Result<Option<Next>> {
        let open = self.load().await;
        if open == 0 && self.further.count() > 0 {
            let all = self.further.count();
            self.further.shrink(all, &self.sockets).await?;
            self.show();
        }
        if open > 0 || self.further.count() > 0 || self.manifest().instances.min > 0 {
            self.node.budget.stays(self.name(), false);
            return Ok(None);
        }
        let wanted = self.wants_to_be_awake(&seen.app);
        let why = match wanted {
            Some(why) => Some(why),
            None => self.kept_awake(&seen.app).await?,
        };
        match why {
            None => Ok(Some(Next::Sleep(Occasion::Pressure))),
            Some(_) => {
                self.node.budget.stays(self.name(), true);
                Ok(None)
            }
        }
    }
}
