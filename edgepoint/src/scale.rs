//! How many instances of an app there should be.
//!
//! ```text
//!   load ──mean over SHORT──> wanted now ──more than there are──> further ones at once
//!                                 └──most of it in the stable window──less──> some end
//! ```
//!
//! What comes in a burst is answered by the short window, and what went up so comes down
//! only when all of a stable window could do with less.
//!
//! A response-time limit does not tell how many it takes: there is one more as long as it is
//! passed, each time once the last change has shown. After a stable window in which answers took
//! less than half of it there are fewer: as many as would be in time, were each instance slower
//! by as much as there are fewer.

use crate::manifest::{Capacity, Instances};
use crate::proxy::traffic::Answers;
use crate::why::number;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Over this the load is averaged; one look after a quiet time decides alone.
const SHORT: Duration = Duration::from_millis(300);

/// What 95 of 100 answers took is looked at over this.
const RECENT: Duration = Duration::from_secs(2);
/// A change of the number of instances has to show for so long, and in so many answers.
const SHOWS: Duration = Duration::from_millis(500);
const SHOWS_ANSWERS: usize = 10;
/// Where there are to be fewer, answers may be expected to take so much of the limit.
const IN_TIME: f64 = 0.7;

/// How many it takes to answer in time.
#[derive(Debug, Default)]
struct Pace {
    wanted: usize,
    /// How many there were at the last look, and since when.
    count: Option<(usize, Instant)>,
    /// Since when answers took less than half of the limit, and what they took at most.
    easy: Option<(Instant, Duration)>,
}

impl Pace {
    /// Answers how many there should be.
    fn look(&mut self, now: Instant, answers: &Answers, limit: Duration, count: usize, stable: Duration) -> usize {
        let since = match self.count {
            Some((known, since)) if known == count => since,
            _ => now,
        };
        self.count = Some((count, since));
        let (given, took) = answers.since(since.max(now.checked_sub(RECENT).unwrap_or(since)));
        if took > limit && given >= SHOWS_ANSWERS && now - since >= SHOWS {
            self.wanted = count + 1;
        }
        if took * 2 > limit {
            self.easy = None;
        } else {
            let (began, most) = self.easy.get_or_insert((now, took));
            *most = took.max(*most);
            if now - *began >= stable {
                let share = most.as_secs_f64() / limit.mul_f64(IN_TIME).as_secs_f64();
                let fewer = self::count(number(count) * share).min(count.saturating_sub(1));
                self.wanted = self.wanted.min(fewer);
                self.easy = None;
            }
        }
        self.wanted
    }
}

#[derive(Debug, Default)]
pub struct Scale {
    pace: Pace,
    /// Connections, and requests.
    loads: VecDeque<(Instant, (usize, usize))>,
    /// Falling: whoever is followed by a larger one decides nothing any more.
    wanted: VecDeque<(Instant, usize)>,
    /// The first look: before a stable window has passed nothing is known of it.
    since: Option<Instant>,
}

/// What an app has to carry.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// Connections and requests.
    pub open: usize,
    /// Requests that an HTTP entry has for it, waiting or in flight.
    pub requests: usize,
    /// CPU time of all instances, in percent of one processor.
    pub share: f64,
    /// What an HTTP entry has had of it.
    pub answers: &'a Answers,
    /// Instances that there are, those that come included.
    pub count: usize,
}

/// How many instances there should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wanted {
    pub least: usize,
    pub most: usize,
    /// Connections and requests that were decided by: the mean of some looks.
    pub open: f64,
    pub requests: f64,
    /// What 95 of 100 answers took, in milliseconds.
    pub answered_ms: f64,
}

impl Scale {
    /// The app has come up: how many it took before says nothing.
    pub fn begin(&mut self) {
        self.pace = Pace::default();
    }

    pub fn look(
        &mut self,
        now: Instant,
        load: Load<'_>,
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
        let by_time = capacity.response_time.map_or(0, |limit| {
            self.pace.look(now, load.answers, limit.0, load.count, stable)
        });
        let recent = now.checked_sub(RECENT).unwrap_or(now);
        let answered = capacity.response_time.map(|_| load.answers.since(recent).1);
        let least = by_connections
            .max(by_requests)
            .max(by_cpu)
            .max(by_time)
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
            answered_ms: answered.map_or(0.0, |took| took.as_secs_f64() * 1e3),
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
            let answers = Answers::default();
            let load = Load {
                open,
                requests,
                share,
                answers: &answers,
                count: 1,
            };
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

    #[test]
    fn one_more_as_long_as_answers_take_too_long() {
        let (mut pace, begin, answers) = (Pace::default(), Instant::now(), Answers::default());
        let (limit, stable) = (Duration::from_millis(50), Duration::from_secs(10));
        let mut look = |millis: u64, count: usize| {
            pace.look(begin + Duration::from_millis(millis), &answers, limit, count, stable)
        };
        let give = |times: usize, millis: u64| (0..times).for_each(|_| answers.note(Duration::from_millis(millis)));
        assert_eq!(look(0, 1), 0);
        give(5, 80);
        assert_eq!(look(600, 1), 0, "five answers tell little");
        give(20, 80);
        assert_eq!(look(700, 1), 2);
        assert_eq!(look(800, 2), 2);
        assert_eq!(look(1400, 2), 2, "nothing was answered since");
        assert_eq!(look(12_000, 2), 0, "all of a stable window was easy: nobody came");
    }

    #[test]
    fn fewer_where_these_are_in_time() {
        let (mut pace, begin, answers) = (Pace::default(), Instant::now(), Answers::default());
        let (limit, stable) = (Duration::from_millis(100), Duration::from_secs(1));
        pace.wanted = 8;
        (0..20).for_each(|_| answers.note(Duration::from_millis(20)));
        let mut look = |millis: u64| pace.look(begin + Duration::from_millis(millis), &answers, limit, 8, stable);
        assert_eq!(look(0), 8);
        assert_eq!(look(900), 8);
        assert_eq!(look(1000), 3, "20 ms of 70 with 8: 2.3 of them");
    }

    #[test]
    fn what_95_of_100_answers_took() {
        let (answers, begin) = (Answers::default(), Instant::now());
        for millis in 1..=100 {
            answers.note(Duration::from_millis(millis));
        }
        assert_eq!(answers.since(begin), (100, Duration::from_millis(95)));
        assert_eq!(
            answers.since(Instant::now() + Duration::from_secs(1)),
            (0, Duration::ZERO)
        );
    }
}
