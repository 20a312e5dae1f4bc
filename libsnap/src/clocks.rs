//! The clocks, and the one instant to which all times of an appshot refer.
//!
//! ```text
//!    freeze T0             last timer read T1              restore
//!  ──────┼──────────────────────┼─────── ... ──────────────────┼──────> this machine
//!        │<────── stood ───────>│                              │
//!  ──────┼──────────────────────┼──────────────────────────────┼──────> the app's clocks
//!        0      time of a timer, counted from the freeze       T1
//! ```
//!
//! Clocks and timers go on while an app is frozen and looked at. Each timer is
//! read together with the clock, and noted by when it is due, counted from T0.
//! The clocks of the restored app go on from T1: to it, as to an original that
//! goes on running, this was a stop like any other. What fell due between T0 and
//! T1 falls due at once, with all its overruns, and nothing falls due early. CPU
//! time does not pass in a stop; timers on it just keep the time they have left.

use crate::image::records::Clocks;
use nix::time::{ClockId, clock_gettime};

const SECOND_NS: i64 = 1_000_000_000;
/// Three clocks read within this time were read at one instant.
const INSTANT_NS: i64 = 5_000;
const TRIES: usize = 20;

/// This machine's clocks at one instant, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub realtime_ns: i64,
    pub monotonic_ns: i64,
    pub boottime_ns: i64,
}

fn clock(id: ClockId) -> i64 {
    clock_gettime(id).map_or(0, |t| t.tv_sec() * SECOND_NS + t.tv_nsec())
}

/// CLOCK_MONOTONIC.
pub fn monotonic_ns() -> i64 {
    clock(ClockId::CLOCK_MONOTONIC)
}

/// CLOCK_BOOTTIME: goes on while the machine is suspended, and nobody sets it.
pub fn boottime_ns() -> u64 {
    u64::try_from(clock(ClockId::CLOCK_BOOTTIME)).unwrap_or_default()
}

impl Reading {
    pub fn now() -> Reading {
        let read = || {
            let begin = monotonic_ns();
            let reading = Reading {
                realtime_ns: clock(ClockId::CLOCK_REALTIME),
                monotonic_ns: begin,
                boottime_ns: clock(ClockId::CLOCK_BOOTTIME),
            };
            (monotonic_ns() - begin, reading)
        };
        // Whoever lost the processor in between tries again.
        let mut best = read();
        for _ in 0..TRIES {
            if best.0 <= INSTANT_NS {
                break;
            }
            best = std::cmp::min_by_key(best, read(), |(took, _)| *took);
        }
        best.1
    }

    fn back(self, ns: i64) -> Reading {
        Reading {
            realtime_ns: self.realtime_ns.saturating_sub(ns),
            monotonic_ns: self.monotonic_ns.saturating_sub(ns),
            boottime_ns: self.boottime_ns.saturating_sub(ns),
        }
    }
}

/// The time of a restored app on the clocks of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Timeline {
    /// What the app's clocks showed at the freeze.
    pub app: Clocks,
    /// What this machine's show where the app's show that.
    pub freeze: Reading,
}

impl Timeline {
    /// The app's clocks go on now.
    pub fn begin(app: Clocks) -> Timeline {
        let stood = i64::try_from(app.stood_ns).unwrap_or(i64::MAX);
        let freeze = Reading::now().back(stood);
        Timeline { app, freeze }
    }

    /// The app's clocks show what they would if it had run on: it slept, and time went by.
    /// What fell due meanwhile falls due at once. Where this machine's time of day is before
    /// that of the freeze nobody knows how much went by, and the clocks go on.
    pub fn passed(app: Clocks) -> Timeline {
        let slept = Reading::now().realtime_ns.saturating_sub(app.realtime_ns);
        let stood = i64::try_from(app.stood_ns).unwrap_or(i64::MAX);
        let freeze = Reading::now().back(slept.max(stood));
        Timeline { app, freeze }
    }

    /// Lines for `/proc/PID/timens_offsets` (time_namespaces(7)).
    pub fn offsets(&self) -> String {
        let line = |name: &str, app: i64, here: i64| {
            let offset = app.saturating_sub(here);
            let (seconds, ns) = (offset.div_euclid(SECOND_NS), offset.rem_euclid(SECOND_NS));
            format!("{name} {seconds} {ns}\n")
        };
        line("monotonic", self.app.monotonic_ns, self.freeze.monotonic_ns)
            + &line("boottime", self.app.boottime_ns, self.freeze.boottime_ns)
    }

    /// Since the freeze.
    pub fn passed_ns(&self) -> u64 {
        u64::try_from(monotonic_ns() - self.freeze.monotonic_ns).unwrap_or(0)
    }

    /// When a time counted from the freeze ends, on this machine's CLOCK_MONOTONIC.
    pub fn end_ns(&self, value_ns: u64) -> u64 {
        due(self.freeze.monotonic_ns, value_ns)
    }

    /// How much of a time counted from the freeze is left; at least 1 ns, as 0
    /// would mean none.
    pub fn left_ns(&self, value_ns: u64) -> u64 {
        let now = u64::try_from(monotonic_ns()).unwrap_or(0);
        self.end_ns(value_ns).saturating_sub(now).max(1)
    }
}

/// An instant on a clock, `value_ns` after `from_ns`, which may be before the clock began (an
/// app that slept for longer than this machine is up). A clock in the first
/// nanosecond of its life is not told from one that is not set.
pub fn due(from_ns: i64, value_ns: u64) -> u64 {
    u64::try_from(from_ns.saturating_add_unsigned(value_ns))
        .unwrap_or(0)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_before_the_clock_is_due_in_time() {
        assert_eq!(due(-36_000, 36_001), 1);
        assert_eq!(due(-36_000, 37_000), 1000);
        assert_eq!((due(-36_000, 7), due(5, 7), due(0, 0)), (1, 12, 1));
        assert_eq!(due(7, u64::MAX), i64::MAX as u64);
    }

    #[test]
    fn a_reading_is_of_one_instant() {
        let (a, b) = (Reading::now(), Reading::now());
        let boot = |r: Reading| r.boottime_ns - r.monotonic_ns;
        assert!((boot(a) - boot(b)).abs() < 1_000_000, "{a:?} {b:?}");
        assert!(b.monotonic_ns >= a.monotonic_ns);
    }

    #[test]
    fn the_app_goes_on_where_its_last_timer_was_read() {
        let app = Clocks {
            realtime_ns: 0,
            monotonic_ns: 7 * SECOND_NS,
            boottime_ns: 9 * SECOND_NS,
            stood_ns: 2 * SECOND_NS as u64,
        };
        let line = Timeline::begin(app);
        let passed = monotonic_ns() - line.freeze.monotonic_ns - 2 * SECOND_NS;
        assert!((0..SECOND_NS).contains(&passed), "{passed}");
        // Due one second after the freeze: past. Due in a minute: in less.
        assert_eq!(line.left_ns(SECOND_NS as u64), 1);
        let left = line.left_ns(60 * SECOND_NS as u64);
        assert!(left <= 58 * SECOND_NS as u64 && left > 50 * SECOND_NS as u64, "{left}");
        let slept = Clocks {
            realtime_ns: Reading::now().realtime_ns - 40 * SECOND_NS,
            ..app
        };
        let line = Timeline::passed(slept);
        let left = line.left_ns(60 * SECOND_NS as u64);
        assert!(left <= 20 * SECOND_NS as u64 && left > 10 * SECOND_NS as u64, "{left}");
        let ahead = Clocks {
            realtime_ns: i64::MAX,
            ..app
        };
        let left = Timeline::passed(ahead).left_ns(60 * SECOND_NS as u64);
        assert!(left <= 58 * SECOND_NS as u64 && left > 50 * SECOND_NS as u64, "{left}");
        let first = Timeline {
            app,
            freeze: Reading::default(),
        };
        assert_eq!(first.offsets(), "monotonic 7 0\nboottime 9 0\n");
    }
}
