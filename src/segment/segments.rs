//! The segments of a log: how full each is, how much of it is garbage, which numbers are gone.
//!
//! Floor 1. Plain accounts, no I/O. A lookup costs log2(segments).
//!
//! Invariants
//! - numbers rise; one that is missing was dropped, and a record says so for as long as it is missing.
//! - `dead_bytes` counts in the same measure as `object_bytes` ([`moved_bytes`] of each object), and never
//!   exceeds it in a log whose every object is given up once.

use crate::id::SegmentNo;

use super::Sequence;
use super::record::{Head, Record};

/// What an object of so many stored bytes costs to be moved: the Object record that holds it.
#[must_use]
pub const fn moved_bytes(payload_bytes: u32) -> u64 {
    Record::put_bytes(0, payload_bytes as usize) as u64
}

/// How full a segment is, and how much of it is garbage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentState {
    /// The segment.
    pub segment: SegmentNo,
    /// Its first record.
    pub first: Sequence,
    /// Its last record; one less than `first` while it has none.
    pub last: Sequence,
    /// Where the last record ends.
    pub data_end: u32,
    /// Bytes of all records.
    pub record_bytes: u64,
    /// What the objects in it would cost to be moved, all of them: [`moved_bytes`] of each.
    pub object_bytes: u64,
    /// Of `object_bytes`, those of objects that nothing refers to any more, or that lie elsewhere now.
    pub dead_bytes: u64,
    /// Its footer is on the device.
    pub sealed: bool,
    /// The record that drops it; its file goes once that is on the device.
    pub dropped: Option<Sequence>,
}

impl SegmentState {
    /// What has to be moved before a segment can go that is settled: of the rest of its records nothing
    /// counts. Where it is not settled, that much of it is live at least.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.object_bytes.saturating_sub(self.dead_bytes)
    }
}

/// Sums over all segments.
#[cfg(test)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogTotals {
    /// Segments that hold records.
    pub segments: u32,
    /// Bytes of all records.
    pub record_bytes: u64,
    /// What all objects in them would cost to be moved.
    pub object_bytes: u64,
    /// Of these, bytes that nothing refers to any more.
    pub dead_bytes: u64,
}

/// Every segment of a log that has records, in order.
#[derive(Debug)]
pub(super) struct Segments(Vec<SegmentState>);

impl Segments {
    pub(super) fn new(states: Vec<SegmentState>) -> Self {
        Self(states)
    }

    pub(super) fn all(&self) -> &[SegmentState] {
        &self.0
    }

    /// Adds a segment that has no record yet.
    pub(super) fn begin(&mut self, segment: SegmentNo, first: Sequence, data_end: u32) {
        self.0.push(SegmentState {
            segment,
            first,
            last: Sequence(first.0 - 1),
            data_end,
            record_bytes: 0,
            object_bytes: 0,
            dead_bytes: 0,
            sealed: false,
            dropped: None,
        });
    }

    /// Takes back the segment that was begun last.
    pub(super) fn take_back(&mut self) {
        self.0.pop();
    }

    /// The segment that is appended to.
    pub(super) fn active_mut(&mut self) -> &mut SegmentState {
        let last = self.0.last_mut();
        last.expect("the active segment has its state")
    }

    fn find(&self, segment: SegmentNo) -> Result<usize, usize> {
        self.0.binary_search_by_key(&segment, |state| state.segment)
    }

    pub(super) fn get(&self, segment: SegmentNo) -> Option<&SegmentState> {
        self.0.get(self.find(segment).ok()?)
    }

    pub(super) fn get_mut(&mut self, segment: SegmentNo) -> Option<&mut SegmentState> {
        let at = self.find(segment).ok()?;
        self.0.get_mut(at)
    }

    pub(super) fn remove(&mut self, segment: SegmentNo) -> Option<SegmentState> {
        let at = self.find(segment).ok()?;
        Some(self.0.remove(at))
    }

    /// Whether all that were not dropped of those below `segment`, and the nearest of them, ends in a
    /// footer: what is behind a gap can't say where the segment before it ended.
    pub(super) fn is_sealed_below(&self, segment: SegmentNo) -> bool {
        let below = self.0[..self.find(segment).unwrap_or_else(|at| at)].iter();
        let nearest = below.rev().find(|state| state.dropped.is_none());
        nearest.is_none_or(|state| state.sealed)
    }

    /// The record that drops `segment`.
    pub(super) fn dropping(&self, segment: SegmentNo) -> Option<Head<'static>> {
        let state = self.get(segment)?;
        Some(Head::Dropped {
            first: segment,
            last: segment,
            from: state.first,
        })
    }

    /// Notes that the record of this sequence drops these segments.
    pub(super) fn drop_range(&mut self, first: SegmentNo, last: SegmentNo, by: Sequence) {
        let range = self.find(first).unwrap_or_else(|at| at);
        for state in &mut self.0[range..] {
            if state.segment > last {
                break;
            }
            state.dropped.get_or_insert(by);
        }
    }

    /// Takes back what records behind `flushed` dropped.
    pub(super) fn undrop(&mut self, flushed: Sequence) {
        for state in &mut self.0 {
            state.dropped.take_if(|by| *by > flushed);
        }
    }

    /// Numbers below `end` that are missing or dropped: the fewest records that say so.
    pub(super) fn gaps(&self, end: SegmentNo) -> impl Iterator<Item = Head<'static>> {
        let below = self.0.iter().filter(move |state| state.segment < end);
        let there = below.filter(|state| state.dropped.is_none());
        let there = there.map(|state| (state.segment, state.last));
        let ends = there.clone().map(|(segment, _)| segment).chain([end]);
        let starts = [(SegmentNo(0), Sequence(0))].into_iter().chain(there);
        let apart = starts
            .zip(ends)
            .filter(|((before, _), next)| before.0 + 1 < next.0);
        apart.map(|((before, last), next)| Head::Dropped {
            first: SegmentNo(before.0 + 1),
            last: SegmentNo(next.0 - 1),
            from: Sequence(last.0 + 1),
        })
    }

    #[cfg(test)]
    pub(super) fn totals(&self) -> LogTotals {
        let states = self.0.iter();
        states.fold(LogTotals::default(), |sum, state| LogTotals {
            segments: sum.segments + 1,
            record_bytes: sum.record_bytes + state.record_bytes,
            object_bytes: sum.object_bytes + state.object_bytes,
            dead_bytes: sum.dead_bytes + state.dead_bytes,
        })
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.0.capacity() * size_of::<SegmentState>()
    }
}
