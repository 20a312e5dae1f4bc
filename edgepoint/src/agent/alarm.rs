//! What wakes an app that sleeps though nobody comes: one of its own timers, or its schedule.
//!
//! It is woken a little before a timer is due, so that it runs when it is. Its clocks then
//! tell that time went by in its sleep ([`libsnap::target::Time::Passes`]), whoever wakes it:
//! otherwise the timer would be as far away as when it fell asleep.

use super::Agent;
use crate::status::Cause;
use crate::why::Waker;
use libsnap::due::{self, Timers};
use libsnap::image::Appshot;
use libsnap::store::now_unix_ms;
use nodekit::reply::on_own_thread;
use std::future::Future;
use std::time::Duration;

/// It is to be up so long before a timer is due, beside what its last wake took, twice.
const EARLY: Duration = Duration::from_millis(50);
/// After that the time of day is looked at again: it may have been set.
const LOOK: Duration = Duration::from_secs(30);

impl Agent {
    /// Tells what would wake it, and comes back with the cause when it is time.
    pub(super) async fn alarm(&mut self) -> impl Future<Output = Cause> + use<> {
        self.due = self.earliest().await;
        let early = ms(EARLY + 2 * self.woken_in);
        let now = now_unix_ms().unwrap_or_default();
        let schedule = &self.manifest().schedule;
        let line = match schedule.is_awake(now) {
            Some(line) => Some((now, line.to_owned())),
            None => schedule.wakes(now),
        };
        let timer = self.due.as_ref().map(|due| (due.unix_ms.saturating_sub(early), due));
        let mut wakers = vec![Waker {
            cause: Cause::Request.name(),
            at_unix_ms: None,
            detail: format!("who connects to {}", self.status.borrow().listen.join(", ")),
        }];
        wakers.extend(timer.map(|(at, due)| Waker {
            cause: Cause::Timer.name(),
            at_unix_ms: Some(at),
            detail: due.timer.clone(),
        }));
        wakers.extend(line.as_ref().map(|(at, line)| Waker {
            cause: Cause::Schedule.name(),
            at_unix_ms: Some(*at),
            detail: line.clone(),
        }));
        self.why.wakers(wakers);
        let timer = timer.map(|(at, _)| (at, Cause::Timer));
        let line = line.map(|(at, _)| (at, Cause::Schedule));
        let first = timer.into_iter().chain(line).min_by_key(|(at, _)| *at);
        async move {
            match first {
                Some((at, cause)) => {
                    until(at).await;
                    cause
                }
                None => std::future::pending().await,
            }
        }
    }

    /// Of its timers; none where its appshot cannot be read: whoever wakes it will tell.
    async fn earliest(&self) -> Option<due::Due> {
        let (idle, path) = (&self.manifest().idle, self.appshot()?);
        let (timers, beyond) = (idle.timers, idle.timers_beyond());
        if timers == Timers::Off {
            return None;
        }
        let beyond_ns = u64::try_from(beyond.as_nanos()).unwrap_or(u64::MAX);
        let read = on_own_thread(move || {
            let shot = Appshot::open_unverified_memory(&path)?;
            Ok(due::earliest(&shot, timers, beyond_ns))
        });
        read.await.unwrap_or_else(|error| {
            tracing::warn!(app = self.name(), %error, "its timers cannot be read");
            None
        })
    }
}

async fn until(unix_ms: u64) {
    loop {
        let left = unix_ms.saturating_sub(now_unix_ms().unwrap_or_default());
        if left == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(left).min(LOOK)).await;
    }
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
