//! What a collection asks of a log: accounts of its segments, and that some of them go.
//!
//! Floor 1, a part of the log. In order: [`Log::settle`] when everything that counts was said again
//! ([`Log::gaps`] included) and is on the device; then, whenever nothing in a settled segment is needed,
//! [`Log::drop_segment`], and when that record is on the device, [`Log::remove`].
//!
//! Invariants
//! - a record that drops a segment lies behind a header that settles it, so that whoever finds the segment
//!   missing finds that nothing else in it counts.
//! - a file is removed only when the record that drops its segment is on the device.
//! - after a failed sync nothing is removed.

use crate::id::SegmentNo;

use super::{Log, Spare};
use crate::segment::outcome::{Appended, LogError};
use crate::segment::record::Head;
#[cfg(test)]
use crate::segment::segments::LogTotals;
use crate::segment::segments::SegmentState;
use crate::segment::{Disk, IoRequest};

impl Log {
    /// Notes that objects in a segment are garbage now, or were moved: `dead_bytes` is the sum of their
    /// [`moved_bytes`](crate::segment::moved_bytes). O(log segments).
    pub fn garbage(&mut self, segment: SegmentNo, dead_bytes: u64) {
        if let Some(state) = self.segments.get_mut(segment) {
            state.dead_bytes += dead_bytes;
        }
    }

    /// Every segment with records, in order. Numbers that are missing were dropped.
    #[must_use]
    pub fn segments(&self) -> &[SegmentState] {
        self.segments.all()
    }

    /// A segment with records, if it was not removed. O(log segments).
    #[must_use]
    pub fn segment(&self, segment: SegmentNo) -> Option<&SegmentState> {
        self.segments.get(segment)
    }

    /// Sums over all segments. O(segments).
    #[cfg(test)]
    pub(crate) fn totals(&self) -> LogTotals {
        self.segments.totals()
    }

    /// Whether a segment can be begun now.
    #[must_use]
    pub fn can_roll(&self) -> bool {
        self.spare == Spare::Ready && self.rolled.is_none()
    }

    /// Number of the segment that is begun next.
    #[must_use]
    pub fn next_segment(&self) -> SegmentNo {
        self.next_segment
    }

    /// Segments below this one hold bytes of objects and nothing else that counts.
    #[must_use]
    pub fn settled(&self) -> SegmentNo {
        self.settled
    }

    /// What a round has to say again of segments that are gone: nothing else remembers that they may be
    /// missing once the segments are gone that say so now.
    pub fn gaps(&self) -> impl Iterator<Item = Head<'static>> {
        self.segments.gaps(self.settled)
    }

    /// From now on, headers say that segments below `first` hold bytes of objects and nothing else that
    /// counts. The caller has said again in `first` and later all that was said before, and all of that
    /// is on the device. Ends the active segment, so that everything behind this call is behind a header
    /// that says so. Nothing may wait for a flush.
    ///
    /// # Panics
    /// If something waits for a flush, `first` goes back or is not begun or next, or a record below it is
    /// not on the device.
    pub fn settle(&mut self, disk: &mut impl Disk, first: SegmentNo) {
        assert!(self.buffer.is_empty(), "settled with records unwritten");
        assert!(self.settled <= first && first <= self.next_segment);
        let below = self.segments.all().iter();
        let last = below.rev().find(|state| state.segment < first);
        assert!(
            last.is_none_or(|state| state.last <= self.synced),
            "settled before it was synced"
        );
        self.settled = first;
        self.end_segment(disk);
    }

    /// Whether [`Log::drop_segment`] may be called: the segment is settled and not dropped yet, and those
    /// before it end in footers.
    #[must_use]
    pub fn can_drop(&self, segment: SegmentNo) -> bool {
        let state = self.segments.get(segment);
        let there = state.is_some_and(|state| state.dropped.is_none());
        there && segment < self.settled && self.segments.is_sealed_below(segment)
    }

    /// Appends the record that a segment may be missing from now on: no object is located in it any more
    /// whose bytes are needed. When that record is on the device, [`Log::remove`] is due. After a failed
    /// flush the segment is there as before.
    ///
    /// # Errors
    /// [`LogError::NotReady`]; nothing happened then.
    ///
    /// # Panics
    /// Unless [`Log::can_drop`].
    pub fn drop_segment(&mut self, segment: SegmentNo) -> Result<Appended, LogError> {
        assert!(self.can_drop(segment), "segment {segment} can't be dropped");
        let head = self.segments.dropping(segment);
        self.append(&head.expect("a segment that can be dropped").into())
    }

    /// Forgets a segment and has its file removed;
    /// [`LogEvent::Removed`](crate::segment::LogEvent::Removed) says how that went. Where it failed the
    /// next start tries again.
    ///
    /// # Panics
    /// If the record that drops it is not on the device.
    pub fn remove(&mut self, disk: &mut impl Disk, segment: SegmentNo) {
        let state = self.segments.remove(segment);
        let by = state.and_then(|state| state.dropped);
        assert!(
            by.is_some_and(|by| by <= self.synced),
            "segment {segment} is removed before the log says so"
        );
        if self.read_only.is_none() {
            self.outbox.push_back(IoRequest::Remove { segment });
            self.send(disk);
        }
    }
}
