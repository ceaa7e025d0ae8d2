//! The seam between a shard and its disk.
//!
//! Floor 1. A shard appends through [`Disk::write_at`] (page cache, never the device), reads what
//! is in memory through [`Disk::resident`], and hands everything that may wait for the device to
//! the I/O core as an [`IoRequest`], answered later by an [`IoReply`]. Two implementations: real
//! files (`io::ShardDisk`), and memory with faults in tests.
//!
//! Invariants
//! - requests of one kind for one segment are answered in the order in which they were submitted.
//! - every request is answered exactly once, and its buffer comes back whatever the outcome.
//! - a failed sync is final for that segment: it is never retried and called durable.

use crate::id::SegmentNo;

/// Counts a shard's records from 1; the order of its log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Sequence(pub u64);

/// Where bytes lie in a shard's segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Location {
    /// The segment file.
    pub segment: SegmentNo,
    /// First byte, from the start of the file.
    pub offset: u32,
    /// Bytes.
    pub bytes: u32,
}

/// What a disk could not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// No room on the file system, or over a quota.
    #[error("the disk of the data directory is full; free space and retry")]
    NoSpace,
    /// The system call failed.
    #[error("{call} of segment {segment} failed: {}", std::io::Error::from_raw_os_error(*errno))]
    Os {
        /// The system call.
        call: &'static str,
        /// The segment.
        segment: SegmentNo,
        /// The error number of the operating system.
        errno: i32,
    },
    /// The log was opened to be read, not written.
    #[error("the data directory was opened read-only")]
    ReadOnly,
    /// The file ended before the range did: somebody cut it.
    #[error("segment {segment} ends before byte {end}; restore it from a copy")]
    Short {
        /// The segment.
        segment: SegmentNo,
        /// Where the range would have ended.
        end: u64,
    },
}

impl DiskError {
    /// The error number of the operating system, 0 where there is none.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Os { errno, .. } => *errno,
            _ => 0,
        }
    }

    /// Whether bytes that were stored are not there any more: damage, and not a device that failed.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Short { .. })
    }

    /// Whether this process, or the machine, is out of descriptors: no fault of the disk, and gone once
    /// some are closed.
    #[must_use]
    pub fn is_short_of_descriptors(&self) -> bool {
        matches!(self.errno(), libc::EMFILE | libc::ENFILE)
    }
}

/// Work for the I/O core.
#[derive(Debug, PartialEq, Eq)]
#[cfg_attr(any(test, fuzzing), derive(Clone))]
#[non_exhaustive]
pub enum IoRequest {
    /// Make the file of a segment, preallocate `bytes`, make its name durable.
    Create {
        /// The segment; its number was never used before.
        segment: SegmentNo,
        /// Size to preallocate.
        bytes: u32,
    },
    /// fdatasync the segment; `upto` names the last record that was written before.
    Sync {
        /// The segment.
        segment: SegmentNo,
        /// Handed back in the reply.
        upto: Sequence,
    },
    /// Read a range that may be cold into `buffer` (its whole length).
    Read {
        /// Handed back in the reply.
        ticket: u64,
        /// The segment.
        segment: SegmentNo,
        /// First byte.
        offset: u32,
        /// Filled from `offset`.
        buffer: Vec<u8>,
    },
    /// fdatasync the records, write `footer` at `data_end`, fdatasync again, give the rest of the
    /// preallocation back.
    Seal {
        /// The segment.
        segment: SegmentNo,
        /// Where the last record ends.
        data_end: u32,
        /// The index footer.
        footer: Vec<u8>,
        /// The last record of the segment.
        upto: Sequence,
    },
    /// Close and delete the file of a sealed segment, once the reads of it that were submitted before
    /// are answered; make that durable.
    Remove {
        /// The segment. Nothing of it is asked for any more.
        segment: SegmentNo,
    },
}

/// The answer to an [`IoRequest`].
#[derive(Debug, PartialEq, Eq)]
#[cfg_attr(any(test, fuzzing), derive(Clone))]
#[non_exhaustive]
pub enum IoReply {
    /// The segment can be written and read, or could not be made (nothing is left of it then).
    Created {
        /// The segment.
        segment: SegmentNo,
        /// Outcome.
        result: Result<(), DiskError>,
    },
    /// Every record up to `upto` in this segment is on the device, if `result` is good.
    Synced {
        /// The segment.
        segment: SegmentNo,
        /// As in the request.
        upto: Sequence,
        /// Outcome.
        result: Result<(), DiskError>,
    },
    /// The buffer, filled if `result` is good.
    Read {
        /// As in the request.
        ticket: u64,
        /// The buffer of the request.
        buffer: Vec<u8>,
        /// Outcome.
        result: Result<(), DiskError>,
    },
    /// The segment is durable and indexed, if `result` is good.
    Sealed {
        /// The segment.
        segment: SegmentNo,
        /// As in the request; with a good result also a sync of everything up to it.
        upto: Sequence,
        /// Outcome.
        result: Result<(), DiskError>,
    },
    /// The file is gone, if `result` is good; else it may be there at the next start.
    Removed {
        /// The segment.
        segment: SegmentNo,
        /// Outcome.
        result: Result<(), DiskError>,
    },
}

/// A shard's files.
pub trait Disk {
    /// Writes into the page cache at `offset` of a segment that was created. All or an error;
    /// after an error any part may be in the file.
    fn write_at(&mut self, segment: SegmentNo, offset: u32, bytes: &[u8]) -> Result<(), DiskError>;

    /// The bytes of a range if they can be read without waiting for the device, else `None`: ask
    /// for them with [`IoRequest::Read`].
    fn resident(&mut self, at: Location) -> Option<&[u8]>;

    /// Hands work to the I/O core; gives it back when its queue is full.
    fn submit(&mut self, request: IoRequest) -> Result<(), IoRequest>;

    /// The next answer, if there is one.
    fn poll(&mut self) -> Option<IoReply>;
}
