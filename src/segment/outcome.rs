//! What the calls of a [`super::Log`] come back with: answers, refusals, events, sums.
//!
//! Floor 1. Plain values, no behaviour.
//!
//! Invariants
//! - after a [`NotReady`] nothing has changed; after a [`LogError::Write`] everything is as it was
//!   after the last good flush.

use crate::id::SegmentNo;

use super::{DiskError, IoReply, Location, Sequence};

/// Why bytes can't be appended now.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotReady {
    /// The buffer is full (flush), or the next segment is still being made.
    #[error("the log waits for its disk")]
    Wait,
    /// The next segment can't be made; see [`super::Log::retry_create`].
    #[error("no new segment can be made: {0}")]
    Failed(DiskError),
    /// A sync failed: nothing is written until the next start.
    #[error("the log is read-only since a sync failed: {0}")]
    ReadOnly(DiskError),
}

/// Why a call had no effect, or took one back.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// Ask [`super::Log::ready`] first.
    #[error(transparent)]
    NotReady(#[from] NotReady),
    /// The write failed. Every record since the last good flush is dropped.
    #[error("{dropped} records were not written: {error}")]
    Write {
        /// What failed.
        error: DiskError,
        /// The last record that is still in the log.
        flushed: Sequence,
        /// Records dropped.
        dropped: u64,
    },
}

/// A record that was appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Its place in the log.
    pub sequence: Sequence,
    /// Its payload; 0 bytes long if it has none.
    pub payload: Location,
    /// Bytes it takes in its segment.
    pub record_bytes: u32,
}

/// Bytes of a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Read<'a> {
    /// In memory.
    Here(&'a [u8]),
    /// Perhaps not: ask for [`super::IoRequest::Read`].
    Cold,
}

/// What a reply meant.
#[derive(PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum LogEvent {
    /// Nothing to do.
    Nothing,
    /// Every record up to this one is on the device.
    Synced(Sequence),
    /// The next segment is there: what waited may be tried again.
    SpareReady,
    /// The next segment can't be made. Appends go on while the active one has room.
    CreateFailed(DiskError),
    /// The file of a dropped segment is gone, or stays until the next start.
    Removed {
        /// The segment.
        segment: SegmentNo,
        /// What the disk said.
        result: Result<(), DiskError>,
    },
    /// A sync failed; the log is read-only.
    ReadOnly(DiskError),
    /// The reply is not the log's.
    NotMine(IoReply),
}
