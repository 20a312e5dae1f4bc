//! How many instances of an app there should be.
//!
//! ```text
//!   load ──mean over SHORT──> wanted now ──more than there are──> further ones at once
//!                                 └──most of it in the stable window──less──> some end
//! ```
//!
//! What comes in a burst is answered by the short window, and what went up so comes down
//! only when all of a stable window could do with less.

use crate::manifest::{Capacity, Instances};
use crate::why::number;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Over this the load is averaged; one look after a quiet time decides alone.
const SHORT: Duration = Duration::from_millis(300);

#[derive(Debug, Default)]
pub struct Scale {
    /// Connections, and requests.
    loads: VecDeque<(Instant, (usize, usize))>,
    /// Falling: whoever is followed by a larger one decides nothing any more.
    wanted: VecDeque<(Instant, usize)>,
    /// The first look: before a stable window has passed nothing is known of it.
    since: Option<Instant>,
}

/// What an app has to carry.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Connections and requests.
    pub open: usize,
    /// Requests that an HTTP entry has for it, waiting or in flight.
    pub requests: usize,
    /// CPU time of all instances, in percent of one processor.
    pub share: f64,
}

/// How many instances there should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wanted {
    pub least: usize,
    pub most: usize,
    /// Connections and requests that were decided by: the mean of some looks.
    pub open: f64,
    pub requests: f64,
}

impl Scale {
    pub fn look(
        &mut self,
        now: Instant,
        load: Load,
        bounds: Instances,
        capacity: &Capacity,
        stable: Duration,
    ) -> Wanted {
        self.loads.push_back((now, (load.open, load.requests)));
        forget(&mut self.loads, now, SHORT);
        let looks = self.loads.len();
        let totals = self.loads.iter().map(|(_, load)| *load);
        let (open, requests) = totals.fold((0, 0), |sum, load| (sum.0 + load.0, sum.1 + load.1));
        let mean = |total: usize| number(total) / number(looks);
        let (mean_open, mean_requests) = (mean(open), mean(requests));
        let by = |total: usize, each: Option<usize>| each.map_or(0, |each| total.div_ceil(looks * each.max(1)));
        let by_requests = by(
            requests,
            capacity
                .requests
                .map(|each| usize::try_from(each).unwrap_or(usize::MAX)),
        );
        let by_connections = by(open, capacity.connections);
        let by_cpu = capacity.cpu.map_or(0, |each| count(load.share / each));
        let least = by_connections
            .max(by_requests)
            .max(by_cpu)
            .clamp(bounds.min.max(1), bounds.max);
        self.wanted.retain(|(_, wanted)| *wanted > least);
        self.wanted.push_back((now, least));
        forget(&mut self.wanted, now, stable);
        let known = now - *self.since.get_or_insert(now) >= stable;
        let most = self
            .wanted
            .front()
            .filter(|_| known)
            .map_or(bounds.max, |(_, most)| *most);
        Wanted {
            least,
            most,
            open: mean_open,
            requests: mean_requests,
        }
    }
}

fn forget<T>(window: &mut VecDeque<(Instant, T)>, now: Instant, length: Duration) {
    window.retain(|(at, _)| now - *at < length);
}

fn count(share: f64) -> usize {
    let whole = share.ceil().clamp(0.0, 1e6);
    // Between these it is a whole number.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let count = whole as usize;
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_up_at_once_and_down_in_time() {
        let (mut scale, begin) = (Scale::default(), Instant::now());
        let bounds = Instances { min: 0, max: 8 };
        let capacity = Capacity {
            connections: Some(10),
            cpu: Some(80.0),
            requests: Some(2),
            ..Capacity::default()
        };
        let mut look = |millis: u64, open: usize, share: f64| {
            let now = begin + Duration::from_millis(millis);
            let requests = if open == 42 { 10 } else { 0 };
            let load = Load { open, requests, share };
            let wanted = scale.look(now, load, bounds, &capacity, Duration::from_secs(2));
            (wanted.least, wanted.most)
        };
        assert_eq!(look(0, 0, 0.0), (1, 8), "what was before is not known");
        assert_eq!(look(1000, 10, 0.0), (1, 8), "as many as it may carry");
        assert_eq!(look(1100, 70, 0.0), (4, 8), "the mean of two looks");
        assert_eq!(look(1200, 70, 0.0), (5, 8));
        assert_eq!(look(1350, 70, 0.0), (7, 8));
        assert_eq!(look(1400, 0, 0.0), (5, 8));
        assert_eq!(look(2000, 0, 0.0), (1, 7), "the window remembers");
        assert_eq!(look(3340, 0, 0.0), (1, 7));
        assert_eq!(look(3380, 0, 0.0), (1, 5), "until what was wanted lies back");
        assert_eq!(look(4100, 0, 0.0), (1, 1));
        assert_eq!(look(5000, 0, 161.0), (3, 3), "work counts, too");
        assert_eq!(look(5500, 900, 0.0), (8, 8), "no more than there may be");
        assert_eq!(look(9000, 0, f64::NAN), (1, 1));
        assert_eq!(look(12_000, 42, 0.0), (5, 5), "requests are fewer and cost more");
    }
}
