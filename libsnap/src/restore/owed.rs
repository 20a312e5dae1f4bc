//! What of an address space is still to be put in place, and from where.
//!
//! Threads that unmap and move at the same time are told of in the order in which they
//! come to say so, which need not be that of what they did: a mapping may be told to
//! arrive where another one was whose end is told later (the kernel reuses such
//! addresses at once), and a move is told as that and, afterwards, as an unmapping of
//! where it was. But every end is told, and nothing arrives where something still is.
//! So what arrives waits until the end of what was there has been told.

use crate::image::{Place, Segment};
use crate::sys::memory::Span;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default)]
pub struct Owed {
    /// Runs of pages that are not there yet, by their first address.
    runs: BTreeMap<u64, Run>,
    /// What is mapped, whether owed or not, as far as told: ends by starts.
    mapped: BTreeMap<u64, u64>,
    /// What has arrived where something else still seems to be.
    arrived: Vec<Arrived>,
}

#[derive(Clone, Debug)]
struct Arrived {
    to: Span,
    runs: Vec<(Span, Place)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    end: u64,
    /// Of the first byte.
    place: Place,
}

impl Owed {
    /// The parts of `segments` that lie in `spans`; both ascend.
    pub fn new(segments: &[Segment], spans: &[Span]) -> Owed {
        let within = |segment: &&Segment| {
            let after = spans.partition_point(|span| span.end <= segment.vaddr);
            spans.get(after).is_some_and(|span| span.start <= segment.vaddr)
        };
        let run = |segment: &Segment| {
            let (end, place) = (segment.end(), segment.place());
            (segment.vaddr, Run { end, place })
        };
        Owed {
            runs: segments.iter().filter(within).map(run).collect(),
            mapped: spans.iter().map(|span| (span.start, span.end)).collect(),
            arrived: Vec::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.arrived.is_empty()
    }

    /// Whether it is not yet known what belongs to this address.
    pub fn is_uncertain(&self, address: u64) -> bool {
        let mut arrived = self.arrived.iter();
        arrived.any(|arrived| (arrived.to.start..arrived.to.end).contains(&address))
    }

    /// Whether anything waits for an end to be told.
    pub fn is_unsettled(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// What is mapped, as far as is known.
    pub fn mapped(&self) -> impl Iterator<Item = Span> {
        self.mapped.iter().map(|(start, end)| Span {
            start: *start,
            end: *end,
        })
    }

    /// The run from this address on, and where it is stored.
    pub fn at(&self, address: u64) -> Option<(Span, Place)> {
        let (start, run) = self.runs.range(..=address).next_back()?;
        (address < run.end).then(|| {
            let span = Span {
                start: address,
                end: run.end,
            };
            (span, run.place.ahead(address - start))
        })
    }

    /// The first run, and where it is stored.
    pub fn first(&self) -> Option<(Span, Place)> {
        let (start, run) = self.runs.first_key_value()?;
        let (start, end) = (*start, run.end);
        Some((Span { start, end }, run.place))
    }

    /// What is stored from `place` on is owed here, whatever was before.
    pub fn owe(&mut self, span: Span, place: Place) {
        self.remove(span);
        self.runs.insert(span.start, Run { end: span.end, place });
    }

    /// What of the span is owed, ascending.
    pub fn within(&self, span: Span) -> impl Iterator<Item = Span> {
        let before = self.runs.range(..span.start).next_back();
        let inside = self.runs.range(span.start..span.end);
        let both = before.into_iter().chain(inside).map(move |(start, run)| Span {
            start: (*start).max(span.start),
            end: run.end.min(span.end),
        });
        both.filter(|part| !part.is_empty())
    }

    /// Nothing is owed here any more.
    pub fn remove(&mut self, span: Span) {
        self.take(span);
        for arrived in &mut self.arrived {
            let runs = arrived.runs.drain(..).flat_map(|run| outside(run, span));
            arrived.runs = runs.collect();
        }
    }

    /// Memory was unmapped.
    pub fn unmap(&mut self, span: Span) {
        self.take(span);
        self.clear(span);
        let (waiting, landing) = std::mem::take(&mut self.arrived)
            .into_iter()
            .partition(|arrived| self.is_mapped(arrived.to));
        self.arrived = waiting;
        landing.into_iter().for_each(|arrived| self.land(arrived));
    }

    /// Memory was moved.
    pub fn shift(&mut self, from: u64, to: u64, len: u64) {
        let span = |start| Span {
            start,
            end: start + len,
        };
        let moved = self.take(span(from)).into_iter().map(|(gone, place)| {
            let start = to + (gone.start - from);
            let end = start + gone.len();
            (Span { start, end }, place)
        });
        let arrived = Arrived {
            to: span(to),
            runs: moved.collect(),
        };
        // Its end there will be told, if it does.
        self.mapped_at(span(from));
        match self.is_mapped(arrived.to) {
            true => self.arrived.push(arrived),
            false => self.land(arrived),
        }
    }

    /// All that was done before has been told: what has arrived is there.
    pub fn settle(&mut self) {
        for arrived in std::mem::take(&mut self.arrived) {
            self.take(arrived.to);
            self.land(arrived);
        }
    }

    fn land(&mut self, arrived: Arrived) {
        self.mapped_at(arrived.to);
        let runs = arrived.runs.into_iter();
        self.runs
            .extend(runs.map(|(Span { start, end }, place)| (start, Run { end, place })));
    }

    fn mapped_at(&mut self, span: Span) {
        self.clear(span);
        self.mapped.insert(span.start, span.end);
    }

    fn is_mapped(&self, span: Span) -> bool {
        let before = self.mapped.range(..span.end).next_back();
        before.is_some_and(|(_, end)| *end > span.start)
    }

    /// Nothing is mapped here.
    fn clear(&mut self, span: Span) {
        while let Some((start, end)) = self.mapped.range(..span.end).next_back().map(|(a, b)| (*a, *b)) {
            if end <= span.start {
                break;
            }
            self.mapped.remove(&start);
            if end > span.end {
                self.mapped.insert(span.end, end);
            }
            if start < span.start {
                self.mapped.insert(start, span.start);
            }
        }
    }

    /// Takes what is owed here out.
    fn take(&mut self, span: Span) -> Vec<(Span, Place)> {
        let mut taken = Vec::new();
        while let Some((start, run)) = self
            .runs
            .range(..span.end)
            .next_back()
            .map(|(start, run)| (*start, *run))
        {
            if run.end <= span.start {
                break;
            }
            self.runs.remove(&start);
            let own = Span { start, end: run.end };
            let gone = Span {
                start: start.max(span.start),
                end: run.end.min(span.end),
            };
            taken.push((gone, run.place.ahead(gone.start - start)));
            for (Span { start, end }, place) in outside((own, run.place), span) {
                self.runs.insert(start, Run { end, place });
            }
        }
        taken
    }
}

/// What of a run lies outside the span.
fn outside((run, place): (Span, Place), span: Span) -> impl Iterator<Item = (Span, Place)> {
    let before = Span {
        start: run.start,
        end: run.end.min(span.start),
    };
    let after = Span {
        start: run.start.max(span.end),
        end: run.end,
    };
    let parts = [before, after].into_iter().filter(|part| part.start < part.end);
    parts.map(move |part| (part, place.ahead(part.start - run.start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u64, end: u64) -> Span {
        Span { start, end }
    }

    fn segment(vaddr: u64, offset: u64, bytes: u64) -> Segment {
        Segment {
            vaddr,
            part: 0,
            offset,
            bytes,
        }
    }

    /// What is owed, byte by byte: address and offset.
    fn all(owed: &Owed) -> BTreeMap<u64, u64> {
        let runs = owed.runs.iter();
        runs.flat_map(|(start, run)| (*start..run.end).map(move |at| (at, run.place.offset + (at - start))))
            .collect()
    }

    /// Two pages, owed from 100 and 200 on.
    fn two() -> Owed {
        let segments = [(10, 100, 10), (40, 200, 10)].map(|(vaddr, offset, bytes)| segment(vaddr, offset, bytes));
        Owed::new(&segments, &[span(10, 20), span(40, 50)])
    }

    fn at(owed: &Owed, address: u64) -> Option<u64> {
        owed.at(address).map(|(_, place)| place.offset)
    }

    #[test]
    fn what_is_owed_again() {
        let mut owed = two();
        owed.remove(span(0, 100));
        owed.owe(span(12, 15), Place { part: 0, offset: 102 });
        owed.owe(span(14, 18), Place { part: 0, offset: 104 });
        assert_eq!(
            (at(&owed, 13), at(&owed, 14), at(&owed, 18)),
            (Some(103), Some(104), None)
        );
        assert_eq!(
            owed.within(span(13, 16)).collect::<Vec<_>>(),
            [span(13, 14), span(14, 16)]
        );
        assert_eq!(owed.within(span(18, 90)).count(), 0);
    }

    /// A: 10 to 70. B: 40 to where that was, told in between, or before.
    #[test]
    fn what_arrives_where_another_was() {
        let mut owed = two();
        owed.shift(10, 70, 10);
        owed.shift(40, 10, 10);
        assert!(owed.is_uncertain(15) && !owed.is_uncertain(75));
        owed.unmap(span(10, 20));
        assert_eq!((at(&owed, 70), at(&owed, 10)), (Some(100), Some(200)));
        owed.unmap(span(40, 50));
        assert_eq!(
            (at(&owed, 70), at(&owed, 10), at(&owed, 40)),
            (Some(100), Some(200), None)
        );

        let mut owed = two();
        owed.shift(40, 10, 10);
        owed.unmap(span(40, 50));
        owed.shift(10, 70, 10);
        owed.unmap(span(10, 20));
        assert_eq!(
            (at(&owed, 70), at(&owed, 10), at(&owed, 40)),
            (Some(100), Some(200), None)
        );
        assert!(!owed.is_unsettled());
    }

    /// A: unmaps 10. B: moves 40 there, told before. Then both are thrown away.
    #[test]
    fn what_ends_late() {
        let mut owed = two();
        owed.remove(span(10, 20));
        owed.shift(40, 10, 10);
        owed.remove(span(12, 13));
        owed.unmap(span(10, 20));
        assert_eq!(
            (at(&owed, 10), at(&owed, 12), at(&owed, 13)),
            (Some(200), None, Some(203))
        );
        owed.unmap(span(10, 20));
        assert!(owed.is_empty());
    }

    /// Nothing more is told (MREMAP_DONTUNMAP): it is there.
    #[test]
    fn what_settles() {
        let mut owed = two();
        owed.shift(40, 10, 10);
        owed.settle();
        assert_eq!((at(&owed, 10), at(&owed, 40)), (Some(200), None));
        assert!(!owed.is_unsettled());
    }

    /// Against a map of single bytes, over a storm of operations.
    #[test]
    fn equals_a_plain_map() {
        let segments =
            [(10, 100, 20), (40, 300, 30), (90, 200, 10)].map(|(vaddr, offset, bytes)| segment(vaddr, offset, bytes));
        let mut owed = Owed::new(&segments, &[span(0, 35), span(80, 100)]);
        let mut plain: BTreeMap<u64, u64> = (10..30).map(|at| (at, at + 90)).collect();
        plain.extend((90..100).map(|at| (at, at + 110)));
        assert_eq!(all(&owed), plain);
        let mut seed = 1u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        for round in 0..2000 {
            let (from, to, len) = (next(150), next(150), 1 + next(12));
            if round % 200 == 0 {
                owed = Owed::new(&segments, &[span(0, 200)]);
                plain = all(&owed);
            }
            match next(2) {
                0 => {
                    owed.remove(span(from, from + len));
                    plain.retain(|at, _| !(from..from + len).contains(at));
                }
                _ if from.abs_diff(to) >= len => {
                    // As the kernel tells mremap(2) with MREMAP_FIXED.
                    owed.unmap(span(to, to + len));
                    owed.shift(from, to, len);
                    owed.unmap(span(from, from + len));
                    let moved: Vec<_> = plain
                        .range(from..from + len)
                        .map(|(at, o)| (at - from + to, *o))
                        .collect();
                    plain.retain(|at, _| !(from..from + len).contains(at) && !(to..to + len).contains(at));
                    plain.extend(moved);
                }
                _ => {}
            }
            assert_eq!(all(&owed), plain, "round {round}");
            assert_eq!(at(&owed, from), plain.get(&from).copied());
        }
    }
}
