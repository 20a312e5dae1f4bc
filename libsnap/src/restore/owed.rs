//! What of an address space is still to be put in place, and from where.

use crate::image::Segment;
use crate::sys::memory::Span;
use std::collections::BTreeMap;

/// Runs of pages that are not there yet, by their first address.
#[derive(Clone, Debug, Default)]
pub struct Owed(BTreeMap<u64, Run>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    end: u64,
    /// Of the first byte, in the core file.
    offset: u64,
}

impl Owed {
    /// The parts of `segments` that lie in `spans`; both ascend.
    pub fn new(segments: &[Segment], spans: &[Span]) -> Owed {
        let within = |segment: &&Segment| {
            let after = spans.partition_point(|span| span.end <= segment.vaddr);
            spans.get(after).is_some_and(|span| span.start <= segment.vaddr)
        };
        let run = |segment: &Segment| {
            let end = segment.vaddr + segment.bytes;
            let offset = segment.offset;
            (segment.vaddr, Run { end, offset })
        };
        Owed(segments.iter().filter(within).map(run).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The run from this address on, and where it is stored.
    pub fn at(&self, address: u64) -> Option<(Span, u64)> {
        let (start, run) = self.0.range(..=address).next_back()?;
        (address < run.end).then(|| {
            let span = Span {
                start: address,
                end: run.end,
            };
            (span, run.offset + (address - start))
        })
    }

    /// The first run, and where it is stored.
    pub fn first(&self) -> Option<(Span, u64)> {
        let (start, run) = self.0.first_key_value()?;
        let (start, end) = (*start, run.end);
        Some((Span { start, end }, run.offset))
    }

    /// Nothing is owed here any more. Answers what was.
    pub fn remove(&mut self, span: Span) -> Vec<(Span, u64)> {
        let mut removed = Vec::new();
        while let Some((start, run)) = self.0.range(..span.end).next_back().map(|(start, run)| (*start, *run)) {
            if run.end <= span.start {
                break;
            }
            self.0.remove(&start);
            let gone = Span {
                start: start.max(span.start),
                end: run.end.min(span.end),
            };
            removed.push((gone, run.offset + (gone.start - start)));
            if run.end > span.end {
                let offset = run.offset + (span.end - start);
                self.0.insert(span.end, Run { end: run.end, offset });
            }
            if start < span.start {
                self.0.insert(
                    start,
                    Run {
                        end: span.start,
                        offset: run.offset,
                    },
                );
            }
        }
        removed
    }

    /// Memory was moved, over whatever was there.
    pub fn shift(&mut self, from: u64, to: u64, len: u64) {
        let span = |start| Span {
            start,
            end: start + len,
        };
        let moved = self.remove(span(from));
        self.remove(span(to));
        for (gone, offset) in moved {
            let start = to + (gone.start - from);
            let end = start + gone.len();
            self.0.insert(start, Run { end, offset });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u64, end: u64) -> Span {
        Span { start, end }
    }

    /// What is owed, byte by byte: address and offset.
    fn all(owed: &Owed) -> BTreeMap<u64, u64> {
        let runs = owed.0.iter();
        runs.flat_map(|(start, run)| (*start..run.end).map(move |at| (at, run.offset + (at - start))))
            .collect()
    }

    /// Against a map of single bytes, over a storm of operations.
    #[test]
    fn equals_a_plain_map() {
        let segments = [(10, 100, 20), (40, 300, 30), (90, 200, 10)].map(|(vaddr, offset, bytes)| Segment {
            vaddr,
            offset,
            bytes,
        });
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
                    owed.shift(from, to, len);
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
            let at = owed.at(from).map(|(_, offset)| offset);
            assert_eq!(at, plain.get(&from).copied());
        }
    }
}
