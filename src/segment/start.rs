//! What a log is made with: its sizes, and where it goes on.
//!
//! Floor 1. Plain values and bounds.
//!
//! Invariants
//! - a record of any size fits into a segment and into the buffer, with all that may come before it.

use crate::id::{SegmentNo, ShardNo};

use super::Sequence;
use super::format::{LogId, RECORD_BYTES_MAX, SEGMENT_HEADER_BYTES, SYNCED_BYTES};
use super::segments::SegmentState;

/// Smallest `segment_bytes`: a record of any size fits.
pub const SEGMENT_BYTES_MIN: u32 = 128 << 10;
/// Largest `segment_bytes`: offsets stay far from the end of a `u32`, footer included.
pub const SEGMENT_BYTES_MAX: u32 = 1 << 30;
/// Smallest `buffer_bytes`.
pub const BUFFER_BYTES_MIN: usize = 128 << 10;

const _: () = {
    let most = SEGMENT_HEADER_BYTES + SYNCED_BYTES + RECORD_BYTES_MAX;
    assert!(most <= SEGMENT_BYTES_MIN as usize && most <= BUFFER_BYTES_MIN);
};

/// Where a log goes on: the end of what was recovered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogStart {
    /// For the segment that is made next; a number not in use.
    pub next_segment: SegmentNo,
    /// The last record; 0 if there is none.
    pub last: Sequence,
    /// Its checksum; 0 if there is none.
    pub last_checksum: u32,
    /// Segments below this one hold bytes of objects and nothing else that counts; 0 if there are none.
    pub settled: SegmentNo,
    /// Segments that hold records, in order, all sealed. Of those below `settled` some may be missing.
    pub segments: Vec<SegmentState>,
    /// Files in which nothing is needed, as a record says: a crash kept them. The log removes them.
    pub dropped: Vec<SegmentNo>,
}

impl LogStart {
    /// The start of a new log.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            next_segment: SegmentNo(1),
            last: Sequence(0),
            last_checksum: 0,
            settled: SegmentNo(0),
            segments: Vec::new(),
            dropped: Vec::new(),
        }
    }
}

/// What a [`super::Log`] is made with.
#[derive(Clone, Copy, Debug)]
pub struct LogConfig {
    /// The shard.
    pub shard: ShardNo,
    /// The log's name, as recovered, or drawn for a new directory.
    pub log_id: LogId,
    /// Size of a segment without its footer, [`SEGMENT_BYTES_MIN`] to [`SEGMENT_BYTES_MAX`].
    pub segment_bytes: u32,
    /// Size of the append buffer, at least [`BUFFER_BYTES_MIN`].
    pub buffer_bytes: usize,
}
