//! The activation receipt: how the app came up for a request, and where its time went. Every
//! answer carries it as `Server-Timing` (W3C), beside what the app says there itself.
//!
//! ```text
//! Server-Timing: appshot;desc="woken";dur=24.31, appshot-queue;dur=0.01,
//!   appshot-wake;dur=19.80, appshot-wake-memory;dur=4.10, ..., appshot-upstream;dur=4.50
//! ```

use super::App;
use crate::status::{Activation, State};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use std::fmt::{self, Write as _};
use std::time::{Duration, Instant};

/// `warm`: it ran. `cloned`: it waited, and a further instance came up meanwhile. `none`: no
/// app has answered.
pub const KINDS: [&str; 5] = ["warm", "woken", "started", "cloned", "none"];

/// An app may answer a moment before it is told that it runs.
const TOLD: Duration = Duration::from_millis(200);

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// What an app was like when a request came.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub began: Instant,
    pub running: bool,
    ups: u64,
    clones: u64,
    sleeps: u64,
}

#[derive(Clone, Debug)]
pub struct Receipt {
    pub kind: &'static str,
    began: Instant,
    pub total: Duration,
    queue: Duration,
    pub wake: Option<Activation>,
}

impl App {
    pub fn moment(&self, began: Instant) -> Moment {
        let status = self.status.borrow();
        Moment {
            began,
            running: status.state == State::Running,
            ups: status.counts.starts + status.counts.wakes,
            clones: status.counts.clones,
            sleeps: status.counts.sleeps,
        }
    }

    /// The receipt of a request that came at that moment and is being answered by the app.
    pub async fn receipt(&self, came: Moment, queue: Duration, waited: bool) -> Receipt {
        let (total, now) = (came.began.elapsed(), self.moment(came.began));
        let warm = came.running && came.sleeps == now.sleeps;
        let ran = match waited && now.clones > came.clones {
            true => "cloned",
            false => "warm",
        };
        let wake = match warm {
            true => None,
            false => self.activation_since(came).await,
        };
        let kind = wake.as_ref().map_or(ran, |wake| wake.kind.name());
        Receipt {
            kind,
            began: came.began,
            total,
            queue,
            wake,
        }
    }

    async fn activation_since(&self, came: Moment) -> Option<Activation> {
        let mut status = self.status.clone();
        let runs = status.wait_for(|status| status.state == State::Running);
        // In time or not.
        let _ = tokio::time::timeout(TOLD, runs).await;
        match self.moment(came.began).ups == came.ups {
            // The snapshot was given up: it has been there all the time.
            true => None,
            false => self.status.borrow().last.clone(),
        }
    }
}

impl Receipt {
    /// Of an answer that no app has given.
    pub fn of_none(began: Instant, queue: Duration) -> Receipt {
        Receipt {
            kind: "none",
            began,
            total: began.elapsed(),
            queue,
            wake: None,
        }
    }

    /// The time of the app itself: what is not waiting.
    fn upstream(&self) -> Duration {
        let woken = self.wake.as_ref().map_or(0, |wake| wake.total_micros);
        self.total
            .saturating_sub(self.queue)
            .saturating_sub(Duration::from_micros(woken))
    }

    fn text(&self) -> String {
        // Writing to a string does not fail.
        let mut text = String::with_capacity(TEXT_BYTES);
        let _ = write!(
            text,
            "appshot;desc=\"{}\";dur={}, appshot-queue;dur={}",
            self.kind,
            Millis::of(self.total),
            Millis::of(self.queue)
        );
        if let Some(wake) = &self.wake {
            let _ = write!(text, ", appshot-wake;dur={}", Millis(wake.total_micros));
            for phase in &wake.phases {
                let name: String = phase.name.chars().map(token).collect();
                let _ = write!(text, ", appshot-wake-{name};dur={}", Millis(phase.micros));
            }
        }
        if self.kind != "none" {
            let _ = write!(text, ", appshot-upstream;dur={}", Millis::of(self.upstream()));
        }
        text
    }

    pub fn put(&self, headers: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::try_from(self.text()) {
            headers.append(SERVER_TIMING, value);
        }
    }

    /// One line of the log, at a level that a busy app does not reach.
    pub fn tell(&self, app: &str, status: u16) {
        let (queue_us, total_us) = (self.queue.as_micros(), self.began.elapsed().as_micros());
        match &self.wake {
            Some(wake) => tracing::info!(
                app,
                kind = self.kind,
                status,
                queue_us,
                wake_us = wake.total_micros,
                phases = ?wake.phases.iter().map(|phase| (&*phase.name, phase.micros)).collect::<Vec<_>>(),
                total_us,
                "request"
            ),
            None => tracing::debug!(app, kind = self.kind, status, queue_us, total_us, "request"),
        }
    }
}

/// What a receipt of a warm answer takes, about.
const TEXT_BYTES: usize = 96;

/// Microseconds, told as milliseconds to the nearest hundredth.
struct Millis(u64);

impl Millis {
    fn of(duration: Duration) -> Millis {
        Millis(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hundredths = self.0.saturating_add(5) / 10;
        let digit = |value: u64| char::from_digit((value % 10) as u32, 10).unwrap_or('0');
        fmt::Display::fmt(&(hundredths / 100), f)?;
        f.write_char('.')?;
        f.write_char(digit(hundredths / 10))?;
        f.write_char(digit(hundredths))
    }
}

/// Names in the header are tokens.
fn token(c: char) -> char {
    match c.is_ascii_alphanumeric() {
        true => c.to_ascii_lowercase(),
        false => '-',
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Cause, Kind};
    use libsnap::target::Phase;
    use nodekit::traces::Place;

    #[test]
    fn it_is_added_to_what_the_app_says() {
        let began = Instant::now();
        let receipt = Receipt {
            kind: "woken",
            began,
            total: Duration::from_micros(24_310),
            queue: Duration::from_micros(10),
            wake: Some(Activation {
                cause: Cause::Request,
                kind: Kind::Woken,
                unix_ms: 0,
                total_micros: 19_800,
                phases: vec![Phase {
                    name: "Put back".to_owned(),
                    micros: 4100,
                }],
                trace_id: None,
                span: Place::default(),
                up: None,
            }),
        };
        let mut headers = HeaderMap::new();
        headers.insert(SERVER_TIMING, HeaderValue::from_static("db;dur=1"));
        receipt.put(&mut headers);
        let values: Vec<_> = headers.get_all(SERVER_TIMING).iter().collect();
        assert_eq!(values[0], "db;dur=1");
        assert_eq!(
            values[1],
            "appshot;desc=\"woken\";dur=24.31, appshot-queue;dur=0.01, appshot-wake;dur=19.80, \
             appshot-wake-put-back;dur=4.10, appshot-upstream;dur=4.50"
        );
        let none = Receipt::of_none(began, Duration::ZERO).text();
        assert!(!none.contains("upstream"), "{none}");
    }
}
