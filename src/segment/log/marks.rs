//! What a log tells of itself: how far it is, and what it holds.
//!
//! Floor 1, a part of the log. A few loads each; nothing here changes it.

use super::{Active, Log};
use crate::id::ShardNo;
use crate::segment::{DiskError, Sequence};

impl Log {
    /// The shard whose log it is.
    #[must_use]
    pub fn shard(&self) -> ShardNo {
        self.config.shard
    }

    /// The last record appended.
    #[must_use]
    pub fn last(&self) -> Sequence {
        self.last
    }

    /// Flushes that failed so far.
    #[cfg(test)]
    pub(crate) fn rollbacks(&self) -> u32 {
        self.take
    }

    /// The last record in the page cache: safe from the death of the process.
    #[must_use]
    pub fn flushed(&self) -> Sequence {
        self.flushed
    }

    /// The last record on the device, with all before it: safe from a power cut.
    #[must_use]
    pub fn synced(&self) -> Sequence {
        self.synced
    }

    /// Bytes that wait for a flush.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Bytes in the page cache that are not known to be on the device.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        self.unsynced
            .iter()
            .map(|entry| u64::from(entry.written_end - entry.synced_end))
            .sum()
    }

    /// Bytes of memory that the log holds: buffer and footers in the making.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let footer = |part: &Option<Active>| part.as_ref().map_or(0, |part| part.footer.capacity());
        self.buffer.capacity()
            + footer(&self.active)
            + footer(&self.rolled)
            + self.segments.memory_bytes()
    }

    /// The failed sync that made the log read-only.
    #[must_use]
    pub fn read_only(&self) -> Option<&DiskError> {
        self.read_only.as_ref()
    }
}
