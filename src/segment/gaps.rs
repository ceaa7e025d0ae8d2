//! Segments that are missing: which of them may be.
//!
//! Floor 1, a part of recovery. Pure functions of numbers and of what records say.
//!
//! Invariants
//! - a number without a file is accepted only if a record of the log says that its segment was dropped,
//!   and only below what the log settled. Every other one is an error: a segment that was lost is never
//!   passed over in silence.
//! - what was there just before a gap ends where the record says that it ended, since no header is left
//!   that continues it.

use crate::id::SegmentNo;

use super::Sequence;
use super::evidence::Found;
use super::record::Head;

/// Numbers without a file, before a segment that has one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Gap {
    pub(super) first: SegmentNo,
    pub(super) last: SegmentNo,
}

impl Gap {
    /// What is missing between these two, or before `next` where there is none before it.
    pub(super) fn between(before: Option<&Found>, next: &Found) -> Option<Self> {
        let before = before.map_or(0, |found| found.file.segment.0);
        let next = next.file.segment.0;
        (before.checked_add(1)? < next).then(|| Self {
            first: SegmentNo(before + 1),
            last: SegmentNo(next - 1),
        })
    }

    /// All of them, in order.
    pub(super) fn all(found: &[Found]) -> impl Iterator<Item = Self> {
        let before = std::iter::once(None).chain(found.iter().map(Some));
        let pairs = before.zip(found);
        pairs.filter_map(|(before, next)| Self::between(before, next))
    }
}

/// What a [`Head::Dropped`] says.
#[derive(Clone, Copy, Debug)]
struct Range {
    first: SegmentNo,
    last: SegmentNo,
    from: Sequence,
}

/// What all records of a log dropped.
#[derive(Default, Debug)]
pub(super) struct Dropped(Vec<Range>);

impl Dropped {
    pub(super) fn note(&mut self, head: &Head<'_>) {
        if let Head::Dropped { first, last, from } = *head {
            self.0.push(Range { first, last, from });
        }
    }

    /// The highest number that was dropped.
    pub(super) fn highest(&self) -> Option<SegmentNo> {
        self.0.iter().map(|range| range.last).max()
    }

    pub(super) fn contains(&self, segment: SegmentNo) -> bool {
        let mut ranges = self.0.iter();
        ranges.any(|range| range.first <= segment && segment <= range.last)
    }

    /// The first number of a gap that no record dropped.
    pub(super) fn not_in(&self, gap: Gap) -> Option<SegmentNo> {
        let mut next = u64::from(gap.first.0);
        let mut ranges = self.0.clone();
        ranges.sort_unstable_by_key(|range| range.first);
        for range in ranges {
            if u64::from(range.first.0) <= next {
                next = next.max(u64::from(range.last.0) + 1);
            }
        }
        let next = u32::try_from(next).ok()?;
        (next <= gap.last.0).then_some(SegmentNo(next))
    }

    /// The record that the first segment of a gap began with, if the records before it do not end just
    /// below: `next` would continue them. Of one that a wider range covers nothing is asked but what that
    /// range says, as the segment just before it was dropped too.
    pub(super) fn breaks_off(&self, gap: Gap, next: Sequence) -> Option<Sequence> {
        let covers = |range: &&Range| range.first <= gap.first && gap.first <= range.last;
        let good = |range: &Range| match range.first == gap.first {
            true => range.from == next,
            false => range.from <= next,
        };
        let ranges = || self.0.iter().filter(covers);
        match ranges().any(good) {
            true => None,
            false => ranges().map(|range| range.from).max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped(ranges: &[(u32, u32, u64)]) -> Dropped {
        let mut dropped = Dropped::default();
        for &(first, last, from) in ranges {
            dropped.note(&Head::Dropped {
                first: SegmentNo(first),
                last: SegmentNo(last),
                from: Sequence(from),
            });
        }
        dropped
    }

    fn gap(first: u32, last: u32) -> Gap {
        Gap {
            first: SegmentNo(first),
            last: SegmentNo(last),
        }
    }

    #[test]
    fn a_gap_is_covered_by_any_ranges_together() {
        let ranges = dropped(&[(7, 9, 70), (2, 3, 20), (4, 4, 40), (3, 5, 30)]);
        let not_in = |first, last| ranges.not_in(gap(first, last)).map(|no| no.0);
        assert_eq!(not_in(2, 5), None);
        assert_eq!(not_in(3, 3), None);
        assert_eq!(not_in(1, 3), Some(1));
        assert_eq!(not_in(2, 9), Some(6));
        assert_eq!(not_in(10, 10), Some(10));
        let all = dropped(&[(1, u32::MAX, 1)]);
        assert_eq!(all.not_in(gap(1, u32::MAX)), None);
        assert!(ranges.contains(SegmentNo(9)) && !ranges.contains(SegmentNo(6)));
        assert_eq!(ranges.highest(), Some(SegmentNo(9)));
    }

    #[test]
    fn what_comes_before_a_gap_ends_where_a_record_says() {
        let ranges = dropped(&[(4, 6, 40), (5, 5, 50), (9, 9, 90)]);
        let breaks_off = |first, next| {
            let from = ranges.breaks_off(gap(first, first), Sequence(next));
            from.map(|from| from.0)
        };
        assert_eq!(breaks_off(4, 40), None);
        assert_eq!(breaks_off(4, 39), Some(40));
        assert_eq!(breaks_off(4, 41), Some(40));
        // Segment 4 is there, dropped with the others or before them.
        assert_eq!(breaks_off(5, 50), None);
        assert_eq!(breaks_off(5, 45), None);
        assert_eq!(breaks_off(5, 39), Some(50));
        assert_eq!(breaks_off(9, 89), Some(90));
    }
}
