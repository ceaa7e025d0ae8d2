//! The header of a segment file: which log, which place in it, and what was true when it was begun.
//!
//! Floor 1. Pure functions of bytes; the layout is in `FORMAT.md`.
//!
//! Invariants
//! - a header says `synced` and `settled` only of what was on the device when it was written, and a log
//!   takes neither back: both stay true whatever became of the records behind the header.

use crate::id::{SegmentNo, ShardNo};

use super::Sequence;
use super::format::{
    FORMAT_VERSION, FORMAT_VERSION_MIN, LogId, SEGMENT_HEADER_BYTES, checksum, u16_at, u32_at,
    u64_at,
};

const SEGMENT_MAGIC: [u8; 8] = *b"HELIOSEG";

/// The header of a segment file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// The byte layout of the file: [`FORMAT_VERSION`] in headers that are written.
    pub version: u32,
    /// The shard that wrote it.
    pub shard: ShardNo,
    /// Its place in the log.
    pub segment: SegmentNo,
    /// The log it belongs to.
    pub log_id: LogId,
    /// Sequence of its first record.
    pub first: Sequence,
    /// Rollbacks of the log before it was begun.
    pub take: u32,
    /// Checksum of the last record before it, 0 if there is none.
    pub previous: u32,
    /// Segments below this one hold bytes of objects and nothing else that counts; 0 if there are none.
    pub settled: SegmentNo,
    /// This record and all before it were on the device when the header was written.
    pub synced: Sequence,
}

/// Why 64 bytes are no header of a segment that can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadHeader {
    /// Another kind of file.
    #[error("the file does not begin with the magic of a segment")]
    Magic,
    /// The magic is right, the checksum is not.
    #[error("the header of the segment is damaged")]
    Checksum,
    /// Written by a newer program.
    #[error("format version {found} is newer than {FORMAT_VERSION}")]
    Newer {
        /// The version in the file.
        found: u32,
    },
}

impl SegmentHeader {
    /// The bytes at offset 0 of the file.
    #[must_use]
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.shard.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.segment.0.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.take.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.log_id.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.previous.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.settled.0.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.synced.0.to_le_bytes());
        let sum = checksum(0, &bytes[..60]);
        bytes[60..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The header's own checksum: seed of the first record and of the trailer.
    #[must_use]
    pub fn checksum(&self) -> u32 {
        u32_at(&self.encode(), 60)
    }

    /// Whether these bytes are a beginning of the magic and then zeros.
    #[must_use]
    pub fn is_torn_magic(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> bool {
        let written = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        written < SEGMENT_MAGIC.len() && bytes[..written] == SEGMENT_MAGIC[..written]
    }

    /// Reads a header. Magic, version and checksum keep their places in all versions.
    ///
    /// # Errors
    /// [`BadHeader`].
    pub fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Result<Self, BadHeader> {
        if bytes[..8] != SEGMENT_MAGIC {
            return Err(BadHeader::Magic);
        }
        if checksum(0, &bytes[..60]) != u32_at(bytes, 60) {
            return Err(BadHeader::Checksum);
        }
        let found = u32_at(bytes, 8);
        if !(FORMAT_VERSION_MIN..=FORMAT_VERSION).contains(&found) {
            return Err(BadHeader::Newer { found });
        }
        Ok(Self {
            version: found,
            shard: ShardNo(u16_at(bytes, 12)),
            segment: SegmentNo(u32_at(bytes, 16)),
            log_id: LogId(u64_at(bytes, 24)),
            first: Sequence(u64_at(bytes, 32)),
            take: u32_at(bytes, 20),
            previous: u32_at(bytes, 40),
            settled: SegmentNo(u32_at(bytes, 44)),
            synced: Sequence(u64_at(bytes, 48)),
        })
    }
}
