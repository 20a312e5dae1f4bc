//! One clock for all processes of a run: CLOCK_MONOTONIC is the same in each.

use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Nanoseconds of CLOCK_MONOTONIC, comparable between processes.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC always exists");
    u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds of CLOCK_REALTIME: a restored app has a CLOCK_MONOTONIC of its own.
pub fn real_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).expect("CLOCK_REALTIME always exists");
    u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX)
}

/// The reading of CLOCK_REALTIME at the time of one of [`now_ns`].
pub fn to_real_ns(monotonic_ns: u64) -> u64 {
    real_ns() - now_ns().saturating_sub(monotonic_ns)
}

/// Milliseconds between two readings of [`now_ns`].
pub fn millis_between(begin_ns: u64, end_ns: u64) -> f64 {
    end_ns.saturating_sub(begin_ns) as f64 / 1e6
}
