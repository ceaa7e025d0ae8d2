//! The end of a collection: the log says which segments are gone, their files go, and what is known of what
//! was left behind in them.
//!
//! Floor 2. Each does a bounded part of that in one step.

use crate::id::SegmentNo;
use crate::segment::Disk;
use crate::shard::Shard;
use crate::shard::collect::{Phase, spend};
use crate::shard::store::{Refused, refused};

/// Segments that are said to be gone, or removed, in one step.
const SEGMENTS_PER_STEP: usize = 16;
/// What was left behind in segments: how much of it is looked at in one step.
const LEFT_PER_STEP: usize = 1024;
/// Of that, what counts like one thing that takes a few cache lines.
const LEFT_PER_UNIT: usize = 8;

/// Files that are going.
#[derive(Debug, Default)]
pub(super) struct Removal {
    /// So many segments, the first ones, were asked for.
    asked: usize,
    /// Of these, the I/O core did not answer for yet.
    left: Vec<SegmentNo>,
}

impl Removal {
    /// Whether everything that was asked for was answered.
    pub fn is_over(&self) -> bool {
        self.left.is_empty()
    }
}

impl<D: Disk> Shard<D> {
    /// Has the log say of some more emptied segments that they are gone; whether there are more. `said`: of so
    /// many, the first ones, it did.
    pub(super) fn say_dropped(&mut self, said: &mut usize) -> Result<bool, Refused> {
        let (store, collector) = (&mut self.store, &mut self.collector);
        let segments = &collector.moving.segments()[*said..];
        let mut outcome = Ok(());
        for &segment in segments.iter().take(SEGMENTS_PER_STEP) {
            let state = store.log.segment(segment);
            if state.is_some_and(|state| state.dropped.is_none()) {
                // The footer of the one before may still be on its way.
                outcome = match store.log.can_drop(segment) {
                    true => store.ready(0, false),
                    false => Err(Refused::Wait),
                };
                if outcome.is_ok() {
                    outcome = store.log.drop_segment(segment).map(|_| ()).map_err(refused);
                }
                if outcome.is_err() {
                    break;
                }
            }
            spend(1);
            *said += 1;
        }
        // What is said has to be there before the next step says more.
        self.flush_collection()?;
        outcome?;
        Ok(*said < self.collector.moving.segments().len())
    }

    /// Has some more files removed; whether there are more.
    pub(super) fn remove_segments(&mut self, removal: &mut Removal) -> bool {
        let (store, collector) = (&mut self.store, &mut self.collector);
        let segments = &collector.moving.segments()[removal.asked..];
        for &segment in segments.iter().take(SEGMENTS_PER_STEP) {
            let state = store.log.segment(segment);
            collector.so_far.bytes += state.map_or(0, |state| u64::from(state.data_end));
            store.log.remove(&mut store.disk, segment);
            removal.left.push(segment);
            removal.asked += 1;
            spend(1);
        }
        removal.asked < collector.moving.segments().len()
    }

    /// A file is gone, or stays until the next start.
    pub(in crate::shard) fn removed_by_collection(&mut self, segment: SegmentNo, good: bool) {
        let Phase::Removing(Removal { left, .. }) = &mut self.collector.phase else {
            return;
        };
        if let Some(at) = left.iter().position(|&other| other == segment) {
            left.swap_remove(at);
            self.collector.so_far.segments += u64::from(good);
        }
    }

    /// Forgets some more of what was left behind in the segments that are gone, from `next` on; whether there is
    /// more.
    pub(super) fn forget_removed(&mut self, next: &mut usize) -> bool {
        spend(LEFT_PER_STEP / LEFT_PER_UNIT);
        let gone = self.collector.moving.segments();
        let more = self.store.tables.forget_left(gone, *next, LEFT_PER_STEP);
        *next = more.unwrap_or_default();
        more.is_some()
    }
}
